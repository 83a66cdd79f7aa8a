"""Stands in for the training's programs, by the contract of their commands, in seconds.

Run as Python would be: ``FOLDER -m distillation.project_stage RECIPE RUN --base BUNDLE ...``. What
FOLDER/behaviour.json says is what it does; FOLDER/hold makes it go round until it is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any


def main(folder: Path, module: str, arguments: list[str]) -> int:
    behaviour = json.loads((folder / "behaviour.json").read_text())
    with (folder / "calls.jsonl").open("a") as calls:
        told = {"module": module, "arguments": arguments, "tunables": os.environ["GLIBC_TUNABLES"]}
        calls.write(json.dumps(told) + "\n")
    run = Path(arguments[1])
    if module == "backend.snapshot":
        return snapshot(folder, behaviour, run)
    if module == "distillation.project_stage":
        return train(folder, behaviour, run)
    if module == "distillation.gate":
        return judge(folder, behaviour, Path(arguments[0]), run)
    raise SystemExit(f"no module {module}")


def snapshot(folder: Path, behaviour: dict[str, Any], run: Path) -> int:
    misbehave(folder, behaviour, "snapshot")
    stage = run / "snapshot.unfinished"
    stage.mkdir(exist_ok=True)
    (stage / "snapshot.json").write_text(json.dumps({"project": 3, "annotation_ids": [1, 2]}))
    stage.rename(run / "snapshot")
    return 0


def train(folder: Path, behaviour: dict[str, Any], run: Path) -> int:
    assert (run / "snapshot" / "snapshot.json").is_file()
    training = run / "training"
    training.mkdir(exist_ok=True)
    checkpoint = training / "checkpoint.pt"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0
    (training / "plan.json").write_text(json.dumps({"steps": 6}))
    while step < 6:
        step += 1
        row = {"step": step, "loss": 1 / step, "steps_per_s": 9.0, "eta_min": (6 - step) / 60}
        with (training / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
            if step == 3:
                log.write(json.dumps({"step": 3, "held_back": {"box": 0.7}}) + "\n")
        whole = checkpoint.with_suffix(".unfinished")
        whole.write_text(str(step))
        whole.replace(checkpoint)
        if step >= 3:
            misbehave(folder, behaviour, "training")
    unfinished = run / "challenger.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(behaviour["challenger"], unfinished)
    unfinished.rename(run / "challenger")
    return 0


def judge(folder: Path, behaviour: dict[str, Any], incumbent: Path, run: Path) -> int:
    misbehave(folder, behaviour, "gate")
    version = json.loads((incumbent / "manifest.json").read_text())["version"]
    verdict = {"promote": behaviour["promote"], "reason": behaviour["reason"], "incumbent": version}
    (run / "gate.json").write_text(json.dumps(verdict))
    return 0


def misbehave(folder: Path, behaviour: dict[str, Any], stage: str) -> None:
    """Hold, die, or fail, where that is asked of this stage."""
    if behaviour.get("holds") == stage:
        beats = folder / "beats"
        while (folder / "hold").exists():
            beats.write_text(f"{os.getpid()} {time.monotonic()}")
            time.sleep(0.01)
    deaths = folder / "deaths"
    died = int(deaths.read_text()) if deaths.exists() else 0
    if behaviour.get("dies") == stage and died < behaviour["times"]:
        deaths.write_text(str(died + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour.get("fails") == stage:
        sys.stdout.write("printed last, and no reason\n")
        if behaviour["says"].startswith("Traceback"):
            raise ValueError(behaviour["says"])
        sys.stderr.write(behaviour["says"] + "\n")
        raise SystemExit(1)


if __name__ == "__main__":
    given_folder, option, given_module, *given = sys.argv[1:]
    assert option == "-m"
    sys.exit(main(Path(given_folder), given_module, given))
