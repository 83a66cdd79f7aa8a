"""The pictures of README and model card: what the model really makes of a click or a box."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from skimage import data as skimage_data

from distillation.click_rounds import click_prompt
from distillation.prompt_points import centre_click
from distillation.synth import procedural_scene
from edgesam_core import Bundle, Prompt, Segmenter
from edgesam_core.overlay import draw_overlay
from edgesam_core.windowed_mask import WindowedMask
from tests import parts
from tests.system.conftest import photo

pytestmark = pytest.mark.slow

PHOTO = "chelsea.png"
CLICK = (320, 135)
GAP_PX = 12
PANEL_PX = 300


def test_click_becomes_a_mask_for_screenshots(default_model, pictures, tmp_path):
    """Left the photo with the click, right what the model made of it."""
    image = photo(PHOTO)
    image.save(tmp_path / "photo.png")
    command = [
        sys.executable, "-m", "edgesam_core", "segment", str(tmp_path / "photo.png"),
        "--point", f"{CLICK[0]},{CLICK[1]}", "--out", str(tmp_path / "mask.png"),
        "--model", str(default_model),
    ]  # fmt: skip
    told = subprocess.run(
        command, cwd=parts.REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 0, told.stderr

    prompt = Prompt.from_clicks([(*CLICK, 1)])
    no_mask = WindowedMask.from_full(np.zeros((image.height, image.width), dtype=bool))
    clicked = draw_overlay(np.asarray(image), no_mask, prompt)
    with Image.open(tmp_path / "mask.png") as masked:
        assert masked.size == image.size
        changed = np.any(np.asarray(masked.convert("RGB")) != np.asarray(clicked), axis=2)
        both = Image.new("RGB", (2 * image.width + GAP_PX, image.height), "white")
        both.paste(clicked, (0, 0))
        both.paste(masked, (image.width + GAP_PX, 0))
    assert 0.01 < changed.mean() < 0.9
    pictures.mkdir(parents=True, exist_ok=True)
    both.save(pictures / "click.png", optimize=True)


def examples() -> Iterator[tuple[np.ndarray, Prompt]]:
    """Image [H, W, 3] uint8 and prompt; chosen before the model was trained, good or bad."""
    yield skimage_data.coffee(), Prompt.from_clicks([], box_xyxy=(185, 30, 425, 290))
    yield skimage_data.astronaut(), Prompt.from_clicks([], box_xyxy=(170, 20, 290, 200))
    yield skimage_data.rocket(), Prompt.from_clicks([], box_xyxy=(305, 80, 355, 375))
    coins = np.repeat(skimage_data.coins()[..., None], 3, axis=2)
    yield coins, Prompt.from_clicks([(45, 122, 1)])
    yield skimage_data.chelsea(), Prompt.from_clicks([(220, 130, 1)])
    yield skimage_data.coffee(), Prompt.from_clicks([(480, 300, 1)])
    for seed in (4, 12):
        scene = procedural_scene(np.random.default_rng(seed), PANEL_PX)
        largest = max(scene.masks, key=np.count_nonzero)
        yield scene.image, click_prompt(centre_click(largest.astype(bool)))


def test_examples_of_the_model_card_for_screenshots(default_model, pictures):
    """Eight answers as they come; every one has a region."""
    segmenter = Segmenter(Bundle.open(default_model))
    sheet = Image.new("RGB", (4 * (PANEL_PX + 8), 2 * (PANEL_PX + 8)), "white")
    for number, (image, prompt) in enumerate(examples()):
        (suggestion,) = segmenter.segment(segmenter.embed(image), [prompt])
        assert suggestion.mask.area > 0
        panel = draw_overlay(image, suggestion.mask, prompt)
        panel.thumbnail((PANEL_PX, PANEL_PX))
        row, column = divmod(number, 4)
        sheet.paste(panel, (column * (PANEL_PX + 8), row * (PANEL_PX + 8)))
    pictures.mkdir(parents=True, exist_ok=True)
    sheet.save(pictures / "default_examples.png", optimize=True)
