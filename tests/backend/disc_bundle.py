"""A bundle whose masks are known beforehand: discs around clicks, boxes as they were drawn.

A stand-in for a trained network, which the tests of the service need because the masks of random
weights lie nowhere in particular. Both graphs are real ONNX with the inputs and outputs of ours, so
everything around them is what serves. Positive clicks give discs, negative ones cut holes, a box is
filled; the radius grows with the brightness of the image, so that a mask tells whose image it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from edgesam_core.bundle import write_manifest
from edgesam_core.granularity import FEATURES, anchors
from edgesam_core.manifest import GRANULARITY_NAME

RADIUS_PX = 24.0
"""Of a click's disc in the input frame, on an image of mean brightness."""

_ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (float[1,3,{S},{S}] image) => (float[1,256,{s},{s}] image_embeddings) {{
    pooled = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (image)
    grey = ReduceMean <axes = [1], keepdims = 1> (pooled)
    repeats = Constant <value_ints = [1, 256, 1, 1]> ()
    image_embeddings = Tile (grey, repeats)
}}
"""

_DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
decoder (
    float[1,256,{s},{s}] image_embeddings, float[B,N,2] point_coords, float[B,N] point_labels,
    float[B,1,{m},{m}] mask_input, float[B] has_mask_input
) => (float[B,4,{m},{m}] low_res_logits, float[B,4] iou_predictions) {{
    last = Constant <value_ints = [-1]> ()
    second = Constant <value_ints = [1]> ()
    third = Constant <value_ints = [2]> ()
    xy_axis = Constant <value_ints = [3]> ()
    far = Constant <value_float = 1000.0> ()
    minus_far = Neg (far)

    points = Unsqueeze (point_coords, third)
    offset = Sub (grid, points)
    squared = Mul (offset, offset)
    distance2 = ReduceSum <keepdims = 0> (squared, xy_axis)
    distance = Sqrt (distance2)
    labels = Unsqueeze (point_labels, third)

    brightness = ReduceMean <keepdims = 0> (image_embeddings)
    eight = Constant <value_float = 8.0> ()
    base = Constant <value_float = {radius}> ()
    grown = Mul (brightness, eight)
    radius = Add (grown, base)
    disc = Sub (radius, distance)
    one = Constant <value_float = 1.0> ()
    is_positive = Equal (labels, one)
    discs = Where (is_positive, disc, minus_far)
    positive = ReduceMax <axes = [1], keepdims = 0> (discs)

    zero = Constant <value_float = 0.0> ()
    is_negative = Equal (labels, zero)
    hole = Sub (distance, eight)
    holes = Where (is_negative, hole, far)
    negative = ReduceMin <axes = [1], keepdims = 0> (holes)

    two = Constant <value_float = 2.0> ()
    is_top_left = Equal (labels, two)
    inside_tl = ReduceMin <axes = [3], keepdims = 0> (offset)
    tl_all = Where (is_top_left, inside_tl, far)
    tl = ReduceMin <axes = [1], keepdims = 0> (tl_all)
    three = Constant <value_float = 3.0> ()
    is_bottom_right = Equal (labels, three)
    reverse = Neg (offset)
    inside_br = ReduceMin <axes = [3], keepdims = 0> (reverse)
    br_all = Where (is_bottom_right, inside_br, far)
    br = ReduceMin <axes = [1], keepdims = 0> (br_all)
    within = Min (tl, br)
    box_seen = Cast <to = 1> (is_top_left)
    has_box_ = ReduceMax <axes = [1], keepdims = 0> (box_seen)
    has_box = Cast <to = 9> (has_box_)
    box = Where (has_box, within, minus_far)

    shape = Max (positive, box)
    cut = Min (shape, negative)
    has_mask = Unsqueeze (has_mask_input, second)
    refined_by = Mul (has_mask, two)
    refined = Add (cut, refined_by)
    map_shape = Constant <value_ints = [-1, 1, {m}, {m}]> ()
    first_map = Reshape (refined, map_shape)
    smaller = Sub (first_map, two)
    smallest = Sub (smaller, two)
    none = Sub (first_map, far)
    low_res_logits = Concat <axis = 1> (first_map, smaller, smallest, none)

    rows = Unsqueeze (has_mask_input, second)
    zeros = Mul (rows, zero)
    nines = Constant <value_floats = [0.9, 0.9, 0.9, 0.9]> ()
    iou_predictions = Add (zeros, nines)
}}
"""


