"""The effort meter, fed as Label Studio feeds it; the discs' masks are known, so every IoU is."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from backend import effort
from backend.__main__ import main
from backend.effort import Effort
from backend.effort_count import Accepted, count_annotation
from backend.effort_events import read_event
from backend.effort_replay import Replay
from backend.effort_rows import AnnotationEffort, EffortRows, RegionEffort
from backend.images import ImageSettings
from backend.label_config import parse_label_config
from backend.queues import QueueSettings
from backend.regions import region_mask, regions_of
from backend.service import Service
from backend.store import StoreSettings
from backend.versions import VersionSettings
from tests.backend.conftest import (
    BRUSH_CONFIG,
    MakeClient,
    body,
    keypoint,
    mask_of,
    picture_uri,
    recorded,
    rectangle,
)
from tests.backend.hosts import running
from tests.backend.spies import count_calls
from tests.backend.test_regions import brush_rle, png_uri
from tests.backend.test_snapshot import PROJECT, LabelledProject, cat
from tests.backend.workers import running_worker, wait_until

LABELS = '<Label value="Cat"/><Label value="Dog"/>'
CONFIG_WITH = """
<View>
  <Image name="image" value="$image"/>
  <{0} name="tag" toName="image">{1}</{0}>
  <KeyPointLabels name="tag2" toName="image" smart="true">{1}</KeyPointLabels>
</View>
"""
MOMENT = "2026-11-21T03:12:07.761495Z"
NOWHERE = "http://127.0.0.1:1/gone.png"


@pytest.fixture(autouse=True)
def nothing_unforeseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is sent, the thread never meets an error that nobody thought of."""
    yield
    assert "went wrong" not in caplog.text


@pytest.fixture
def client(make_client: MakeClient, tmp_path: Path) -> FlaskClient:
    return make_client(versions=VersionSettings(tmp_path / "data"))


def service_of(client: FlaskClient) -> Service:
    service: Service = client.application.extensions["edgesam"]
    return service


def suggest(client: FlaskClient, *prompts: Any, config: str = BRUSH_CONFIG) -> dict[str, Any]:
    """The region that the page is given for these prompts."""
    answer: Any = client.post("/predict", json=body(*prompts, config=config)).json
    (region,) = answer["results"][0]["result"]
    return dict(region)


def submit(
    client: FlaskClient,
    *regions: dict[str, Any],
    action: str = "ANNOTATION_CREATED",
    image: str | None = None,
    config: str = BRUSH_CONFIG,
    **annotation: Any,
) -> None:
    """What Label Studio says when an annotation is stored; returns when it is counted."""
    known = {"id": 3, "created_at": MOMENT, "updated_at": MOMENT, "was_cancelled": False}
    told = {
        "action": action,
        "project": {"id": 1, "label_config": config},
        "task": {"id": 4, "data": {"image": image or picture_uri()}},
        "annotation": {**known, "result": list(regions), **annotation},
    }
    answer = client.post("/webhook", json=told)
    assert answer.json["status"] == "ignored"
    settle(client)


def settle(client: FlaskClient) -> None:
    meter = service_of(client).effort
    wait_until(lambda: meter._thread is None, "the effort counted")


def counted(client: FlaskClient) -> list[RegionEffort]:
    return [r for found in service_of(client).effort.rows.of(1) for r in found.regions]


def brushed(region: dict[str, Any], mask: Any) -> dict[str, Any]:
    """The same region after brush or eraser, as the page stores it."""
    value = {**region["value"], "rle": brush_rle(mask)}
    return {**region, "value": value, "origin": "prediction-changed"}


def upper_half(mask: Any) -> Any:
    half = mask.copy()
    half[np.flatnonzero(mask.any(axis=1)).mean().astype(int) :] = False
    return half


# --- what is counted ---


def test_an_accepted_suggestion_is_one_region_one_prompt_and_the_same_mask(
    client: FlaskClient,
) -> None:
    region = suggest(client, keypoint(50, 50))
    # The image is gone, and not needed: the hash tells that the mask is the suggested one.
    submit(client, region, image=NOWHERE)
    version = region["meta"]["edgesam"]["version"]
    assert counted(client) == [RegionEffort("Cat", version, 1, untouched=True, iou=1.0)]


