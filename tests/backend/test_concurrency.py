from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from flask import Flask

from backend.embeddings import EmbeddingSettings
from backend.settings import ServerSettings
from tests.backend.conftest import (
    BRUSH_CONFIG,
    MakeClient,
    body,
    keypoint,
    mask_of,
    picture_uri,
)
from tests.backend.spies import count_calls, hold_up


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


def test_of_four_quick_clicks_on_a_new_image_the_last_alone_is_decoded(
    make_client: MakeClient,
) -> None:
    app = make_client().application
    segmenter = app.extensions["edgesam"].models.own.segmenter()
    let_go = hold_up(segmenter, "embed")
    encoded, decoded = count_calls(segmenter, "embed"), count_calls(segmenter, "decode")
    points = [keypoint(20, 20), keypoint(30, 30), keypoint(40, 40), keypoint(50, 50)]
    with ThreadPoolExecutor(4) as pool:
        first = send(pool, app, points[:1])
        second = send(pool, app, points[:2])
        third = send(pool, app, points[:3])
        assert second.result().status_code == 409  # at once: it leads nobody's encode
        last = send(pool, app, points)
        assert third.result().status_code == 409
        assert third.result().json["code"] == "superseded"
        let_go.set()
    assert first.result().status_code == 409
    (region,) = last.result().json["results"][0]["result"]
    assert len(region["meta"]["edgesam"]["prompt"]["points"]) == 4
    assert (encoded(), decoded()) == (1, 1)


def test_two_annotators_on_one_task_never_supersede_each_other(make_client: MakeClient) -> None:
    app = make_client().application
    let_go = hold_up(app.extensions["edgesam"].models.own.segmenter(), "embed")
    mine = [keypoint(20, 20, id="mine")]
    theirs = [keypoint(20, 20, id="theirs"), keypoint(40, 40, id="theirs, too")]
    with ThreadPoolExecutor(2) as pool:
        first = send(pool, app, mine)
        second = send(pool, app, theirs)
        let_go.set()
    assert (first.result().status_code, second.result().status_code) == (200, 200)


def test_a_click_on_the_next_picture_of_a_task_supersedes_none_on_the_one_before(
    make_client: MakeClient,
) -> None:
    app = make_client().application
    let_go = hold_up(app.extensions["edgesam"].models.own.segmenter(), "embed")
    config = BRUSH_CONFIG.replace('value="$image"', 'valueList="$images"')
    task = {"id": 4, "data": {"images": [picture_uri(), picture_uri(grey=60)]}}
    before, after = keypoint(20, 20, item_index=0), keypoint(30, 30, item_index=1)
    with ThreadPoolExecutor(2) as pool:  # the page sends pending prompts of other pictures along
        first = send(pool, app, [before], config=config, tasks=[task])
        second = send(pool, app, [before, after], config=config, tasks=[task])
        let_go.set()
    assert (first.result().status_code, second.result().status_code) == (200, 200)


def test_beyond_its_threads_clicks_are_refused_at_once_and_health_is_answered(
    make_client: MakeClient,
) -> None:
    client = make_client(server=ServerSettings(threads=4))
    app = client.application
    let_go = hold_up(app.extensions["edgesam"].models.own.segmenter(), "embed")
    with ThreadPoolExecutor(3) as pool:
        waiting = [send(pool, app, [keypoint(20, 20, id=str(n))]) for n in range(3)]
        refused = client.post("/predict", json=body(keypoint(20, 20, id="one too many")))
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "2"
        assert "Too many clicks" in refused.json["error"]
        assert client.get("/health").status_code == 200
        let_go.set()
    assert [click.result().status_code for click in waiting] == [200] * 3
    assert client.post("/predict", json=body(keypoint(20, 20))).status_code == 200


def test_health_is_quick_while_images_are_encoded(
    make_client: MakeClient,
) -> None:
    client = make_client()
    app, service = client.application, client.application.extensions["edgesam"]
    segmenter = service.models.own.segmenter()
    let_go = hold_up(segmenter, "embed")
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


def send(pool: ThreadPoolExecutor, app: Flask, regions: list[Any], **more: Any) -> Future[Any]:
    """Click in a thread of its own; returns once the server is at work on it."""
    clicks = app.extensions["edgesam"].engine._clicks
    asked, answering = threading.Event(), clicks.answering

    @contextmanager
    def noticed(*args: Any) -> Iterator[Any]:
        with answering(*args) as click:
            asked.set()
            yield click

    clicks.answering = noticed
    sent = pool.submit(app.test_client().post, "/predict", json=body(*regions, **more))
    assert asked.wait(20)
    clicks.answering = answering
    return sent
