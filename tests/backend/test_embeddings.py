from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from backend.byte_budget import ByteBudget
from backend.embeddings import EmbeddingSettings, EmbeddingStore, embedding_key
from edgesam_core.encode import Embedding
from edgesam_core.errors import ImageError, Unavailable


def embedding(value: float = 0.1) -> Embedding:
    return Embedding(
        image_embedding=np.full((1, 256, 4, 4), value, dtype=np.float32),
        original_size_hw=(48, 64),
        input_size_hw=(48, 64),
        input_size=64,
        bundle_version="v",
    )


class SlowEncoder:
    """Counts its runs and how many went on at once; each lasts until it is let go."""

    def __init__(self) -> None:
        self.runs = 0
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        self.let_go = threading.Event()

    def __call__(self) -> Embedding:
        with self._lock:
            self.runs += 1
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        self.let_go.wait(5)
        with self._lock:
            self._now -= 1
        return embedding()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_key_is_of_image_model_and_pre_processing() -> None:
    assert len({embedding_key("a", "v1"), embedding_key("b", "v1"), embedding_key("a", "v2")}) == 3


def test_the_first_click_and_the_second_see_the_same_numbers() -> None:
    store = EmbeddingStore(EmbeddingSettings())
    first, how_first = store.get_or_encode("k", lambda: embedding(0.1))
    second, how_second = store.get_or_encode("k", lambda: embedding(0.9))
    assert (how_first, how_second) == ("miss", "hit")
    assert np.array_equal(first.image_embedding, second.image_embedding)
    assert second.image_embedding.dtype == np.float32
    assert second.image_embedding[0, 0, 0, 0] == pytest.approx(0.1, rel=1e-3)


def test_many_clicks_on_a_new_image_encode_it_once() -> None:
    store, encoder = EmbeddingStore(EmbeddingSettings()), SlowEncoder()
    with ThreadPoolExecutor(8) as pool:
        clicks = [pool.submit(store.get_or_encode, "k", encoder) for _ in range(8)]
        wait_until(lambda: encoder.runs == 1)
        encoder.let_go.set()
        outcomes = sorted(click.result()[1] for click in clicks)
    assert encoder.runs == 1
    assert outcomes.count("miss") == 1
    assert set(outcomes) <= {"miss", "joined", "hit"}


def test_different_images_take_turns() -> None:
    store, encoder = EmbeddingStore(EmbeddingSettings(), encodes_at_once=1), SlowEncoder()
    with ThreadPoolExecutor(4) as pool:
        clicks = [pool.submit(store.get_or_encode, str(i), encoder) for i in range(4)]
        wait_until(lambda: encoder.runs == 1)
        encoder.let_go.set()
        assert all(click.result()[1] == "miss" for click in clicks)
    assert (encoder.runs, encoder.most_at_once) == (4, 1)


# --- ahead of clicks ---


def test_what_is_encoded_ahead_gives_way_to_every_click_that_waits() -> None:
    store, first, order = EmbeddingStore(EmbeddingSettings()), SlowEncoder(), list[str]()

    def encode(name: str) -> Callable[[], Embedding]:
        def run() -> Embedding:
            order.append(name)
            return embedding()

        return run

    with ThreadPoolExecutor(6) as pool:
        pool.submit(store.get_or_encode, "first", first)
        wait_until(lambda: first.runs == 1)
        ahead = pool.submit(store.encode_ahead, "ahead", encode("ahead"))
        for name in ("click 1", "click 2", "click 3"):
            pool.submit(store.get_or_encode, name, encode(name))
        wait_until(lambda: store._turns._clicks_waiting == 3)
        first.let_go.set()
        assert ahead.result() is True
    assert sorted(order[:3]) == ["click 1", "click 2", "click 3"]
    assert order[3:] == ["ahead"]


