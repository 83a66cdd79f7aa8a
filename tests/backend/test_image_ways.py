from __future__ import annotations

from pathlib import Path

import pytest

from backend.directory_store import DirectoryStore
from backend.image_ways import Way, Ways
from backend.store import NO_STORE, Store

URL = "http://h/cat.png"
WAY = Way("0" * 64, 'W/"1"', 1.5e9)


@pytest.fixture
def shared(tmp_path: Path) -> Store:
    return DirectoryStore(tmp_path / "store", 10**6)


def test_a_way_comes_back_also_in_another_process(shared: Store) -> None:
    ways = Ways(shared)
    assert ways.get(URL, 1.5e9) is None
    ways.remember(URL, WAY)
    assert ways.get(URL, 1.5e9) == Ways(shared).get(URL, 1.5e9) == WAY
    assert ways.get("http://h/dog.png", 1.5e9) is None


def test_a_way_is_believed_for_ten_minutes_and_not_by_a_clock_that_was_set_back() -> None:
    assert WAY.is_believed(1.5e9)
    assert WAY.is_believed(1.5e9 + 599)
    assert not WAY.is_believed(1.5e9 + 600)
    assert not WAY.is_believed(1.5e9 - 1)


def test_a_way_that_another_process_renewed_replaces_the_one_in_memory(shared: Store) -> None:
    ways, other = Ways(shared), Ways(shared)
    ways.remember(URL, WAY)
    renewed = Way("1" * 64, 'W/"2"', 1.5e9 + 700)
    other.remember(URL, renewed)
    assert ways.get(URL, 1.5e9 + 1) == WAY
    assert ways.get(URL, 1.5e9 + 701) == renewed


def test_memory_alone_remembers_where_there_is_no_store_or_it_lost_the_way() -> None:
    ways = Ways(NO_STORE)
    ways.remember(URL, WAY)
    assert ways.get(URL, 1.5e9) == ways.get(URL, 1.6e9) == WAY


@pytest.mark.parametrize(
    "record",
    [b"", b"{", b"[]", b"{}", b"null", b'{"sha256": 1, "etag": 2}', b"\xff",
     b'{"sha256": "../../etc/passwd", "etag": null, "checked_utc": 1}',
     b'{"sha256": "' + b"0" * 64 + b'", "etag": 5, "checked_utc": 1}',
     b'{"sha256": "' + b"0" * 64 + b'", "etag": null, "checked_utc": []}'],
)  # fmt: skip
def test_a_record_of_another_kind_is_no_way(shared: Store, record: bytes) -> None:
    Ways(shared).remember(URL, WAY)
    (key,) = _keys(shared)
    shared.put(key, record)
    assert Ways(shared).get(URL, 1.5e9) is None


def _keys(shared: Store) -> list[str]:
    assert isinstance(shared, DirectoryStore)
    lines = [path.read_bytes().partition(b"\n")[0] for path in shared._folder.iterdir()]
    return [line.decode().rpartition(" ")[2] for line in lines]
