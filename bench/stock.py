"""The stock path step by step: the peer of the whole click and of each of its stages.

It is what the published example does, with its PyTorch networks already exchanged for the official
ONNX exports of the same weights (bilinear, branches not folded) in ONNX Runtime: four masks, float
logits enlarged with OpenCV to the input size and to the original, threshold, label-studio-sdk's
mask2rle, JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from label_studio_sdk.converter.brush import mask2rle

from bench.annotator import CLICK
from edgesam_core.arrays import ImageRGB
from edgesam_core.bundle import Bundle
from edgesam_core.encode import Embedding
from edgesam_core.export.official import export_official
from edgesam_core.nn.checkpoint import load_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.preprocess import preprocess
from edgesam_core.session import open_session, run_graph


class StockPath:
    """The official exports of a bundle's weights, and what comes after them."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        """Export into a folder that exists, and open."""
        weights = bundle.weights_path
        assert weights is not None, "the default bundle has weights"
        model = EdgeSam().eval()
        load_state_dict(model, read_checkpoint(weights))
        self.size = bundle.manifest.input_size
        encoder, decoder = export_official(model, folder, input_size=self.size)
        self._encoder, self._decoder = open_session(encoder), open_session(decoder)

    def encode(self, image: ImageRGB) -> object:
        """The image embedding."""
        x, _ = preprocess(image, self.size)
        return run_graph(self._encoder, {"image": x}, ["image_embeddings"])

    def decode(self, embedding: Embedding) -> npt.NDArray[np.float32]:
        """The best of the four masks of a click at `CLICK`, as low-res logits."""
        height, width = embedding.original_size_hw
        scale = self.size / max(width, height)
        scores, masks = run_graph(
            self._decoder,
            {
                "image_embeddings": embedding.image_embedding,
                "point_coords": np.array(
                    [[[CLICK[0] * width * scale, CLICK[1] * height * scale], [0, 0]]], np.float32
                ),
                "point_labels": np.array([[1, -1]], np.float32),
            },
            ["scores", "masks"],
        )
        best: npt.NDArray[np.float32] = masks[0, scores[0].argmax()]
        return best

    def click(self, embedding: Embedding) -> str:
        """One click on an encoded image, to the JSON that would be sent."""
        mask = upscale(
            self.decode(embedding),
            input_size=self.size,
            input_size_hw=embedding.input_size_hw,
            original_size_hw=embedding.original_size_hw,
        )
        return json.dumps({"rle": mask_to_rle(mask)})


def read(data: bytes) -> object:
    """An image file's pixels."""
    return cv2.cvtColor(
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
    )


def upscale(
    logits: npt.NDArray[np.float32],
    *,
    input_size: int,
    input_size_hw: tuple[int, int],
    original_size_hw: tuple[int, int],
) -> npt.NDArray[np.bool_]:
    """Resized twice as floats, then cut."""
    in_frame = cv2.resize(logits, (input_size, input_size), interpolation=cv2.INTER_LINEAR)
    cut = in_frame[: input_size_hw[0], : input_size_hw[1]]
    height, width = original_size_hw
    mask: npt.NDArray[np.bool_] = (
        np.asarray(cv2.resize(cut, (width, height), interpolation=cv2.INTER_LINEAR)) > 0
    )
    return mask


def clean(mask: npt.NDArray[np.bool_], min_area_px: int) -> npt.NDArray[np.bool_]:
    """``remove_small_regions`` of segment-anything, holes and islands."""
    for holes in (True, False):
        working = (mask ^ holes).astype(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(working, connectivity=8)
        is_small = stats[:, cv2.CC_STAT_AREA] < min_area_px
        is_small[0] = False
        if is_small.any():
            mask = mask ^ is_small[labels]
    return mask


def mask_to_rle(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Label Studio's brush RLE by its own SDK."""
    rle: list[int] = mask2rle(mask.astype(np.uint8) * 255)
    return rle


def polygons(mask: npt.NDArray[np.uint8]) -> list[Any]:
    """Outer contours, simplified."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [cv2.approxPolyDP(contour, 4, closed=True) for contour in contours]
