"""The model card's picture: what a bundle makes of photos and scenes that anyone may redistribute.

    python -m distillation.example_sheet models/default docs/images/default_examples.png

The prompts are fixed, so that good and bad answers are shown as they come. Photos are those in
scikit-image's wheel; scenes are rendered by ``distillation/synth``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data as skimage_data

from distillation.click_rounds import click_prompt
from distillation.prompt_points import centre_click
from distillation.synth import procedural_scene
from edgesam_core import Bundle, Prompt, Segmenter
from edgesam_core.overlay import draw_overlay

PANEL_PX = 300
COLUMNS = 4


def examples() -> Iterator[tuple[np.ndarray, Prompt]]:
    """Image [H, W, 3] uint8 and prompt, one after the other."""
    yield skimage_data.coffee(), Prompt.from_clicks([], box_xyxy=(185, 30, 425, 290))
    yield skimage_data.astronaut(), Prompt.from_clicks([], box_xyxy=(170, 20, 290, 200))
    yield skimage_data.rocket(), Prompt.from_clicks([], box_xyxy=(305, 80, 355, 375))
    yield _rgb(skimage_data.coins()), Prompt.from_clicks([(45, 122, 1)])
    yield skimage_data.chelsea(), Prompt.from_clicks([(220, 130, 1)])
    yield skimage_data.coffee(), Prompt.from_clicks([(480, 300, 1)])
    for seed in (4, 12):
        scene = procedural_scene(np.random.default_rng(seed), PANEL_PX)
        largest = max(scene.masks, key=np.count_nonzero)
        yield scene.image, click_prompt(centre_click(largest.astype(bool)))


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    segmenter = Segmenter(Bundle.open(options.bundle))
    panels = []
    for image, prompt in examples():
        (suggestion,) = segmenter.segment(segmenter.embed(image), [prompt])
        picture = draw_overlay(image, suggestion.mask, prompt)
        picture.thumbnail((PANEL_PX, PANEL_PX))
        panels.append(picture)
    rows = -(-len(panels) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (PANEL_PX + 8), rows * (PANEL_PX + 8)), "white")
    for number, panel in enumerate(panels):
        row, column = divmod(number, COLUMNS)
        sheet.paste(panel, (column * (PANEL_PX + 8), row * (PANEL_PX + 8)))
    sheet.save(options.out, optimize=True)


if __name__ == "__main__":
    main()