def test_the_iou_of_an_edited_mask_is_that_with_the_suggestion(client: FlaskClient) -> None:
    region = suggest(client, keypoint(50, 50))
    mask = mask_of(region)
    half = upper_half(mask)
    submit(client, brushed(region, half))
    (found,) = counted(client)
    assert not found.untouched
    assert found.iou == pytest.approx(half.sum() / mask.sum(), abs=1e-4)


@pytest.mark.parametrize(
    "kind", ["BrushLabels", "BitmaskLabels", "PolygonLabels", "RectangleLabels"]
)
def test_in_every_form_untouched_is_1_and_changed_is_compared_in_that_form(
    client: FlaskClient, kind: str
) -> None:
    config = CONFIG_WITH.format(kind, LABELS)
    region = suggest(client, keypoint(40, 60), config=config)
    submit(client, region, config=config, image=NOWHERE)
    (found,) = counted(client)
    assert (found.untouched, found.iou) == (True, 1.0)

    changed, size = copy.deepcopy(region), (480, 640)
    suggested = region_mask(regions_of([region])[0], size)
    value = changed["value"]
    if kind == "BrushLabels":
        changed = brushed(region, upper_half(suggested))
    elif kind == "BitmaskLabels":
        rgba_uri = full_bitmask_uri(upper_half(suggested))
        changed |= {"value": {**value, "imageDataURL": rgba_uri}, "origin": "prediction-changed"}
    elif kind == "PolygonLabels":  # Label Studio goes on to say "prediction"
        value["points"] = [[x + 1, y] for x, y in value["points"]]
    else:
        value["width"] /= 2
        changed["origin"] = "prediction-changed"
    submitted = region_mask(regions_of([changed])[0], size)
    submit(client, changed, config=config, action="ANNOTATION_UPDATED")
    (found,) = counted(client)
    expected = (submitted & suggested).sum() / (submitted | suggested).sum()
    assert 0.3 < expected < 0.95
    assert not found.untouched
    assert found.iou == pytest.approx(expected, abs=1e-4)


def full_bitmask_uri(mask: Any) -> str:
    rgba = np.zeros((*mask.shape, 4), np.uint8)
    rgba[mask, 3] = 255
    return png_uri(rgba)


@pytest.mark.parametrize("arrive", ["one after the other", "together"])
def test_a_corrected_suggestion_is_made_again_as_it_was_shown(
    client: FlaskClient, arrive: str
) -> None:
    """The discs grow with a mask input, so a wrong one would show."""
    clicks = [keypoint(45, 50), keypoint(55, 50), keypoint(50, 55, positive=False)]
    if arrive == "one after the other":
        suggest(client, clicks[0])
        suggest(client, *clicks[:2])
    region = suggest(client, *clicks)
    mask = mask_of(region)
    half = upper_half(mask)
    submit(client, brushed(region, half))
    (found,) = counted(client)
    assert found.prompts == 3
    assert found.iou == pytest.approx(half.sum() / mask.sum(), abs=1e-4)


def test_a_box_is_one_prompt(client: FlaskClient) -> None:
    submit(client, suggest(client, rectangle(20, 20, 30, 30)))
    assert [found.prompts for found in counted(client)] == [1]


def test_what_no_model_suggested_is_by_hand_and_what_is_no_object_is_not_counted(
    client: FlaskClient,
) -> None:
    drawn = suggest(client, keypoint(50, 50))
    del drawn["meta"], drawn["origin"]
    submit(client, drawn, keypoint(10, 10), rectangle(10, 10, 20, 20))
    assert counted(client) == [RegionEffort("Cat")]


def test_a_copied_region_took_no_prompt_so_it_is_by_hand(client: FlaskClient) -> None:
    region = suggest(client, keypoint(50, 50))
    submit(client, region, {**region, "id": "copied"})
    assert [found.prompts for found in counted(client)] == [1, 0]
    assert [found.version is None for found in counted(client)] == [False, True]


def test_pairs_with_a_labels_result_are_one_region(client: FlaskClient) -> None:
    region = suggest(client, keypoint(50, 50))
    second = {**region, "type": "keypointlabels"}
    submit(client, region, second)
    assert len(counted(client)) == 1


def test_a_version_that_is_gone_is_counted_without_iou(client: FlaskClient) -> None:
    region = suggest(client, keypoint(50, 50))
    region["meta"]["edgesam"]["version"] = "0123456789ab"
    submit(client, brushed(region, upper_half(mask_of(region))))
    assert counted(client) == [RegionEffort("Cat", "0123456789ab", 1)]


