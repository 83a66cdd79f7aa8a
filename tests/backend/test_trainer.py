"""Runs carried out with stand-ins for the programs of their stages, and killed at any moment."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer

from backend.click_watch import ClickWatch
from backend.machine_turns import MachineTurns
from backend.queues import (
    INTERACTIVE,
    QueueSettings,
    add_sign_of_life,
    connect,
    redis_time,
)
from backend.run_stages import MOST_ATTEMPTS
from backend.run_state import Budget, RunState
from backend.store import StoreSettings
from edgesam_core.errors import TrainingUnavailable
from tests import parts
from tests.backend.training_ground import BETTER, PROJECT, Ground
from tests.backend.workers import wait_until


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def is_alive(pid: int) -> bool:
    """Whether a process is there and not merely unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def held_pid(ground: Ground) -> int:
    """The stage that is held, once it goes round."""
    wait_until(lambda: ground.beats, "the stage's first beat")
    return int(ground.beats.split()[0])


# --- to the end ---


def test_a_better_challenger_is_kept_as_a_version_and_served(ground: Ground) -> None:
    run, _ = ground.runs.request(PROJECT, Budget(minutes=2.5, steps=40), "a test")
    done = ground.trainer().carry_out(run.job)
    assert (done.outcome, done.reason, done.stage) == ("promoted", BETTER, "done")
    assert done.version == ground.served == ground.version(ground.challenger)
    assert done.started_at is not None
    assert done.ended_at is not None
    assert ground.calls == ["snapshot", "project_stage", "gate"]
    assert ground.last_arguments == [str(ground.base), str(ground.runs.folder(run.job))]
    assert [change.why for change in ground.versions.history(PROJECT)][1] == BETTER


def test_the_training_is_told_its_budget_and_its_base(ground: Ground) -> None:
    ground.behave(fails="training", says="Enough.")
    run, _ = ground.runs.request(PROJECT, Budget(minutes=2.5, steps=40), "a test")
    ground.trainer().carry_out(run.job)
    assert ground.last_arguments == [
        str(ground.settings.recipe), str(ground.runs.folder(run.job)),
        "--base", str(ground.base), "--minutes", "2.5", "--steps", "40",
    ]  # fmt: skip


def test_every_run_starts_from_the_servers_own_model_and_meets_who_serves(ground: Ground) -> None:
    incumbent = ground.versions.add(PROJECT, ground.other, "earlier")
    ground.versions.promote(PROJECT, incumbent, "earlier")
    ground.trainer().carry_out(ground.request().job)
    assert ground.last_arguments[0] == str(ground.versions.bundle(incumbent))
    assert ground.served == ground.version(ground.challenger)
    assert ground.versions.rollback(PROJECT, "by hand") == incumbent


def test_a_challenger_that_is_not_better_is_kept_and_not_served(ground: Ground) -> None:
    ground.behave(promote=False, reason="Worse for the label 'Cat'.")
    done = ground.trainer().carry_out(ground.request().job)
    assert (done.outcome, done.reason) == ("kept", "Worse for the label 'Cat'.")
    assert ground.served is None
    version = ground.version(ground.challenger)
    assert ground.versions.of(PROJECT) == [version]
    ground.versions.promote(PROJECT, version, "by hand all the same")
    assert ground.served == version


def test_a_version_promoted_meanwhile_is_the_one_to_beat(ground: Ground) -> None:
    ground.hold("gate")
    run = ground.request()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ground.trainer().carry_out, run.job)
        held_pid(ground)
        other = ground.versions.add(PROJECT, ground.other, "by hand")
        ground.versions.promote(PROJECT, other, "by hand")
        ground.release()
        assert future.result().outcome == "promoted"
    assert ground.last_arguments[0] == str(ground.versions.bundle(other))


def test_a_run_that_is_done_is_left_alone(ground: Ground) -> None:
    done = ground.trainer().carry_out(ground.request().job)
    assert ground.trainer().carry_out(done.job) == done
    assert len(ground.calls) == 3


# --- what goes wrong ---


