"""The one place that opens and runs ONNX graphs.

ONNX Runtime's exceptions end here. A session may be run by many threads at once; it holds the
graph's weights and nothing of any image.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgesam_core.errors import BundleError, EdgeSamError

logger = logging.getLogger(__name__)

# ONNX Runtime's exceptions have no common base class but Exception.
_ORT_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,  # a missing input, raised by its Python half
)


def open_session(path: Path, threads: int | None = None) -> ort.InferenceSession:
    """An ONNX graph, optimised and ready to run on the processor.

    Args:
        path: The ``.onnx`` file.
        threads: Threads for one run; None means the processors that this process may use.

    Raises:
        BundleError: The file is not a graph that ONNX Runtime can run.
    """
    started = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Planned memory is kept for every shape met, 100 MB for our graphs, and saves no time here.
    options.enable_mem_pattern = False
    # Waiting threads sleep instead of spinning: beside other busy processes a spinning encode took
    # 1.4 times as long, and a server's processors are seldom its own.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; its warnings are about optimisers, not about us
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS as exc:
        raise BundleError(
            f"The model file {path.name} cannot be opened by ONNX Runtime. "
            "Export or fetch the bundle again.",
            detail=str(exc),
        ) from exc
    logger.debug("opened %s in %.0f ms", path.name, (time.perf_counter() - started) * 1000)
    return session


def run_graph(
    session: ort.InferenceSession,
    inputs: Mapping[str, npt.NDArray[np.float32]],
    output_names: Sequence[str],
) -> list[npt.NDArray[np.float32]]:
    """Run a graph once and return the named outputs in the order asked for.

    Raises:
        BundleError: The graph does not take these shapes: it is not what the manifest says.
        EdgeSamError: ONNX Runtime failed otherwise (memory).
    """
    try:
        outputs = session.run(list(output_names), dict(inputs))
    except (ort_errors.InvalidArgument, ValueError) as exc:
        raise BundleError(
            "The model's graph does not take what its manifest says. "
            "Export or fetch the bundle again.",
            detail=str(exc),
        ) from exc
    except _ORT_ERRORS as exc:
        raise EdgeSamError(detail=str(exc)) from exc
    return [np.asarray(output) for output in outputs]
