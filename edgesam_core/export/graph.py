"""From a PyTorch module to an ONNX file, at half the size where that loses nothing.

encoder.py and decoder.py say what is exported; this file only knows how: PyTorch's exporter that
traces (it needs no further packages), opset 17, and constants that fp16 holds exactly stored as
fp16 with a Cast behind each. Nothing is folded here: every runtime does that when it opens the
file, from the same numbers that ``weights.safetensors`` holds. All computing is fp32.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]

OPSET = 17
_HALVE_FROM = 1024  # values; with fewer the Cast costs more than it saves

MAX_FILE_BYTES = 2**31 - 2**20
"""What protobuf can hold, with some room; only ViT-H in full precision is larger."""

DynamicAxes = Mapping[str, Mapping[int, str]]


def export_graph(
    module: nn.Module,
    example: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    path: Path,
    *,
    dynamic_axes: DynamicAxes | None = None,
) -> None:
    """Write a module as an ONNX file that passes ONNX's own check.

    A graph that is too large for one file gets a second one for its weights, ``encoder.onnx.data``.

    Args:
        module: In evaluation mode; takes the inputs in the order of ``example``.
        example: Input name -> a tensor of the shape to trace with.
        outputs: Names of what the module returns.
        path: The file to write.
        dynamic_axes: Input or output name -> axis -> name of the axis, where a length may vary.
    """
    # PyTorch writes a large graph as one file for each weight: into a folder that goes away.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
        traced = Path(folder) / path.name
        # Not folded by the exporter: products of weights are no longer the numbers that fp16 holds.
        trace(module, example, outputs, traced, dynamic_axes=dynamic_axes, fold_constants=False)
        graph = onnx.load(traced)
    halve_constants(graph)
    weights_bytes = sum(len(weights.raw_data) for weights in graph.graph.initializer)
    onnx.save(
        graph,
        path,
        save_as_external_data=weights_bytes > MAX_FILE_BYTES,
        location=f"{path.name}.data",
    )
    onnx.checker.check_model(path, full_check=True)


def trace(
    module: nn.Module,
    example: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    path: Path,
    *,
    opset: int = OPSET,
    dynamic_axes: DynamicAxes | None = None,
    fold_constants: bool = True,
) -> None:
    """Write what PyTorch's exporter makes of a module; arguments as for `export_graph`.

    Args:
        module: In evaluation mode.
        example: Input name -> a tensor of the shape to trace with.
        outputs: Names of what the module returns.
        path: The file to write.
        opset: Version of ONNX's operators.
        dynamic_axes: Where a length may vary.
        fold_constants: Let the exporter compute what depends on weights only.
    """
    with warnings.catch_warnings(), torch.no_grad():
        # This exporter is called deprecated, in many places. Its successor needs onnxscript.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=TracerWarning)
        # Its shape inference regrets that it cannot fold the reversed list of F.pad; no harm done.
        warnings.filterwarnings("ignore", "Constant folding - Only steps=1", UserWarning)
        torch.onnx.export(
            module,
            tuple(example.values()),
            path,
            input_names=list(example),
            output_names=list(outputs),
            dynamic_axes=dynamic_axes,
            do_constant_folding=fold_constants,
            opset_version=opset,
            dynamo=False,
        )


def halve_constants(model: onnx.ModelProto) -> None:
    """Store those fp32 constants of a graph as fp16 that lose nothing by it.

    A Cast behind each widens it again, so that no answer changes by a bit. Weights qualify once
    they were rounded to fp16 (`write_bundle(half=True)`); their products and encodings do not.

    Args:
        model: Changed in place.
    """
    casts = []
    for initializer in model.graph.initializer:
        values = numpy_helper.to_array(initializer)
        if values.dtype != np.float32 or values.size < _HALVE_FROM:
            continue
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), values):
            continue
        name = initializer.name
        initializer.CopyFrom(numpy_helper.from_array(halves, f"{name}_fp16"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}_fp16"], [name], to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
