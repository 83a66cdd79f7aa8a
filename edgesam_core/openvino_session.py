"""A graph in OpenVINO: the same file, fp32 or bf16, for processors only.

OpenVINO need not be installed: it is imported when somebody asks what it can do or opens a graph.
session.py is the one caller, and turns what is raised here into sentences.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]

_one_at_a_time = threading.RLock()
"""Held while a graph is opened: several at once once ended in a crash (docs/decisions/006)."""


@cache
def _core() -> Any:
    """OpenVINO's one core of this process, woken up; raises ImportError. Call it under the lock.

    The first array that OpenVINO's Python half converts fills tables of C++ under a lock that knows
    nothing of Python's: two threads that begin at once wait for each other for ever, with all of
    Python (seen with 2026.4.1). So one array is converted here.
    """
    import openvino

    openvino.Type.f32.to_dtype()
    openvino.Tensor(np.zeros(1, np.float32))
    return openvino.Core()


@cache
def capabilities() -> frozenset[str]:
    """What the processor can do in OpenVINO's words; empty where OpenVINO is not installed.

    "BF16" is among them only where the processor multiplies bf16 by itself (avx512_bf16, amx_bf16
    and their kin in /proc/cpuinfo); emulated it would be slower than fp32.
    """
    try:
        with _one_at_a_time:
            return frozenset(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    except ImportError:
        return frozenset()
    except RuntimeError as exc:  # what need not be there must not stop the server
        logger.warning("OpenVINO is installed and does not work: %s", exc)
        return frozenset()


class OpenVinoSession:
    """An open graph; safe to share between threads.

    An infer request is not, so each run takes one that is idle, or makes one.
    """

    def __init__(self, path: Path, *, threads: int, streams: int, precision: str) -> None:
        """Read and optimise a graph; raises ImportError and what OpenVINO raises.

        Args:
            path: The ``.onnx`` file.
            threads: Threads for one run.
            streams: How many runs go on side by side; more wait in OpenVINO's queue.
            precision: "f32" or "bf16", of the multiplications; inputs and outputs are fp32.
        """
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads * streams,
            "NUM_STREAMS": streams,
            # A server's processors are seldom its own: threads go where there is room.
            "ENABLE_CPU_PINNING": False,
        }
        with _one_at_a_time:
            self._graph: Any = _core().compile_model(str(path), "CPU", options)
        self.inputs: dict[str, tuple[int | None, ...]] = {
            node.any_name: tuple(
                None if axis.is_dynamic else axis.get_length() for axis in node.partial_shape
            )
            for node in self._graph.inputs
        }
        self._idle: deque[Any] = deque()

    def run(
        self, output_names: Sequence[str], inputs: Mapping[str, FloatArray]
    ) -> list[FloatArray]:
        """See `session.Session`; a request in which a run fails is not used again."""
        _check(inputs, self.inputs)
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._graph.create_infer_request()
        contiguous = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        # Inputs are read where they lie and kept in `contiguous` meanwhile; answers are copied out.
        answers = request.infer(contiguous, share_inputs=True)
        outputs = [np.asarray(answers[name], dtype=np.float32) for name in output_names]
        self._idle.append(request)
        return outputs


def _check(inputs: Mapping[str, FloatArray], expected: Mapping[str, Sequence[int | None]]) -> None:
    """Refuse what the graph does not take with a ValueError, as ONNX Runtime does by itself.

    OpenVINO would read past the end of an array that is too small.
    """
    if set(inputs) != set(expected):
        raise ValueError(f"expected {sorted(expected)}, got {sorted(inputs)}")
    for name, array in inputs.items():
        shape = expected[name]
        fits = len(shape) == array.ndim and all(
            wanted in (length, None) for length, wanted in zip(array.shape, shape, strict=True)
        )
        if not fits or array.dtype != np.float32:
            raise ValueError(f"{name}: expected float32 {shape}, got {array.dtype} {array.shape}")