def test_a_click_on_what_is_being_encoded_ahead_waits_for_that_one() -> None:
    store, encoder = EmbeddingStore(EmbeddingSettings()), SlowEncoder()
    with ThreadPoolExecutor(2) as pool:
        ahead = pool.submit(store.encode_ahead, "k", encoder)
        wait_until(lambda: encoder.runs == 1)
        click = pool.submit(store.get_or_encode, "k", encoder)
        encoder.let_go.set()
        assert ahead.result() is True
        assert click.result()[1] in ("joined", "hit")
    assert encoder.runs == 1
    assert store.has("k")


def test_a_click_does_not_wait_with_what_is_still_to_be_encoded_ahead() -> None:
    store, first, second = EmbeddingStore(EmbeddingSettings()), SlowEncoder(), SlowEncoder()
    with ThreadPoolExecutor(3) as pool:
        pool.submit(store.get_or_encode, "first", first)
        wait_until(lambda: first.runs == 1)
        ahead = pool.submit(store.encode_ahead, "k", second)
        click = pool.submit(store.get_or_encode, "k", second)
        wait_until(lambda: store._turns._clicks_waiting == 1)
        first.let_go.set()
        second.let_go.set()
        assert click.result()[1] == "miss"
        assert ahead.result() is False
    assert second.runs == 1


def test_with_several_turns_only_clicks_take_the_second_one() -> None:
    store = EmbeddingStore(EmbeddingSettings(wait_s=0.05), encodes_at_once=2)
    encoder = SlowEncoder()
    with ThreadPoolExecutor(2) as pool:
        pool.submit(store.get_or_encode, "a", encoder)
        wait_until(lambda: encoder.runs == 1)
        with pytest.raises(Unavailable):
            store.encode_ahead("ahead", encoder)
        pool.submit(store.get_or_encode, "b", encoder)
        wait_until(lambda: encoder.runs == 2)
        encoder.let_go.set()


def test_an_encode_ahead_that_fails_costs_the_click_nothing() -> None:
    store = EmbeddingStore(EmbeddingSettings())

    def fail() -> Embedding:
        raise ImageError()

    with pytest.raises(ImageError):
        store.encode_ahead("k", fail)
    assert store.get_or_encode("k", embedding)[1] == "miss"
    assert store.encode_ahead("k", fail) is False


def test_a_wait_that_is_too_long_ends_with_a_sentence() -> None:
    store, encoder = EmbeddingStore(EmbeddingSettings(wait_s=0.05)), SlowEncoder()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(store.get_or_encode, "slow", encoder)
        wait_until(lambda: encoder.runs == 1)
        with pytest.raises(Unavailable):  # of another image, whose turn does not come
            store.get_or_encode("other", encoder)
        with pytest.raises(Unavailable):  # of the same image
            store.get_or_encode("slow", encoder)
        encoder.let_go.set()
        assert slow.exception() is None or isinstance(slow.exception(), Unavailable)
    assert store.get_or_encode("slow", encoder)[1] == "hit"


def test_an_encode_that_fails_is_told_and_tried_again() -> None:
    store = EmbeddingStore(EmbeddingSettings())

    def fail() -> Embedding:
        raise ImageError()

    for _ in range(2):
        with pytest.raises(ImageError):
            store.get_or_encode("k", fail)
    assert store.get_or_encode("k", embedding)[1] == "miss"


def test_what_was_unused_longest_goes_first_and_the_budget_holds() -> None:
    kept: ByteBudget[str] = ByteBudget(100)
    for key in "abc":
        kept.put(key, key, 40)
        kept.get("a")
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == ("a", None, "c")
    kept.put("a", "A", 90)
    assert (kept.get("a"), kept.get("c"), kept.used_bytes) == ("A", None, 90)
    kept.put("d", "d", 101)
    assert (len(kept), kept.used_bytes) == (0, 0)


def test_a_budget_of_nothing_still_answers() -> None:
    store = EmbeddingStore(EmbeddingSettings(cache_bytes=0))
    assert [store.get_or_encode("k", embedding)[1] for _ in range(2)] == ["miss", "miss"]


@pytest.mark.parametrize(("name", "value"), [("cache_bytes", -1), ("wait_s", 0), ("wait_s", 101)])
def test_settings_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        EmbeddingSettings(**{name: value})