def test_an_image_that_is_gone_is_counted_without_iou(client: FlaskClient) -> None:
    region = suggest(client, keypoint(50, 50))
    submit(client, brushed(region, upper_half(mask_of(region))), image=NOWHERE)
    (found,) = counted(client)
    assert (found.prompts, found.iou) == (1, None)


def test_an_image_of_another_size_is_not_compared(client: FlaskClient) -> None:
    region = suggest(client, keypoint(50, 50))
    changed = brushed(region, upper_half(mask_of(region)))
    submit(client, changed, image=picture_uri(320, 200))
    assert [found.iou for found in counted(client)] == [None]


@pytest.mark.parametrize(
    "story",
    [
        "x", {}, {"version": 7, "prompt": {}}, {"version": "a" * 12, "prompt": []},
        {"version": "OURS", "prompt": {"points": "abc", "labels": None}},
        {"version": "OURS", "prompt": {"points": [[1, 2]], "labels": [1, 0]}},
        {"version": "OURS", "prompt": {"points": [[1e9, 2]], "labels": [1]}},
        {"version": "OURS", "prompt": {"points": [["x", {}]], "labels": [[]], "box": [1]}},
        {"version": "OURS", "prompt": {"points": [[9, 9]] * 5000, "labels": [1] * 5000}},
        {"version": "OURS", "prompt": {"points": [], "labels": [], "box": None}},
    ],
)  # fmt: skip
def test_a_story_that_is_not_ours_costs_nothing_but_its_iou(
    client: FlaskClient, story: Any
) -> None:
    region = suggest(client, keypoint(50, 50))
    ours = region["meta"]["edgesam"]["version"]
    if isinstance(story, dict) and story.get("version") == "OURS":
        story = {**story, "version": ours}
    forged = brushed(region, upper_half(mask_of(region)))
    forged["meta"] = {"edgesam": story}
    submit(client, forged, suggest(client, keypoint(20, 20)))
    assert [found.iou for found in counted(client)] == [None, 1.0]


def test_a_region_that_claims_a_huge_image_is_not_painted() -> None:
    region = {**cat(), "original_width": 10**6, "original_height": 10**6}
    region["meta"] = {"edgesam": {"version": "a" * 12, "prompt": {"points": [[1, 1]]}}}
    annotation = {"id": 1, "result": [region]}
    config = parse_label_config(BRUSH_CONFIG)
    found, changed = count_annotation(annotation, {"id": 4}, config, max_pixels=10**8)
    assert (found.regions[0].prompts, changed) == (1, [])


# --- nothing twice ---


def test_an_update_replaces_a_skip_and_a_deletion_remove(client: FlaskClient) -> None:
    first, second = suggest(client, keypoint(20, 20)), suggest(client, keypoint(70, 70))
    submit(client, first)
    submit(client, first, second, action="ANNOTATION_UPDATED", updated_at="2026-11-21T04")
    assert len(counted(client)) == 2
    submit(client, first, id=5)
    assert len(counted(client)) == 3
    submit(client, first, id=5, was_cancelled=True, updated_at="2026-11-21T05")
    assert len(counted(client)) == 2
    deleted = {"action": "ANNOTATIONS_DELETED", "project": {"id": 1}, "annotations": [{"id": 3}]}
    client.post("/webhook", json=deleted)
    settle(client)
    assert counted(client) == []
    # A webhook that comes late brings nothing back.
    submit(client, first)
    assert counted(client) == []


def test_what_a_deleted_task_had_is_not_counted(client: FlaskClient) -> None:
    submit(client, suggest(client, keypoint(20, 20)))
    gone = {"action": "TASKS_DELETED", "project": {"id": 1}, "tasks": [{"id": 4}]}
    client.post("/webhook", json=gone)
    settle(client)
    assert counted(client) == []


def effort_of(number: int, moment: str = MOMENT, regions: int = 1) -> AnnotationEffort:
    return AnnotationEffort(number, 4, MOMENT, moment, (RegionEffort("Cat"),) * regions)


