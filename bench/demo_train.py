"""``make demo-train``: a project is labelled, trained and served its own version, all of it real.

Label Studio and our server are started as a user starts them. Images of a domain that the default
model never saw become tasks, which an annotator labels, here a program (demo_project.py). Then

    Start Training    is pressed through Label Studio's API
    GET /train/JOB    is asked until the run is done
    the gate's table  is printed
    the next click    goes through Label Studio again: which version answers it?

The status is 0 where the new version was promoted and answered. Nothing is chosen for it: the
images are every n-th of the set, Label Studio numbers the tasks, their numbers decide which are
held out.

    python -m bench.demo_train [--set dsb2018_nuclei] [--tasks 60] [--minutes M] [--folder F]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from bench.demo_project import Project, largest, pictures_of
from distillation.instances import AnnotatedImage, Instance
from tests import parts
from tests.servers import RunningBackend, RunningLabelStudio, running_backend, running_label_studio
from tests.system.api import LabelStudioApi

SAID_EVERY = 10
"""Steps."""

PATIENCE_S = 3600.0
SWAP_PATIENCE_S = 60.0
"""For a promoted version to answer: it encodes the images in work first."""

Say = Callable[[str], None]


def newest_run(backend: RunningBackend, project_id: int) -> dict[str, Any]:
    """The run that Start Training began."""
    runs = requests.get(f"{backend.url}/train", params={"project": project_id}, timeout=30)
    found: dict[str, Any] = runs.json()["runs"][0]
    return found


def follow(
    backend: RunningBackend, job: str, say: Say, *, patience_s: float = PATIENCE_S
) -> dict[str, Any]:
    """Ask for a run until it is done, and say what changes.

    Raises:
        TimeoutError: It is not done by then.
    """
    said: Any = None
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        run: dict[str, Any] = requests.get(f"{backend.url}/train/{job}", timeout=30).json()
        now = run["stage"], (run["step"] or 0) // SAID_EVERY
        if now != said:
            say(_progress(run))
            said = now
        if run["stage"] == "done":
            return run
        time.sleep(0.5)
    raise TimeoutError(f"{job} was not done within {patience_s:.0f} s")


def wait_for_version(project: Project, task: int, instance: Instance, version: str) -> float:
    """Click until a version answers; the seconds that it took.

    Raises:
        TimeoutError: Another version still answers.
    """
    started = time.monotonic()
    while (waited := time.monotonic() - started) < SWAP_PATIENCE_S:
        answer = project.ask(task, instance)
        if "data" in answer and answer["data"]["model_version"] == version:
            return waited
        time.sleep(0.2)
    raise TimeoutError(f"{version} answered no click, but there was {answer!s:.300}")


def gate_table(gate: Mapping[str, Any]) -> str:
    """The gate's numbers as Markdown."""
    held_out, replay, clicks = gate["held_out"], gate["replay"], gate["clicks_to_85"]
    names = {
        "box": "mIoU after a box, %",
        "click": "after a click",
        "click_1": "and a correction",
        "click_2": "and another",
        "stored": "after the annotator's own prompt",
        "mean": "all of these",
    }
    rows = [
        (name, 100 * held_out["incumbent"][key], 100 * held_out["challenger"][key])
        for key, name in names.items()
        if key in held_out["incumbent"]
    ]
    rows.append(("clicks to 85 % IoU, 10 at most", clicks["incumbent"], clicks["challenger"]))
    rows.append(("drawn scenes, mIoU, %", 100 * replay["incumbent"], 100 * replay["challenger"]))
    lines = ["| on held-out tasks | before | after |", "|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {a:.1f} | {b:.1f} |" for name, a, b in rows])


def _progress(run: Mapping[str, Any]) -> str:
    if run["stage"] != "training" or not run["step"]:
        return str(run["stage"])
    losses = ", ".join(f"{name} {value:.3g}" for name, value in run["losses"].items())
    return f"training: step {run['step']} of {run['steps']}, {losses}"


@contextmanager
def backend_for(
    label_studio: RunningLabelStudio,
    model: Path | str,
    folder: Path,
    environ: Mapping[str, str] | None = None,
) -> Iterator[RunningBackend]:
    """Our server with a token, and an environment to train in: this one, or the one named."""
    inherited = ("EDGESAM_TRAIN_PYTHON", "OMP_NUM_THREADS", "GLIBC_TUNABLES")
    settings = {
        "EDGESAM_TRAIN_PYTHON": sys.executable,
        **{name: os.environ[name] for name in inherited if name in os.environ},
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.personal_access_token,
        "EDGESAM_DATA_DIR": str(folder / "data"),
        **(environ or {}),
    }
    with running_backend(model, folder, settings) as backend:
        yield backend


def label_all(project: Project, pictures: Sequence[AnnotatedImage]) -> int:
    """Upload and label pictures; how many regions the model had suggested."""
    tasks = [project.upload(picture) for picture in pictures]
    return sum(map(project.annotate, tasks, pictures))


def demonstrate(
    api: LabelStudioApi,
    backend: RunningBackend,
    label: str,
    pictures: Sequence[AnnotatedImage],
    say: Say,
) -> bool:
    """Everything from the first upload to the click after; whether the new version answered it."""
    *to_label, next_picture = pictures
    project = Project.create(api, backend, label)
    suggested = label_all(project, to_label)
    regions = sum(len(picture.instances) for picture in to_label)
    say(f"{len(to_label)} tasks labelled, {regions} regions, {suggested} of them suggested")
    next_task = project.upload(next_picture)
    pressed = time.monotonic()
    project.start_training()
    run = newest_run(backend, project.project_id)
    say(f"Start Training: answered after {time.monotonic() - pressed:.2f} s with {run['job']}")
    run = follow(backend, run["job"], say)
    say(f"{run['outcome']} {(time.monotonic() - pressed) / 60:.1f} minutes after: {run['reason']}")
    if run["gate"]:
        print(f"\n{gate_table(run['gate'])}\n", flush=True)
    if run["outcome"] != "promoted":
        return False
    waited = wait_for_version(project, next_task, largest(next_picture), run["version"])
    say(f"the next click was answered by {run['version']}, {waited:.1f} s after the promotion")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where the new version was promoted and answered."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo_train", description=__doc__)
    parser.add_argument("--set", default="dsb2018_nuclei", help="of ../shared/data/open")
    parser.add_argument("--tasks", type=int, default=60, help="how many are labelled")
    parser.add_argument("--minutes", help="of one core, for the training itself")
    parser.add_argument("--folder", type=Path, help="for databases, runs, logs; kept")
    given = parser.parse_args(arguments)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    shared = parts.find_shared()
    label, pictures = pictures_of(shared / "data" / "open" / given.set, given.tasks + 1)
    budget = {"EDGESAM_TRAIN_MINUTES": given.minutes} if given.minutes else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        python = parts.find_label_studio_python()
        with (
            running_label_studio(python, shared, folder / "label_studio") as label_studio,
            backend_for(label_studio, "default", folder, budget) as backend,
        ):
            api = LabelStudioApi.of(label_studio)
            say("Label Studio and the server are there")
            return 0 if demonstrate(api, backend, label, pictures, say) else 1


if __name__ == "__main__":
    sys.exit(main())
