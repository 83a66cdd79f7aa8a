"""A project of Label Studio itself, labelled through its API with every kind of region, frozen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from backend.snapshot_files import is_held_out, snapshot_hash
from tests import parts, servers
from tests.backend.conftest import keypoint, picture_bytes, picture_uri
from tests.backend.test_regions import (
    SIZE,
    bitmask_uri,
    box_mask,
    brush_rle,
    holed,
    percent_points,
    rectangle,
    result,
    vertices,
)
from tests.system.api import LabelStudioApi
from tests.system.test_label_studio_api import only_region, sized

pytestmark = pytest.mark.slow

LABELS = '<Label value="Cat"/><Label value="Dog"/>'
EVERY_KIND = f"""
<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image">{LABELS}</BrushLabels>
  <BitmaskLabels name="bitmask" toName="image">{LABELS}</BitmaskLabels>
  <PolygonLabels name="polygon" toName="image">{LABELS}</PolygonLabels>
  <RectangleLabels name="rectangle" toName="image">{LABELS}</RectangleLabels>
  <EllipseLabels name="ellipse" toName="image">{LABELS}</EllipseLabels>
  <VectorLabels name="vector" toName="image" closable="true">{LABELS}</VectorLabels>
  <KeyPointLabels name="tag2" toName="image" smart="true">{LABELS}</KeyPointLabels>
