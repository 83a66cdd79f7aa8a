from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.model import ModelSettings
from backend.models import Models
from backend.swap import Swaps
from backend.versions import Versions, VersionSettings
from edgesam_core.errors import BundleError, RequestError, VersionsError
from tests.backend.disc_bundle import write_disc_bundle

PROJECT = 3


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three versions that a project was taught; their discs grow."""
    folder = tmp_path_factory.mktemp("trained")
    return [write_disc_bundle(folder / f"r{r}", radius_px=float(r)) for r in (30, 40, 50)]


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(VersionSettings(tmp_path))


@pytest.fixture
def added(versions: Versions, bundles: list[Path]) -> list[str]:
    return [versions.add(PROJECT, bundle, "trained") for bundle in bundles]


@pytest.fixture
def models(versions: Versions, disc_bundle: Path) -> Models:
    return Models(ModelSettings(name=str(disc_bundle), threads=1), versions)


# --- the folder ---


def test_a_project_is_served_the_servers_own_model_until_one_is_promoted(
    versions: Versions, added: list[str]
) -> None:
    assert versions.current(PROJECT) is None
    versions.promote(PROJECT, added[0], "better by 3 points")
    assert versions.current(PROJECT) == added[0]
    assert versions.current(PROJECT + 1) is None
    assert versions.of(PROJECT) == added
    assert versions.of(PROJECT + 1) == []
    assert sorted(versions.of(None)) == sorted(added)


def test_rollback_goes_back_step_by_step_to_the_servers_own_model(
    versions: Versions, added: list[str]
) -> None:
    versions.promote(PROJECT, added[0], "first")
    versions.promote(PROJECT, added[1], "second")
    assert versions.rollback(PROJECT, "worse than it looked") == added[0]
    assert versions.current(PROJECT) == added[0]
    assert versions.rollback(PROJECT, "this one, too") is None
    assert versions.current(PROJECT) is None
    with pytest.raises(RequestError, match="never served another"):
        versions.rollback(PROJECT, "further")
    events = [change.event for change in versions.history(PROJECT)]
    assert events == ["added"] * 3 + ["promoted"] * 2 + ["rolled back"] * 2


def test_rollback_after_rollback_never_goes_round(versions: Versions, added: list[str]) -> None:
    first, second, _ = added
    for version in (first, second, first):
        versions.promote(PROJECT, version, "this one after all")
    assert [versions.rollback(PROJECT, "worse") for _ in range(3)] == [second, first, None]


def test_a_change_that_was_noted_and_did_not_come_to_be_is_passed_over(
    versions: Versions, added: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = added
    versions.promote(PROJECT, first, "served")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("backend.versions._replace", full)
    with pytest.raises(VersionsError, match="What was served stays"):
        versions.promote(PROJECT, second, "noted, and then the disk was full")
    monkeypatch.undo()
    assert versions.current(PROJECT) == first
    versions.promote(PROJECT, third, "served")
    assert versions.rollback(PROJECT, "worse") == first
    assert versions.rollback(PROJECT, "worse") is None


def test_a_version_that_is_there_is_not_copied_again(
    versions: Versions, bundles: list[Path]
) -> None:
    first = versions.add(PROJECT, bundles[0], "trained")
    inode = versions.bundle(first).stat().st_ino
    assert versions.add(PROJECT + 1, bundles[0], "trained elsewhere") == first
    assert versions.bundle(first).stat().st_ino == inode
    assert versions.of(PROJECT + 1) == [first]


def test_torn_and_tampered_bundles_are_neither_added_nor_promoted(
    versions: Versions, added: list[str], bundles: list[Path], tmp_path: Path
) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(bundles[0], torn)
    (torn / "decoder.onnx").write_bytes(b"half")
    with pytest.raises(BundleError):
        versions.add(PROJECT, torn, "trained")
    versions.promote(PROJECT, added[0], "good")
    tampered = versions.bundle(added[1]) / "encoder.onnx"
    tampered.write_bytes(tampered.read_bytes() + b"\0")
    with pytest.raises(BundleError):
        versions.promote(PROJECT, added[1], "bad")
    assert versions.current(PROJECT) == added[0]


@pytest.mark.parametrize("version", ["", "../../etc", "0123456789ab", "no such version"])
def test_unknown_versions_are_refused_by_a_sentence(versions: Versions, version: str) -> None:
    with pytest.raises(BundleError, match="no version"):
        versions.promote(PROJECT, version, "asked for")


def test_without_a_folder_there_are_no_versions_and_a_sentence_says_so(bundles: list[Path]) -> None:
    versions = Versions(VersionSettings(None))
    assert versions.current(PROJECT) is None
    assert versions.of(None) == []
    assert versions.history(PROJECT) == []
    with pytest.raises(VersionsError, match="EDGESAM_DATA_DIR"):
        versions.add(PROJECT, bundles[0], "trained")


def test_a_folder_that_cannot_be_written_leaves_what_was_served(
    tmp_path: Path, bundles: list[Path]
) -> None:
    (tmp_path / "file").write_text("in the way")
    versions = Versions(VersionSettings(tmp_path / "file"))
    with pytest.raises(VersionsError):
        versions.add(PROJECT, bundles[0], "trained")


def test_promotions_at_once_leave_one_whole_story(versions: Versions, added: list[str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        turns = [added[n % 3] for n in range(48)]
        list(pool.map(lambda version: versions.promote(PROJECT, version, "race"), turns))
    story = [change for change in versions.history(PROJECT) if change.event == "promoted"]
    served: str | None = None
    for change in story:
        assert change.before == served
        served = change.version
    assert versions.current(PROJECT) == served


def test_a_torn_line_of_history_is_passed_over(
    versions: Versions, added: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "versions" / "projects" / str(PROJECT) / "history.jsonl"
    path.write_text(path.read_text() + '{"at": "2026')
    assert versions.of(PROJECT) == added
    assert json.loads(path.read_text().splitlines()[0])["why"] == "trained"


# --- in a running process ---


def test_each_project_is_answered_by_its_own_version(
    models: Models, versions: Versions, added: list[str]
) -> None:
    versions.promote(PROJECT, added[0], "better")
    assert models.of(PROJECT).version == added[0]
    assert models.of(PROJECT + 1) is models.of(None) is models.own


def test_a_promotion_reaches_a_running_process_after_its_images_are_warm(
    models: Models, versions: Versions, added: list[str]
) -> None:
    warmed: list[tuple[int, str, str]] = []

    def warm(project_id: int, version: str) -> Iterator[str]:
        warmed.append((project_id, version, models.of(project_id).version))
        yield "an image"

    swaps = Swaps(models, versions, warm)
    before = models.of(PROJECT)
    versions.promote(PROJECT, added[0], "better")
    assert models.of(PROJECT) is before
    swaps.look()
    assert models.of(PROJECT).version == added[0]
    assert warmed == [(PROJECT, added[0], before.version)]
    versions.rollback(PROJECT, "worse")
    swaps.look()
    assert models.of(PROJECT) is before
    swaps.look()
    assert len(warmed) == 2


def test_a_version_that_was_tampered_with_is_refused_and_the_old_one_serves(
    models: Models, versions: Versions, added: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    swaps = Swaps(models, versions, lambda *_: iter(()))
    versions.promote(PROJECT, added[0], "good")
    assert models.of(PROJECT).version == added[0]
    versions.promote(PROJECT, added[1], "good, until somebody touched it")
    decoder = versions.bundle(added[1]) / "decoder.onnx"
    whole = decoder.read_bytes()
    decoder.write_bytes(whole[:-1])
    for _ in range(3):
        swaps.look()
    assert models.of(PROJECT).version == added[0]
    assert sum("keeps its model" in message for message in caplog.messages) == 1
    versions.promote(PROJECT, added[2], "another")
    swaps.look()
    assert models.of(PROJECT).version == added[2]


def test_a_refused_version_that_was_mended_takes_over_after_all(
    models: Models, versions: Versions, added: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.swap.REFUSED_S", 0.0)
    swaps = Swaps(models, versions, lambda *_: iter(()))
    versions.promote(PROJECT, added[0], "good, until a disk tore it")
    decoder = versions.bundle(added[0]) / "decoder.onnx"
    whole = decoder.read_bytes()
    decoder.write_bytes(whole[:-1])
    assert models.of(PROJECT) is models.own
    swaps.look()
    assert models.of(PROJECT) is models.own
    decoder.write_bytes(whole)
    swaps.look()
    assert models.of(PROJECT).version == added[0]


def test_a_process_that_begins_with_a_torn_version_serves_the_one_before(
    models: Models, versions: Versions, added: list[str]
) -> None:
    versions.promote(PROJECT, added[0], "good")
    versions.promote(PROJECT, added[1], "torn by a disk")
    (versions.bundle(added[1]) / "encoder.onnx").unlink()
    assert models.of(PROJECT).version == added[0]


def test_first_requests_of_a_project_open_its_version_once(
    models: Models, versions: Versions, added: list[str]
) -> None:
    versions.promote(PROJECT, added[0], "better")
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(models.of(PROJECT))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


def test_what_is_served_stays_open_however_many_others_are_asked_for(
    models: Models, versions: Versions, added: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.models.MOST_OPEN", 1)
    versions.promote(PROJECT, added[0], "better")
    served, other = models.of(PROJECT), models.version(added[1])
    assert models.version(added[1]) is other
    models.version(added[2])
    assert models.version(added[0]) is served
    assert models.version(added[1]) is not other, "it was closed"
    assert models.version(models.own.version) is models.own
    with pytest.raises(BundleError):
        models.version("0123456789ab")


def test_who_stands_in_for_a_torn_version_is_told_with_the_reason(
    models: Models, versions: Versions, added: list[str]
) -> None:
    assert models.stand_in(PROJECT) is None
    versions.promote(PROJECT, added[0], "good")
    versions.promote(PROJECT, added[1], "good, until a disk tore it")
    assert models.stand_in(PROJECT) is None
    (versions.bundle(added[1]) / "encoder.onnx").unlink()
    told = models.stand_in(PROJECT)
    assert told is not None
    assert told.version == added[0]
    assert "encoder.onnx" in told.why
    assert models.of(PROJECT).version == added[0], "which comes to be with the first click"
    assert models.stand_in(PROJECT) == told
    (versions.bundle(added[0]) / "encoder.onnx").unlink()
    assert models.stand_in(PROJECT) == told, "this process has it open"
    another = Models(models._settings, versions).stand_in(PROJECT)
    assert another is not None
    assert another.version == models.own.version


def test_a_process_keeps_a_version_that_was_torn_while_it_was_open(
    models: Models, versions: Versions, added: list[str]
) -> None:
    versions.promote(PROJECT, added[0], "good")
    assert models.of(PROJECT).version == added[0]
    (versions.bundle(added[0]) / "encoder.onnx").unlink()
    assert models.stand_in(PROJECT) is None
