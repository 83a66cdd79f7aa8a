"""Does an exported pair of graphs answer as PyTorch does? If not there is no bundle.

Runs both on two images and on prompts of every kind that a click can make, one by one in PyTorch
and in batches in ONNX Runtime, and compares embeddings, logits, the decoder's own estimates and
masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edgesam_core.errors import BundleError
from edgesam_core.nn.prompt_encoder import IGNORE, NEGATIVE, POSITIVE
from edgesam_core.nn.sam_model import SamModel
from edgesam_core.session import open_session, run_graph

# Both sides compute in fp32 from the same numbers, in another order. Measured with the parity
# weights at 1024: 1.3e-5 on embeddings of size 1, 1e-4 on logits of size 7. A mistake is larger by
# far (bilinear instead of bicubic: 0.8 on the embedding; no padding point: 4.9 on the logits).
MAX_RELATIVE_DIFFERENCE = 1e-3
"""Largest difference, as a share of the root mean square of what is compared."""

MIN_MASK_IOU = 0.999
"""Of all masks together: a logit next to zero may fall on either side."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ParityReport:
    """How far ONNX Runtime was from PyTorch, at worst."""

    embedding_difference: float
    # largest, as a share of the embedding's root mean square
    logits_difference: float
    # the same of the logits, on PyTorch's embedding
    iou_prediction_difference: float
    # the same of the decoder's own estimates
    mask_iou: float
    # image to mask through both graphs, all masks pooled
    sign_changes: int
    # low-res pixels on the other side of the threshold, image to mask
    pixels: int
    # low-res pixels compared

    def sentence(self) -> str:
        """The report for a model card."""
        return (
            f"ONNX Runtime against PyTorch: embedding {self.embedding_difference:.1e}, logits "
            f"{self.logits_difference:.1e} (largest difference as a share of the root mean "
            f"square); mask IoU {self.mask_iou:.5f}, {self.sign_changes} of {self.pixels} pixels "
            "changed sides."
        )


@dataclass(frozen=True)
class _Case:
    """One prompt in the S frame, as PyTorch's decoder takes it."""

    points: Sequence[tuple[float, float, int]] = ()
    # x and y as shares of S, and a label
    box: Sequence[float] | None = None
    # x0, y0, x1, y1 as shares of S
    has_mask: bool = False


# Cases of equal token count go through the graph as one batch.
_CASES = (
    _Case([(0.4, 0.41, POSITIVE)]),
    _Case([(0.9, 0.1, POSITIVE)], has_mask=True),
    _Case(box=[0.1, 0.15, 0.62, 0.7]),
    _Case([(0.4, 0.41, POSITIVE), (0.8, 0.25, NEGATIVE)]),
    _Case([(0.42, 0.4, NEGATIVE)], box=[0.1, 0.15, 0.62, 0.7]),
    _Case([(0.3, 0.3, POSITIVE), (0.7, 0.3, IGNORE)], has_mask=True),
    _Case([(x / 8, x / 9, x % 2) for x in range(1, 8)]),
)


