from __future__ import annotations

import numpy as np
import pytest

from bench.small_objects import MODES, Annotated, rows_of
from distillation.metrics import Score
from edgesam_core.bundle import Bundle
from edgesam_core.decode import Prompt
from edgesam_core.segmenter import Segmenter
from tests.backend.disc_bundle import write_disc_bundle


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    folder = write_disc_bundle(tmp_path_factory.mktemp("bundles") / "small", radius_px=8.0)
    return Segmenter(Bundle.open(folder), threads=1)


def test_what_is_measured_with_it_differs_from_the_second_click_on(segmenter: Segmenter) -> None:
    # The stand-in's discs have a radius in pixels of the input: smaller ones where that is a crop.
    image = np.full((480, 640, 3), 120, np.uint8)
    areas = {}
    for mode in MODES:
        answerer = Annotated(segmenter, mode)
        seen = answerer.embed(image)
        prompts = Prompt.from_clicks([(320, 240, 1)]), Prompt.from_clicks([(320, 240, 1)] * 2)
        areas[mode] = [answerer.segment(seen, [prompt])[0].mask.area for prompt in prompts]
    assert areas["on"][0] == areas["off"][0]
    assert areas["on"][1] < areas["off"][1] / 2


def test_a_row_has_both_means() -> None:
    scores = [
        Score("set", 1, number, 100, 10_000, mode, "box+1", iou)
        for mode, ious in (("off", (0.5, 0.7)), ("on", (0.8, 0.9)))
        for number, iou in enumerate(ious)
    ]
    (row,) = rows_of(scores, "photos")
    assert (row["miou_percent_off"], row["miou_percent_on"], row["objects"]) == (60.0, 85.0, 2)
    assert rows_of([], "photos") == []