@pytest.mark.parametrize("stage", ["snapshot", "training", "gate"])
def test_a_stage_that_fails_says_why_and_the_incumbent_serves_on(
    ground: Ground, stage: str
) -> None:
    incumbent = ground.versions.add(PROJECT, ground.other, "earlier")
    ground.versions.promote(PROJECT, incumbent, "earlier")
    said = "The project has no annotations to learn from. Label some tasks first."
    ground.behave(fails=stage, says=said)
    done = ground.trainer().carry_out(ground.request().job)
    assert (done.outcome, done.reason) == ("failed", said)
    assert ground.served == incumbent
    assert "no reason" in (ground.runs.folder(done.job) / f"{stage}.out").read_text()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        pytest.param("Traceback, as it were", "has its log, training.log", id="a mistake"),
        pytest.param("", "has its log, training.log", id="nothing"),
        pytest.param("OSError: [Errno 28] No space left on device", "disk is full", id="disk"),
        pytest.param("MemoryError", "not enough memory", id="memory"),
    ],
)
def test_a_failure_without_a_sentence_gets_one(ground: Ground, said: str, reason: str) -> None:
    ground.behave(fails="training", says=said)
    done = ground.trainer().carry_out(ground.request().job)
    assert done.outcome == "failed"
    assert reason in done.reason
    assert str(ground.folder) not in done.reason


def test_a_program_that_cannot_be_started_has_its_sentence(ground: Ground) -> None:
    ground.python.unlink()
    done = ground.trainer().carry_out(ground.request().job)
    assert done.outcome == "failed"
    assert "No such file or directory" in done.reason
    assert "make setup-train" in done.reason


