"""The status page in a real browser, before a real server that trains with stand-ins."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from PIL import Image, ImageDraw

from backend.effort_rows import AnnotationEffort, EffortRows, RegionEffort
from backend.run_state import now
from edgesam_core.decode import Prompt
from tests import servers
from tests.backend.hosts import running
from tests.backend.test_snapshot import LabelledProject, cat, dog
from tests.backend.told_run import GATE, tell
from tests.backend.training_ground import BETTER, PROJECT, Ground
from tests.backend.workers import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE_MS = 60_000


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    ground = Ground(tmp_path)
    yield ground
    for run in ground.runs.unfinished():
        ground.runs.cancel(run.job)
    wait_until(lambda: not ground.runs.unfinished(), "the end of all runs")


@pytest.fixture
def server(ground: Ground) -> Iterator[servers.RunningBackend]:
    """Our server, beside what stands in for Label Studio and for the training's programs."""
    with running(LabelledProject()) as label_studio:
        assert isinstance(label_studio, LabelledProject)
        for task_id in range(1, 31):
            label_studio.add(task_id, cat(), dog())
        environ = ground.environ(
            LABEL_STUDIO_URL=label_studio.url,
            LABEL_STUDIO_API_KEY=label_studio.legacy,
            EDGESAM_URL_SECRET="a-secret-path",
        )
        with servers.running_backend(ground.base, ground.folder, environ) as backend:
            yield backend


@pytest.fixture
def tab(page: Page) -> Iterator[Page]:
    """A tab in which nothing may go wrong."""
    wrong: list[str] = []
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda said: wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("response", lambda told: wrong.append(told.url) if told.status >= 400 else None)
    yield page
    assert wrong == []


def see(tab: Page, text: str) -> None:
    """Wait until the page shows a text; by itself, since nobody reloads it."""
    tab.get_by_text(text).first.wait_for()


@pytest.mark.slow
def test_a_run_is_started_watched_cancelled_gone_on_with_and_rolled_back(
    ground: Ground, server: servers.RunningBackend, tab: Page
) -> None:
    ground.hold("training")
    own = ground.version(ground.base)
    tab.goto(f"{server.url}/training")
    see(tab, "No project was trained yet.")
    tab.get_by_label("Its number").fill(str(PROJECT))
    tab.get_by_role("button", name="Open").click()
    here = f"{server.url}/training/{PROJECT}"
    tab.wait_for_url(here)
    tab.get_by_label("Minutes").fill("3")
    tab.get_by_role("button", name="Start training").click()
    tab.wait_for_url(here)
    see(tab, "Step 3 of 6")
    assert tab.get_by_role("listitem").filter(has_text="training").first.is_visible()
    assert tab.title().startswith("training 50 %")

    tab.get_by_role("button", name="Cancel").click()
    tab.wait_for_url(here)
    see(tab, "It was cancelled.")
    assert tab.get_by_role("button", name="Cancel").count() == 0

    ground.release()
    tab.get_by_role("button", name="Go on with the newest run").click()
    see(tab, BETTER)
    (run,) = ground.runs.of(PROJECT)
    assert (run.outcome, run.minutes) == ("promoted", 3)
    tell(ground.runs.folder(run.job))
    tab.reload()
    assert tab.locator(".version code").inner_text() == ground.served == run.version
    assert tab.locator("meta[http-equiv]").count() == 0
    see(tab, "Incumbent against challenger")
    tab.get_by_role("heading", name="Curves").scroll_into_view_if_needed()
    tab.wait_for_function(
        "[...document.images].length === 3"
        " && [...document.images].every(image => image.naturalWidth === 384)"
    )

    tab.get_by_role("button", name="Roll back to").click()
    tab.wait_for_url(here)
    see(tab, "by hand")
    assert tab.locator(".version code").inner_text() == own
    assert ground.served is None
    tab.get_by_role("button", name=f"Promote {run.version}").click()
    tab.wait_for_url(here)
    tab.get_by_role("button", name="Roll back to").wait_for()
    assert ground.served == run.version


def test_a_page_of_somebody_elses_can_press_no_button(
    ground: Ground, server: servers.RunningBackend, page: Page, tmp_path: Path
) -> None:
    version = ground.versions.add(PROJECT, ground.challenger, "trained")
    ground.versions.promote(PROJECT, version, "by hand")
    address = f"{server.url}/training/{PROJECT}/rollback"
    page.route(
        "http://evil.example/",
        lambda route: route.fulfill(
            content_type="text/html",
            body=f'<form method="post" action="{address}"><button>Win</button></form>',
        ),
    )
    page.goto("http://evil.example/")
    with page.expect_response(address) as told:
        page.get_by_role("button").click()
    assert told.value.status == 403
    see(page, "This was not sent from the server's own page")
    assert ground.served == version
    page.get_by_role("link", name="Back to project").click()
    page.get_by_role("button", name="Roll back to").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_telephone_in_light_and_dark(
    ground: Ground,
    server: servers.RunningBackend,
    chromium: Browser,
    scheme: Literal["light", "dark"],
) -> None:
    a_life_of_training(ground)
    context = chromium.new_context(
        viewport={"width": 400, "height": 800},
        color_scheme=scheme,
    )
    tab = context.new_page()
    for path in ("/training", f"/training/{PROJECT}"):
        tab.goto(server.url + path)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400, path
    verdict = tab.locator(".wide", has_text="Challenger")
    assert verdict.evaluate("table => table.scrollWidth <= table.clientWidth"), "nothing is hidden"
    paper, text = tab.evaluate(
        "() => { const style = getComputedStyle(document.body);"
        " return [style.backgroundColor, style.color].map(c => c.match(/\\d+/g).map(Number)) }"
    )
    assert (np.mean(paper) > np.mean(text)) == (scheme == "light")
    context.close()


