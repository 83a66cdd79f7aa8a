"""The README's picture: a click on a photo becomes a mask, by the command that anyone can run."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from edgesam_core.decode import Prompt
from edgesam_core.overlay import draw_overlay
from edgesam_core.windowed_mask import WindowedMask
from tests import parts
from tests.system.conftest import photo

pytestmark = pytest.mark.slow

PHOTO = "chelsea.png"
CLICK = (172, 118)
GAP_PX = 12


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
