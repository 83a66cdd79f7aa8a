from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.image_cache import ImageCache, Way


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def keep(cache: ImageCache, data: bytes) -> str:
    cache.store(data, sha(data))
    return sha(data)


def age(folder: Path, sha256: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / f"{sha256}.image", (then, then))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_bytes_and_ways_come_back(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "new" / "folder", 10**6)
    way = Way(keep(cache, b"cat"), 'W/"1"', 1.5e9)
    cache.remember("http://h/cat.png", way)
    again = ImageCache(tmp_path / "new" / "folder", 10**6)
    assert again.way("http://h/cat.png") == way
    assert again.load(way.sha256) == b"cat"
    assert again.way("http://h/dog.png") is None
    assert again.load(sha(b"dog")) is None


def test_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    keep(ImageCache(tmp_path / "cache", 10**6), b"cat")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert next((tmp_path / "cache").iterdir()).stat().st_mode & 0o777 == 0o600


def test_no_address_can_name_a_file(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", 10**6)
    cache.remember("../../outside", Way("0" * 64, None, 0.0))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_longest_unused_image_goes_first(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 5000)
    first, second, third, fourth = (keep(cache, bytes([n]) * 1000) for n in range(4))
    for sha256, seconds in ((first, 40), (second, 30), (third, 20), (fourth, 10)):
        age(tmp_path, sha256, seconds)
    assert cache.load(first)  # used: now the youngest
    keep(cache, b"x" * 2000)
    assert cache.load(second) is None
    assert cache.load(first)
    assert cache.load(fourth)
    assert size_of(tmp_path) <= 5000


def test_budget_holds_after_each_of_many_images(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 200_000)
    sizes = random.Random(0)
    for n in range(300):
        keep(cache, sizes.randbytes(sizes.randrange(1, 20_000)))
        cache.remember(f"http://h/{n}", Way("0" * 64, None, 0.0))
        assert size_of(tmp_path) <= 200_000
    assert size_of(tmp_path) > 100_000


def test_image_larger_than_the_budget_is_not_kept_and_evicts_nothing(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 5000)
    small = keep(cache, b"x" * 1000)
    large = keep(cache, b"y" * 5001)
    assert cache.load(large) is None
    assert cache.load(small)


def test_budget_that_shrank_is_kept_to_at_the_next_image(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, 10**6)
    for n in range(10):
        keep(cache, bytes([n]) * 10_000)
    keep(ImageCache(tmp_path, 30_000), b"new")
    assert size_of(tmp_path) <= 30_000


@pytest.mark.parametrize("damage", [b"", b"ca", b"cat and more", b"caT"])
def test_damaged_image_is_a_miss_and_is_removed(tmp_path: Path, damage: bytes) -> None:
    cache = ImageCache(tmp_path, 10**6)
    sha256 = keep(cache, b"cat")
    (tmp_path / f"{sha256}.image").write_bytes(damage)
    assert cache.load(sha256) is None
    assert list(tmp_path.iterdir()) == []
    assert cache.load(keep(cache, b"cat")) == b"cat"


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"{}", b"null", b'{"sha256": 1, "etag": 2}', b"\xff",
     b'{"sha256": "../../etc/passwd", "etag": null, "checked_utc": 1}',
     b'{"sha256": "' + b"0" * 64 + b'", "etag": 5, "checked_utc": 1}',
     b'{"sha256": "' + b"0" * 64 + b'", "etag": null, "checked_utc": []}'],
)  # fmt: skip
def test_damaged_way_is_a_miss_and_is_removed(tmp_path: Path, damage: bytes) -> None:
    cache = ImageCache(tmp_path, 10**6)
    cache.remember("http://h/cat.png", Way("0" * 64, None, 0.0))
    next(tmp_path.iterdir()).write_bytes(damage)
    assert cache.way("http://h/cat.png") is None
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_go_and_files_of_others_stay(tmp_path: Path) -> None:
    old, fresh, foreign = (tmp_path / name for name in ("a.tmp", "b.tmp", "notes.txt"))
    for path in (old, fresh, foreign):
        path.write_bytes(b"x" * 10_000)
    os.utime(old, (0, 0))
    os.utime(foreign, (0, 0))
    keep(ImageCache(tmp_path, 1000), b"cat")
    assert not old.exists()
    assert fresh.exists()
    assert foreign.exists()


def _work_at_random(folder: Path, seed: int) -> int:
    """Store, load and remember with a budget that evicts all the time; counts wrong answers."""
    cache, choice, wrong = ImageCache(folder, 60_000), random.Random(seed), 0
    for _ in range(150):
        n = choice.randrange(30)
        data = bytes([n]) * (1000 + 100 * n)
        name = f"http://h/{n}"
        if choice.random() < 0.5:
            cache.store(data, sha(data))
            cache.remember(name, Way(sha(data), None, 0.0))
        way = cache.way(name)
        kept = cache.load(way.sha256) if way else None
        wrong += (way is not None and way.sha256 != sha(data)) or kept not in (None, data)
    return wrong


def test_threads_of_one_cache_never_see_a_wrong_or_half_image(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda seed: _work_at_random(tmp_path, seed), range(8))) == 0
    assert not list(tmp_path.glob("*.tmp"))


def test_processes_that_share_a_folder_never_see_a_wrong_or_half_image(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert sum(pool.starmap(_work_at_random, [(tmp_path, seed) for seed in range(3)])) == 0
        pool.close()
        pool.join()
    assert not list(tmp_path.glob("*.tmp"))
