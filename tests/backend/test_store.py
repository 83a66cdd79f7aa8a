"""What every shared store promises, and what the directory promises beyond that."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from backend.directory_store import DirectoryStore
from backend.redis_store import RedisStore
from backend.store import NO_STORE, Store, StoreSettings, open_store
from tests import parts
from tests.parts import REPOSITORY
from tests.servers import running_redis

VALUE = b"line one\nline two\x00\xff" * 50


class InDirectory:
    """A directory store, and the ways to spoil what lies in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> Store:
        return DirectoryStore(self.folder, 10**7)

    def path(self, key: str) -> Path:
        return DirectoryStore(self.folder, 0)._path(key)

    def raw(self, key: str) -> bytes:
        return self.path(key).read_bytes()

    def overwrite(self, key: str, entry: bytes) -> None:
        self.path(key).write_bytes(entry)


class InRedis:
    """The same in Redis."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis = Redis.from_url(url)
        self.redis.flushdb()

    def open(self) -> Store:
        return RedisStore(self.url)

    def raw(self, key: str) -> bytes:
        entry: Any = self.redis.get(f"edgesam:{key}")
        assert isinstance(entry, bytes)
        return entry

    def overwrite(self, key: str, entry: bytes) -> None:
        self.redis.set(f"edgesam:{key}", entry)


@pytest.fixture(params=["directory", pytest.param("redis", marks=pytest.mark.redis)])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InDirectory | InRedis]:
    if request.param == "directory":
        yield InDirectory(tmp_path / "new" / "folder")
        return
    in_redis = InRedis(request.getfixturevalue("redis_server"))
    yield in_redis
    in_redis.redis.close()


def test_what_was_put_comes_back_also_from_another_process(kind: InDirectory | InRedis) -> None:
    store = kind.open()
    assert (store.get("k"), store.has("k")) == (None, False)
    store.put("k", VALUE)
    store.put("empty", b"")
    again = kind.open()
    assert (again.get("k"), again.has("k"), again.get("empty")) == (VALUE, True, b"")
    assert (again.get("k2"), again.has("k2")) == (None, False)
    again.put("k", b"new")
    assert store.get("k") == b"new"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: b"", id="empty"),
        pytest.param(lambda raw: raw[:-1], id="torn"),
        pytest.param(lambda raw: raw[:20], id="torn in the first line"),
        pytest.param(lambda raw: raw + b"x", id="too long"),
        pytest.param(lambda raw: raw[:-3] + b"x" + raw[-2:], id="one byte changed"),
        pytest.param(lambda raw: b"\0" * len(raw), id="zeroed by a power failure"),
        pytest.param(lambda raw: raw.replace(b" k\n", b" other\n", 1), id="another key's"),
        pytest.param(lambda raw: raw.replace(b"entry 1", b"entry 2", 1), id="another format"),
        pytest.param(lambda raw: b"x" * 5000, id="one long line"),
    ],
)
def test_damaged_entry_is_a_miss_and_is_removed(
    kind: InDirectory | InRedis, damage: Callable[[bytes], bytes]
) -> None:
    store = kind.open()
    store.put("k", VALUE)
    kind.overwrite("k", damage(kind.raw("k")))
    assert store.get("k") is None
    assert not store.has("k")
    store.put("k", VALUE)
    assert store.get("k") == VALUE


def test_an_entry_never_answers_for_another_key(kind: InDirectory | InRedis) -> None:
    store = kind.open()
    store.put("k", VALUE)
    kind.overwrite("another", kind.raw("k"))
    assert store.get("another") is None
    assert store.get("k") == VALUE


def test_settings_choose_the_store(tmp_path: Path) -> None:
    assert open_store(StoreSettings()) is NO_STORE
    assert open_store(StoreSettings(tmp_path, store_bytes=0)) is NO_STORE
    assert isinstance(open_store(StoreSettings(tmp_path)), DirectoryStore)
    assert isinstance(open_store(StoreSettings(tmp_path, url="redis://h")), RedisStore)
    assert "pass" not in repr(StoreSettings(url="redis://:pass@h"))


@pytest.mark.parametrize("wrong", [{"store_bytes": -1}, {"url": "h:6379"}])
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StoreSettings(**wrong)


# --- a directory ---


def size_of(folder: Path) -> int:
    """Bytes of all files, counted as the store counts them: in whole blocks."""
    sizes = [0]
    for path in folder.iterdir():
        try:
            sizes.append(-(-path.stat().st_size // 4096) * 4096)
        except FileNotFoundError:
            continue
    return sum(sizes)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def settle(store: DirectoryStore) -> None:
    wait_until(lambda: not store._is_evicting)


def age(store: DirectoryStore, key: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(store._path(key), (then, then))


def test_folder_is_for_its_owner_alone_and_no_key_names_a_file(tmp_path: Path) -> None:
    DirectoryStore(tmp_path / "store", 10**6).put("../../outside", VALUE)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    (entry,) = (tmp_path / "store").iterdir()
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    assert entry.stat().st_mode & 0o777 == 0o600


def test_longest_unused_entry_goes_first(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, 100_000)
    for n, seconds in enumerate((40, 30, 20, 10)):
        store.put(f"k{n}", b"x" * 20_000)
        settle(store)
        age(store, f"k{n}", seconds)
    assert store.get("k0")  # used: now the youngest
    store.put("new", b"x" * 20_000)
    settle(store)
    kept = [key for key in ("k0", "k1", "k2", "k3", "new") if store.has(key)]
    assert kept == ["k0", "k2", "k3", "new"]


def test_budget_holds_while_many_entries_are_written(tmp_path: Path) -> None:
    store, sizes = DirectoryStore(tmp_path, 400_000), random.Random(0)
    for n in range(300):
        store.put(f"k{n}", sizes.randbytes(sizes.randrange(1, 20_000)))
        store.put(f"small {n}", b"few bytes take a whole block")
        settle(store)
        assert size_of(tmp_path) <= 400_000
    assert size_of(tmp_path) > 200_000


def test_entry_larger_than_the_budget_is_not_kept_and_evicts_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, 10_000)
    store.put("small", b"x" * 1000)
    store.put("large", b"y" * 10_001)
    settle(store)
    assert [store.has("small"), store.has("large")] == [True, False]


def test_budget_that_shrank_is_kept_to_at_the_next_entry(tmp_path: Path) -> None:
    for n in range(10):
        DirectoryStore(tmp_path, 10**6).put(f"k{n}", b"x" * 10_000)
    smaller = DirectoryStore(tmp_path, 40_000)
    smaller.put("new", b"x")
    settle(smaller)
    assert size_of(tmp_path) <= 40_000


def test_leftovers_of_a_killed_process_go_and_files_of_others_stay(tmp_path: Path) -> None:
    old, fresh, foreign = (tmp_path / name for name in ("a.tmp", "b.tmp", "notes.txt"))
    for path in (old, fresh, foreign):
        path.write_bytes(b"x" * 10_000)
    os.utime(old, (0, 0))
    os.utime(foreign, (0, 0))
    store = DirectoryStore(tmp_path, 5000)
    store.put("k", VALUE)
    settle(store)
    assert not old.exists()
    assert fresh.exists()
    assert foreign.exists()


def test_no_put_waits_for_an_eviction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, let_go = DirectoryStore(tmp_path, 100_000), threading.Event()
    entries = store._entries

    def slow() -> Any:
        assert let_go.wait(30)
        return entries()

    monkeypatch.setattr(store, "_entries", slow)
    for n in range(30):
        store.put(f"k{n}", b"x" * 10_000)
    assert store._is_evicting
    assert store.get("k29")
    let_go.set()
    settle(store)
    assert size_of(tmp_path) <= 100_000


def test_a_process_that_has_no_more_threads_keeps_entries_and_evicts_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = DirectoryStore(tmp_path, 100_000)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for n in range(20):
            store.put(f"k{n}", b"x" * 10_000)
    assert store.get("k19")
    assert size_of(tmp_path) > 100_000
    store.put("last", b"x")
    settle(store)
    assert size_of(tmp_path) <= 100_000


_PUT_FOREVER = """
import sys
from pathlib import Path
from backend.directory_store import DirectoryStore

