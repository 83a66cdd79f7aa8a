from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesam_core import preprocess
from edgesam_core.bundle import Bundle, find_bundle, staged_folder, write_manifest
from edgesam_core.errors import BundleError
from edgesam_core.manifest import MANIFEST_NAME, Manifest, content_version
from edgesam_core.segmenter import Segmenter
from tests.core.conftest import click

FIELDS: dict[str, Any] = {
    "name": "toy",
    "input_size": 128,
    "upsample": "bicubic",
    "refines_with_mask_input": True,
    "licence": "Apache-2.0",
    "origin": "Made by a test.",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle whose files were never graphs: opening checks bytes, not meaning."""
    out = tmp_path / "toy"
    with staged_folder(out) as stage:
        (stage / "encoder.onnx").write_bytes(b"encoder")
        (stage / "decoder.onnx").write_bytes(b"decoder")
        (stage / "MODEL_CARD.md").write_text("# Toy\n")
        write_manifest(stage, **FIELDS)
    return out


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bundle_says_what_it_is(folder: Path) -> None:
    manifest = Bundle.open(folder).manifest
    assert (manifest.name, manifest.input_size, manifest.upsample) == ("toy", 128, "bicubic")
    assert manifest.preprocess_version == preprocess.VERSION
    assert set(manifest.files) == {"encoder.onnx", "decoder.onnx", "MODEL_CARD.md"}
    assert len(manifest.version) == 12
    assert int(manifest.version, 16) >= 0


def test_the_manifest_survives_being_written_and_read(folder: Path) -> None:
    manifest = Bundle.open(folder).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx", "MODEL_CARD.md"])
@pytest.mark.parametrize("damage", ["torn", "longer", "tampered", "missing", "a folder"])
def test_a_damaged_file_is_refused_by_name(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        changed = {"torn": content[:-1], "longer": content + b"\0", "tampered": content.swapcase()}
        path.write_bytes(changed[damage])
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    assert name in caught.value.sentence
    assert str(folder.parent) not in caught.value.sentence


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"input_size": 256}, id="input size"),
        pytest.param({"upsample": "bilinear"}, id="up-sampling"),
        pytest.param({"refines_with_mask_input": False}, id="refinement"),
        pytest.param({"version": "0123456789ab"}, id="version"),
        pytest.param({"architecture": "other"}, id="architecture"),
    ],
)
def test_a_manifest_that_was_edited_is_refused(folder: Path, change: dict[str, object]) -> None:
    change_manifest(folder, **change)
    with pytest.raises(BundleError, match=r"manifest\.json: it does not fit its own version"):
        Bundle.open(folder)


def test_a_sentence_of_the_manifest_may_be_corrected(folder: Path) -> None:
    version = Bundle.open(folder).manifest.version
    change_manifest(folder, licence="S-Lab-1.0", origin="Corrected.", scores={"box": 70.1})
    assert Bundle.open(folder).manifest.version == version


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param({"format": 2}, "format 2, this version reads 1", id="format of the future"),
        pytest.param({"format": None}, "format None", id="no format"),
        pytest.param({"input_size": "1024"}, "'input_size' is '1024'", id="size as text"),
        pytest.param({"input_size": True}, "'input_size' is True", id="size as bool"),
        pytest.param({"input_size": 100}, "no multiple of 64", id="odd size"),
        pytest.param({"upsample": "nearest"}, "expected one of bicubic, bilinear", id="mode"),
        pytest.param({"name": ""}, "the name is empty", id="no name"),
        pytest.param({"files": []}, "'files' is", id="no files"),
        pytest.param({"files": {"a": 1}}, "the record of 'a'", id="no record"),
        pytest.param({"files": {"a": {"bytes": 1}}}, "'sha256' is None", id="no hash"),
    ],
)
def test_a_manifest_that_makes_no_sense_gets_a_sentence(
    folder: Path, change: dict[str, object], match: str
) -> None:
    change_manifest(folder, **change)
    with pytest.raises(BundleError, match=match):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "a/b", "a\\b"])
def test_a_file_outside_the_folder_is_never_looked_at(folder: Path, name: str) -> None:
    change_manifest(folder, files={name: {"bytes": 1, "sha256": "0"}})
    with pytest.raises(BundleError, match="not a plain file name"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", 5000 * "a"])
def test_a_name_that_no_file_can_have_is_a_missing_file(folder: Path, name: str) -> None:
    change_manifest(folder, files={name: {"bytes": 1, "sha256": "0"}})
    with pytest.raises(BundleError, match="missing or cannot be read"):
        Bundle.open(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", 10**5 * b"["])
def test_a_manifest_that_is_no_json_object_gets_a_sentence(folder: Path, content: bytes) -> None:
    (folder / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest\.json: it is not"):
        Bundle.open(folder)


def test_a_folder_without_a_manifest_says_how_to_make_one(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()
    with pytest.raises(BundleError, match="edgesam_core fetch"):
        Bundle.open(folder)


def test_files_that_the_manifest_does_not_list_are_ignored(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes.txt").write_text("mine")
    assert "notes.txt" not in Bundle.open(folder).manifest.files


def test_another_pre_processing_is_refused(folder: Path) -> None:
    manifest = replace(Bundle.open(folder).manifest, preprocess_version="0")
    manifest = replace(manifest, version=content_version(manifest))
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    with pytest.raises(BundleError, match="made for image pre-processing '0'"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["decoder.onnx", "encoder.onnx"])
def test_a_bundle_without_one_of_its_graphs_is_not_written(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"expected one {name}"):
        write_manifest(folder, **FIELDS)


def test_the_same_content_has_the_same_version_whenever_it_was_made(folder: Path) -> None:
    first = Bundle.open(folder).manifest
    second = write_manifest(folder, **FIELDS, created_utc="2001-01-01T00:00:00Z")
    assert (first.version, first.created_utc) != (second.version, second.created_utc)
    assert first.version == second.version


def test_weights_are_optional(folder: Path) -> None:
    assert Bundle.open(folder).weights_path is None
    (folder / "weights.safetensors").write_bytes(b"weights")
    write_manifest(folder, **FIELDS)
    assert Bundle.open(folder).weights_path == folder / "weights.safetensors"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "model"

    def fail() -> None:
        with staged_folder(out) as stage:
            (stage / "encoder.onnx").write_bytes(b"half")
            assert not out.exists()
            raise RuntimeError("the export failed")

    with pytest.raises(RuntimeError, match="the export failed"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_only_when_told_so(folder: Path) -> None:
    with pytest.raises(BundleError, match="already a folder 'toy'"), staged_folder(folder):
        pass
    Bundle.open(folder)
    with staged_folder(folder, overwrite=True) as stage:
        (stage / "other.txt").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["other.txt"]
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]


@pytest.mark.parametrize("kind", ["a folder", "a file"])
def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, kind: str) -> None:
    photos = tmp_path / "photos"
    photo = photos / "cat.jpg" if kind == "a folder" else photos
    photo.parent.mkdir(exist_ok=True)
    photo.write_bytes(b"cat")
    with (
        pytest.raises(BundleError, match="'photos' is no model bundle"),
        staged_folder(photos, overwrite=True),
    ):
        pass
    assert photo.read_bytes() == b"cat"
    assert list(tmp_path.iterdir()) == [photos]


def test_an_empty_folder_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with staged_folder(tmp_path / "model", overwrite=True) as stage:
        (stage / "encoder.onnx").write_bytes(b"graph")
    assert (tmp_path / "model" / "encoder.onnx").exists()


def test_a_failed_replacement_leaves_the_old_one(folder: Path) -> None:
    def fail() -> None:
        with staged_folder(folder, overwrite=True):
            raise RuntimeError("the export failed")

    with pytest.raises(RuntimeError, match="the export failed"):
        fail()
    Bundle.open(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]


def test_a_model_is_found_by_name_and_by_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_bundle("toy", tmp_path) == folder
    assert find_bundle(str(folder), tmp_path / "elsewhere") == folder
    monkeypatch.chdir(folder)
    (tmp_path / "models").mkdir()
    assert find_bundle(".", tmp_path / "models").resolve() == folder


@pytest.mark.parametrize("name", ["typo", "", "models/typo"])
def test_a_model_that_is_not_there_gets_the_names_that_are(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # nothing of the current folder may be taken for a name
    with pytest.raises(BundleError, match="There is: toy") as caught:
        find_bundle(name, folder.parent)
    assert str(folder.parent) not in caught.value.sentence


def test_an_empty_models_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds none"):
        find_bundle("default", tmp_path)


def test_an_official_pair_with_a_manifest_is_a_bundle(
    painted_bundle: Any, picture: np.ndarray
) -> None:
    logits = np.full((4, 16, 16), -5, np.float32)
    logits[:, 4:8, 4:8] = 5
    bundle = Bundle.open(painted_bundle(logits, official=True))
    assert bundle.decoder_path.name == "edge_sam_3x_decoder.onnx"
    segmenter = Segmenter(bundle)
    (suggestion,) = segmenter.segment(segmenter.embed(picture), [click(45, 45)])
    assert suggestion.score == 1.0


def test_a_really_exported_bundle_that_is_torn_is_refused(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    Bundle.open(copy)
    path = copy / "encoder.onnx"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BundleError, match=r"encoder\.onnx: it has \d+ bytes instead of \d+"):
        Bundle.open(copy)
