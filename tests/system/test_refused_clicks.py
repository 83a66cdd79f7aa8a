"""What an annotator sees of a click that is superseded (409) or refused (503), in the real page.

docs/workers.md tells it to operators, docs/annotators.md to those who click.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from backend.machine_turns import MachineTurns
from tests.backend.conftest import body, keypoint, picture_uri
from tests.system.conftest import jpeg, photo
from tests.system.page import ANNOTATION
from tests.system.test_labelling_page import config, mask_of

pytestmark = pytest.mark.slow

QUESTION = "/interactive-annotating"
"""In the address that the page asks."""

CLICKS_AT_ONCE = 3
"""Of four threads."""


@pytest.fixture
def turns(tmp_path):
    """The turns to encode of the machine: who holds the only one lets every encode wait."""
    return MachineTurns(tmp_path / "cache" / "turns", 1)


@pytest.fixture
def small_backend(start_backend, label_studio, disc_bundle, tmp_path):
    environ = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.personal_access_token,
        "EDGESAM_CACHE_DIR": str(tmp_path / "cache"),
        "EDGESAM_ENCODE_WAIT_S": "100",
        "THREADS": "4",
    }
    return start_backend(disc_bundle, environ)


def somebody_clicks(backend, who: int) -> requests.Response:
    """A click of another annotator on another image, which does not come through the page."""
    sent = body(keypoint(50, 50, id=f"other-{who}"), image=picture_uri(grey=77))
    return requests.post(backend.url + "/predict", json=sent, timeout=120)


@contextmanager
def answers_of(labelling) -> Iterator[list[Any]]:
    """The JSON that the page gets for its clicks meanwhile, as it comes."""
    answers: list[Any] = []

    def note(response: Any) -> None:
        if QUESTION in response.url:
            assert response.status == 200  # whatever we answer
            answers.append(response.json())

    labelling.tab.on("requestfinished", lambda request: note(request.response()))
    yield answers


def click_and_do_not_wait(labelling, x: float, y: float) -> None:
    """Returns when the page has asked, which is after it has dropped the label."""
    labelling.choose("keypoint", "Cat")
    with labelling.tab.expect_request(lambda request: QUESTION in request.url):
        labelling.tab.mouse.click(*labelling.on_screen(x, y))


def assert_nothing_is_said(labelling) -> None:
    shown = labelling.tab.locator("body").inner_text()
    assert not [word for word in ("409", "503", "Error", "error") if word in shown]


def dots(labelling) -> int:
    """Prompts that wait for tick or cross."""
    count: int = labelling.tab.evaluate(f"() => {ANNOTATION}.regions.filter(r => r.dynamic).length")
    return count


def is_waiting(labelling) -> bool:
    """Whether the ring turns in the bottom bar."""
    return labelling.tab.locator(".lsf-auto-accept__spinner").is_visible()


def test_a_superseded_click_is_noticed_by_nobody(labelling, api, small_backend, turns):
    project = api.create_project("superseded", config("BrushLabels"))
    task = api.upload(project, "cat.jpg", jpeg(photo("chelsea.png")))
    assert api.attach(project, small_backend.url).status_code == 201
    assert turns.take(60)
    labelling.open_task(project, task)
    with answers_of(labelling) as answers:
        for at in ((140, 100), (165, 120), (100, 100)):
            click_and_do_not_wait(labelling, *at)
        labelling._wait_until(lambda: len(answers) == 1, "the second click to be superseded")
        assert is_waiting(labelling)
        turns.give_back()
        labelling._wait_until(lambda: len(answers) == 3, "all answers")
    superseded = [answer["errors"][0][:4] for answer in answers if "errors" in answer]
    assert superseded == ["409 ", "409 "]
    (answered,) = [answer for answer in answers if "data" in answer]
    labelling._wait_until(lambda: labelling.suggestions() == ["brushregion"], "the mask")
    (region,) = answered["data"]["result"]
    assert len(region["meta"]["edgesam"]["prompt"]["points"]) == 3
    assert not is_waiting(labelling)
    assert dots(labelling) == 3
    assert_nothing_is_said(labelling)


def test_a_refused_click_takes_the_mask_away_and_the_next_one_brings_it_back(
    labelling, api, small_backend, turns
):
    project = api.create_project("refused", config("BrushLabels"))
    task = api.upload(project, "cat.jpg", jpeg(photo("chelsea.png")))
    assert api.attach(project, small_backend.url).status_code == 201
    labelling.open_task(project, task)
    labelling.click("Cat", 140, 100)
    assert turns.take(60)
    with ThreadPoolExecutor(CLICKS_AT_ONCE + 1) as pool, answers_of(labelling) as answers:
        others = [
            pool.submit(somebody_clicks, small_backend, who) for who in range(CLICKS_AT_ONCE + 1)
        ]
        wait(others, return_when=FIRST_COMPLETED)  # one too many: now all places are taken
        click_and_do_not_wait(labelling, 165, 120)
        labelling._wait_until(lambda: len(answers) == 1, "the refusal")
        turns.give_back()
    statuses = sorted(other.result().status_code for other in others)
    assert statuses == [200] * CLICKS_AT_ONCE + [503]
    assert answers[0]["errors"][0].startswith("503 ")
    labelling._wait_until(lambda: not labelling.suggestions(), "the mask to go")
    assert not is_waiting(labelling)
    assert dots(labelling) == 2
    assert_nothing_is_said(labelling)

    again = labelling.click("Cat", 100, 100)
    assert len(again.prompts) == 3
    labelling.accept()
    labelling.submit()
    (annotation,) = api.annotations(task)
    (stored,) = annotation["result"]
    mask = mask_of(stored)
    assert all(mask[y, x] for x, y in ((140, 100), (165, 120), (100, 100)))
