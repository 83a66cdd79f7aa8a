"""What the engine promises of every stage: runs that go on exactly, and files that are whole."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distillation.engine import Stage, fit
from distillation.optimisation import learning_rate
from distillation.run_folder import append_to_log, load_checkpoint, read_log
from edgesam_core.errors import RunError
from tests import parts
from tests.distillation.toy_stage import CONFIG, ToyStage

STEPS = 60


def state_of(run: Path) -> dict[str, Any]:
    state = load_checkpoint(run)
    assert state is not None
    return state


def assert_same_bits(first: Any, second: Any) -> None:
    """Equal through and through: tables, lists, tensors, numbers."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same_bits(first[key], second[key])
    elif isinstance(first, list | tuple):
        for one, other in zip(first, second, strict=True):
            assert_same_bits(one, other)
    elif torch.is_tensor(first):
        assert torch.equal(first, second)
    else:
        assert first == second


def start(*arguments: str | int | Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """The toy stage in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "tests.distillation.toy_stage", *map(str, arguments)],
        cwd=parts.REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to write beyond that size, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    fit(ToyStage(STEPS), CONFIG, run)
    return run


def test_a_run_leaves_weights_recipe_log_curves_and_a_sheet(uninterrupted: Path) -> None:
    assert {path.name for path in uninterrupted.iterdir()} == {
        "checkpoint.pt", "student.safetensors", "recipe.yaml", "log.jsonl", "curves.png",
        "samples_000060.png",
    }  # fmt: skip
    assert [row["step"] for row in read_log(uninterrupted)] == [*range(3, 61, 3), 60]
    assert np.asarray(Image.open(uninterrupted / "curves.png")).std() > 5


def test_the_student_learns(tmp_path: Path) -> None:
    stage = ToyStage(400, noise=False)
    fit(stage, dataclasses.replace(CONFIG, learning_rate=0.02, save_every=400), tmp_path)
    assert np.mean(stage.losses[-20:]) < 0.05 * np.mean(stage.losses[:20])


@pytest.mark.parametrize("stopped_at", [5, 35])
def test_a_stopped_run_ends_with_the_same_bits(
    uninterrupted: Path, tmp_path: Path, stopped_at: int
) -> None:
    class Stopped(ToyStage):
        def batches(self, first_step: int, rank: int, world: int) -> Iterator[Any]:
            for batch in super().batches(first_step, rank, world):
                if batch.step == stopped_at + 3:  # three steps are lost and done again
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt):
        fit(Stopped(STEPS), CONFIG, tmp_path)
    assert state_of(tmp_path)["step"] == stopped_at
    torch.rand(7)  # whatever was drawn elsewhere does not matter
    fit(ToyStage(STEPS), CONFIG, tmp_path)
    assert_same_bits(state_of(tmp_path), state_of(uninterrupted))
    losses = [[row.get("loss") for row in read_log(run)] for run in (tmp_path, uninterrupted)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_run_killed_while_it_trains_ends_with_the_same_bits(
    uninterrupted: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, STEPS, "--slow")
    deadline = time.monotonic() + 120
    while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < state_of(tmp_path)["step"] < STEPS
    fit(ToyStage(STEPS), CONFIG, tmp_path)
    assert_same_bits(state_of(tmp_path), state_of(uninterrupted))


@pytest.mark.slow
def test_a_run_killed_while_it_saves_keeps_the_earlier_checkpoint_and_ends_with_the_same_bits(
    uninterrupted: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, STEPS, "--die-in-save", "4")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoint.pt.unfinished").exists()
    assert state_of(tmp_path)["step"] == 15
    fit(ToyStage(STEPS), CONFIG, tmp_path)
    assert_same_bits(state_of(tmp_path), state_of(uninterrupted))
    assert not (tmp_path / "checkpoint.pt.unfinished").exists()


def test_a_full_disk_is_told_and_loses_no_earlier_checkpoint(
    uninterrupted: Path, tmp_path: Path
) -> None:
    fit(ToyStage(20), CONFIG, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    weights = (tmp_path / "student.safetensors").read_bytes()
    # Larger than the weights and smaller than the checkpoint: it fails in the middle of the latter.
    with (
        files_no_larger_than((len(before) + len(weights)) // 2),
        pytest.raises(RunError, match=r"checkpoint\.pt could not be written .*File too large"),
    ):
        fit(ToyStage(40), CONFIG, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob("*.unfinished"))
    # With room again it goes on to where the run without the trouble ends.
    fit(ToyStage(STEPS), CONFIG, tmp_path)
    assert state_of(tmp_path)["step"] == STEPS


def test_a_log_line_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    append_to_log(tmp_path, {"step": 50})
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 10')
    assert read_log(tmp_path) == [{"step": 50}]
    append_to_log(tmp_path, {"step": 150})
    append_to_log(tmp_path, {"step": 200})
    assert read_log(tmp_path) == [{"step": 50}, {"step": 150}, {"step": 200}]


def test_a_checkpoint_of_another_architecture_is_named_before_the_first_step(
    tmp_path: Path,
) -> None:
    fit(ToyStage(5), CONFIG, tmp_path)
    other = ToyStage(10)
    other.student = torch.nn.Linear(6, 1)
    with pytest.raises(RunError, match=r"checkpoint\.pt was written for another architecture"):
        fit(other, CONFIG, tmp_path)
    assert not other.losses


def test_a_checkpoint_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(RunError, match=r"checkpoint\.pt could not be read"):
        fit(ToyStage(5), CONFIG, tmp_path)


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    class Diverging(ToyStage):
        def batches(self, first_step: int, rank: int, world: int) -> Iterator[Any]:
            for batch in super().batches(first_step, rank, world):
                factor = float("inf") if batch.step == 7 else 1.0
                yield dataclasses.replace(batch, inputs=batch.inputs * factor)

    with pytest.raises(RunError, match="step 7 is not finite"):
        fit(Diverging(STEPS), CONFIG, tmp_path)
    state = state_of(tmp_path)
    assert state["step"] == 5
    assert all(torch.isfinite(tensor).all() for tensor in state["student"].values())


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    config = dataclasses.replace(CONFIG, warmup_steps=100, decay_steps=300)
    rates = [learning_rate(config, 1000, step) for step in (0, 50, 99, 600, 850, 999)]
    assert rates[0] < rates[1] < rates[2] == rates[3] == config.learning_rate > rates[4]
    assert rates[5] == pytest.approx(0.01 * config.learning_rate, rel=0.01)


def test_the_warm_up_is_short_from_weights_and_stays_so_after_resuming(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, warmup_steps=100, warmup_steps_from_weights=4)
    assert learning_rate(config, 1000, 3, from_weights=True) == config.learning_rate
    fit(ToyStage(5), config, tmp_path, from_weights=True)
    fit(ToyStage(10), config, tmp_path)
    assert state_of(tmp_path)["from_weights"]


def test_only_what_learns_is_given_to_the_optimiser(tmp_path: Path) -> None:
    stage = ToyStage(5)
    frozen: Any = next(stage.student.children())
    frozen.requires_grad_(False)
    before = frozen.weight.clone()
    fit(stage, CONFIG, tmp_path)
    assert torch.equal(frozen.weight, before)
    groups = state_of(tmp_path)["optimizer"]["param_groups"]
    assert [len(group["params"]) for group in groups] == [1, 3]


@pytest.mark.slow
def test_two_processes_go_the_way_of_one_with_the_double_batch(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = start(tmp_path / "two", 20, "--no-noise", launcher=launcher)
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    fit(ToyStage(20, noise=False), CONFIG, tmp_path / "one")

    ranks = [torch.load(tmp_path / "two" / f"rank_{n}.pt", weights_only=True) for n in (0, 1)]
    assert_same_bits(ranks[0], ranks[1])
    one = state_of(tmp_path / "one")["student"]
    for name, tensor in one.items():
        torch.testing.assert_close(ranks[0][name], tensor, rtol=1e-5, atol=1e-6)
    two_log, one_log = read_log(tmp_path / "two"), read_log(tmp_path / "one")
    assert [row["step"] for row in two_log] == [row["step"] for row in one_log]  # one writes


def test_a_stage_without_its_parts_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Stage()  # type: ignore[abstract]
