from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backend.run_progress import progress_of
from backend.run_state import Budget
from backend.runs import Runs
from edgesam_core.errors import NoSuchRun, RequestError, TrainingUnavailable

PROJECT = 3
ANY = Budget()


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_a_second_request_joins_the_run_that_is_not_done(runs: Runs) -> None:
    first, is_new = runs.request(PROJECT, Budget(minutes=5), "an admin")
    assert is_new
    assert runs.request(PROJECT, Budget(steps=1), "another") == (first, False)
    other, is_new = runs.request(PROJECT + 1, ANY, "another project's")
    assert is_new
    assert runs.of() == [other, first]
    runs.end(first, "kept", "Not better.")
    second, is_new = runs.request(PROJECT, ANY, "once more")
    assert is_new
    assert second.job != first.job
    assert [run.job for run in runs.of(PROJECT)] == [second.job, first.job]
    assert runs.unfinished(PROJECT) == [second]


def test_requests_at_the_same_moment_make_one_run(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda _: Runs(tmp_path).request(PROJECT, ANY, "x"), range(24)))
    assert len({run.job for run, _ in asked}) == 1
    assert sum(is_new for _, is_new in asked) == 1


def test_a_state_comes_back_as_it_was_saved_and_newer_fields_are_passed_over(runs: Runs) -> None:
    run, _ = runs.request(PROJECT, Budget(minutes=2.5, steps=9), "an admin")
    changed = replace(run, stage="training", attempts=2, paused_s=1.5)
    runs.save(changed)
    path = runs.folder(run.job) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "of_tomorrow": 1}))
    assert runs.find(run.job) == changed


@pytest.mark.parametrize("job", ["", "3", "3-20261121T221915123456", "../3", "3-x/../../y", "None"])
def test_a_job_that_there_is_not_has_its_sentence(runs: Runs, job: str) -> None:
    with pytest.raises(NoSuchRun, match="no such training run"):
        runs.find(job)


def test_a_folder_whose_state_was_never_written_or_is_torn_stops_nobody(runs: Runs) -> None:
    run, _ = runs.request(PROJECT, ANY, "an admin")
    folder = runs.folder(run.job)
    (folder.parent / "3-20200101T000000000000").mkdir()
    assert runs.of() == [run]
    (folder / "state.json").write_text('{"job": "3-')
    assert runs.of() == []
    with pytest.raises(TrainingUnavailable, match="cannot be read"):
        runs.find(run.job)
    assert runs.request(PROJECT, ANY, "an admin")[1]


def test_a_failed_run_is_gone_on_with_on_request_only(runs: Runs) -> None:
    run, _ = runs.request(PROJECT, Budget(steps=5), "an admin")
    runs.save(replace(run, stage="training", attempts=3))
    runs.cancel(run.job)
    assert runs.find(run.job).outcome == "cancelled"
    resumed, is_new = runs.request(PROJECT, ANY, "an admin", resume=True)
    assert (resumed.job, resumed.stage, resumed.steps, is_new) == (run.job, "queued", 5, True)
    assert not runs.is_cancelled(run.job)
    runs.end(resumed, "promoted", "Better.")
    assert runs.request(PROJECT, ANY, "an admin", resume=True)[0].job != run.job


def test_a_run_that_started_from_another_model_is_not_gone_on_with(runs: Runs) -> None:
    run, _ = runs.request(PROJECT, ANY, "an admin", base="the first")
    runs.end(run, "failed", "The disk is full.")
    assert runs.request(PROJECT, ANY, "an admin", base="the first", resume=True)[0].job == run.job
    runs.end(run, "failed", "The disk is full.")
    anew, _ = runs.request(PROJECT, ANY, "an admin", base="another", resume=True)
    assert (anew.job != run.job, anew.base) == (True, "another")


def test_whoever_carries_a_run_out_is_alone_until_the_process_ends(runs: Runs) -> None:
    run, _ = runs.request(PROJECT, ANY, "an admin")
    script = f"""
import sys, time
from pathlib import Path
from backend.runs import Runs

with Runs(Path({str(runs._root.parent)!r})).carrying_out({run.job!r}) as lock:
    print(lock is not None, flush=True)
    time.sleep(100)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert runs.is_carried_out(run.job)
        with runs.carrying_out(run.job) as is_ours:
            assert is_ours is None
        assert not runs.cancel(run.job).is_done, "its holder ends it"
        assert runs.is_cancelled(run.job)
        holder.kill()
    assert not runs.is_carried_out(run.job)
    assert runs.cancel(run.job).outcome == "cancelled"
    assert runs.cancel(run.job).outcome == "cancelled", "once more does no harm"


def test_accepted_annotations_are_counted_until_a_run_begins(runs: Runs) -> None:
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda _: runs.accept(PROJECT), range(20)))
    assert sorted(counts) == list(range(1, 21))
    assert runs.accept(PROJECT + 1) == 1
    runs.request(PROJECT, ANY, "20 annotations")
    assert runs.accept(PROJECT) == 1


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_state_as_it_was(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = runs.request(PROJECT, ANY, "an admin")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(TrainingUnavailable, match=r"No space left on device.*Make room"):
        runs.save(replace(run, stage="training"))
    with pytest.raises(TrainingUnavailable, match="No space left on device"):
        runs.request(PROJECT + 1, ANY, "an admin")
    assert runs.of() == [run]
    assert not list(runs.folder(run.job).glob("*unfinished"))
    monkeypatch.undo()
    assert runs.request(PROJECT + 1, ANY, "an admin")[1]


def test_without_a_folder_nothing_is_kept() -> None:
    nowhere = Runs(None)
    assert nowhere.of() == []
    with pytest.raises(TrainingUnavailable, match="EDGESAM_DATA_DIR"):
        nowhere.request(PROJECT, ANY, "an admin")
    with pytest.raises(NoSuchRun):
        nowhere.find("3-20261121T221915123456")


@pytest.mark.parametrize(
    "budget", [{"minutes": 0}, {"minutes": "5"}, {"steps": 1.5}, {"steps": True}, {"steps": -1}]
)
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    with pytest.raises(RequestError, match="numbers above 0"):
        Budget(**budget)


def test_progress_is_read_while_it_is_written(tmp_path: Path) -> None:
    assert progress_of(tmp_path).step is None
    training = tmp_path / "training"
    training.mkdir()
    rows = [
        {"step": 50, "steps_per_s": 1.0, "loss": 0.9, "mask_loss": 0.4, "eta_min": 4.2},
        {"step": 100, "held_back": {"box": 0.71, "click": 0.43}},
    ]
    text = "\n".join(map(json.dumps, rows)) + '\n{"step": 150, "lo'
    (training / "log.jsonl").write_text(text)
    (training / "plan.json").write_text('{"steps": 300}')
    progress = progress_of(tmp_path)
    assert (progress.step, progress.steps, progress.eta_min) == (100, 300, 4.2)
    assert progress.losses == {"loss": 0.9, "mask_loss": 0.4}
    assert progress.held_out == [{"step": 100, "box": 0.71, "click": 0.43}]


def test_a_loss_that_is_no_number_is_told_in_json_that_everybody_can_read(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    rows = [{"step": 5, "loss": float("nan")}, {"step": 5, "held_back": {"box": float("inf")}}]
    (tmp_path / "training" / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    progress = progress_of(tmp_path)
    assert progress.losses == {"loss": None}
    assert progress.held_out == [{"step": 5, "box": None}]
