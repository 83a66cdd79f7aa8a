"""A project's annotations frozen, from a Label Studio that can be broken in every way it breaks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from backend.label_studio import LabelStudioSettings
from backend.labelled_tasks import choose
from backend.settings import Settings
from backend.snapshot import main, take_snapshot
from backend.snapshot_files import is_held_out, snapshot_hash
from backend.snapshot_journal import Journal
from distillation import coco
from edgesam_core.errors import EdgeSamError, RequestError, RunError, UpstreamError
from tests import parts
from tests.backend.conftest import picture_bytes, picture_uri
from tests.backend.hosts import FakeLabelStudio, Request, running
from tests.backend.test_regions import box_mask, brush_rle, holed, percent_points, result

PROJECT = 3
CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <Image name="pages" valueList="$pages"/>
  <BrushLabels name="tag" toName="image"><Label value="Cat"/><Label value="Dog"/></BrushLabels>
  <RectangleLabels name="smart" toName="image" smart="true"><Label value="Cat"/></RectangleLabels>
</View>
"""


class LabelledProject(FakeLabelStudio):
    """One project as `/api/tasks` lists it (1.23.2), with annotations that a test writes."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[int, dict[str, Any]] = {}
        self.asked_for: list[list[int]] = []
        # the tasks whose annotations were asked for, question by question
        self.before_page: Callable[[int], object] = lambda after: None
        # called with the id after which a page of tasks is asked for
        self.at_most = 1000
        # TASK_API_PAGE_SIZE_MAX
        self.files["/api/tasks"] = self.list_tasks
        self.files[f"/api/projects/{PROJECT}/"] = lambda request: request.reply_json(
            200, {"id": PROJECT, "label_config": CONFIG}
        )

    def add(self, task_id: int, *regions: dict[str, Any], **annotation: Any) -> dict[str, Any]:
        """A task with a picture of its own and one annotation."""
        path = f"/data/upload/{PROJECT}/{task_id}.png"
        self.files[path] = lambda request: request.reply(
            200, picture_bytes(80, 60, grey=task_id % 256)
        )
        task = {"id": task_id, "data": {"image": path}, "annotations": []}
        self.tasks[task_id] = task
        self.annotate(task_id, *regions, **annotation)
        return task

    def annotate(self, task_id: int, *regions: dict[str, Any], **more: Any) -> None:
        annotations = self.tasks[task_id]["annotations"]
        number = 100 * task_id + len(annotations)
        moment = f"2026-11-21T03:{len(annotations):02}:07Z"
        known = {"id": number, "completed_by": 1, "was_cancelled": False, "ground_truth": False}
        annotations.append({**known, "updated_at": moment, "result": list(regions), **more})

    def list_tasks(self, request: Request) -> None:
        query = json.loads(request.query("query"))
        count = min(int(request.query("page_size")), self.at_most)
        if request.query("fields") == "all":
            asked = query["selectedItems"]["included"]
            self.asked_for.append(asked)
            tasks = [self.tasks[task_id] for task_id in sorted(asked) if task_id in self.tasks]
        else:
            (larger,) = query["filters"]["items"]
            self.before_page(larger["value"])
            tasks = [self.listed(i) for i in sorted(self.tasks) if i > larger["value"]]
        request.reply_json(200, {"tasks": tasks[:count]})

    def listed(self, task_id: int) -> dict[str, Any]:
        """A task as a page lists it."""
        task = self.tasks[task_id]
        cancelled = sum(bool(a.get("was_cancelled")) for a in task["annotations"])
        return {
            "id": task_id,
            "data": task["data"],
            "total_annotations": len(task["annotations"]) - cancelled,
            "cancelled_annotations": cancelled,
        }


def cat(**more: Any) -> dict[str, Any]:
    return result("brushlabels", {"format": "rle", "rle": brush_rle(holed())}, **more)


def dog(**more: Any) -> dict[str, Any]:
    points = percent_points((40, 20), (60, 20), (60, 45), (40, 45))
    found = result("polygonlabels", {"points": points, "closed": True}, id="r2", **more)
    found["value"]["polygonlabels"] = ["Dog"]
    return found


@pytest.fixture
def label_studio() -> Iterator[LabelledProject]:
    """Thirty labelled tasks; the hash of each says whether it is held out."""
    with running(LabelledProject()) as host:
        assert isinstance(host, LabelledProject)
        for task_id in range(1, 31):
            host.add(task_id, cat(), *([dog()] if task_id % 2 else []))
        yield host


@pytest.fixture
def settings(label_studio: LabelledProject) -> Settings:
    return Settings(label_studio=LabelStudioSettings(label_studio.url, label_studio.legacy))


def read(run: Path, name: str) -> Any:
    return json.loads((run / "snapshot" / name).read_bytes())


def tasks_in(run: Path, name: str) -> set[int]:
    return {image["task"] for image in read(run, name)["images"]}


def reasons(summary: dict[str, Any]) -> dict[int, str]:
    """The sentence of each annotation that was left out."""
    return {entry["annotation"]: entry["why"] for entry in summary["left_out"]}


# --- what is in it ---


def test_a_snapshot_is_two_coco_files_that_fit_their_images(
    settings: Settings, tmp_path: Path
) -> None:
    summary = take_snapshot(settings, PROJECT, tmp_path)
    held_out = {task_id for task_id in range(1, 31) if is_held_out(PROJECT, task_id)}
    assert 1 <= len(held_out) <= 15
    assert tasks_in(tmp_path, "held_out.json") == held_out
    assert tasks_in(tmp_path, "train.json") == set(range(1, 31)) - held_out
    assert {k: v for k, v in summary.items() if isinstance(v, int)} == {
        "project": PROJECT,
        "tasks": 30,
        "annotations": 30,
        "regions": 45,
        "held_out_tasks": len(held_out),
        "held_out_regions": len(held_out) + sum(task_id % 2 for task_id in held_out),
        "left_out_count": 0,
    }
    assert summary["labels"] == {"Cat": 30, "Dog": 15}
    assert summary["annotation_ids"] == [100 * task_id for task_id in range(1, 31)]
    images = tmp_path / "snapshot" / "images"
    for name in ("train.json", "held_out.json"):
        found = coco.load_set("snapshot", tmp_path / "snapshot" / name, images)
        assert not found.findings
        assert all(coco.decode_image(image)[2] == [] for image in found.images)
    assert sorted(path.name for path in (tmp_path / "snapshot").iterdir()) == [
        "held_out.json",
        "images",
        "snapshot.json",
        "train.json",
    ]


def test_an_object_says_where_it_comes_from(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    story = {"version": "abc", "prompt": {"points": [[1.0, 2.0]], "labels": [1], "box": None}}
    suggested = cat(id="s1", origin="prediction-changed", meta={"edgesam": story})
    label_studio.add(1, suggested, dog(origin="manual"))
    assert not is_held_out(PROJECT, 1)
    take_snapshot(settings, PROJECT, tmp_path)
    train = read(tmp_path, "train.json")
    image = next(image for image in train["images"] if image["task"] == 1)
    first, second = (a for a in train["annotations"] if a["image_id"] == image["id"])
    names = {category["id"]: category["name"] for category in train["categories"]}
    assert (image["height"], image["width"]) == (60, 80)
    np.testing.assert_array_equal(coco_mask.decode(first["segmentation"]), holed())
    np.testing.assert_array_equal(
        coco_mask.decode(second["segmentation"]), box_mask(40, 20, 60, 45)
    )
    assert [names[found["category_id"]] for found in (first, second)] == ["Cat", "Dog"]
    assert (second["bbox"], second["area"], second["iscrowd"]) == ([40, 20, 20, 25], 500, 0)
    kept = ("annotation", "region", "shape", "origin", "edgesam")
    assert [first[key] for key in kept] == [100, "s1", "brush", "prediction-changed", story]
    assert [second[key] for key in kept] == [100, "r2", "polygon", "manual", None]


def test_the_same_labels_give_the_same_hash_and_another_label_another(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    one = take_snapshot(settings, PROJECT, tmp_path / "one")["hash"]
    assert take_snapshot(settings, PROJECT, tmp_path / "two")["hash"] == one
    assert snapshot_hash(tmp_path / "two" / "snapshot") == one
    label_studio.tasks[5]["annotations"][0]["result"][0]["value"]["brushlabels"] = ["Dog"]
    assert take_snapshot(settings, PROJECT, tmp_path / "three")["hash"] != one


def test_the_hash_can_be_checked_with_the_command_of_the_documentation(
    settings: Settings, tmp_path: Path
) -> None:
    """It hashes every image, whose names alone we read."""
    page = (parts.REPOSITORY / "docs" / "snapshot.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if "| sha256sum" in line)
    summary = take_snapshot(settings, PROJECT, tmp_path)
    told = subprocess.run(
        command.replace("RUN/", ""), shell=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert told.stdout.split()[0] == summary["hash"], told.stderr


def test_a_task_stays_on_its_side_when_others_come_and_go(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    take_snapshot(settings, PROJECT, tmp_path / "one")
    for task_id in range(1, 11):
        del label_studio.tasks[task_id]
        label_studio.add(task_id + 100, cat())
    take_snapshot(settings, PROJECT, tmp_path / "two")
    for name, other in (("train.json", "held_out.json"), ("held_out.json", "train.json")):
        assert not tasks_in(tmp_path / "one", name) & tasks_in(tmp_path / "two", other)


def test_whether_a_task_is_held_out_never_changes() -> None:
    """Earlier versions were trained on the others: a change would let a gate test what taught."""
    assert [task for task in range(1, 41) if is_held_out(3, task)] == [
        5,
        7,
        8,
        10,
        16,
        17,
        23,
        32,
        35,
        37,
    ]
    assert [task for task in range(1, 41) if is_held_out(12, task)] == [4, 16, 17, 27, 34, 40]


def test_a_deleted_annotation_is_out_of_the_next_run_and_stays_in_the_earlier_one(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    before = take_snapshot(settings, PROJECT, tmp_path / "one")
    label_studio.tasks[5]["annotations"].clear()
    after = take_snapshot(settings, PROJECT, tmp_path / "two")
    assert set(before["annotation_ids"]) - set(after["annotation_ids"]) == {500}
    assert take_snapshot(settings, PROJECT, tmp_path / "one") == before


def test_an_image_that_is_also_held_out_is_not_trained_on(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    tested = next(task_id for task_id in label_studio.tasks if is_held_out(PROJECT, task_id))
    assert not is_held_out(PROJECT, 1)
    label_studio.tasks[1]["data"] = label_studio.tasks[tested]["data"]
    summary = take_snapshot(settings, PROJECT, tmp_path)
    assert 1 not in tasks_in(tmp_path, "train.json")
    assert tested in tasks_in(tmp_path, "held_out.json")
    assert "has the same image" in reasons(summary)[100]


def test_every_page_of_a_task_is_an_image(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    pages = [picture_uri(80, 60, grey=grey) for grey in (100, 110, 120)]
    on_page = {"to_name": "pages"}
    regions = [cat(item_index=2, **on_page), dog(item_index=0, **on_page)]
    label_studio.add(1, *regions)
    label_studio.tasks[1]["data"] = {"pages": pages}
    take_snapshot(settings, PROJECT, tmp_path)
    train = read(tmp_path, "train.json")
    images = [image for image in train["images"] if image["task"] == 1]
    assert len({image["file_name"] for image in images}) == 2


# --- what is left out, and by which name ---


def test_what_teaches_nothing_is_named(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    label_studio.add(1, cat(), was_cancelled=True)
    label_studio.add(2)
    label_studio.add(3, result("choices", {"choices": ["Indoor"]}))
    label_studio.add(4, result("keypointlabels", {"x": 1, "y": 1, "width": 0.2}), cat(id="kept"))
    label_studio.add(5, cat(original_width=60, original_height=80))
    rectangle = {"x": 1, "y": 1, "width": 9, "height": 9}
    label_studio.add(6, result("rectanglelabels", rectangle, from_name="smart"))
    label_studio.add(7, cat(to_name="gone"))
    label_studio.add(8, cat(), dog())["data"] = {"image": f"/data/upload/{PROJECT}/none.png"}
    label_studio.add(9, cat())["data"] = {"image": "http://127.0.0.1:1/private.png"}
    broken = label_studio.add(10, cat())["data"]["image"]
    label_studio.files[broken] = lambda request: request.reply(200, b"no image")
    label_studio.add(11, cat())["data"] = {}
    summary = take_snapshot(settings, PROJECT, tmp_path)
    why = {
        100: "skipped the task",
        200: "The annotation is empty",
        300: "no region of an image",
        400: "keypoint has no area",
        500: "drawn on a picture of 60x80",
        600: "smart tool",
        700: "no <Image>",
        800: "has no such file",
        900: "EDGESAM_IMAGE_HOSTS",
        1000: "no image that can be read",
        1100: "no picture in its field",
    }
    found = reasons(summary)
    assert found.keys() == why.keys()
    assert {number: words for number, words in why.items() if words not in found[number]} == {}
    assert summary["left_out_count"] == len(summary["left_out"]) == len(why), "8 is named once"
    assert 400 in summary["annotation_ids"]
    assert not set(why) - {400} & set(summary["annotation_ids"])


def annotation(number: int, who: Any = 1, **more: Any) -> dict[str, Any]:
    known = {"id": number, "completed_by": who, "updated_at": f"2026-11-21T03:{number:02}:07Z"}
    return {**known, "was_cancelled": False, "ground_truth": False, "result": [cat()], **more}


@pytest.mark.parametrize(
    ("annotations", "taken"),
    [
        pytest.param([annotation(1), annotation(2, who=2)], [1, 2], id="everybody's"),
        pytest.param([annotation(2), annotation(1)], [2], id="the newest of one annotator"),
        pytest.param(
            [annotation(1, updated_at="2026-11-22"), annotation(2)], [1], id="changed last"
        ),
        pytest.param(
            [annotation(1, who={"id": 5}), annotation(2, who={"id": 6})], [1, 2], id="users"
        ),
        pytest.param(
            [annotation(1, ground_truth=True), annotation(2), annotation(3, who=2)],
            [1],
            id="ground truth alone",
        ),
        pytest.param([annotation(1), annotation(2, was_cancelled=True)], [1], id="skipped later"),
        pytest.param([annotation(1), annotation(2, result=[])], [1], id="emptied later"),
        pytest.param([annotation(1, result=None)], [], id="nothing at all"),
    ],
)
def test_which_annotations_of_a_task_count(
    annotations: list[dict[str, Any]], taken: list[int]
) -> None:
    chosen, left_out = choose(annotations)
    assert [found["id"] for found in chosen] == taken
    assert left_out.keys() == {found["id"] for found in annotations} - set(taken)
    assert all(sentence.endswith(".") for sentence in left_out.values())


# --- going on ---


class Stop(BaseException):
    """As a kill does: nothing of ours catches it."""


@pytest.mark.parametrize("written", [1, 7, 29])
def test_a_killed_snapshot_goes_on_where_it_stopped(
    settings: Settings,
    label_studio: LabelledProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: int,
) -> None:
    whole = take_snapshot(settings, PROJECT, tmp_path / "whole")
    lines = 0

    def add_then_stop(journal: Any, line: Any) -> None:
        nonlocal lines
        add(journal, line)
        lines += 1
        if lines == written:
            journal._file.write(b'{"task": 99, "pict')  # torn
            journal._file.flush()
            raise Stop

    add = Journal.add
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "add", add_then_stop)
        with pytest.raises(Stop):
            take_snapshot(settings, PROJECT, tmp_path / "run")
    assert not (tmp_path / "run" / "snapshot").exists()
    label_studio.seen.clear()
    resumed = take_snapshot(settings, PROJECT, tmp_path / "run")
    fetched = [int(Path(path).stem) for path in label_studio.paths() if path.endswith(".png")]
    assert fetched == list(range(written + 1, 31))
    assert resumed["hash"] == whole["hash"]


def test_a_snapshot_killed_just_before_the_last_step_is_finished_without_asking_anybody(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path, monkeypatch: Any
) -> None:
    def stop(path: Path, target: Path) -> None:
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stop)
        with pytest.raises(Stop):
            take_snapshot(settings, PROJECT, tmp_path)
    label_studio.seen.clear()
    summary = take_snapshot(settings, PROJECT, tmp_path)
    assert snapshot_hash(tmp_path / "snapshot") == summary["hash"]
    assert not label_studio.seen


def test_a_finished_snapshot_is_not_touched_again(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    first = take_snapshot(settings, PROJECT, tmp_path)
    label_studio.add(31, cat())
    label_studio.revoked = True
    assert take_snapshot(settings, PROJECT, tmp_path) == first


def test_a_full_disk_is_told_and_loses_nothing(
    settings: Settings,
    label_studio: LabelledProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synced = 0

    def full(descriptor: int) -> None:
        nonlocal synced
        synced += 1
        if synced == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="disk is full"):
            take_snapshot(settings, PROJECT, tmp_path / "run")
    label_studio.seen.clear()
    resumed = take_snapshot(settings, PROJECT, tmp_path / "run")
    fetched = [path for path in label_studio.paths() if path.endswith(".png")]
    assert len(fetched) == 30 - 9
    assert resumed["hash"] == take_snapshot(settings, PROJECT, tmp_path / "other")["hash"]


def test_a_folder_that_cannot_be_written_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunError, match=r"cannot be written \(Not a directory\)") as caught:
        take_snapshot(settings, PROJECT, tmp_path / "run")
    assert str(tmp_path) not in caught.value.sentence


def test_two_processes_do_not_take_one_snapshot(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "snapshot.unfinished"
    folder.mkdir()
    with (folder / "tasks.jsonl").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="Another process"):
            take_snapshot(settings, PROJECT, tmp_path)
    take_snapshot(settings, PROJECT, tmp_path)


def test_a_run_belongs_to_one_project(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    take_snapshot(settings, PROJECT, tmp_path / "done")
    label_studio.before_page = lambda after: label_studio.forget_access_tokens()
    label_studio.files["/api/projects/4/"] = label_studio.files[f"/api/projects/{PROJECT}/"]
    with pytest.raises(RunError, match="is of project 3, not of 4"):
        take_snapshot(settings, 4, tmp_path / "done")
    label_studio.files["/api/tasks"] = lambda request: request.reply(500)
    with pytest.raises(UpstreamError):
        take_snapshot(settings, PROJECT, tmp_path / "begun")
    with pytest.raises(RunError, match="is of project 3, not of 4"):
        take_snapshot(settings, 4, tmp_path / "begun")


# --- Label Studio away ---


def expire(label_studio: LabelledProject) -> None:
    label_studio.revoked, label_studio.legacy_enabled = True, False
    label_studio.forget_access_tokens()


@pytest.mark.parametrize("kind", ["personal", "legacy"])
@pytest.mark.parametrize("moment", ["in a list", "in the images"])
def test_a_token_that_runs_out_on_the_way_is_told_and_a_new_one_goes_on(
    label_studio: LabelledProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    kind: str,
) -> None:
    monkeypatch.setattr("backend.labelled_tasks._PAGE", 10)
    token = getattr(label_studio, kind)
    settings = Settings(label_studio=LabelStudioSettings(label_studio.url, token))
    if moment == "in a list":
        label_studio.before_page = lambda after: after >= 10 and expire(label_studio)
    else:
        picture = label_studio.files[f"/data/upload/{PROJECT}/12.png"]
        label_studio.files[f"/data/upload/{PROJECT}/12.png"] = lambda request: (
            picture(request),
            expire(label_studio),
        )
    with pytest.raises(UpstreamError, match="token"):
        take_snapshot(settings, PROJECT, tmp_path)
    assert not (tmp_path / "snapshot").exists()

    label_studio.before_page = lambda after: None
    label_studio.files[f"/data/upload/{PROJECT}/12.png"] = lambda request: request.reply(
        200, picture_bytes(80, 60, grey=12)
    )
    label_studio.revoked, label_studio.legacy_enabled = False, True
    label_studio.seen.clear()
    summary = take_snapshot(settings, PROJECT, tmp_path)
    done = 10 if moment == "in a list" else 12
    fetched = [int(Path(path).stem) for path in label_studio.paths() if path.endswith(".png")]
    assert fetched == list(range(done + 1, 31))
    assert (summary["tasks"], summary["left_out_count"]) == (30, 0)


def test_label_studio_out_of_reach_is_told(settings: Settings, tmp_path: Path) -> None:
    away = Settings(label_studio=LabelStudioSettings("http://127.0.0.1:1", "token"))
    with pytest.raises(UpstreamError, match="LABEL_STUDIO_URL"):
        take_snapshot(away, PROJECT, tmp_path)
    assert take_snapshot(settings, PROJECT, tmp_path)["tasks"] == 30


def test_images_whose_host_is_away_cost_their_tasks_unless_it_is_away_for_all(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    kept = dict(label_studio.files)
    for task_id in range(1, 10):
        label_studio.files[f"/data/upload/{PROJECT}/{task_id}.png"] = lambda r: r.reply(503)
    summary = take_snapshot(settings, PROJECT, tmp_path / "nine")
    assert reasons(summary).keys() == {100 * task_id for task_id in range(1, 10)}

    label_studio.files[f"/data/upload/{PROJECT}/10.png"] = lambda r: r.reply(503)
    with pytest.raises(UpstreamError):
        take_snapshot(settings, PROJECT, tmp_path / "ten")
    label_studio.files = kept
    assert take_snapshot(settings, PROJECT, tmp_path / "ten")["tasks"] == 30


def test_answers_that_are_too_large_are_asked_for_in_parts(
    settings: Settings,
    label_studio: LabelledProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    label_studio.add(31, *[cat(id=f"r{n}") for n in range(500)])
    monkeypatch.setattr("backend.label_studio._JSON_BYTES", 16_000)
    summary = take_snapshot(settings, PROJECT, tmp_path)
    assert summary["tasks"] == 30
    assert [entry["task"] for entry in summary["left_out"]] == [31]
    assert "larger than one answer" in summary["left_out"][0]["why"]
    assert len(label_studio.asked_for[0]) == 20 > min(len(ids) for ids in label_studio.asked_for)


def test_a_label_studio_that_answers_with_fewer_tasks_loses_none(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    label_studio.at_most = 7
    assert take_snapshot(settings, PROJECT, tmp_path)["tasks"] == 30


# --- too little ---


def test_a_project_without_a_usable_annotation_is_told_and_can_be_begun_again(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path
) -> None:
    tasks = dict(label_studio.tasks)
    label_studio.tasks.clear()
    label_studio.add(1, cat(), was_cancelled=True)
    with pytest.raises(RunError, match=r"no annotation with a mask.*skipped") as caught:
        take_snapshot(settings, PROJECT, tmp_path)
    assert not list(tmp_path.iterdir())
    label_studio.tasks.clear()
    with pytest.raises(RunError, match="no annotation with a mask"):
        take_snapshot(settings, PROJECT, tmp_path)
    label_studio.tasks = tasks
    assert take_snapshot(settings, PROJECT, tmp_path)["tasks"] == 30
    assert isinstance(caught.value, EdgeSamError)


@pytest.mark.parametrize("side", ["train", "held out"])
def test_one_task_cannot_be_both_taught_and_tested(
    settings: Settings, label_studio: LabelledProject, tmp_path: Path, side: str
) -> None:
    keep = next(i for i in label_studio.tasks if is_held_out(PROJECT, i) is (side == "held out"))
    label_studio.tasks = {keep: label_studio.tasks[keep]}
    missing = "the test" if side == "train" else "the training"
    with pytest.raises(RunError, match=f"in 1 task only, none of them for {missing}"):
        take_snapshot(settings, PROJECT, tmp_path)


def test_a_project_that_does_not_exist_is_told(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no project 5"):
        take_snapshot(settings, 5, tmp_path)


# --- the command ---


def test_the_command_says_what_it_took_or_why_it_could_not(
    label_studio: LabelledProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", label_studio.url)
    monkeypatch.setenv("EDGESAM_CACHE_DIR", str(tmp_path / "cache"))
    assert main([str(PROJECT), str(tmp_path / "run")]) == 1
    assert "Label Studio asks for a token" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio.personal)
    assert main([str(PROJECT), str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith("45 regions of 30 annotations in 30 tasks, ")
    monkeypatch.setenv("EDGESAM_NONSENSE", "1")
    assert main([str(PROJECT), str(tmp_path / "run")]) == 1
    assert "EDGESAM_NONSENSE" in capsys.readouterr().err.splitlines()[-1]


# --- ten thousand tasks ---


class ManyTasks(LabelledProject):
    """As many small tasks as wanted, made when they are asked for."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self._pictures = [picture_uri(8, 6, grey=grey) for grey in range(40)]
        self._region = dog(original_width=8, original_height=6)

    def list_tasks(self, request: Request) -> None:
        query = json.loads(request.query("query"))
        if request.query("fields") == "all":
            ids = query["selectedItems"]["included"]
        else:
            after = query["filters"]["items"][0]["value"]
            ids = range(after + 1, min(after + int(request.query("page_size")), self.count) + 1)
        request.reply_json(200, {"tasks": [self._task(task_id) for task_id in ids]})

    def _task(self, task_id: int) -> dict[str, Any]:
        held_out = is_held_out(PROJECT, task_id)
        uri = self._pictures[task_id % 20 + 20 * held_out]
        annotations = [annotation(task_id, result=[self._region])]
        counts = {"total_annotations": 1, "cancelled_annotations": 0}
        return {"id": task_id, "data": {"image": uri}, "annotations": annotations, **counts}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute of work, longer where others work too
def test_ten_thousand_tasks_stream_in_bounded_memory(tmp_path: Path) -> None:
    with running(ManyTasks(10_000)) as host:
        settings = Settings(label_studio=LabelStudioSettings(host.url, host.legacy))
        tracemalloc.start()
        try:
            summary = take_snapshot(settings, PROJECT, tmp_path)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (summary["tasks"], summary["regions"]) == (10_000, 10_000)
    files = [tmp_path / "snapshot" / name for name in ("train.json", "held_out.json")]
    assert sum(file.stat().st_size for file in files) > 3_000_000
    assert peak_bytes < 10_000_000, "a page of tasks, and the numbers of all annotations"
