"""A project's annotations frozen for one training run: ``python -m backend.snapshot PROJECT RUN``.

Labelled tasks stream from Label Studio (labelled_tasks.py), are read one by one (task_reader.py),
a line for each goes into a journal (snapshot_journal.py), and at the end that becomes the data set
``RUN/snapshot`` (snapshot_files.py). Until then everything is in ``RUN/snapshot.unfinished``;
the folder is renamed when it is whole, and never changed again. The same command goes on where an
interrupted one stopped.

What was labelled and teaches nothing is named with its reason. What is deleted in Label Studio is
in no later snapshot.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from backend import logs
from backend.label_config import parse_label_config
from backend.label_studio import LabelStudioClient
from backend.labelled_tasks import labelled_tasks
from backend.settings import Settings, SettingsError
from backend.snapshot_files import SUMMARY, write_data_set
from backend.snapshot_journal import JOURNAL, Journal, TaskLine
from backend.task_reader import Reading, TaskReader
from edgesam_core.errors import EdgeSamError, RunError

logger = logging.getLogger(__name__)

_AWAY_AFTER = 10
"""So many tasks in a row whose image did not come for a reason that may pass: the host is away."""

_SAID_EVERY = 100
"""Tasks between two lines of the log."""


def take_snapshot(settings: Settings, project_id: int, run: Path) -> dict[str, Any]:
    """Freeze a project's annotations into ``run/snapshot``, or go on with it.

    Args:
        settings: As the server has them: Label Studio, its token, which images may be fetched.
        project_id: The project.
        run: Folder of the training run; one run has one snapshot.

    Returns:
        The content of ``snapshot.json``.

    Raises:
        RequestError: Label Studio has no such project.
        LabelConfigError: The project has no image.
        UpstreamError: Label Studio or the images' host is away or refuses; begun again, it goes on.
        RunError: There is too little to learn from, or the folder cannot be written.
    """
    finished, unfinished = run / "snapshot", run / "snapshot.unfinished"
    try:
        if not (finished / SUMMARY).exists():
            if not (unfinished / SUMMARY).exists():
                _gather(settings, project_id, unfinished)
            (unfinished / JOURNAL).unlink(missing_ok=True)
            unfinished.rename(finished)
        summary: dict[str, Any] = json.loads((finished / SUMMARY).read_bytes())
    except OSError as exc:
        raise _not_written(exc, run) from exc
    if summary["project"] != project_id:
        raise RunError(
            f"This run is of project {summary['project']}, not of {project_id}. Use another one."
        )
    return summary


def _gather(settings: Settings, project_id: int, folder: Path) -> None:
    label_studio = LabelStudioClient(settings.label_studio)
    project = label_studio.project(project_id)
    reader = TaskReader(settings, label_studio, parse_label_config(project.get("label_config")))
    with Journal(folder, project_id) as journal:
        if journal.last_task:
            logger.info("snapshot: goes on after task %s", journal.last_task)
        tasks = labelled_tasks(label_studio, project_id, after=journal.last_task)
        readings = (reader.read(task, journal.keep_image) for task in tasks)
        lines = _without_outage(readings, lambda: label_studio.project(project_id))
        for number, line in enumerate(lines, start=1):
            journal.add(line)
            if number % _SAID_EVERY == 0:
                logger.info("snapshot: %s tasks, up to task %s", number, line.task)
        try:
            write_data_set(journal, project_id)
        except RunError:
            shutil.rmtree(folder)  # the next try is to see what was labelled since
            raise


def _without_outage(
    readings: Iterator[Reading], ask_label_studio: Callable[[], object]
) -> Iterator[TaskLine]:
    """What each task gives; an image that its host does not give costs its task, not the others.

    Raises:
        UpstreamError: Too many in a row, or Label Studio itself is gone at the end; their tasks are
            looked at again by the next try.
    """
    waiting: list[TaskLine] = []
    for reading in readings:
        if reading.outage is None:
            yield from [*waiting, reading.line]
            waiting.clear()
            continue
        waiting.append(reading.line)
        if len(waiting) == _AWAY_AFTER:
            raise reading.outage
    if waiting:
        ask_label_studio()
    yield from waiting


def _not_written(exc: OSError, run: Path) -> RunError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        sentence = "The disk is full. Free some space and begin again: it goes on where it stopped."
    else:
        reason = os.strerror(exc.errno) if exc.errno else "unknown reason"
        sentence = f"The folder of the run cannot be written ({reason}). Mend that and begin again."
    return RunError(sentence, detail=f"{run}: {exc}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when the snapshot is complete, else 1 with a sentence as the last line."""
    parser = argparse.ArgumentParser(
        prog="python -m backend.snapshot", description="Freeze a project's annotations for a run."
    )
    parser.add_argument("project", type=int, help="its number, as in its address")
    parser.add_argument("run", type=Path, help="folder of the training run")
    options = parser.parse_args(arguments)
    try:
        settings = Settings.from_env()
        logs.configure(settings.logs)
        summary = take_snapshot(settings, options.project, options.run)
    except SettingsError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    except EdgeSamError as exc:
        if exc.detail:
            logger.error("%s", exc.detail)
        sys.stderr.write(f"{exc.sentence}\n")
        return 1
    sys.stdout.write(
        f"{summary['regions']} regions of {summary['annotations']} annotations in "
        f"{summary['tasks']} tasks, {summary['held_out_tasks']} of them held out; "
        f"{summary['left_out_count']} left out.\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