</View>
"""

SQUARE = ((10, 20), (30, 20), (30, 45), (10, 45))


def region(kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    return result(f"{kind}labels", value, id=kind, from_name=kind, origin="manual", **more)


def every_kind() -> list[dict[str, Any]]:
    """One region of each kind on an image of 80 x 60; most are SQUARE."""
    (centre,), (radii,) = percent_points((40, 30)), percent_points((20, 10))
    round_value = {"x": centre[0], "y": centre[1], "radiusX": radii[0], "radiusY": radii[1]}
    return [
        region("brush", {"format": "rle", "rle": brush_rle(holed())}),
        region("bitmask", {"imageDataURL": bitmask_uri(holed())}),
        region("polygon", {"points": percent_points(*SQUARE), "closed": True}),
        region("rectangle", rectangle(10, 20, 20, 25, 0)),
        region("ellipse", {**round_value, "rotation": 0}),
        region("vector", {"vertices": vertices(*SQUARE), "closed": True}),
    ]


def freeze(
    label_studio: servers.RunningLabelStudio, token: str, project: int, run: Path
) -> subprocess.CompletedProcess[str]:
    ours = {"LABEL_STUDIO_URL": label_studio.url, "LABEL_STUDIO_API_KEY": token}
    # A cache of its own: what is fetched is fetched with this token.
    ours["EDGESAM_CACHE_DIR"] = str(run.parent / f"cache-{run.name}")
    return subprocess.run(
        [sys.executable, "-m", "backend.snapshot", str(project), str(run)],
        cwd=parts.REPOSITORY,
        env=os.environ | ours,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "snapshot" / "snapshot.json").read_bytes())
    return found


def objects_of(run: Path) -> list[dict[str, Any]]:
    """All annotations of both files, with the task of their image."""
    objects = []
    for name in ("train", "held_out"):
        coco = json.loads((run / "snapshot" / f"{name}.json").read_bytes())
        tasks = {image["id"]: image["task"] for image in coco["images"]}
        labels = {category["id"]: category["name"] for category in coco["categories"]}
        for found in coco["annotations"]:
            task, label = tasks[found["image_id"]], labels[found["category_id"]]
            objects.append(found | {"task": task, "label": label, "file": name})
    return objects


def annotate(api: LabelStudioApi, task: int, regions: list[dict[str, Any]], **more: Any) -> int:
    body = {"result": regions, "lead_time": 1, **more}
    number: int = api.call("POST", f"/api/tasks/{task}/annotations", json=body)["id"]
    return number


def some_tasks(api: LabelStudioApi, project: int) -> tuple[list[int], list[int]]:
    """At least six uploaded tasks for training and one for the test, each with its own picture."""
    train: list[int] = []
    held_out: list[int] = []
    while len(train) < 6 or not held_out:
        grey = 10 + 5 * (len(train) + len(held_out))
        task = api.upload(project, f"{grey}.png", picture_bytes(80, 60, grey=grey))
        (held_out if is_held_out(project, task) else train).append(task)
    return train, held_out


def test_every_kind_of_region_is_exported_and_what_is_not_is_named(
    api: LabelStudioApi,
    backend: servers.RunningBackend,
    label_studio: servers.RunningLabelStudio,
    tmp_path: Path,
) -> None:
    project = api.create_project("snapshot", EVERY_KIND)
    train, held_out = some_tasks(api, project)
    labelled = annotate(api, train[0], every_kind())
    clicked_on = held_out[0]
    backend_id = api.attach(project, backend.url).json()["id"]
    suggested = only_region(api.click(backend_id, clicked_on, sized(keypoint(50, 50), 80, 60)))
    accepted = annotate(api, clicked_on, [suggested])
    skipped = annotate(api, train[1], [], was_cancelled=True)
    empty = annotate(api, train[2], [])
    wrong_size = {"original_width": 60, "original_height": 80}
    turned = annotate(api, train[3], [every_kind()[2] | wrong_size, every_kind()[3]])
    deleted_later = annotate(api, train[4], every_kind()[:1])

    first = freeze(label_studio, label_studio.personal_access_token, project, tmp_path / "one")
    assert first.returncode == 0, first.stderr
    objects = objects_of(tmp_path / "one")
    by_kind = {found["shape"]: found for found in objects if found["annotation"] == labelled}
    masks = {
        kind: coco_mask.decode(found["segmentation"]).astype(bool)
        for kind, found in by_kind.items()
    }
    np.testing.assert_array_equal(masks["brush"], holed())
    np.testing.assert_array_equal(masks["bitmask"], holed())
    for kind in ("polygon", "rectangle", "vector"):
        np.testing.assert_array_equal(masks[kind], box_mask(10, 20, 30, 45))
    assert masks["ellipse"].sum() == pytest.approx(np.pi * 20 * 10, rel=0.02)
    assert all(found["label"] == "Cat" for found in by_kind.values())

    (kept,) = [found for found in objects if found["annotation"] == accepted]
    assert (kept["file"], kept["task"], kept["origin"]) == ("held_out", clicked_on, "prediction")
    assert kept["edgesam"] == suggested["meta"]["edgesam"]
    assert kept["edgesam"]["prompt"]["points"] == [[SIZE[1] / 2, SIZE[0] / 2]]
    assert kept["region"] == suggested["id"]

    summary = summary_of(tmp_path / "one")
    assert summary["annotation_ids"] == sorted([labelled, accepted, turned, deleted_later])
    assert summary["hash"] == snapshot_hash(tmp_path / "one" / "snapshot")
    left_out = {(entry["task"], entry["annotation"]): entry["why"] for entry in summary["left_out"]}
    assert left_out.keys() == {(train[1], skipped), (train[2], empty), (train[3], turned)}
    assert "skipped" in left_out[train[1], skipped]
    assert "empty" in left_out[train[2], empty]
    assert "drawn on a picture of 60x80" in left_out[train[3], turned]

    # The same labels with the other kind of token: the same hash.
    again = freeze(label_studio, label_studio.legacy_token, project, tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert summary_of(tmp_path / "two")["hash"] == summary["hash"]

    # What is deleted is in no later snapshot; the earlier one stays as it is.
    api.call("DELETE", f"/api/annotations/{deleted_later}/")
    later = freeze(label_studio, label_studio.personal_access_token, project, tmp_path / "three")
    assert later.returncode == 0, later.stderr
    assert deleted_later not in summary_of(tmp_path / "three")["annotation_ids"]
    assert freeze(label_studio, "unused", project, tmp_path / "one").returncode == 0
    assert summary_of(tmp_path / "one") == summary


def test_a_wrong_token_and_a_project_without_labels_are_told(
    api: LabelStudioApi, label_studio: servers.RunningLabelStudio, tmp_path: Path
) -> None:
    project = api.create_project("nothing labelled", EVERY_KIND)
    api.import_tasks(project, {"image": picture_uri(80, 60)})
    none = freeze(label_studio, label_studio.personal_access_token, project, tmp_path / "run")
    assert none.returncode == 1
    assert "has no annotation with a mask" in none.stderr.splitlines()[-1]
    wrong = freeze(label_studio, "0" * 40, project, tmp_path / "run")
    assert wrong.returncode == 1
    assert "token" in wrong.stderr.splitlines()[-1]
    assert not (tmp_path / "run" / "snapshot").exists()
