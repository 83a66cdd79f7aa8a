"""What is OpenVINO's own: the answers of ONNX Runtime, bf16, being absent, its first use.

What it promises like every runtime: test_session.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesam_core import openvino_session
from edgesam_core.bundle import Bundle
from edgesam_core.decode import Prompt
from edgesam_core.errors import EdgeSamError
from edgesam_core.segmenter import Segmenter
from edgesam_core.session import Runtime, Session, fastest_runtime, open_session, run_graph
from tests import parts
from tests.core.conftest import FloatArray, click, disc_picture


@pytest.fixture
def bf16(openvino: frozenset[str]) -> None:
    """Skips where the processor has no bf16, also where CI=true: no part can be installed."""
    if "BF16" not in openvino:
        pytest.skip("this processor does not multiply bf16 by itself")


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine on which it was not installed."""
    import_again = openvino_session.capabilities.cache_clear, openvino_session._core.cache_clear
    monkeypatch.setitem(sys.modules, "openvino", None)
    for forget in import_again:
        forget()
    yield
    for forget in import_again:
        forget()


FIRST_USE = """
import faulthandler, sys, threading, time
from pathlib import Path
import numpy as np
import numpy.lib
from edgesam_core.openvino_session import OpenVinoSession

slow_down = numpy.lib.NumpyVersion.__init__

def dawdle(self, version):  # called once, while OpenVINO learns of NumPy: let others in meanwhile
    time.sleep(0.5)
    slow_down(self, version)

numpy.lib.NumpyVersion.__init__ = dawdle
faulthandler.dump_traceback_later(30, exit=True)
started = threading.Barrier(4)

def first_use():
    started.wait()
    session = OpenVinoSession(Path(sys.argv[1]), threads=1, streams=1, precision="f32")
    size = session.inputs["image"][-1]
    session.run(["image_embeddings"], {"image": np.zeros((1, 3, size, size), np.float32)})

threads = [threading.Thread(target=first_use) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done")
"""


def inputs_of_decoder(session: Session, prompts: int, points: int) -> dict[str, FloatArray]:
    """Clicks on noise; the lengths that the graph leaves open are those asked for."""
    random = np.random.default_rng(prompts)
    shape: Any = session.inputs["image_embeddings"]
    _, channels, side, _ = shape
    return {
        "image_embeddings": random.standard_normal((1, channels, side, side), np.float32),
        "point_coords": random.uniform(0, 16 * side, (prompts, points, 2)).astype(np.float32),
        "point_labels": np.ones((prompts, points), np.float32),
        "mask_input": np.zeros((prompts, 1, 4 * side, 4 * side), np.float32),
        "has_mask_input": np.zeros(prompts, np.float32),
    }


def test_both_graphs_answer_in_fp32_as_in_onnx_runtime(
    tiny_bundle: Path, openvino: frozenset[str]
) -> None:
    bundle, outputs = Bundle.open(tiny_bundle), ["low_res_logits", "iou_predictions"]
    theirs = open_session(bundle.decoder_path, 1)
    ours = open_session(bundle.decoder_path, 1, runtime="openvino")
    # One number of prompts and points after the other: the graph is open for all of them.
    for prompts, points in ((1, 2), (2, 2), (2, 5), (1, 3)):
        inputs = inputs_of_decoder(theirs, prompts, points)
        for actual, expected in zip(
            run_graph(ours, inputs, outputs), run_graph(theirs, inputs, outputs), strict=True
        ):
            np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())
    picture = disc_picture(0)
    actual, expected = (
        Segmenter(bundle, threads=1, runtime=runtime).embed(picture).image_embedding
        for runtime in ("openvino", "onnxruntime")
    )
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_bf16_costs_hardly_a_pixel(tiny_bundle: Path, bf16: None) -> None:
    bundle, picture = Bundle.open(tiny_bundle), disc_picture(0)
    exact, reduced = (
        Segmenter(bundle, threads=1, runtime=runtime) for runtime in ("openvino", "openvino-bf16")
    )
    expected, actual = exact.embed(picture).image_embedding, reduced.embed(picture).image_embedding
    difference = np.abs(actual - expected).mean() / np.abs(expected).mean()
    assert 0 < difference < 0.03  # 0: it was fp32 after all


def test_without_openvino_onnx_runtime_is_the_fastest(without_openvino: None) -> None:
    assert fastest_runtime() == "onnxruntime"


def test_openvino_that_is_asked_for_and_absent_is_a_sentence(
    tiny_bundle: Path, without_openvino: None
) -> None:
    with pytest.raises(EdgeSamError, match="OpenVINO is not installed"):
        Segmenter(Bundle.open(tiny_bundle), runtime="openvino")


@pytest.mark.parametrize(
    ("capabilities", "runtime"),
    [({"FP32"}, "openvino"), ({"FP32", "BF16"}, "openvino-bf16")],
)
def test_reduced_precision_is_chosen_by_the_processor(
    monkeypatch: pytest.MonkeyPatch, capabilities: set[str], runtime: Runtime
) -> None:
    monkeypatch.setattr(openvino_session, "capabilities", lambda: frozenset(capabilities))
    assert fastest_runtime() == runtime


def test_a_small_input_is_decoded_by_onnx_runtime(tiny_bundle: Path, bf16: None) -> None:
    bundle = Bundle.open(tiny_bundle)
    segmenter = Segmenter(bundle, threads=1, runtime="openvino-bf16")
    plain = Segmenter(bundle, threads=1)
    embedding = plain.embed(disc_picture(0))
    prompts: list[Prompt] = [click(40, 40)]
    (ours,), (theirs,) = segmenter.decode(embedding, prompts), plain.decode(embedding, prompts)
    np.testing.assert_array_equal(ours.low_res_logits, theirs.low_res_logits)


def test_threads_that_use_openvino_for_the_first_time_at_once_do_not_block_each_other(
    openvino: frozenset[str], tiny_bundle: Path
) -> None:
    told = subprocess.run(
        [sys.executable, "-c", FIRST_USE, str(Bundle.open(tiny_bundle).encoder_path)],
        cwd=parts.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.stdout == "done\n", told.stderr
