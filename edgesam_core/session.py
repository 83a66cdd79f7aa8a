"""The one place that opens and runs ONNX graphs, whatever runs them.

ONNX Runtime is always there. OpenVINO (openvino_session.py) runs the same files faster where it is
installed, most of all on a processor that multiplies bf16 by itself. Exceptions of both end here.

A session may be run by many threads at once, and a process forked from one that had it open may go
on with it. It holds the graph's weights and nothing of any image.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgesam_core import openvino_session
from edgesam_core.errors import BundleError, EdgeSamError

logger = logging.getLogger(__name__)

Runtime = Literal["onnxruntime", "openvino", "openvino-bf16"]
"""Who runs a graph; the first two in fp32. OpenVINO's bf16 needs a processor that has it."""

RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)

# ONNX Runtime's exceptions have no common base class but Exception; OpenVINO's are RuntimeError.
_ERRORS = (
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
    ValueError,  # a missing input, raised by the Python half of either
    LookupError,  # an output that it does not have, raised by OpenVINO's
)

Shape = Sequence[int | str | None]
"""Lengths of an array's axes; a name or None where any length will do."""

FloatArray = npt.NDArray[np.float32]


class Session(Protocol):
    """An open graph."""

    @property
    def inputs(self) -> Mapping[str, Shape]:
        """What it takes, all float32."""

    def run(
        self, output_names: Sequence[str], inputs: Mapping[str, FloatArray]
    ) -> Sequence[FloatArray]:
        """The named outputs, in this order; arrays that belong to the caller."""


def fastest_runtime() -> Runtime:
    """Who runs graphs fastest on this machine, as measured in docs/decisions/006.

    OpenVINO where it is installed, with bf16 where the processor has it by itself. What bf16 costs
    in mask quality is measured by ``python -m bench loss``.
    """
    capabilities = openvino_session.capabilities()
    if not capabilities:
        return "onnxruntime"
    return "openvino-bf16" if "BF16" in capabilities else "openvino"


def open_session(
    path: Path, threads: int | None = None, *, runtime: Runtime = "onnxruntime"
) -> Session:
    """An ONNX graph, optimised and ready to run on the processor.

    Args:
        path: The ``.onnx`` file.
        threads: Threads for one run; None means the processors that this process may use.
        runtime: Who runs it.

    Raises:
        BundleError: The file is not a graph that the runtime can run.
        EdgeSamError: OpenVINO is asked for and not installed.
    """
    started = time.perf_counter()
    try:
        session = _open(path, threads or processors(), runtime)
    except ImportError as exc:
        raise EdgeSamError(
            "OpenVINO is not installed. Run `make setup`, or leave EDGESAM_RUNTIME at auto.",
            detail=str(exc),
        ) from exc
    except _ERRORS as exc:
        raise BundleError(_cannot_be_opened(path.name, runtime), detail=str(exc)) from exc
    taken_ms = (time.perf_counter() - started) * 1000
    logger.debug("opened %s with %s in %.0f ms", path.name, runtime, taken_ms)
    return session


def processors() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def run_graph(
    session: Session, inputs: Mapping[str, FloatArray], output_names: Sequence[str]
) -> list[FloatArray]:
    """Run a graph once and return the named outputs in the order asked for.

    Raises:
        BundleError: The graph does not take these shapes, or has no such output: it is not what
            the manifest says.
        EdgeSamError: The runtime failed otherwise (memory).
    """
    try:
        outputs = session.run(output_names, inputs)
    except (ort_errors.InvalidArgument, ValueError, LookupError) as exc:
        raise BundleError(
            "The model's graph is not what its manifest says. Export or fetch the bundle again.",
            detail=str(exc),
        ) from exc
    except _ERRORS as exc:
        raise EdgeSamError(detail=str(exc)) from exc
    return list(outputs)


class OnnxRuntimeSession:
    """A graph in ONNX Runtime, in fp32."""

    def __init__(self, path: Path, threads: int) -> None:
        """Read and optimise a graph; raises what ONNX Runtime raises."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Planned memory is kept for every shape met, 100 MB for our graphs, and saves no time here.
        options.enable_mem_pattern = False
        # Waiting threads sleep instead of spinning: beside other busy processes a spinning encode
        # took 1.4 times as long, and a server's processors are seldom its own.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; its warnings are about optimisers, not about us
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs: dict[str, Shape] = {
            node.name: tuple(node.shape) for node in self._session.get_inputs()
        }

    def run(
        self, output_names: Sequence[str], inputs: Mapping[str, FloatArray]
    ) -> list[FloatArray]:
        """See `Session`."""
        return [np.asarray(x) for x in self._session.run(list(output_names), dict(inputs))]


def _cannot_be_opened(name: str, runtime: Runtime) -> str:
    if runtime == "onnxruntime":
        return (
            f"The model file {name} cannot be opened by ONNX Runtime. "
            "Export or fetch the bundle again."
        )
    return (
        f"The model file {name} cannot be opened by OpenVINO. "
        "Set EDGESAM_RUNTIME=onnxruntime, or export or fetch the bundle again."
    )


def _open(path: Path, threads: int, runtime: Runtime) -> Session:
    if runtime == "onnxruntime":
        return OnnxRuntimeSession(path, threads)
    precision = "bf16" if runtime == "openvino-bf16" else "f32"
    return openvino_session.OpenVinoSession(
        path, threads=threads, streams=max(1, processors() // threads), precision=precision
    )
