from __future__ import annotations

from bench.timing import Times, alternate


def test_the_95th_percentile_shows_the_slow_call_that_the_median_hides():
    times = Times.of([0.01] * 9 + [0.1])
    assert times.median_ms == 10
    assert 50 < times.p95_ms <= 100


def test_calls_take_turns_and_the_first_rounds_do_not_count():
    order: list[str] = []
    ours, _ = alternate(
        [lambda: order.append("ours"), lambda: order.append("peer")], repeats=3, warm_up=2
    )
    assert order == ["ours", "peer"] * 5
    assert 0 <= ours.median_ms <= ours.p95_ms