def check_parity(
    model: SamModel, encoder_path: Path, decoder_path: Path, *, input_size: int
) -> ParityReport:
    """Compare exported graphs with the model that they were made from.

    Args:
        model: In evaluation mode, on the CPU, with exactly the weights that were exported.
        encoder_path: The exported encoder.
        decoder_path: The exported decoder.
        input_size: S in pixels.

    Returns:
        What was measured.

    Raises:
        BundleError: A graph cannot be run, or answers otherwise than PyTorch; the sentence names
            what differs and by how much.
    """
    encoder, decoder = open_session(encoder_path), open_session(decoder_path)
    mask_input = _blob(input_size // 4)
    differences: dict[str, list[float]] = {"embedding": [], "logits": [], "IoU prediction": []}
    intersection = union = sign_changes = pixels = 0
    for image in _images(input_size):
        with torch.no_grad():
            expected_embedding = model.encode(torch.from_numpy(image)).numpy()
        (embedding,) = run_graph(encoder, {"image": image}, ["image_embeddings"])
        differences["embedding"].append(_relative(embedding, expected_embedding))
        for group in _groups(_CASES):
            wanted = [_decode(model, expected_embedding, c, input_size, mask_input) for c in group]
            expected, expected_iou = (
                np.concatenate(arrays) for arrays in zip(*wanted, strict=True)
            )
            prompts = _inputs(group, input_size, mask_input)
            outputs = ["low_res_logits", "iou_predictions"]
            same, same_iou = run_graph(
                decoder, {"image_embeddings": expected_embedding, **prompts}, outputs
            )
            differences["logits"].append(_relative(same, expected))
            differences["IoU prediction"].append(_relative(same_iou, expected_iou))

            chained, _ = run_graph(decoder, {"image_embeddings": embedding, **prompts}, outputs)
            ours, theirs = chained > 0, expected > 0
            intersection += int((ours & theirs).sum())
            union += int((ours | theirs).sum())
            sign_changes += int((ours != theirs).sum())
            pixels += ours.size
    # NumPy's maximum: Python's passes over a NaN that is not the first.
    worst = {what: float(np.max(found)) for what, found in differences.items()}
    for what, difference in worst.items():
        if not difference <= MAX_RELATIVE_DIFFERENCE:  # NaN fails, too
            raise BundleError(
                f"The exported graph differs from PyTorch: {what} by {difference:.2g} of its size, "
                f"at most {MAX_RELATIVE_DIFFERENCE:g} is allowed. No bundle was written."
            )
    report = ParityReport(
        embedding_difference=worst["embedding"],
        logits_difference=worst["logits"],
        iou_prediction_difference=worst["IoU prediction"],
        mask_iou=intersection / union if union else 1.0,
        sign_changes=sign_changes,
        pixels=pixels,
    )
    if report.mask_iou < MIN_MASK_IOU:
        raise BundleError(
            f"The exported graphs differ from PyTorch: mask IoU {report.mask_iou:.5f}, expected at "
            f"least {MIN_MASK_IOU}. No bundle was written."
        )
    return report


def _relative(actual: FloatArray, expected: FloatArray) -> float:
    """The largest difference as a share of the root mean square; infinite for another shape."""
    if actual.shape != expected.shape:
        return float("inf")
    size = float(np.sqrt(np.mean(np.square(expected), dtype=np.float64)))
    return float(np.abs(actual - expected).max()) / max(size, 1e-6)


def _images(input_size: int) -> list[FloatArray]:
    """Noise that fills the input, and a smooth picture in its upper three quarters."""
    noise = np.random.default_rng(0).standard_normal((1, 3, input_size, input_size), np.float32)
    picture = np.zeros_like(noise)
    height = 3 * input_size // 4
    y, x = np.mgrid[0:height, 0:input_size].astype(np.float32) / input_size
    disc = np.where(np.hypot(x - 0.4, y - 0.4) < 0.2, np.float32(1.5), np.float32(-0.5))
    picture[0, :, :height] = np.stack([disc, x + y - 1, disc * np.cos(9 * x)])
    return [noise, picture]


def _blob(side: int) -> FloatArray:
    """[1, 1, side, side] logits of an earlier mask: a blunt cone."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    cone = 8 - 40 * np.hypot(x - 0.35, y - 0.4)
    blob: FloatArray = np.clip(cone, -8, 8)[None, None].astype(np.float32)
    return blob


def _groups(cases: Sequence[_Case]) -> list[list[_Case]]:
    """Cases of equal token count together."""
    groups: dict[int, list[_Case]] = {}
    for case in cases:
        tokens = len(case.points) + (1 if case.box is None else 2)
        groups.setdefault(tokens, []).append(case)
    return list(groups.values())


def _decode(
    model: SamModel, embedding: FloatArray, case: _Case, input_size: int, mask_input: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """PyTorch's answer to one prompt: [1, 4, S/4, S/4] and [1, 4]."""
    points = np.array(case.points, np.float32).reshape(1, -1, 3)
    box = None if case.box is None else torch.tensor([case.box]) * input_size
    with torch.no_grad():
        logits, iou_predictions = model.decode(
            torch.from_numpy(embedding),
            point_coords=torch.from_numpy(points[..., :2] * input_size) if case.points else None,
            point_labels=torch.from_numpy(points[..., 2]) if case.points else None,
            box_xyxy=box,
            mask_input=torch.from_numpy(mask_input) if case.has_mask else None,
        )
    return logits.numpy(), iou_predictions.numpy()


def _inputs(
    cases: Sequence[_Case], input_size: int, mask_input: FloatArray
) -> dict[str, FloatArray]:
    """The same prompts as the graph takes them, the padding point spelt out."""
    rows = []
    for case in cases:
        extra = [(0.0, 0.0, -1)] if case.box is None else [(*case.box[:2], 2), (*case.box[2:], 3)]
        rows.append([*case.points, *extra])
    tokens = np.array(rows, np.float32)  # [B, N, 3]
    has_mask = np.array([case.has_mask for case in cases], np.float32)
    # Where there is no mask, what stands in its place must not matter.
    masks = np.where(has_mask.reshape(-1, 1, 1, 1) > 0, mask_input, np.float32(np.nan))
    return {
        "point_coords": tokens[..., :2] * np.float32(input_size),
        "point_labels": np.ascontiguousarray(tokens[..., 2]),
        "mask_input": masks,
        "has_mask_input": has_mask,
    }
