"""What every runtime promises of an open graph: a sentence for each mistake, any thread, a fork."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgesam_core.bundle import Bundle
from edgesam_core.encode import Encoder
from edgesam_core.errors import BundleError
from edgesam_core.segmenter import Segmenter
from edgesam_core.session import Runtime, Session, open_session, run_graph
from tests.core.conftest import PAINTED_SIZE, FloatArray, disc_picture

NAMED = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@pytest.fixture(params=["onnxruntime", "openvino"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Each in fp32; OpenVINO's tests are skipped where it is not installed."""
    runtime: Runtime = request.param
    if runtime == "openvino":
        request.getfixturevalue("openvino")
    return runtime


@pytest.fixture
def encoder(painted_bundle: Callable[..., Path], runtime: Runtime) -> Session:
    bundle = Bundle.open(painted_bundle(np.zeros((4, 16, 16), np.float32)))
    return open_session(bundle.encoder_path, 1, runtime=runtime)


@pytest.fixture
def opened(tiny_bundle: Path, runtime: Runtime) -> Segmenter:
    return Segmenter(Bundle.open(tiny_bundle), threads=2, runtime=runtime)


def test_what_is_no_graph_is_refused_by_name(tmp_path: Path, runtime: Runtime) -> None:
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"no graph at all")
    sentence = rf"encoder\.onnx cannot be opened by {NAMED[runtime]}"
    with pytest.raises(BundleError, match=sentence) as caught:
        open_session(path, runtime=runtime)
    assert str(tmp_path) not in caught.value.sentence


def test_a_graph_that_is_not_there_is_refused_by_name(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(BundleError, match=rf"decoder\.onnx cannot be opened by {NAMED[runtime]}"):
        open_session(tmp_path / "decoder.onnx", runtime=runtime)


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param({"image": np.zeros((1, 3, 32, 32), np.float32)}, id="another size"),
        pytest.param({"picture": np.zeros((1, 3, 64, 64), np.float32)}, id="another name"),
        pytest.param({"image": np.zeros((1, 3, 64, 64), np.float64)}, id="another type"),
        pytest.param({}, id="nothing"),
    ],
)
def test_what_the_graph_does_not_take_gets_a_sentence(
    encoder: Session, inputs: dict[str, FloatArray]
) -> None:
    with pytest.raises(BundleError, match="is not what its manifest says"):
        run_graph(encoder, inputs, ["image_embeddings"])


def test_an_output_that_the_graph_does_not_have_gets_a_sentence(encoder: Session) -> None:
    image = np.zeros((1, 3, PAINTED_SIZE, PAINTED_SIZE), np.float32)
    with pytest.raises(BundleError, match="is not what its manifest says"):
        run_graph(encoder, {"image": image}, ["stage1"])


def test_an_encoder_of_another_size_than_the_manifest_says_is_refused(encoder: Session) -> None:
    with pytest.raises(BundleError, match="expected one image of 128 x 128"):
        Encoder(encoder, input_size=128, bundle_version="x")


def test_an_answer_is_not_overwritten_by_the_next(encoder: Session) -> None:
    first, other = (
        np.random.default_rng(seed).random((1, 3, PAINTED_SIZE, PAINTED_SIZE), np.float32)
        for seed in range(2)
    )
    (answer,) = run_graph(encoder, {"image": first}, ["image_embeddings"])
    kept = answer.copy()
    (later,) = run_graph(encoder, {"image": other}, ["image_embeddings"])
    assert np.abs(later - answer).max() > 0
    np.testing.assert_array_equal(answer, kept)


def test_many_threads_get_each_its_own_answer(opened: Segmenter) -> None:
    pictures = [disc_picture(seed) for seed in range(4)]
    alone = [opened.embed(picture).image_embedding for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: opened.embed(pictures[i % 4]), range(32)))
    for i, embedding in enumerate(together):
        np.testing.assert_allclose(embedding.image_embedding, alone[i % 4], atol=1e-4)


def test_a_forked_process_goes_on_with_what_was_open(opened: Segmenter) -> None:
    picture = disc_picture(0)
    expected = opened.embed(picture).image_embedding

    def child() -> None:
        actual = opened.embed(picture).image_embedding
        np.testing.assert_allclose(actual, expected, atol=1e-4)

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0
