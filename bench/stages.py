"""One click stage by stage, by the functions that serve it, each beside the stock path's way.

In one process, without Label Studio: a photo on a host on loopback, the default bundle, a click.
What the sum leaves out of a real click (HTTP, checks of the request, the log) is in click.py.

    python -m bench stages
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import requests

from backend.images import ImageLoader, ImageSettings
from backend.label_config import parse_label_config
from backend.label_studio import LabelStudioClient, LabelStudioSettings
from backend.results import ResultSettings, Suggested, clean_mask, regions_for
from backend.routes import _json as response_of
from bench import stock
from bench.annotator import CLICK, LABEL_CONFIG, SIZES_WH, image_host, photo
from bench.timing import alternate
from edgesam_core.bundle import Bundle, find_bundle
from edgesam_core.decode import Prompt
from edgesam_core.image import read_image
from edgesam_core.rle import mask_to_brush_rle
from edgesam_core.segmenter import Segmenter
from edgesam_core.session import fastest_runtime
from edgesam_core.upscale import upscale

REPEATS = 25
FIRST_CLICK_ONLY = ("fetch", "decode", "encode")

Stage = tuple[str, Callable[[], object], str, Callable[[], object]]
"""Its name, ours, the peer's name, the peer."""


def run() -> list[dict[str, Any]]:
    """Time every stage for a small and a large photo, and add them up."""
    bundle = Bundle.open(find_bundle("default", Path("models")))
    segmenter = Segmenter(bundle, runtime=fastest_runtime())
    photos = {name: photo(size_wh) for name, size_wh in SIZES_WH.items()}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, image_host(photos) as host:
        stock_path = stock.StockPath(bundle, Path(folder))
        for size_name in SIZES_WH:
            stages = _stages(segmenter, stock_path, host, size_name)
            timed = {stage[0]: _row(stage, size_name) for stage in stages}
            later = [row for name, row in timed.items() if name not in FIRST_CLICK_ONLY]
            rows += timed.values()
            rows += [
                _sum(f"stages of a first click {size_name}", list(timed.values())),
                _sum(f"stages of a later click {size_name}", later),
            ]
    return rows


def _stages(
    segmenter: Segmenter, stock_path: stock.StockPath, host: str, size_name: str
) -> list[Stage]:
    """Every stage with what the one before it made."""
    uri = f"http://{host}/{size_name}/photo.jpg"
    images = ImageLoader(  # keeps nothing: every fetch is one
        ImageSettings(allowed_hosts=(host,)), LabelStudioClient(LabelStudioSettings())
    )
    data = images.fetch(uri).data
    image = read_image(data)
    embedding = segmenter.embed(image)
    width, height = SIZES_WH[size_name]
    at = np.array([[CLICK[0] * width, CLICK[1] * height]], np.float32)
    prompt = Prompt(point_coords=at, point_labels=np.ones(1, np.float32))
    (suggestion,) = segmenter.segment(embedding, [prompt])
    sizes: dict[str, Any] = {
        "input_size": embedding.input_size,
        "input_size_hw": embedding.input_size_hw,
        "original_size_hw": embedding.original_size_hw,
    }
    settings = ResultSettings()
    mask = clean_mask(suggestion.mask, settings)
    full = mask.full()
    answer = {"results": [{"result": _regions(mask, prompt, settings)}]}
    logits = suggestion.low_res_logits
    return [
        ("fetch", partial(images.fetch, uri), "requests", lambda: requests.get(uri).content),
        ("decode", partial(read_image, data), "OpenCV", partial(stock.read, data)),
        ("encode", partial(segmenter.embed, image), "official export",
         partial(stock_path.encode, image)),
        ("decode prompt", partial(segmenter.decode, embedding, [prompt]), "official export",
         partial(stock_path.decode, embedding)),
        ("up-scale", partial(upscale, logits, **sizes), "cv2.resize twice",
         partial(stock.upscale, logits, **sizes)),
        ("clean", partial(clean_mask, suggestion.mask, settings), "OpenCV's components",
         partial(stock.clean, suggestion.mask.full(), settings.min_region_px)),
        ("RLE", partial(mask_to_brush_rle, mask), "label_studio_sdk",
         partial(stock.mask_to_rle, full)),
        ("JSON", partial(response_of, answer), "json.dumps of the RLE",
         partial(json.dumps, {"rle": stock.mask_to_rle(full)})),
    ]  # fmt: skip


def _regions(mask: Any, prompt: Prompt, settings: ResultSettings) -> list[dict[str, Any]]:
    config = parse_label_config(LABEL_CONFIG)
    (output,) = config.outputs("image", ("Object",))
    suggested = Suggested(
        mask=mask, prompt=prompt, score=0.9, item_index=None, to_name="image", version="bench"
    )
    return regions_for(suggested, output, settings)


def _row(stage: Stage, size_name: str) -> dict[str, Any]:
    name, ours, peer_name, peer = stage
    ours_times, peer_times = alternate((ours, peer), REPEATS)
    return {
        "name": f"stage {name} {size_name}",
        "ours_ms": ours_times.median_ms,
        "p95_ms": ours_times.p95_ms,
        "peer_ms": peer_times.median_ms,
        "peer": peer_name,
    }


def _sum(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "ours_ms": sum(row["ours_ms"] for row in rows),
        "peer_ms": sum(row["peer_ms"] for row in rows),
        "peer": "sum of the medians above",
    }
