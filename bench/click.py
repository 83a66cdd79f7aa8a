"""A click from HTTP request to HTTP answer, beside the stock path in the same run.

The stock path (stock.py) runs in this process, without HTTP; ours is a real server, as ``make
serve`` starts it. Calls alternate.

    python -m bench click
"""

from __future__ import annotations

import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from bench.annotator import SIZES_WH, click, image_host, photo
from bench.stock import StockPath
from bench.timing import alternate
from edgesam_core.bundle import Bundle, find_bundle
from edgesam_core.encode import Embedding
from edgesam_core.image import read_image
from edgesam_core.preprocess import preprocess
from edgesam_core.segmenter import Segmenter
from edgesam_core.session import open_session, run_graph
from tests.servers import RunningBackend, running_backend

WARM_REPEATS = 25
COLD_REPEATS = 7
WARM_GOALS = {"1200x900": 0.6, "4000x3000": 0.3}
COLD_ALLOWANCE_MS = {"1200x900": 150, "4000x3000": 300}
"""What a first click may take beyond the encoder."""
MEMORY_GOAL_MB = 700


def run() -> list[dict[str, Any]]:
    """Time warm and cold clicks, and weigh the server that answered them."""
    bundle = Bundle.open(find_bundle("default", Path("models")))
    segmenter = Segmenter(bundle)
    photos = {name: photo(size_wh) for name, size_wh in SIZES_WH.items()}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder_name, image_host(photos) as host:
        folder = Path(folder_name)
        stock_path = StockPath(bundle, folder)
        # What the second look adds is second_look.py's part.
        settings = {"EDGESAM_IMAGE_HOSTS": host, "EDGESAM_SECOND_LOOK": "off"}
        with running_backend("default", folder, settings) as server:
            for name in SIZES_WH:
                embedding = segmenter.embed(read_image(photos[name]))
                rows.append(_warm(name, server, host, stock_path, embedding))
                rows.append(_cold(name, server, host, photos[name], bundle))
            rows.append(_memory(server))
    return rows


def _warm(
    name: str, server: RunningBackend, host: str, stock_path: StockPath, embedding: Embedding
) -> dict[str, Any]:
    ours = partial(click, server.url, f"http://{host}/{name}/warm.jpg", SIZES_WH[name])
    taken, peer = alternate((ours, partial(stock_path.click, embedding)), WARM_REPEATS)
    return {
        "name": f"warm click {name}, HTTP included",
        "ours_ms": taken.median_ms,
        "p95_ms": taken.p95_ms,
        "peer_ms": peer.median_ms,
        "peer": "stock path without HTTP",
        "goal": WARM_GOALS[name],
        "note": f"S={stock_path.size}",
    }


def _cold(
    name: str, server: RunningBackend, host: str, photo: bytes, bundle: Bundle
) -> dict[str, Any]:
    """A first click on an image that nobody has seen, beside the encoder alone."""
    x, _ = preprocess(read_image(photo), bundle.manifest.input_size)
    session = open_session(bundle.encoder_path)
    numbers = itertools.count()

    def ours() -> None:
        click(server.url, f"http://{host}/{name}/cold-{next(numbers)}.jpg", SIZES_WH[name])

    taken, encoder = alternate(
        (ours, lambda: run_graph(session, {"image": x}, ["image_embeddings"])), COLD_REPEATS
    )
    allowance = COLD_ALLOWANCE_MS[name]
    return {
        "name": f"cold click {name}, HTTP included",
        "ours_ms": taken.median_ms,
        "p95_ms": taken.p95_ms,
        "peer_ms": encoder.median_ms + allowance,
        "peer": f"encoder alone + {allowance} ms",
        "goal": 1.0,
        "note": f"encoder alone {encoder.median_ms:.0f} ms",
    }


def _memory(server: RunningBackend) -> dict[str, Any]:
    """Resident memory of the serving processes after all of the above."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    megabytes = sum(_resident_mb(pid) for pid in (str(server.pid), *children))
    return {
        "name": "resident memory of the server",
        "ratio": megabytes / MEMORY_GOAL_MB,
        "goal": 1.0,
        "note": f"{megabytes:.0f} MB of {MEMORY_GOAL_MB} MB",
        "resident_mb": megabytes,
    }


def _resident_mb(pid: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
