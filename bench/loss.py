"""What each step of the fast path costs in mask quality, on photos that nothing was trained on.

The default bundle answers boxes and clicks in fp32, then with the step; both are compared with the
annotators' masks, and with each other, on ../shared/data/research_only; without that folder there
are no rows.

    python -m bench loss                            a few pictures of both halves of every set
    python -m bench.loss [--ids even] [--limit 5]   all of them
    python -m bench.loss --corrections 1 --step "padding kept"
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from bench.encode import runtimes
from distillation.annotated_images import Half, annotated_images
from distillation.bootstrap import paired_difference
from distillation.click_rounds import ask, box_prompt, click_prompt, play_rounds
from distillation.instances import AnnotatedImage
from distillation.metrics import mask_iou
from distillation.prompt_points import PROTOCOLS
from edgesam_core.arrays import Mask
from edgesam_core.bundle import Bundle, find_bundle
from edgesam_core.decode import Decoder
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


class _Answer(NamedTuple):
    """One object, asked about in one way."""

    image: int
    iou: float
    """With the annotator's mask."""
    iou_with_fp32: float


def measure(
    halves: Sequence[Half], limit: int | None, *, corrections: int = 0, only: str | None = None
) -> list[dict[str, Any]]:
    """One row per step and kind of prompt.

    Args:
        halves: Which image ids.
        limit: At most so many images of every set, in each half.
        corrections: Clicks after each first prompt, where that step's own mask is wrong.
        only: The one step to be measured, instead of all.

    Raises:
        ValueError: There is no such step.
    """
    if not DATA.is_dir():
        return []
    bundle = Bundle.open(find_bundle("default", Path("models")))
    answers: dict[tuple[str, str], list[_Answer]] = {}
    with tempfile.TemporaryDirectory() as folder:
        steps = _steps(bundle, Path(folder))
        if only is not None:
            if only not in steps:
                raise ValueError(f"step: expected one of {', '.join(steps)}; got {only}")
            steps = {only: steps[only]}
        steps = {"fp32": Segmenter(bundle), **steps}
        for number, annotated in enumerate(_images(halves, limit)):
            masks = {name: _masks(step, annotated, corrections) for name, step in steps.items()}
            truths = [instance.mask() for instance in annotated.instances]
            for name, found in masks.items():
                for kind in found:
                    answers.setdefault((name, kind), []).extend(
                        _Answer(number, mask_iou(mask, truth), mask_iou(mask, same))
                        for mask, truth, same in zip(
                            found[kind], truths, masks["fp32"][kind], strict=True
                        )
                    )
    return [
        _row(name, kind, own, answers["fp32", kind])
        for (name, kind), own in answers.items()
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
        leaves_out = not bundle.manifest.leaves_out_padding
        export_encoder(model, folder / "e.onnx", input_size=size, leaves_out_padding=leaves_out)
        other = Segmenter(bundle)
        other._encoder = Encoder(
            open_session(folder / "e.onnx"),
            input_size=size,
            bundle_version=other.version,
            leaves_out_padding=leaves_out,
        )
        steps["padding left out" if leaves_out else "padding kept"] = other
    return steps


def _images(halves: Sequence[Half], limit: int | None) -> Iterator[AnnotatedImage]:
    for half in halves:
        yield from annotated_images(DATA, half=half, limit=limit)


def _masks(
    segmenter: Segmenter, annotated: AnnotatedImage, corrections: int
) -> dict[str, list[Mask]]:
    """Kind of prompt ("box", "click+1") -> the mask of every object of an image, as served."""
    protocol, embedding = PROTOCOLS["sam"], segmenter.embed(annotated.read())
    truths = [instance.mask() for instance in annotated.instances]
    prompts = {
        "box": [box_prompt(instance.box_xyxy) for instance in annotated.instances],
        "click": [click_prompt(protocol.first(truth)) for truth in truths],
    }
    masks = {}
    for start, asked in prompts.items():
        rounds = play_rounds(
            segmenter,
            embedding,
            ask(segmenter, embedding, asked),
            truths,
            [0] * len(truths),  # these clicks do not depend on luck
            corrective_click=protocol.correct,
            corrections=corrections,
            feed_logits=segmenter.manifest.refines_with_mask_input,
        )
        for number, turns in enumerate(rounds):
            masks[f"{start}+{number}" if number else start] = [turn.mask for turn in turns]
    return masks


def _row(name: str, kind: str, own: Sequence[_Answer], exact: Sequence[_Answer]) -> dict[str, Any]:
    lost = paired_difference(
        [100 * (fp32.iou - answer.iou) for answer, fp32 in zip(own, exact, strict=True)],
        [answer.image for answer in own],
    )
    points, before = (100 * fmean(answer.iou for answer in some) for some in (own, exact))
    agreements = [answer.iou_with_fp32 for answer in own]
    same = fmean(1.0 if agreement != agreement else agreement for agreement in agreements)
    is_judged = name == TAKEN_BY_AUTO
    return {
        "name": f"loss of {name}, {kind}",
        **({"ratio": lost.mean / GOAL_POINTS, "goal": 1.0} if is_judged else {}),
        "peer": f"{GOAL_POINTS} points lost" if is_judged else "",
        "note": f"mIoU {before:.2f} -> {points:.2f}, lost {lost.mean:.2f} ({lost.low:.2f} to "
        f"{lost.high:.2f}); IoU with the masks of fp32 {same:.4f}; "
        f"{len(own)} objects on {len({answer.image for answer in own})} photos",
        "loss_points": lost.mean,
        "iou_with_fp32": same,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; always 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.loss")
    parser.add_argument("--ids", choices=("even", "odd", "all"), default="all")
    parser.add_argument("--limit", type=int, help="at most so many photos of each set")
    parser.add_argument("--corrections", type=int, default=0, help="clicks after the first prompt")
    parser.add_argument("--step", help="measure this one alone, called as in the output")
    options = parser.parse_args(arguments)
    try:
        rows = measure(
            [options.ids], options.limit, corrections=options.corrections, only=options.step
        )
    except ValueError as exc:
        parser.error(str(exc))
    for row in rows:
        print(f"{row['name']}: {row['note']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
