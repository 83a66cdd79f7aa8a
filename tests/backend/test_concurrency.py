from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from flask import Flask

from backend.embeddings import EmbeddingSettings
from tests.backend.conftest import MakeClient, body, keypoint, mask_of, picture_uri


def click(app: Flask, sent: dict[str, Any]) -> dict[str, Any]:
    response = app.test_client().post("/predict", json=sent)
    assert response.status_code == 200, response.json
    (region,) = response.json["results"][0]["result"]
    return dict(region)


def sent_for(width: int, height: int, grey: int, x: float) -> dict[str, Any]:
    region = keypoint(x, 50, original_width=width, original_height=height)
    return body(region, image=picture_uri(width, height, grey=grey))


def test_annotators_on_different_images_never_see_each_others_mask(
    make_client: MakeClient,
) -> None:
    # No room for two embeddings, so that they push each other out all the time.
    app = make_client(embeddings=EmbeddingSettings(cache_bytes=300_000)).application
    images = [(640, 480, 40, 30.0), (480, 640, 200, 60.0), (333, 517, 120, 45.0)]
    alone = [mask_of(click(app, sent_for(*image))) for image in images]
    areas = [mask.mean() for mask in alone]
    assert len(set(areas)) == len(images)
    with ThreadPoolExecutor(6) as pool:
        turns = [images[i % 3] for i in range(36)]
        answers = list(pool.map(lambda image: click(app, sent_for(*image)), turns))
    assert len({answer["id"] for answer in answers}) == len(answers)
    for index, answer in enumerate(answers):
        width, height, _, _ = turns[index]
        assert (answer["original_width"], answer["original_height"]) == (width, height)
        assert np.array_equal(mask_of(answer), alone[index % 3])


def test_four_quick_clicks_on_a_new_image_encode_it_once(make_client: MakeClient) -> None:
    client = make_client()
    app, service = client.application, client.application.extensions["edgesam"]
    encoded = count_calls(service.model.segmenter(), "embed")
    points = [keypoint(20, 20), keypoint(30, 30), keypoint(40, 40), keypoint(50, 50)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: click(app, body(*points[:n])), range(1, 5)))
    assert encoded() == 1
    for count, answer in enumerate(answers, start=1):
        assert len(answer["meta"]["edgesam"]["prompt"]["points"]) == count


def test_health_is_quick_while_images_are_encoded(
    make_client: MakeClient,
) -> None:
    client = make_client()
    app, service = client.application, client.application.extensions["edgesam"]
    segmenter = service.model.segmenter()
    let_go, embed = threading.Event(), segmenter.embed

    def slow(image: Any, **options: Any) -> Any:
        let_go.wait(20)
        return embed(image, **options)

    segmenter.embed = slow
    with ThreadPoolExecutor(3) as pool:
        clicks = [pool.submit(click, app, sent_for(100 + n, 100, 90, 50)) for n in range(3)]
        started = time.perf_counter()
        for path in ("/health", "/metrics", "/ready"):
            assert client.get(path).status_code == 200
        assert client.post("/setup", json={}).status_code == 200
        seconds = time.perf_counter() - started
        let_go.set()
        for pending in clicks:
            pending.result()
    assert seconds < 5  # they would wait for 20 s; how quick they are is the benchmark's part


def count_calls(target: Any, name: str) -> Callable[[], int]:
    """Count the calls of a method from now on."""
    method, calls, lock = getattr(target, name), [0], threading.Lock()

    def counting(*args: Any, **options: Any) -> Any:
        with lock:
            calls[0] += 1
        return method(*args, **options)

    setattr(target, name, counting)
    return lambda: calls[0]