@pytest.mark.parametrize("operators", [None, "glibc.malloc.hugetlb=0"])
def test_every_stage_has_the_memory_settings_of_make_train_unless_the_operator_has_others(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, operators: str | None
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    show = ["make", "-s", "--eval", "shown: ; @echo $(GLIBC_TUNABLES)", "shown"]
    of_make = subprocess.check_output(show, cwd=parts.REPOSITORY, text=True).strip()
    assert "hugetlb=1" in of_make
    if operators is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", operators)
    ground.trainer().carry_out(ground.request().job)
    assert ground.tunables == [operators or of_make] * 3


def test_a_run_that_failed_goes_on_where_it_was_when_asked_to(ground: Ground) -> None:
    ground.behave(fails="training", says="The disk is full.")
    failed = ground.trainer().carry_out(ground.request().job)
    ground.behave()
    resumed = ground.request(resume=True)
    assert resumed.job == failed.job
    assert ground.trainer().carry_out(resumed.job).outcome == "promoted"
    assert ground.calls == ["snapshot", "project_stage", "project_stage", "gate"]


def test_a_challenger_that_is_torn_is_refused(ground: Ground) -> None:
    decoder = ground.challenger / "decoder.onnx"
    decoder.write_bytes(decoder.read_bytes()[:-1])
    done = ground.trainer().carry_out(ground.request().job)
    assert done.outcome == "failed"
    assert "decoder.onnx" in done.reason
    assert ground.served is None


def test_a_trainer_with_another_model_than_the_servers_does_not_begin(ground: Ground) -> None:
    run, _ = ground.runs.request(PROJECT, Budget(), "a test", base="0123456789ab")
    done = ground.trainer().carry_out(run.job)
    assert done.outcome == "failed"
    assert "same MODEL" in done.reason
    assert ground.calls == []


def test_a_verdict_without_an_answer_promotes_nothing(ground: Ground) -> None:
    run = ground.request()
    folder = ground.runs.folder(run.job)
    (folder / "snapshot").mkdir()
    (folder / "snapshot" / "snapshot.json").write_text("{}")
    shutil.copytree(ground.challenger, folder / "challenger")
    (folder / "gate.json").write_text('{"promote": true}')
    assert ground.trainer().carry_out(run.job).outcome == "failed"
    assert ground.served is None


def test_a_versions_folder_that_is_full_leaves_the_incumbent(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("backend.versions.shutil.copytree", full)
    done = ground.trainer().carry_out(ground.request().job)
    assert done.outcome == "failed"
    assert "What was served stays" in done.reason
    assert ground.served is None


def test_a_disk_that_is_full_leaves_the_run_for_later(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ground.request()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("backend.run_state.os.fsync", full)
    with pytest.raises(TrainingUnavailable, match="Make room"):
        ground.trainer().carry_out(run.job)
    monkeypatch.undo()
    assert ground.runs.find(run.job) == run
    assert ground.trainer().carry_out(run.job).outcome == "promoted"


# --- killed ---


def test_a_stage_whose_process_is_killed_goes_on(ground: Ground) -> None:
    ground.behave(dies="training", times=2)
    done = ground.trainer().carry_out(ground.request().job)
    assert done.outcome == "promoted"
    log = (ground.runs.folder(done.job) / "training" / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in log if "held_back" not in line]
    assert steps == [1, 2, 3, 4, 5, 6], "what was learnt is not learnt again"


def test_a_stage_that_is_killed_again_and_again_fails_with_a_sentence(ground: Ground) -> None:
    ground.behave(dies="training", times=9)
    done = ground.trainer().carry_out(ground.request().job)
    assert done.outcome == "failed"
    assert "killed 3 times" in done.reason
    assert "memory" in done.reason


class Carrier:
    """A trainer in a process of its own, that may be killed."""

    def __init__(self, ground: Ground, job: str) -> None:
        script = (
            "import sys; from pathlib import Path\n"
            "from backend.model import ModelSettings; from backend.runs import Runs\n"
            "from backend.run_stages import Programs, Trainer\n"
            "from backend.versions import Versions, VersionSettings\n"
            "data, base, python, recipe, job = sys.argv[1:]\n"
            "run = (python, '-m')\n"
            "programs = Programs((*run, 'backend.snapshot'), "
            "(*run, 'distillation.project_stage', recipe), (*run, 'distillation.gate'))\n"
            "data = Path(data)\n"
            "Trainer(Runs(data), Versions(VersionSettings(data)), ModelSettings(name=base), "
            "programs).carry_out(job)\n"
        )
        given = (ground.data_dir, ground.base, ground.python, ground.settings.recipe, job)
        command = [sys.executable, "-c", script, *map(str, given)]
        self.process = subprocess.Popen(command, cwd=parts.REPOSITORY)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("stage", ["snapshot", "training", "gate"])
def test_a_trainer_that_is_killed_takes_its_stage_along_and_the_run_goes_on(
    ground: Ground, stage: str
) -> None:
    ground.hold(stage)
    run = ground.request()
    carrier = Carrier(ground, run.job)
    child = held_pid(ground)
    assert ground.runs.is_carried_out(run.job)
    carrier.kill()
    wait_until(lambda: not is_alive(child), "the end of the stage")
    assert not ground.runs.is_carried_out(run.job)
    assert ground.runs.find(run.job).stage == stage
    ground.release()
    done = ground.trainer().carry_out(run.job)
    assert (done.outcome, done.attempts) == ("promoted", 2)
    assert ground.served == ground.version(ground.challenger)


@pytest.mark.slow
def test_a_trainer_that_is_killed_at_any_moment_loses_nothing(ground: Ground) -> None:
    run = ground.request()
    for killed_after_s in (0.1, 0.3, 0.5, 0.7, 0.9, 1.1):
        carrier = Carrier(ground, run.job)
        with suppress(subprocess.TimeoutExpired):
            carrier.process.wait(killed_after_s)
        carrier.kill()
        assert ground.runs.of(PROJECT), "its state is always whole"
    wait_until(lambda: not ground.runs.is_carried_out(run.job), "the end of the stages")
    done = ground.trainer().carry_out(run.job)
    assert done.outcome == "promoted"
    assert ground.served == ground.version(ground.challenger)


def test_a_run_that_is_interrupted_for_ever_fails_in_the_end(ground: Ground) -> None:
    run = replace(ground.request(), attempts=MOST_ATTEMPTS)
    ground.runs.save(run)
    done = ground.trainer().carry_out(run.job)
    assert done.outcome == "failed"
    assert "interrupted 20 times" in done.reason
    assert ground.trainer().carry_out(ground.request(resume=True).job).outcome == "promoted"


# --- cancelled, stopped, alone ---


@pytest.mark.parametrize("stage", ["snapshot", "training", "gate"])
def test_a_run_that_is_cancelled_ends_at_once(ground: Ground, stage: str) -> None:
    ground.hold(stage)
    run = ground.request()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ground.trainer().carry_out, run.job)
        child = held_pid(ground)
        ground.runs.cancel(run.job)
        done = future.result()
    assert done.outcome == "cancelled"
    assert not is_alive(child)
    assert ground.served is None


def test_a_trainer_that_is_told_to_stop_leaves_the_run_to_others(ground: Ground) -> None:
    ground.hold("training")
    run, trainer = ground.request(), ground.trainer()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(trainer.carry_out, run.job)
        child = held_pid(ground)
        trainer.is_stopping = True
        with pytest.raises(TrainingUnavailable, match="goes on when it is back"):
            future.result()
    assert not is_alive(child)
    assert not ground.runs.find(run.job).is_done
    ground.release()
    assert ground.trainer().carry_out(run.job).outcome == "promoted"


def test_a_run_has_one_trainer(ground: Ground) -> None:
    ground.hold("training")
    run = ground.request()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ground.trainer().carry_out, run.job)
        held_pid(ground)
        assert not ground.trainer().carry_out(run.job).is_done
        ground.release()
        assert future.result().outcome == "promoted"
    assert ground.calls == ["snapshot", "project_stage", "gate"]


def test_runs_of_one_machine_take_turns_and_one_that_waits_can_be_cancelled(
    ground: Ground, tmp_path: Path
) -> None:
    first, second = MachineTurns(tmp_path, 1), MachineTurns(tmp_path, 1)
    assert first.take_now()
    run = ground.request()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ground.trainer(turns=second).carry_out, run.job)
        wait_until(lambda: ground.runs.is_carried_out(run.job), "the trainer's beginning")
        assert ground.runs.find(run.job).stage == "queued"
        ground.runs.cancel(run.job)
        assert future.result().outcome == "cancelled"
    first.give_back()
    assert ground.calls == []
    assert ground.trainer(turns=second).carry_out(ground.request().job).outcome == "promoted"


