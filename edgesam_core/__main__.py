"""The command line: look at a result without Label Studio, make a bundle, fetch official weights.

    python -m edgesam_core segment photo.jpg --point 420,310 --out overlay.png
    python -m edgesam_core bundle mobile_sam.pt OUT_DIR
    python -m edgesam_core fetch edge_sam_3x

Whatever is wrong with the input ends as one sentence and exit status 2.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edgesam_core.bundle import Bundle, find_bundle
from edgesam_core.decode import Prompt
from edgesam_core.errors import EdgeSamError, ImageError, PromptError
from edgesam_core.image import read_image
from edgesam_core.manifest import PYRAMID_MODES
from edgesam_core.overlay import draw_overlay
from edgesam_core.segmenter import Segmenter

DESCRIPTION = "EdgeSAM for the click: look at a result, make a bundle, fetch official weights."
MODELS_DIR = Path(__file__).resolve().parent.parent / "models"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 when something has to be mended first."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("edgesam_core").setLevel(logging.INFO)
    try:
        options.run(options)
    except EdgeSamError as error:
        print(f"edgesam_core {options.command}: {error.sentence}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"edgesam_core {options.command}: stopped.", file=sys.stderr)
        return 130  # what a shell expects after Ctrl+C
    return 0


def segment(options: argparse.Namespace) -> None:
    """Answer one prompt on one image and draw the answer."""
    # The prompt first: a typing mistake should not wait for a model to load.
    prompt = Prompt.from_clicks(options.point, box_xyxy=options.box)
    image = read_image(_read_file(options.image))
    bundle = Bundle.open(find_bundle(options.model, options.models_dir))
    segmenter = Segmenter(bundle)

    started = time.perf_counter()
    embedding = segmenter.embed(image)
    encoded = time.perf_counter()
    (suggestion,) = segmenter.segment(embedding, [prompt])
    decoded = time.perf_counter()
    if suggestion.mask.area == 0:
        raise PromptError("The model sees no object there. Click on its middle, or draw a box.")

    picture = draw_overlay(image, suggestion.mask, prompt)
    try:
        picture.save(options.out)
    except (OSError, ValueError) as exc:  # ValueError: Pillow does not know the file's ending
        raise EdgeSamError(
            f"The picture {options.out.name} could not be written. "
            "Give a writable place and an ending such as .png or .jpg."
        ) from exc
    height, width = embedding.original_size_hw
    area = suggestion.mask.area
    print(f"model   {bundle.manifest.name} {bundle.manifest.version}")
    print(f"image   {width} x {height}")
    print(
        f"score   {suggestion.score:.3f} (stability {suggestion.stability_score:.3f}, "
        f"candidate {suggestion.candidate_index})"
    )
    print(f"area    {area} px, {100 * area / (width * height):.1f} % of the image")
    print(
        f"time    {1000 * (encoded - started):.0f} ms to encode the image, "
        f"{1000 * (decoded - encoded):.0f} ms for the click"
    )
    print(f"picture {options.out}")


def bundle(options: argparse.Namespace) -> None:
    """Turn a checkpoint into a bundle; needs PyTorch."""
    said = {"licence": options.licence, "origin": options.origin}
    try:
        from edgesam_core.export.write_bundle import write_bundle
        from edgesam_core.nn.checkpoint import read_checkpoint

        folder = write_bundle(
            read_checkpoint(options.checkpoint),
            options.out_dir,
            name=options.name or options.out_dir.name,
            input_size=options.input_size,
            upsample=options.upsample,
            overwrite=options.overwrite,
            half=False,  # exactly what the checkpoint says; size matters only inside the repository
            **{key: value for key, value in said.items() if value is not None},
        )
    except ModuleNotFoundError as exc:  # timm is imported only when the network is built
        raise EdgeSamError(
            f"Making a bundle needs the package {exc.name}. "
            "Install requirements-train.txt, into an environment of its own."
        ) from exc
    except OSError as exc:
        raise EdgeSamError(
            f"The folder {options.out_dir.name!r} could not be written: {exc.strerror}. "
            "Give a place that is writable and has room."
        ) from exc
    manifest = Bundle.open(folder).manifest
    print(f"{manifest.name} {manifest.version} lies in {folder}")


def fetch(options: argparse.Namespace) -> None:
    """Fetch official weights and make a bundle of them."""
    try:
        from edgesam_core.fetch import fetch as fetch_weights
    except ModuleNotFoundError as exc:
        raise EdgeSamError(
            f"Fetching weights needs the package {exc.name!r}. Install requirements.txt."
        ) from exc
    folder = fetch_weights(options.name, options.models_dir, accept_licence=options.accept_licence)
    manifest = Bundle.open(folder).manifest
    print(f"{manifest.name} {manifest.version} ({manifest.upsample}) lies in {folder}")
    print(manifest.origin)
    print(f"Serve it: make serve MODEL={options.name}")


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ImageError(f"The file {path.name} cannot be read: {exc.strerror}.") from exc


def _click(text: str) -> tuple[float, float, int]:
    """``x,y`` or ``x,y,label``: 1 for what belongs to the object, 0 for what does not."""
    numbers = text.split(",")
    try:
        x, y = float(numbers[0]), float(numbers[1])
        label = int(numbers[2]) if len(numbers) == 3 else 1
    except (ValueError, IndexError):
        label = -1
    if label not in (0, 1) or len(numbers) > 3:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no click: give x,y in pixels, or x,y,0 for what does not belong"
        )
    return x, y, label


def _box(text: str) -> tuple[float, ...]:
    """``x0,y0,x1,y1``, two opposite corners."""
    try:
        x0, y0, x1, y1 = (float(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no box: give x0,y0,x1,y1 in pixels"
        ) from None
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgesam_core", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("segment", help="a click on a photo becomes a picture of the mask")
    one.set_defaults(run=segment)
    one.add_argument("image", type=Path)
    one.add_argument(
        "--point",
        type=_click,
        action="append",
        default=[],
        metavar="X,Y[,0]",
        help="a click in pixels of the upright image; with ,0 one on what does not belong",
    )
    one.add_argument("--box", type=_box, metavar="X0,Y0,X1,Y1", help="a box around the object")
    one.add_argument("--out", type=Path, required=True, help="the picture to write (.png, .jpg)")
    one.add_argument("--model", default="default", help="a folder under models/, or a path")
    one.add_argument("--models-dir", type=Path, default=MODELS_DIR, help=argparse.SUPPRESS)

    two = commands.add_parser("bundle", help="a checkpoint becomes a bundle (needs PyTorch)")
    two.set_defaults(run=bundle)
    two.add_argument(
        "checkpoint", type=Path, help="EdgeSAM, MobileSAM or SAM: .pth, .pt, .safetensors"
    )
    two.add_argument("out_dir", type=Path)
    two.add_argument("--name", help="what to call the model (the folder's name)")
    two.add_argument("--licence", help="licence of the weights")
    two.add_argument("--origin", help="a sentence: where the weights come from")
    two.add_argument("--input-size", type=int, default=1024, help="side of the input in pixels")
    two.add_argument("--upsample", choices=PYRAMID_MODES, default="bicubic", help="of EdgeSAM only")
    two.add_argument("--overwrite", action="store_true", help="replace the bundle if it is there")

    three = commands.add_parser("fetch", help="official weights become a bundle")
    three.set_defaults(run=fetch)
    three.add_argument("name", help="edge_sam or edge_sam_3x")
    three.add_argument(
        "--accept-licence",
        action="store_true",
        help="accept the S-Lab License 1.0 (non-commercial) without being asked",
    )
    three.add_argument("--models-dir", type=Path, default=MODELS_DIR, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
