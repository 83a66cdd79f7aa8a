from __future__ import annotations

from pathlib import Path

import pytest

from distillation import project_set
from distillation.project_set import load_project_set
from tests.distillation.snapshots import write_snapshot


def test_labels_tasks_and_stored_prompts_are_read(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path) / "snapshot"
    project = load_project_set(snapshot / "train.json", snapshot / "images")
    assert project.region_count == 12
    assert set(project.label_of.values()) == {"kind 1", "kind 2"}
    assert project.task_of[1] == 1001
    assert 0 < len(project.stored) < 12
    assert all(prompt.point_labels.tolist() == [1] for prompt in project.stored.values())


@pytest.mark.parametrize(
    "story",
    [None, {}, {"prompt": None}, {"prompt": {"points": [[1]]}}, {"prompt": {"labels": [1]}}],
)
def test_a_story_without_a_usable_prompt_is_no_prompt(story: object) -> None:
    assert project_set._stored_prompt(story) is None
