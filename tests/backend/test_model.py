from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from backend.model import ModelSettings, ServedModel
from edgesam_core.errors import BundleError, Unavailable
from tests.backend.disc_bundle import write_disc_bundle


def test_the_version_is_known_before_anything_is_loaded(disc_bundle: Path) -> None:
    model = ServedModel(ModelSettings(name=str(disc_bundle)))
    assert model.version
    assert model.version == model.segmenter().version


def test_a_model_is_found_by_its_name(tmp_path: Path) -> None:
    write_disc_bundle(tmp_path / "mine")
    assert ServedModel(ModelSettings("mine", models_dir=tmp_path)).segmenter().version


def test_it_is_loaded_once_however_many_ask(
    disc_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], ServedModel._load
    monkeypatch.setattr(ServedModel, "_load", lambda self: (loads.append(1), load(self)))
    model = ServedModel(ModelSettings(name=str(disc_bundle)))
    threads = [threading.Thread(target=model.segmenter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [1]
    assert model.segmenter() is model.segmenter()


def test_a_click_waits_for_the_model_but_not_for_ever(
    disc_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.model._try_out", lambda _: time.sleep(0.3))
    model = ServedModel(ModelSettings(name=str(disc_bundle)))
    with pytest.raises(Unavailable):
        model.segmenter(wait_s=0)
    assert model.segmenter(wait_s=20)


def test_a_process_that_inherits_an_unfinished_load_begins_anew(disc_bundle: Path) -> None:
    model = ServedModel(ModelSettings(name=str(disc_bundle)))
    model._thread = threading.Thread(target=lambda: None)  # as a fork leaves it: not alive
    assert model.segmenter(wait_s=20)


@pytest.mark.parametrize("damage", ["missing", "torn manifest", "torn graph", "no graph"])
def test_a_damaged_bundle_is_refused_by_a_sentence(tmp_path: Path, damage: str) -> None:
    bundle = tmp_path / "bundle"
    if damage != "missing":
        write_disc_bundle(bundle)
    if damage == "torn manifest":
        (bundle / "manifest.json").write_text("{")
    elif damage == "torn graph":
        (bundle / "decoder.onnx").write_bytes(b"x")
    elif damage == "no graph":
        (bundle / "decoder.onnx").unlink()
    model = ServedModel(ModelSettings(name=str(bundle)))
    with pytest.raises(BundleError) as caught:
        model.segmenter()
    assert caught.value.sentence.endswith(".")
    assert str(tmp_path) not in caught.value.sentence


def test_the_fastest_runtime_is_chosen_unless_another_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("backend.model.fastest_runtime", lambda: "openvino-bf16")
    assert ModelSettings().runtimes() == ["openvino-bf16", "onnxruntime"]
    assert ModelSettings(runtime="openvino").runtimes() == ["openvino"]
    monkeypatch.setattr("backend.model.fastest_runtime", lambda: "onnxruntime")
    assert ModelSettings().runtimes() == ["onnxruntime"]


def test_a_runtime_that_fails_gives_way_unless_it_was_named(
    disc_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> NoReturn:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr("edgesam_core.openvino_session._core", fail)
    monkeypatch.setattr("backend.model.fastest_runtime", lambda: "openvino")
    assert ServedModel(ModelSettings(name=str(disc_bundle))).segmenter()
    assert "onnxruntime instead of openvino" in caplog.text
    with pytest.raises(BundleError, match="EDGESAM_RUNTIME=onnxruntime"):
        ServedModel(ModelSettings(name=str(disc_bundle), runtime="openvino")).segmenter()


def test_encodes_share_the_processors() -> None:
    assert ModelSettings(threads=0).encodes_at_once == 1
    assert ModelSettings(threads=10_000).encodes_at_once == 1
    assert ModelSettings(threads=1).encodes_at_once >= 1


@pytest.mark.parametrize(
    "wrong", [{"threads": -1}, {"load_wait_s": 0}, {"load_wait_s": 500}, {"runtime": "tpu"}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelSettings(**wrong)