def test_many_processes_write_and_every_one_reads_all(tmp_path: Path) -> None:
    writers = [EffortRows(tmp_path) for _ in range(4)]  # each knows no other, as processes do
    with ThreadPoolExecutor(8) as pool:
        for number in range(400):
            pool.submit(writers[number % 4].note, 1, effort_of(number))
            if number % 5 == 0:
                pool.submit(writers[number % 3].tidy, 1)
    for writer in writers:
        assert {found.annotation for found in writer.of(1)} == set(range(400))


def test_a_late_line_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    rows = EffortRows(tmp_path)
    rows.note(1, effort_of(3, "2026-11-21T05", regions=2))
    rows.note(1, effort_of(3, "2026-11-21T04", regions=1))
    assert [len(found.regions) for found in rows.of(1)] == [2]


def test_a_torn_line_costs_itself_alone(tmp_path: Path) -> None:
    rows = EffortRows(tmp_path)
    rows.note(1, effort_of(3))
    with (tmp_path / "effort" / "1" / "annotations.jsonl").open("ab") as file:
        file.write(b'{"annotation": 4, "ta')
    assert len(rows.of(1)) == 1
    rows.note(1, effort_of(5))
    assert [found.annotation for found in rows.of(1)] == [3, 5]


def test_a_file_that_was_tidied_is_read_anew_by_others(tmp_path: Path) -> None:
    ours, theirs = EffortRows(tmp_path), EffortRows(tmp_path)
    for moment in range(9):
        ours.note(1, effort_of(3, f"2026-11-21T0{moment}"))
    ours.note(1, effort_of(4))
    ours.remove(1, [4])
    assert len(theirs.of(1)) == 1
    path = tmp_path / "effort" / "1" / "annotations.jsonl"
    ours.tidy(1)
    assert len(path.read_text().splitlines()) == 1
    theirs.note(1, effort_of(6))
    assert [found.annotation for found in ours.of(1)] == [3, 6]
    assert [found.annotation for found in theirs.of(1)] == [3, 6]


# --- the webhook ---


def test_a_recorded_webhook_is_counted(client: FlaskClient, shared: Path) -> None:
    told = recorded(shared, "webhook_annotation_created")["body"]
    rows = service_of(client).effort.rows
    # Its one region is a box of the smart tool in a project of masks: a question.
    client.post("/webhook", json=told)
    settle(client)
    (found,) = rows.of(7)
    assert (found.annotation, found.task, found.regions) == (3, 13, ())
    # The same with what this server would have suggested, and what somebody drew.
    region = suggest(client, keypoint(50, 50))
    drawn = {**suggest(client, keypoint(10, 10)), "meta": {}, "origin": "manual"}
    updated = recorded(shared, "webhook_annotation_updated")["body"]
    updated["annotation"]["result"] += [region, drawn]
    client.post("/webhook", json=updated)
    settle(client)
    (found,) = rows.of(7)
    assert [(r.prompts, r.untouched, r.iou) for r in found.regions] == [
        (1, True, 1.0), (0, False, None),
    ]  # fmt: skip
    assert [row.week for row in service_of(client).effort.weeks(7)] == ["2026-W47"] * 2
    client.post("/webhook", json=recorded(shared, "webhook_annotations_deleted")["body"])
    settle(client)
    assert rows.of(7) == []


def test_the_count_is_there_while_the_suggestion_is_still_made_again(tmp_path: Path) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(accepted: Accepted) -> float:
        begun.set()
        assert may_end.wait(60)
        return 0.5

    meter = Effort(EffortRows(tmp_path), slow, max_pixels=10**8)
    region = {**cat(), "origin": "prediction-changed"}
    region["meta"] = {"edgesam": {"version": "a" * 12, "prompt": {"points": [[1, 1]]}}}
    told = {
        "project": {"id": 1, "label_config": BRUSH_CONFIG},
        "task": {"id": 4, "data": {"image": NOWHERE}},
        "annotation": {"id": 3, "updated_at": MOMENT, "result": [region]},
    }
    meter.webhook("ANNOTATION_CREATED", told)
    assert begun.wait(60)
    assert [found.regions[0].iou for found in meter.rows.of(1)] == [None]
    may_end.set()
    wait_until(lambda: meter._thread is None, "the effort counted")
    assert [found.regions[0].iou for found in meter.rows.of(1)] == [0.5]