_FEATURES = """
    stage1 = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (image)
    stage2 = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (image)
    stage3 = AveragePool <kernel_shape = [32, 32], strides = [32, 32]> (image)
}}
"""

_GRANULARITY = """
<ir_version: 8, opset_import: ["" : 17]>
granularity (
    float[1,3,{s1},{s1}] stage1, float[1,3,{s2},{s2}] stage2, float[1,3,{s3},{s3}] stage3
) => (float[1,{A}] objectness_logits, float[1,{A},4] deltas) {{
    zero = Constant <value_float = 0.0> ()
    one = ReduceMean <keepdims = 0> (stage1)
    two = ReduceMean <keepdims = 0> (stage2)
    three = ReduceMean <keepdims = 0> (stage3)
    sum = Sum (one, two, three)
    nothing = Mul (sum, zero)
    objectness_logits = Add (nothing, logits)
    four = Constant <value_ints = [2]> ()
    column = Unsqueeze (objectness_logits, four)
    repeats = Constant <value_ints = [1, 1, 4]> ()
    tiled = Tile (column, repeats)
    deltas = Mul (tiled, zero)
}}
"""


def write_disc_bundle(
    folder: Path,
    *,
    input_size: int = 256,
    refines: bool = True,
    name: str = "disc",
    radius_px: float = RADIUS_PX,
    likely_anchors: Mapping[int, float] | None = None,
) -> Path:
    """Write the bundle and return its folder.

    Bundles of another `radius_px` are other versions. With `likely_anchors` (index of an anchor:
    its logit) the bundle has a granularity prior, which proposes the boxes of just these anchors on
    every image.
    """
    folder.mkdir(parents=True)
    sizes = {"S": input_size, "s": input_size // 16, "m": input_size // 4, "radius": radius_px}
    encoder_text = _ENCODER
    if likely_anchors is not None:
        _save_granularity(folder, input_size, likely_anchors)
        features = "".join(
            f", float[1,3,{input_size // stride},{input_size // stride}] {feature}"
            for feature, stride in zip(FEATURES, (8, 16, 32), strict=True)
        )
        encoder_text = _ENCODER.rstrip().removesuffix("}}") + _FEATURES
        encoder_text = encoder_text.replace(
            "image_embeddings) {{", f"image_embeddings{features}) {{{{"
        )
    encoder = parser.parse_model(encoder_text.format(**sizes))
    decoder = parser.parse_model(_DECODER.format(**sizes))
    cells = (np.arange(sizes["m"], dtype=np.float32) + 0.5) * 4
    x, y = np.meshgrid(cells, cells)
    grid = np.stack([x, y], axis=-1).reshape(1, 1, -1, 2)
    decoder.graph.initializer.append(numpy_helper.from_array(grid, "grid"))
    for model, file_name in ((encoder, "encoder.onnx"), (decoder, "decoder.onnx")):
        onnx.checker.check_model(model)
        onnx.save(model, folder / file_name)
    write_manifest(
        folder,
        name=name,
        input_size=input_size,
        upsample="bilinear",
        refines_with_mask_input=refines,
        licence="Apache-2.0",
        origin="Made by a test.",
    )
    return folder


def _save_granularity(folder: Path, input_size: int, likely_anchors: Mapping[int, float]) -> None:
    logits = np.full((1, len(anchors(input_size))), -20, np.float32)
    for index, logit in likely_anchors.items():
        logits[0, index] = logit
    sizes = {f"s{i}": input_size // stride for i, stride in ((1, 8), (2, 16), (3, 32))}
    model = parser.parse_model(_GRANULARITY.format(A=logits.shape[1], **sizes))
    model.graph.initializer.append(numpy_helper.from_array(logits, "logits"))
    onnx.checker.check_model(model)
    onnx.save(model, folder / GRANULARITY_NAME)
