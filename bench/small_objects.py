"""What a second look does for small objects: better masks, and what the click costs meanwhile.

Objects under 2 % of the image are asked for by box and by click, then corrected twice where the
mask is most wrong, with the second look (backend/second_look.py) and without it. Two kinds of
pictures: those of ../shared/data/research_only (odd ids, up to 1 Mpx), and scenes of 12 Mpx that
distillation/synth draws. The crop is encoded before the next click, as it is for anybody who needs
a second to find the place to correct.

    python -m bench small_objects                           a few pictures of every set
    python -m bench.small_objects [--ids even] [--limit 5]  all of them, in one table
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from backend.embeddings import crop_key
from backend.jobs import EncodeRequest
from backend.metrics import Metrics
from backend.refinement import Refinement, RefinementSettings
from backend.second_look import SecondLook, SecondLookSettings
from distillation.annotated_images import Half, annotated_images
from distillation.click_rounds import MIN_REGION_PX
from distillation.instances import AnnotatedImage, Instance
from distillation.measuring import MeasuringConfig, score_images
from distillation.metrics import Score, instance_counts, mean_ious
from distillation.synth import procedural_scene
from edgesam_core.arrays import ImageRGB, Mask
from edgesam_core.bundle import Bundle, find_bundle
from edgesam_core.clean import remove_specks
from edgesam_core.decode import Prompt
from edgesam_core.encode import Embedding
from edgesam_core.second_look import MAX_SHARE, cut
from edgesam_core.segmenter import Segmenter, Suggestion
from edgesam_core.windowed_mask import WindowedMask

DATA = Path("../shared/data/research_only")
OBJECTS_OF_AN_IMAGE = 2
IMAGES_OF_A_SET = 4
SCENES = 4
SCENE_SIDE_PX = 3464
"""Squared, 12 Mpx."""
MODES = ("off", "on")


def _without_specks(mask: WindowedMask) -> WindowedMask:
    return remove_specks(mask, min_area_px=MIN_REGION_PX)


@dataclass(frozen=True, eq=False)
class _Seen:
    """A picture, encoded, with the crops of it that were encoded, by key."""

    image: ImageRGB
    whole: Embedding
    crops: dict[str, Embedding]
    second_look: SecondLook
    refinement: Refinement


class Annotated:
    """Answers as the service does to somebody who takes a second before the next click."""

    def __init__(self, segmenter: Segmenter, mode: str) -> None:
        """Take the model and whether there is a second look, "on" or "off"."""
        self._segmenter = segmenter
        self._settings = SecondLookSettings(mode=mode)

    def embed(self, image: ImageRGB) -> _Seen:
        """Encode a picture; nothing is remembered of another."""
        crops: dict[str, Embedding] = {}

        def encode(request: EncodeRequest) -> None:
            assert request.crop_xyxy is not None
            crop = cut(image, request.crop_xyxy)
            crops[crop_key("", request.crop_xyxy)] = self._segmenter.embed(crop)

        refinement = Refinement(RefinementSettings())
        second_look = SecondLook(
            self._settings, crops.get, encode, refinement, _without_specks, Metrics()
        )
        return _Seen(image, self._segmenter.embed(image), crops, second_look, refinement)

    def segment(self, seen: _Seen, prompts: Sequence[Prompt]) -> list[Suggestion]:
        """One answer per prompt."""
        return [self._answer(seen, replace(prompt, mask_input=None)) for prompt in prompts]

    def _answer(self, seen: _Seen, prompt: Prompt) -> Suggestion:
        extended = seen.refinement.extend("", prompt)
        closer = seen.second_look.answer(self._segmenter, "", seen.whole, extended)
        if closer is None:
            (suggestion,) = self._segmenter.segment(seen.whole, [extended])
            seen.refinement.remember("", prompt, suggestion.low_res_logits)
        else:
            suggestion = closer.suggestion
            seen.refinement.remember(closer.key, closer.prompt, suggestion.low_res_logits)
        request = EncodeRequest("", None, None, self._segmenter.version, False)
        seen.second_look.answered("", request, prompt, _without_specks(suggestion.mask))
        seen.second_look.encode_waiting()
        return suggestion


@dataclass(frozen=True)
class DrawnInstance(Instance):
    """An object of a drawn scene: its mask is there already."""

    drawn: Any = None
    """[H, W] bool."""

    def mask(self) -> Mask:
        """[H, W] bool."""
        mask: Mask = self.drawn
        return mask


@dataclass(frozen=True)
class DrawnImage(AnnotatedImage):
    """A drawn scene: it has no file."""

    pixels: Any = None
    """[H, W, 3] uint8."""

    def read(self) -> ImageRGB:
        """[H, W, 3] uint8 RGB."""
        image: ImageRGB = self.pixels
        return image


def photos(half: Half, limit: int | None) -> Iterator[AnnotatedImage]:
    """Annotated photos with their first small objects, at most `limit` photos of each set."""
    if not DATA.is_dir():
        return
    for _, of_set in itertools.groupby(
        annotated_images(DATA, half=half, per_image=None), key=lambda image: image.set_name
    ):
        yield from itertools.islice(_with_small_objects(of_set), limit)


def scenes(count: int) -> Iterator[AnnotatedImage]:
    """Drawn scenes of 12 Mpx with their first small objects; 10 s each."""
    return itertools.islice(_with_small_objects(_draw(seed) for seed in itertools.count()), count)


def _draw(seed: int) -> AnnotatedImage:
    scene = procedural_scene(np.random.default_rng(seed), SCENE_SIDE_PX)
    size_hw = (SCENE_SIDE_PX, SCENE_SIDE_PX)
    instances = tuple(
        DrawnInstance(seed * 1000 + index, size_hw, None, drawn=mask)
        for index, mask in enumerate(scene.masks)
    )
    return DrawnImage("12 Mpx", seed, Path(), size_hw, instances, pixels=scene.image)


def _with_small_objects(images: Iterable[AnnotatedImage]) -> Iterator[AnnotatedImage]:
    for image in images:
        most_px = MAX_SHARE * image.original_size_hw[0] * image.original_size_hw[1]
        small = (instance for instance in image.instances if instance.area_px < most_px)
        chosen = tuple(itertools.islice(small, OBJECTS_OF_AN_IMAGE))
        if chosen:
            yield replace(image, instances=chosen)


@lru_cache
def _segmenter() -> Segmenter:
    return Segmenter(Bundle.open(find_bundle("default", Path("models"))))


def measure(images: Iterable[AnnotatedImage]) -> list[Score]:
    """All scores, methods "off" and "on"."""
    config = MeasuringConfig(starts=("box", "click"), protocols=("sam",))
    answerers = {mode: Annotated(_segmenter(), mode) for mode in MODES}
    return [
        replace(score, method=mode)
        for image in images
        for mode, answerer in answerers.items()
        for score in score_images(answerer, [image], config=config)
    ]


def rows_of(scores: Sequence[Score], where: str) -> list[dict[str, Any]]:
    """A row for every prompt: mean IoU without and with the second look."""
    if not scores:
        return []
    means, objects = mean_ious(scores), instance_counts(scores)["all"]
    return [
        {
            "name": f"small objects, {where}, {column}",
            "note": f"mIoU {without:.1f} -> {means['on'][column]:.1f} with the second look; "
            f"{objects} objects",
            "miou_percent_off": without,
            "miou_percent_on": means["on"][column],
            "objects": objects,
        }
        for column, without in means["off"].items()
    ]


def run() -> list[dict[str, Any]]:
    """Rows as ``bench/__main__.py`` describes them."""
    return [
        *rows_of(measure(photos("odd", IMAGES_OF_A_SET)), "photos"),
        *rows_of(measure(scenes(SCENES)), "12 Mpx"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; always 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.small_objects")
    parser.add_argument("--ids", choices=("even", "odd", "all"), default="odd")
    parser.add_argument("--limit", type=int, help="at most so many photos of each set")
    parser.add_argument("--scenes", type=int, default=0, help="so many scenes of 12 Mpx, too")
    options = parser.parse_args(arguments)
    rows = rows_of(measure(photos(options.ids, options.limit)), f"{options.ids} ids")
    rows += rows_of(measure(scenes(options.scenes)), "12 Mpx")
    for row in rows:
        print(f"{row['name']}: {row['note']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
