from __future__ import annotations

import pytest

from bench import stages

STAGES = ["fetch", "decode", "encode", "decode prompt", "up-scale", "clean", "RLE", "JSON"]


@pytest.mark.slow
def test_every_stage_of_a_click_has_a_median_a_95th_percentile_and_a_peer(monkeypatch):
    monkeypatch.setattr(stages, "REPEATS", 2)
    monkeypatch.setattr(stages, "SIZES_WH", {"1200x900": (1200, 900)})
    *rows, first_click, later_click = stages.run()
    assert [row["name"] for row in rows] == [f"stage {name} 1200x900" for name in STAGES]
    for row in rows:
        assert 0 < row["ours_ms"] <= row["p95_ms"]
        assert row["peer_ms"] > 0
        assert row["peer"]
    in_order = [row["ours_ms"] for row in rows]
    assert first_click["ours_ms"] == pytest.approx(sum(in_order))
    assert later_click["ours_ms"] == pytest.approx(sum(in_order[3:]))
