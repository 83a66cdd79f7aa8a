"""Start Training, pressed in Label Studio itself: labels become a version that answers clicks.

`make demo-train` is the same with 60 tasks, the default model and a budget that is meant to gain;
here the model is small and the training short, so that what the gate says is not known.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.demo_project import Project, largest, pictures_of
from bench.demo_train import backend_for, follow, label_all, newest_run, wait_for_version
from edgesam_core.bundle import Bundle
from tests import servers
from tests.small_model import write_small_model
from tests.system.api import LabelStudioApi
from tests.system.test_label_studio_api import last_line, only_region

pytestmark = pytest.mark.slow

TASKS = 14
RECIPE = """
phases: [{steps: 4, size: 128, batch: 2, prompts: 4, rounds: 2, box_share: 0.5,
  procedural: 0.25, pasted: 0.0, min_area: 0.0}]
set_weights: {project: 1}
views: 2
replay_scenes: 8
learning_rate: 1.0e-3
warmup_steps_from_weights: 2
ema_decay: 0.5
held_back: 2
seed: 1
"""


@pytest.fixture(scope="module")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("models") / "base")


def version_of(folder: Path) -> str:
    return Bundle.open(folder).manifest.version


def objects_of(run: Path) -> list[dict[str, Any]]:
    """What was learnt from and what was measured on."""
    files = [run / "snapshot" / name for name in ("train.json", "held_out.json")]
    return [found for file in files for found in json.loads(file.read_bytes())["annotations"]]


def test_start_training_ends_with_a_verdict_and_the_next_click_is_answered_accordingly(
    api: LabelStudioApi,
    label_studio: servers.RunningLabelStudio,
    shared: Path,
    small_base: Path,
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    label, pictures = pictures_of(shared / "data" / "open" / "dsb2018_nuclei", TASKS + 1)
    *to_label, next_picture = sorted(pictures, key=lambda picture: largest(picture).area_px)
    environ = {"EDGESAM_TRAIN_RECIPE": str(recipe)}
    with backend_for(label_studio, small_base, tmp_path, environ) as backend:
        project = Project.create(api, backend, label)
        suggested_count = label_all(project, to_label)
        next_task, next_object = project.upload(next_picture), largest(next_picture)

        project.start_training()
        (taken,) = re.findall(r" webhook 200 in (\d+) ms", last_line(backend, " webhook "))
        assert int(taken) < 1000
        started = newest_run(backend, project.project_id)
        assert started["stage"] != "done"
        project.start_training()  # joins the run that goes on
        assert newest_run(backend, project.project_id)["job"] == started["job"]

        said: list[str] = []
        run = follow(backend, started["job"], said.append, patience_s=500)
        stages = list(dict.fromkeys(line.split(":")[0] for line in said))
        assert stages[-3:] == ["training", "gate", "done"]
        assert run["outcome"] in ("promoted", "kept"), run["reason"]
        assert run["gate"]["promote"] is (run["outcome"] == "promoted")
        assert re.fullmatch(r"[A-Z].*\.", run["reason"])
        of_label_studio = {"job": run["job"]}
        told = requests.post(f"{backend.url}/job_status", json=of_label_studio, timeout=30)
        assert told.json()["job_status"] == "finished"

        # All that was submitted was learnt from or measured on, with the prompts of suggestions.
        objects = objects_of(tmp_path / "data" / "runs" / str(project.project_id) / run["job"])
        assert len(objects) == sum(len(picture.instances) for picture in to_label)
        suggested = [found for found in objects if found["edgesam"]]
        assert len(suggested) == suggested_count > len(objects) / 3
        base, challenger = version_of(small_base), run["version"]
        assert {found["edgesam"]["version"] for found in suggested} == {base}
        assert all(found["edgesam"]["prompt"]["box"] for found in suggested)

        # The same server answers the next click by the version that the verdict says.
        by_verdict = challenger if run["outcome"] == "promoted" else base
        wait_for_version(project, next_task, next_object, by_verdict)
        served = api.call("GET", f"/api/ml/{project.backend_id}/versions")["versions"]
        assert set(served) >= {base, challenger}

        # And by any other that an admin says, whatever the verdict was.
        body = {"project": project.project_id}
        if by_verdict == base:
            promote = f"{backend.url}/versions/{challenger}/promote"
            assert requests.post(promote, json=body, timeout=30).ok
        wait_for_version(project, next_task, next_object, challenger)
        region = only_region(project.ask(next_task, next_object))
        assert region["meta"]["edgesam"]["version"] == challenger
        assert requests.post(f"{backend.url}/rollback", json=body, timeout=30).ok
        wait_for_version(project, next_task, next_object, base)