def test_a_webhook_takes_next_to_nothing(client: FlaskClient) -> None:
    """CPU time of the hand-over, not of parsing: far under Label Studio's second."""
    region = suggest(client, keypoint(50, 50))
    meter, told = service_of(client).effort, {"id": 3, "result": [region] * 20}
    body_of_all = {"project": {"id": 1}, "task": {"id": 4}, "annotation": told}
    started = time.thread_time()
    meter.webhook("ANNOTATION_CREATED", body_of_all)
    assert time.thread_time() - started < 0.05
    settle(client)


@pytest.mark.parametrize(
    "told",
    [
        {}, {"project": 7}, {"project": {"id": "x"}}, {"project": {"id": 1}},
        {"project": {"id": 1}, "annotation": [], "task": {}},
        {"project": {"id": 1}, "annotation": {"id": "x"}, "task": {}},
        {"project": {"id": 1}, "annotations": 7, "tasks": [7, {"id": "x"}]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("action", ["ANNOTATION_CREATED", "ANNOTATIONS_DELETED", "TASKS_DELETED"])
def test_a_webhook_of_another_form_says_nothing(tmp_path: Path, action: str, told: Any) -> None:
    event = read_event(action, told)
    assert event is None or event.ids == ()


@pytest.mark.parametrize("result", ["x", None, [7, {"value": 7}], [{"value": {"rle": 7}}]])
def test_results_of_another_form_are_no_regions(tmp_path: Path, result: Any) -> None:
    meter = Effort(EffortRows(tmp_path), lambda accepted: 1.0, max_pixels=100)
    told = {"project": {"id": 1}, "task": {"data": 7}, "annotation": {"id": 3, "result": result}}
    meter.webhook("ANNOTATION_CREATED", told)
    wait_until(lambda: meter._thread is None, "the effort counted")
    assert [r.version for found in meter.rows.of(1) for r in found.regions] in ([], [None])


def test_more_than_memory_holds_is_said_and_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(effort, "MOST_BYTES", 100)
    meter = Effort(EffortRows(tmp_path), lambda accepted: 1.0, max_pixels=100)
    told = {"project": {"id": 1}, "task": {}, "annotation": {"id": 3, "result": [cat()]}}
    meter.webhook("ANNOTATION_CREATED", told)
    assert "python -m backend effort 1" in caplog.text
    assert meter.rows.of(1) == []


def test_a_folder_that_cannot_be_written_stops_nothing(
    make_client: MakeClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").write_text("a file")
    client = make_client(versions=VersionSettings(tmp_path / "data"))
    submit(client, suggest(client, keypoint(50, 50)))
    assert "The effort meter cannot be written" in caplog.text
    assert client.get("/metrics").status_code == 200


def test_workers_encode_what_the_meter_needs(
    make_client: MakeClient, disc_bundle: Path, redis_server: str, pictures: Any, tmp_path: Path
) -> None:
    """The web process encodes for clicks; what nobody waits for is the workers'."""
    client = make_client(
        versions=VersionSettings(tmp_path / "data"),
        queues=QueueSettings(redis_url=redis_server),
        store=StoreSettings(cache_dir=tmp_path / "cache"),
        images=ImageSettings(allowed_hosts=("127.0.0.1",)),
    )
    region = suggest(make_client(), keypoint(50, 50))  # whose embedding is not shared
    encoded = count_calls(service_of(client).models.own.segmenter(), "embed")
    half = upper_half(mask_of(region))
    with running_worker(disc_bundle, redis_server, tmp_path):
        submit(client, brushed(region, half), image=f"{pictures.url}/plain.png")
    (found,) = counted(client)
    assert found.iou == pytest.approx(half.sum() / mask_of(region).sum(), abs=1e-4)
    assert encoded() == 0
    assert "encode task 4: encoded in" in (tmp_path / "worker.log").read_text()


# --- what it comes to ---


def test_weeks_and_labels_and_versions_are_told_apart(client: FlaskClient) -> None:
    region = suggest(client, keypoint(50, 50))
    corrected = suggest(client, keypoint(50, 50), keypoint(60, 50))
    half = upper_half(mask_of(corrected))
    dog = suggest(client, keypoint(20, 20, label="Dog"))
    by_hand = {**suggest(client, keypoint(80, 80)), "meta": {}}
    submit(client, region, dog, id=1)
    submit(client, brushed(corrected, half), by_hand, id=2)
    submit(client, region, id=3, created_at="2026-12-31T23:00:00Z")
    version = region["meta"]["edgesam"]["version"]
    rows = service_of(client).effort.weeks(1)
    assert [(r.week, r.label, r.version, r.regions) for r in rows] == [
        ("2026-W53", "Cat", version, 1),
        ("2026-W47", "Cat", None, 1),
        ("2026-W47", "Cat", version, 2),
        ("2026-W47", "Dog", version, 1),
    ]
    both = rows[2]
    assert (both.prompts_per_region, both.untouched_share) == (1.5, 0.5)
    expected = (1 + half.sum() / mask_of(corrected).sum()) / 2
    assert both.mean_iou == pytest.approx(expected, abs=1e-4)
    assert rows[1].mean_iou is None

    text = client.get("/metrics").text
    assert f'edgesam_effort_regions{{version="{version}"}} 4.0' in text
    assert 'edgesam_effort_regions{version="by_hand"} 1.0' in text
    assert f'edgesam_effort_prompts{{version="{version}"}} 5.0' in text
    assert f'edgesam_effort_untouched_regions{{version="{version}"}} 3.0' in text
    assert f'edgesam_effort_iou_count{{version="{version}"}} 4.0' in text


def test_every_process_shows_the_same_metrics(make_client: MakeClient, tmp_path: Path) -> None:
    one, other = (make_client(versions=VersionSettings(tmp_path)) for _ in range(2))
    submit(one, suggest(one, keypoint(50, 50)))
    shown = [
        [line for line in client.get("/metrics").text.splitlines() if "edgesam_effort" in line]
        for client in (one, other)
    ]
    assert shown[0] == shown[1]
    assert any('edgesam_effort_regions{version="' in line for line in shown[1])


def test_without_a_data_folder_nothing_is_counted(make_client: MakeClient) -> None:
    client = make_client()
    submit(client, suggest(client, keypoint(50, 50)))
    assert service_of(client).effort.weeks(1) == []
    assert "edgesam_effort_regions{" not in client.get("/metrics").text


# --- from Label Studio ---


@pytest.fixture
def label_studio() -> Iterator[LabelledProject]:
    with running(LabelledProject()) as host:
        assert isinstance(host, LabelledProject)
        yield host


def test_a_project_is_counted_from_what_label_studio_has(
    label_studio: LabelledProject,
    disc_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_client: MakeClient,
) -> None:
    client = make_client()
    image = picture_uri(80, 60, grey=1)
    prompt = keypoint(50, 50, original_width=80, original_height=60)
    asked = body(prompt, image=image, config=CONFIG_WITH.format("BrushLabels", LABELS))
    (region,) = client.post("/predict", json=asked).json["results"][0]["result"]
    mask = mask_of(region)
    half = upper_half(mask)
    label_studio.add(1, brushed(region, half))  # its picture is that grey
    label_studio.add(2, region)
    label_studio.add(3, cat())
    label_studio.annotate(3, was_cancelled=True)
    rows = EffortRows(tmp_path / "data")
    rows.note(PROJECT, effort_of(77))  # deleted while the server was away

    environ = {
        "MODEL": str(disc_bundle),
        "EDGESAM_DATA_DIR": str(tmp_path / "data"),
        "EDGESAM_CACHE_DIR": str(tmp_path / "cache"),
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.legacy,
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("backend.__main__._NICE", 0)
    assert main(["effort", str(PROJECT)]) == 0
    assert "4 annotations are counted" in capsys.readouterr().out
    found = {known.annotation: known.regions for known in rows.of(PROJECT)}
    version = region["meta"]["edgesam"]["version"]
    iou = found[100][0].iou
    assert iou == pytest.approx(float(half.sum() / mask.sum()), abs=2e-4)
    assert found == {
        100: (RegionEffort("Cat", version, 1, untouched=False, iou=iou),),
        200: (RegionEffort("Cat", version, 1, untouched=True, iou=1.0),),
        300: (RegionEffort("Cat"),),
        301: (),
    }

    # The second time nothing is made again.
    monkeypatch.setattr(Replay, "iou", None)
    assert main(["effort", str(PROJECT)]) == 0
    assert {known.annotation: known.regions for known in rows.of(PROJECT)} == found


def test_a_label_studio_that_is_away_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disc_bundle: Path
) -> None:
    monkeypatch.setenv("MODEL", str(disc_bundle))
    monkeypatch.setenv("EDGESAM_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("backend.__main__._NICE", 0)
    assert main(["effort", "3"]) == 1
