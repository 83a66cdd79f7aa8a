"""What each step of the fast path costs in mask quality, on photos that nothing was trained on.

The default bundle answers boxes and clicks in fp32, then with the step; both are compared with the
annotators' masks, and with each other, on ../shared/data/research_only; without that folder there
are no rows.

    python -m bench loss                            a few pictures of both halves of every set
    python -m bench.loss [--ids even] [--limit 5]   all of them
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.encode import runtimes
from distillation.annotated_images import Half, annotated_images
from distillation.click_rounds import ask, box_prompt, click_prompt
from distillation.metrics import mask_iou
from distillation.prompt_points import centre_click
from edgesam_core.arrays import ImageRGB, Mask
from edgesam_core.bundle import Bundle, find_bundle
from edgesam_core.decode import Decoder, Prompt
from edgesam_core.encode import Encoder
from edgesam_core.export.encoder import export_encoder
from edgesam_core.nn.checkpoint import load_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.segmenter import Segmenter
from edgesam_core.session import Runtime, open_session

DATA = Path("../shared/data/research_only")
IMAGES_OF_A_SET = 2
"""In each half."""
GOAL_POINTS = 0.5
"""The most that the mean IoU may fall, in points."""
TAKEN_BY_AUTO = "bf16 encoder"
"""What the default, EDGESAM_RUNTIME=auto, takes where the processor has bf16, for inputs below 512
pixels. All steps are compared with ONNX Runtime in fp32."""


def run() -> list[dict[str, Any]]:
    """Rows as ``bench/__main__.py`` describes them."""
    return measure(("even", "odd"), IMAGES_OF_A_SET)


def measure(halves: Sequence[Half], limit: int | None) -> list[dict[str, Any]]:
    """One row per step and kind of prompt.

    Args:
        halves: Which image ids.
        limit: At most so many images of every set, in each half.
    """
    if not DATA.is_dir():
        return []
    bundle = Bundle.open(find_bundle("default", Path("models")))
    with tempfile.TemporaryDirectory() as folder:
        exact = Segmenter(bundle)
        steps = {"fp32": exact, **_steps(bundle, Path(folder))}
        ious: dict[tuple[str, str], list[tuple[float, float]]] = {}
        images = 0
        for image, truths, prompts in _questions(halves, limit):
            images += 1
            for kind, asked in prompts.items():
                masks = {name: _masks(step, image, asked) for name, step in steps.items()}
                for name, found in masks.items():
                    ious.setdefault((name, kind), []).extend(
                        (mask_iou(mask, truth), mask_iou(mask, same))
                        for mask, truth, same in zip(found, truths, masks["fp32"], strict=True)
                    )
    return [
        _row(name, kind, answers, ious["fp32", kind], images)
        for (name, kind), answers in ious.items()
        if name != "fp32"
    ]


def _steps(bundle: Bundle, folder: Path) -> dict[str, Segmenter]:
    """The default bundle with one thing changed at a time."""
    steps = {}
    if "openvino" in runtimes():
        steps["OpenVINO fp32 encoder"] = Segmenter(bundle, runtime="openvino")
    if "openvino-bf16" in runtimes():
        steps[TAKEN_BY_AUTO] = Segmenter(bundle, runtime="openvino-bf16")
        decoder = Decoder(open_session(bundle.decoder_path, runtime="openvino-bf16"))
        # Keys of embeddings do not name the runtime: each may decode what the other encoded.
        pairs: dict[str, Runtime] = {
            "bf16 decoder": "onnxruntime",
            "bf16 encoder and decoder": "openvino-bf16",
        }
        for name, encoder in pairs.items():
            steps[name] = Segmenter(bundle, runtime=encoder)
            steps[name]._decoder = decoder
    if bundle.weights_path is not None:
        model, size = EdgeSam().eval(), bundle.manifest.input_size
        load_state_dict(model, read_checkpoint(bundle.weights_path))
        export_encoder(model, folder / "any.onnx", input_size=size, leaves_out_padding=True)
        cut = Segmenter(bundle)
        cut._encoder = Encoder(
            open_session(folder / "any.onnx"), input_size=size, bundle_version=cut.version
        )
        steps["padding left out, fp32"] = cut
    return steps


def _questions(
    halves: Sequence[Half], limit: int | None
) -> Iterator[tuple[ImageRGB, list[Mask], dict[str, list[Prompt]]]]:
    """Images with the true masks of their objects and what is asked about each."""
    for half in halves:
        for annotated in annotated_images(DATA, half=half, limit=limit):
            truths = [instance.mask() for instance in annotated.instances]
            yield annotated.read(), truths, {
                "box": [box_prompt(instance.box_xyxy) for instance in annotated.instances],
                "click": [click_prompt(centre_click(truth)) for truth in truths],
            }  # fmt: skip


def _masks(segmenter: Segmenter, image: ImageRGB, prompts: Sequence[Prompt]) -> list[Mask]:
    return [turn.mask for turn in ask(segmenter, segmenter.embed(image), prompts)]


def _row(
    name: str,
    kind: str,
    answers: Sequence[tuple[float, float]],
    exact: Sequence[tuple[float, float]],
    images: int,
) -> dict[str, Any]:
    points, before = (100 * fmean(iou for iou, _ in scores) for scores in (answers, exact))
    is_judged = name == TAKEN_BY_AUTO
    same = fmean(1.0 if agreement != agreement else agreement for _, agreement in answers)
    return {
        "name": f"loss of {name}, {kind}",
        **({"ratio": (before - points) / GOAL_POINTS, "goal": 1.0} if is_judged else {}),
        "peer": f"{GOAL_POINTS} points lost" if is_judged else "",
        "note": f"mIoU {before:.2f} -> {points:.2f}; IoU with the masks of fp32 {same:.4f}; "
        f"{len(answers)} objects on {images} photos",
        "loss_points": before - points,
        "iou_with_fp32": same,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; always 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.loss")
    parser.add_argument("--ids", choices=("even", "odd", "all"), default="all")
    parser.add_argument("--limit", type=int, help="at most so many photos of each set")
    options = parser.parse_args(arguments)
    for row in measure([options.ids], options.limit):
        print(f"{row['name']}: {row['note']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
