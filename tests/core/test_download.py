from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from edgesam_core.download import CHUNK_BYTES, HubFile, download
from edgesam_core.errors import BundleError, UpstreamError
from tests.core.hub import Hub, running_hub

PATH, OTHER = "weights/a.bin", "weights/b.bin"
SIZE = 4 * CHUNK_BYTES + 77


@pytest.fixture
def hub() -> Iterator[Hub]:
    random = np.random.default_rng(0)
    with running_hub({PATH: random.bytes(SIZE), OTHER: random.bytes(1000)}) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "downloads"
    path.mkdir()
    return path


def at_once(seconds: float) -> None:
    """Wait for nothing."""


def begin_of(asked: str) -> int:
    return int(asked.removeprefix("bytes=").removesuffix("-"))


def test_files_arrive_under_their_own_names_as_they_are_on_record(hub: Hub, folder: Path) -> None:
    files = download([PATH, OTHER], folder, endpoint=hub.url)
    for file, path in zip(files, (PATH, OTHER), strict=True):
        content = hub.files[path]
        assert file == HubFile(path, len(content), hashlib.sha256(content).hexdigest())
        assert (folder / file.name).read_bytes() == content
    assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "b.bin"]


def test_a_broken_connection_goes_on_where_it_stopped(hub: Hub, folder: Path) -> None:
    hub.cut_after = [SIZE // 3, SIZE // 3]
    download([PATH], folder, endpoint=hub.url, wait=at_once)
    assert (folder / "a.bin").read_bytes() == hub.files[PATH]
    first, second, third = (begin_of(asked) for asked in hub.ranges())
    assert first == 0
    assert second == pytest.approx(SIZE // 3, abs=CHUNK_BYTES)
    assert third == pytest.approx(second + SIZE // 3, abs=CHUNK_BYTES)


def test_an_interrupted_download_goes_on_in_the_next_run(hub: Hub, folder: Path) -> None:
    hub.cut_after = [SIZE // 2]

    def interrupt(seconds: float) -> NoReturn:  # the person's Ctrl-C, while it waits to go on
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download([PATH], folder, endpoint=hub.url, wait=interrupt)
    download([PATH], folder, endpoint=hub.url)
    assert (folder / "a.bin").read_bytes() == hub.files[PATH]
    _, goes_on = hub.ranges()
    assert begin_of(goes_on) == pytest.approx(SIZE // 2, abs=CHUNK_BYTES)


def test_a_line_that_breaks_again_and_again_is_given_up_and_keeps_what_it_has(
    hub: Hub, folder: Path
) -> None:
    hub.cut_after = [CHUNK_BYTES // 2] * 99
    pauses: list[float] = []
    with pytest.raises(UpstreamError, match="goes on where it stopped"):
        download([PATH], folder, endpoint=hub.url, wait=pauses.append)
    assert len(hub.ranges()) == len(pauses) + 1 == 5
    (partial,) = folder.iterdir()
    assert partial.suffix == ".incomplete"


def test_a_file_that_is_there_and_whole_is_not_fetched_again(hub: Hub, folder: Path) -> None:
    (folder / "a.bin").write_bytes(hub.files[PATH])
    download([PATH], folder, endpoint=hub.url)
    assert hub.ranges() == []
    assert (folder / "a.bin").read_bytes() == hub.files[PATH]


@pytest.mark.parametrize("name", ["a.bin", "{sha256}.incomplete"])
def test_a_longer_leftover_is_thrown_away(hub: Hub, folder: Path, name: str) -> None:
    sha256 = hashlib.sha256(hub.files[PATH]).hexdigest()
    (folder / name.format(sha256=sha256)).write_bytes(hub.files[PATH] + b"more")
    download([PATH], folder, endpoint=hub.url)
    assert (folder / "a.bin").read_bytes() == hub.files[PATH]


def test_a_file_that_is_not_the_one_on_record_is_refused_by_name(hub: Hub, folder: Path) -> None:
    right = hub.files[PATH]
    hub.records[PATH] = right
    hub.files[PATH] = right[:-1] + bytes([right[-1] ^ 1])
    with pytest.raises(BundleError, match=r"a\.bin is not the file"):
        download([PATH], folder, endpoint=hub.url)

    hub.files[PATH] = right
    download([PATH], folder, endpoint=hub.url)  # nothing of the wrong one is left to go on from
    assert (folder / "a.bin").read_bytes() == right


def test_a_file_without_a_checksum_is_refused(hub: Hub, folder: Path) -> None:
    hub.without_checksum = True
    with pytest.raises(UpstreamError, match="cannot be checked"):
        download([PATH], folder, endpoint=hub.url)


def test_a_file_that_the_hub_does_not_have_is_named(hub: Hub, folder: Path) -> None:
    with pytest.raises(UpstreamError, match="no checksum on record for weights/c"):
        download([PATH, "weights/c.bin"], folder, endpoint=hub.url)
    assert hub.ranges() == []


@pytest.mark.parametrize("status", [403, 500])
def test_a_hub_that_refuses_the_bytes_is_a_sentence(hub: Hub, folder: Path, status: int) -> None:
    hub.refuses_with = status
    with pytest.raises(UpstreamError, match="could not be fetched") as caught:
        download([PATH], folder, endpoint=hub.url, wait=at_once)
    assert str(status) in caught.value.detail


def test_an_unreachable_hub_is_a_sentence(folder: Path, free_port: int) -> None:
    with pytest.raises(UpstreamError, match="Check the network"):
        download([PATH], folder, endpoint=f"http://127.0.0.1:{free_port}")


@pytest.mark.parametrize("endpoint", ["nonsense", "http://[::", "ftp://127.0.0.1"])
def test_an_address_that_is_none_is_a_sentence(folder: Path, endpoint: str) -> None:
    with pytest.raises(UpstreamError, match="HF_ENDPOINT"):
        download([PATH], folder, endpoint=endpoint)