store = DirectoryStore(Path(sys.argv[1]), 10**8)
print("begun", flush=True)
while True:
    for fill in (b"a", b"b"):
        store.put("k", fill * 4_000_000)
"""


def test_process_killed_while_it_writes_leaves_a_whole_entry(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, 10**8)
    for _ in range(30):  # until one is killed in the middle of a write; every second is
        command = [sys.executable, "-c", _PUT_FOREVER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            wait_until(lambda: store.has("k"))
            time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        assert store.get("k") in (b"a" * 4_000_000, b"b" * 4_000_000)
        if list(tmp_path.glob("*.tmp")):
            return
    pytest.fail("no process was killed in the middle of a write")


def _put_with_a_small_limit(folder: Path) -> tuple[bool, bytes | None, int]:
    """As on a full disk: no file may grow over 20 kB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    store = DirectoryStore(folder, 10**8)
    store.put("large", b"x" * 50_000)
    store.put("small", VALUE)
    return store.has("large"), store.get("small"), len(list(folder.iterdir()))


def test_write_that_fails_leaves_nothing_behind_and_stops_nobody(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        answer = pool.apply(_put_with_a_small_limit, (tmp_path,))
        pool.close()
        pool.join()
    assert answer == (False, VALUE, 1)


def test_folder_that_cannot_be_used_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = DirectoryStore(tmp_path / "file" / "store", 10**6)
    for _ in range(3):
        store.put("k", VALUE)
        assert store.get("k") is None
        assert not store.has("k")
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "A cache folder cannot be written: Not a directory.",
        "A cache folder cannot be read: Not a directory.",
    ]