@pytest.mark.slow
def test_screenshots_of_the_status_page(
    ground: Ground, server: servers.RunningBackend, chromium: Browser, pictures: Path
) -> None:
    """Of pictures that the program drew itself."""
    a_life_of_training(ground)
    context = chromium.new_context(viewport={"width": 880, "height": 800}, color_scheme="light")
    tab = context.new_page()
    tab.goto(f"{server.url}/training/{PROJECT}")
    height = tab.evaluate(
        "document.getElementById('pictures').parentElement.getBoundingClientRect().bottom + 16"
    )
    path = pictures / "training.png"
    tab.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": 880, "height": height})
    context.close()
    with Image.open(path) as shown:
        assert shown.width == 880
        shown.convert("RGB").quantize(256).save(path, optimize=True)


# --- a project with some history ---


def a_life_of_training(ground: Ground) -> None:
    """A run that was kept, one that failed, one that was promoted; pictures that a program drew."""
    versions, runs = ground.versions, ground.runs
    refused = versions.add(PROJECT, ground.other, "trained")
    kept = "The new version is not better with confidence on the 4 held-out tasks: mean IoU 71.0 % "
    kept += "instead of 70.2 % (difference +0.8, between -1.9 and +3.1)."
    versions.refuse(PROJECT, refused, kept)
    runs.end(replace(ground.request(), version=refused), "kept", kept)
    runs.end(
        ground.request(), "failed", "Label Studio refuses the token. Set LABEL_STUDIO_API_KEY."
    )
    run = ground.request()
    version = versions.add(PROJECT, ground.challenger, f"trained by {run.job}")
    versions.promote(PROJECT, version, GATE["reason"])
    run = replace(run, version=version, started_at=now(), why="Start Training")
    runs.end(run, "promoted", GATE["reason"])
    folder = runs.folder(run.job)
    (folder / "snapshot").mkdir()
    told = {"tasks": 60, "held_out_tasks": 12, "regions": 486, "left_out_count": 2}
    (folder / "snapshot" / "snapshot.json").write_text(json.dumps(told))
    tell(folder, incumbent=ground.version(ground.base), challenger=version)
    _draw_training(folder)
    _draw_changes(folder)
    rows = EffortRows(ground.data_dir)
    work = [(ground.version(ground.base), 3, 0.83)] * 6 + [(version, 1, 0.96)] * 9
    for number, (by, prompts, iou) in enumerate(work):
        region = RegionEffort("Nucleus", by, prompts, untouched=number > 8, iou=iou)
        at = f"2026-11-{10 if prompts == 3 else 17}T10:00:00Z"
        rows.note(PROJECT, AnnotationEffort(number, number, at, at, (region,) * 4))


def _draw_training(folder: Path) -> None:
    """The log of a training, and the picture that the training draws of it."""
    from distillation.progress import draw_curves

    steps = range(50, 601, 50)
    rows: list[dict[str, Any]] = []
    for step in steps:
        fallen = math.exp(-step / 250)
        rows.append({"step": step, "dice_loss": 0.05 + 0.3 * fallen, "focal_loss": 0.2 * fallen,
                     "steps_per_s": 0.5, "eta_min": 0.0})  # fmt: skip
        if step % 200 == 0:
            scores = {"box_iou": 0.83 - 0.06 * fallen, "click_iou": 0.75 - 0.3 * fallen}
            rows.append({"step": step, "held_back": scores})
    training = folder / "training"
    (training / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (training / "plan.json").write_text('{"steps": 600}')
    Image.fromarray(draw_curves(rows)).save(training / "curves.png")


def _draw_changes(folder: Path) -> None:
    """Cells that a program painted, and two models' answers, as the gate shows them."""
    from distillation.sheets import Sample, draw_sheet

    rng = np.random.default_rng(3)
    for name in GATE["pictures"]:
        truth, image = Image.new("1", (240, 240)), Image.new("RGB", (240, 240), (28, 24, 44))
        for x, y in rng.integers(0, 240, (12, 2)).tolist():
            _cell(ImageDraw.Draw(image), x, y, int(rng.integers(18, 34)), (70, 60, 120))
        _cell(ImageDraw.Draw(image), 120, 120, 44, (118, 96, 176))
        _cell(ImageDraw.Draw(truth), 120, 120, 44, 1)
        prompt = Prompt(np.array([[120, 112]], np.float32), np.array([1]))
        samples = []
        for word, radius, shift in (("before", 31, 10), ("after", 42, 1)):
            answer = Image.new("1", (240, 240))
            _cell(ImageDraw.Draw(answer), 120 + shift, 120, radius, 1)
            masks = np.asarray(answer), np.asarray(truth)
            iou = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
            caption = f"{word}, IoU {iou:.2f}"
            samples.append(Sample(np.asarray(image), prompt, *masks, caption))
        Image.fromarray(draw_sheet(samples, columns=2)).save(folder / name)


def _cell(draw: ImageDraw.ImageDraw, x: int, y: int, radius: int, fill: Any) -> None:
    draw.ellipse((x - radius, y - 0.8 * radius, x + radius, y + 0.8 * radius), fill=fill)