# --- yields to clicks ---


@dataclass
class Standing:
    """A run whose training stands still, since a click waits."""

    job: str
    child: int
    clicks: threading.Event
    ended: Future[RunState]


@pytest.fixture
def standing(ground: Ground) -> Iterator[Standing]:
    ground.hold("training")
    clicks = threading.Event()
    run, trainer = ground.request(), ground.trainer(has_to_wait=clicks.is_set)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(trainer.carry_out, run.job)
        child = held_pid(ground)
        clicks.set()
        wait_until(lambda: ") T" in Path(f"/proc/{child}/stat").read_text(), "the pause")
        yield Standing(run.job, child, clicks, ended)
        ground.runs.cancel(run.job)


def test_training_stands_still_while_a_click_waits(ground: Ground, standing: Standing) -> None:
    before = ground.beats
    time.sleep(0.3)
    assert ground.beats == before
    standing.clicks.clear()
    wait_until(lambda: ground.beats != before, "the next beat")
    ground.release()
    done = standing.ended.result()
    assert done.outcome == "promoted"
    assert done.paused_s >= 0.3


def test_a_run_that_stands_still_can_be_cancelled(ground: Ground, standing: Standing) -> None:
    ground.runs.cancel(standing.job)
    assert standing.ended.result().outcome == "cancelled"
    assert not is_alive(standing.child)


def test_an_encode_of_any_web_process_is_noticed(tmp_path: Path) -> None:
    watch = ClickWatch(StoreSettings(cache_dir=tmp_path), QueueSettings(), 2)
    assert not watch.is_anybody_waiting()
    turns = MachineTurns(tmp_path / "turns", 2)
    assert turns.take_now()
    assert watch.is_anybody_waiting()
    assert turns.take_now(), "to look takes no turn"
    turns.give_back()
    turns.give_back()
    assert not watch.is_anybody_waiting()


@pytest.fixture
def redis(redis_server: str) -> Iterator[Redis]:
    client = connect(redis_server, timeout_s=5)
    client.flushall()
    yield client
    client.close()


@pytest.mark.redis
def test_a_click_that_waits_for_a_worker_is_noticed(redis: Redis, redis_server: str) -> None:
    watch = ClickWatch(StoreSettings(cache_dir=None), QueueSettings(redis_server))
    queue = Queue(INTERACTIVE, connection=redis, serializer=JSONSerializer)
    assert not watch.is_anybody_waiting()
    queue.enqueue_call("encode")
    assert not watch.is_anybody_waiting(), "no worker is there to answer it"
    with redis.pipeline() as pipeline:
        add_sign_of_life(pipeline, "a worker", at=redis_time(redis))
        pipeline.execute()
    assert watch.is_anybody_waiting()
    job = queue.jobs[0]
    queue.remove(job)
    assert not watch.is_anybody_waiting()
    redis.zadd(queue.started_job_registry.key, {f"{job.id}:x": redis_time(redis) + 15})
    assert watch.is_anybody_waiting(), "it has begun"


def test_a_redis_that_went_away_does_not_stop_the_training(
    free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    watch = ClickWatch(
        StoreSettings(cache_dir=None), QueueSettings(f"redis://127.0.0.1:{free_port}/0")
    )
    assert not any(watch.is_anybody_waiting() for _ in range(5))
    assert sum("does not tell of clicks" in message for message in caplog.messages) == 1


def test_a_trainer_that_is_terminated_takes_its_stage_along(ground: Ground) -> None:
    ground.hold("training")
    run = ground.request()
    carrier = Carrier(ground, run.job)
    child = held_pid(ground)
    carrier.process.send_signal(signal.SIGTERM)
    carrier.process.wait()
    wait_until(lambda: not is_alive(child), "the end of the stage")
    assert not ground.runs.find(run.job).is_done