# --- Redis ---


@pytest.fixture
def start_redis(tmp_path: Path, free_port: int) -> Callable[..., AbstractContextManager[str]]:
    """A function (options) that starts a Redis, each time at the same address."""
    program = parts.find_redis_server()
    return lambda *options: running_redis(program, tmp_path, *options, port=free_port)


@pytest.mark.redis
def test_redis_that_is_away_is_a_miss_is_told_once_and_comes_back(
    start_redis: Callable[..., AbstractContextManager[str]],
    free_port: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("backend.redis_store._LEFT_ALONE_S", 0.0)
    store = RedisStore(f"redis://127.0.0.1:{free_port}/0")
    with start_redis():
        store.put("k", VALUE)
        assert store.get("k") == VALUE
    for _ in range(3):
        assert (store.get("k"), store.has("k")) == (None, False)
        store.put("k", VALUE)
    with start_redis():
        assert store.get("k") is None  # it keeps nothing over a restart
        store.put("k", VALUE)
        assert store.get("k") == VALUE
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "ConnectionError" in warnings[0].getMessage()


def test_redis_that_does_not_answer_delays_one_click_and_not_the_next(
    free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, calls = RedisStore(f"redis://127.0.0.1:{free_port}/0"), []
    ask = store._redis.get
    monkeypatch.setattr(store._redis, "get", lambda key: calls.append(key) or ask(key))
    for _ in range(3):
        assert store.get("k") is None
    assert len(calls) == 1


@pytest.mark.redis
def test_full_redis_still_gives_what_it_has(
    start_redis: Callable[..., AbstractContextManager[str]],
    free_port: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with start_redis("--maxmemory", "5mb", "--maxmemory-policy", "noeviction"):
        store = RedisStore(f"redis://127.0.0.1:{free_port}/0")
        store.put("first", VALUE)
        for n in range(8):
            store.put(f"k{n}", b"x" * 10**6)
        assert store.get("first") == VALUE
        assert not store.has("k7")
    assert "OutOfMemoryError" in caplog.text


@pytest.mark.redis
def test_redis_with_a_limit_forgets_the_longest_unused(
    start_redis: Callable[..., AbstractContextManager[str]], free_port: int
) -> None:
    with start_redis("--maxmemory", "20mb", "--maxmemory-policy", "allkeys-lru"):
        store = RedisStore(f"redis://127.0.0.1:{free_port}/0")
        for n in range(60):
            store.put(f"k{n}", b"x" * 10**6)
        assert store.has("k59")
        assert 3 < sum(store.has(f"k{n}") for n in range(60)) < 25
