"""Label Studio's labelling page as an annotator has it: labels, smart tools, clicks, the tick.

Written for Label Studio 1.23.2, whose editor keeps its state in ``window.Htx``. Positions are
(x, y) in pixels of the upright image. Nothing here sleeps for a fixed time: each step waits for
what it causes.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from tests.servers import RunningLabelStudio

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Response

Tool = Literal["keypoint", "rectangle", "rotated rectangle"]
Region = dict[str, Any]

ANNOTATION = "window.Htx.annotationStore.selected"
IMAGE = f"{ANNOTATION}.objects.find(object => object.type === 'image')"
PATIENCE_S = 60.0
"""For one answer of the page; a busy machine draws slowly."""

_TOOLS = {
    "keypoint": "key-point-tool",
    "rectangle": "rectangle-tool",
    "rotated rectangle": "rectangle-3-point-tool",
}
_GEOMETRY = f"""() => {{
    const image = {IMAGE}, canvas = document.querySelector('.konvajs-content canvas');
    const box = canvas.getBoundingClientRect();
    return [
        box.x + image.zoomingPositionX, box.y + image.zoomingPositionY,
        image.stageWidth * image.zoomScale / image.naturalWidth,
        image.stageHeight * image.zoomScale / image.naturalHeight,
    ];
}}"""


@dataclass(frozen=True)
class Exchange:
    """One question of the page and what came of it."""

    prompts: list[Region]
    """``context.result`` as the page sent it."""
    regions: list[Region]
    """What the backend suggested."""


class LabellingPage:
    """A browser tab in which somebody labels."""

    def __init__(self, page: Page, label_studio: RunningLabelStudio) -> None:
        self.tab = page
        self._label_studio = label_studio
        page.set_default_timeout(PATIENCE_S * 1000)

    def log_in(self) -> None:
        self.tab.goto(f"{self._label_studio.url}/user/login/")
        self.tab.fill("input[name=email]", self._label_studio.username)
        self.tab.fill("input[name=password]", self._label_studio.password)
        self.tab.click("button[type=submit]")
        self.tab.wait_for_url(lambda url: "/user/login" not in url)

    def open_task(self, project_id: int, task_id: int) -> None:
        """Show a task and switch Auto-Annotation on."""
        self.tab.goto(f"{self._label_studio.url}/projects/{project_id}/data?task={task_id}")
        self.tab.wait_for_selector(".konvajs-content canvas")
        self._wait_for_image()
        toggle = self.tab.locator("[data-testid=bottombar-auto-annotation-toggle]")
        toggle.wait_for(state="attached")
        if not toggle.is_checked():  # the browser remembers it
            toggle.click(force=True)
            self._wait_until(toggle.is_checked, "Auto-Annotation to be on")

    def turn_to(self, item_index: int) -> None:
        """From the first picture of a ``valueList`` task to another."""
        forward = self.tab.locator(
            ".lsf-pagination__btn_arrow-right:not(.lsf-pagination__btn_arrow-right-double)"
        )
        for shown in range(1, item_index + 1):
            forward.click()
            self.tab.wait_for_function(f"() => {IMAGE}.currentImage === {shown}")
        self._wait_for_image()

    def choose(self, tool: Tool, label: str) -> None:
        """A label of that tool's row, then the smart tool: in this order.

        The page drops the label after every region, and a label chosen while another tool is active
        switches to the plain tool, which asks nobody.
        """
        types = self.tab.evaluate(
            f"() => [...{ANNOTATION}.names.values()].map(tag => tag.type)"
            ".filter(type => type.endsWith('labels'))"
        )
        own = tool.removeprefix("rotated ") + "labels"
        row = types.index(own if own in types else "labels")
        item = self.tab.locator(".lsf-labels").nth(row).locator(".lsf-label", has_text=label).first
        if "lsf-label_selected" not in (item.get_attribute("class") or ""):
            item.click()
        self.unfold_smart_tools().locator(f"[aria-label={_TOOLS[tool]}]").click()
        size = self.tab.viewport_size
        assert size is not None
        self.tab.mouse.move(5, size["height"] - 5)  # folds the smart tools away
        self.tab.locator(".lsf-toolbar__smart").wait_for(state="hidden")

    def unfold_smart_tools(self) -> Locator:
        """Hover over the last button of the toolbar; the strip of tools that comes out."""
        self.tab.locator(".lsf-toolbar > .lsf-toolbar__group > .lsf-tool_smart").first.hover()
        strip = self.tab.locator(".lsf-toolbar__smart")
        strip.wait_for(state="visible")
        return strip

    def click(self, label: str, x: float, y: float, *, negative: bool = False) -> Exchange:
        """A smart keypoint; negative with Alt held down."""
        self.choose("keypoint", label)
        with self._exchange() as answered:
            if negative:
                self.tab.keyboard.down("Alt")
            self.tab.mouse.click(*self.on_screen(x, y))
            if negative:
                self.tab.keyboard.up("Alt")
        return answered[0]

    def drag(self, label: str, x0: float, y0: float, x1: float, y1: float) -> Exchange:
        """A smart rectangle."""
        self.choose("rectangle", label)
        with self._exchange() as answered:
            self.tab.mouse.move(*self.on_screen(x0, y0))
            self.tab.mouse.down()
            self.tab.mouse.move(*self.on_screen((x0 + x1) / 2, (y0 + y1) / 2))
            self.tab.mouse.move(*self.on_screen(x1, y1))
            self.tab.mouse.up()
        return answered[0]

    def turn_rectangle(self, label: str, *corners: tuple[float, float]) -> Exchange:
        """A smart rectangle in any direction: two corners of one side, then the width."""
        self.choose("rotated rectangle", label)
        with self._exchange() as answered:
            for corner in corners:
                at = self.on_screen(*corner)
                self.tab.mouse.move(*at)
                self.tab.mouse.click(*at, delay=50)
        return answered[0]

    def accept(self) -> None:
        """The tick: suggestions become regions, prompts go."""
        self.tab.click("[data-testid=bottombar-accept-suggestions-button]")
        self._wait_until(lambda: not self.suggestions(), "the suggestion to be accepted")

    def submit(self) -> None:
        """Store the annotation."""
        with self.tab.expect_response(_is_submission):
            self.tab.click("[data-testid=bottombar-submit-button]")

    def suggestions(self) -> list[str]:
        """Types of the regions that wait for tick or cross."""
        found: list[str] = self.tab.evaluate(
            f"() => [...{ANNOTATION}.suggestions.values()].map(region => region.type)"
        )
        return found

    def on_screen(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the image lies in the window."""
        # Choosing a label may scroll the image away.
        canvas = self.tab.locator(".konvajs-content canvas").first
        canvas.evaluate("canvas => canvas.scrollIntoView({block: 'nearest'})")
        left, top, x_scale, y_scale = self.tab.evaluate(_GEOMETRY)
        at = left + x * x_scale, top + y * y_scale
        hit = self.tab.evaluate("at => document.elementFromPoint(...at)?.tagName", at)
        assert hit == "CANVAS", f"({x}, {y}) is not on screen but under {hit}: use a taller window"
        return at

    def colours(self, *points: tuple[float, float]) -> list[tuple[int, ...]]:
        """What the screen shows at pixels of the image, RGB."""
        places = [self.on_screen(*point) for point in points]
        with Image.open(io.BytesIO(self.tab.screenshot())) as screen:
            shown: Any = screen.convert("RGB")
        return [shown.getpixel((int(x), int(y))) for x, y in places]

    def picture(self, path: Path) -> None:
        """Take a picture of image, tools and bottom bar for the documentation."""
        pane = self.tab.locator(".lsf-main-content").bounding_box()
        assert pane is not None
        with Image.open(io.BytesIO(self.tab.screenshot(clip=pane, animations="disabled"))) as shown:
            path.parent.mkdir(parents=True, exist_ok=True)
            shown.convert("RGB").save(path, optimize=True)

    @contextmanager
    def _exchange(self) -> Iterator[list[Exchange]]:
        """Wait for the answer to what the block does, and until the page has drawn it."""
        answered: list[Exchange] = []
        with self.tab.expect_response(_is_question) as response:
            yield answered
        question, answer = response.value.request.post_data_json, response.value.json()
        self._wait_until(
            lambda: not self.tab.evaluate("window.Htx.awaitingSuggestions"), "the suggestion"
        )
        # The page shows no errors, so nobody would see them here either.
        assert "errors" not in answer, answer["errors"]
        regions = answer["data"]["result"]
        answered.append(Exchange(question["context"]["result"], regions))
        self._wait_until(lambda: bool(self.suggestions()) == bool(regions), "the suggestion drawn")

    def _wait_for_image(self) -> None:
        """Until the image is there and has its place: the canvas is laid out more than once."""
        self.tab.wait_for_function(f"() => {IMAGE}?.naturalWidth > 1 && {IMAGE}.stageWidth > 1")
        seen: list[Any] = []

        def is_still() -> bool:
            seen.append(self.tab.evaluate(_GEOMETRY))
            return len(seen) > 4 and all(geometry == seen[-1] for geometry in seen[-5:])

        self._wait_until(is_still, "the image to lie still")

    def _wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline, f"waited {PATIENCE_S:.0f} s for {what}"
            self.tab.wait_for_timeout(100)


def _is_question(response: Response) -> bool:
    return "/interactive-annotating" in response.url


def _is_submission(response: Response) -> bool:
    return "/annotations" in response.url and response.request.method == "POST" and response.ok
