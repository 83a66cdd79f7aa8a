"""The command line: ``check`` a set-up, ``precompute`` a project, count the ``effort`` it took.

It reads the same settings as the server, so it is run where the server runs. Starting the server is
gunicorn's part (``make serve``).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tqdm import tqdm

from backend.doctor import examine
from backend.effort_rebuild import rebuild
from backend.label_studio import LabelStudioClient
from backend.precompute import Precompute
from backend.service import Service
from backend.settings import Settings, SettingsError
from edgesam_core.bundle import Bundle
from edgesam_core.errors import EdgeSamError
from edgesam_core.segmenter import Segmenter

_NICE = 10
"""What is done ahead leaves the processors to those who click."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when all is well, 1 when something has to be mended."""
    parser = argparse.ArgumentParser(prog="python -m backend", description=__doc__)
    commands = parser.add_subparsers(
        required=True, dest="command", metavar="check|precompute|effort"
    )
    check = commands.add_parser(
        "check", help="walk the way of a click through Label Studio and say what is wrong"
    )
    check.add_argument(
        "--project", type=int, help="its number; without it, the newest with a model attached"
    )
    precompute = commands.add_parser(
        "precompute", help="encode all images of a project, so that every first click is fast"
    )
    precompute.add_argument("project", type=int, help="its number, as in its address")
    effort = commands.add_parser(
        "effort", help="count a project's annotations anew, where webhooks were missed"
    )
    effort.add_argument("project", type=int, help="its number, as in its address")
    given = parser.parse_args(arguments)
    try:
        settings = Settings.from_env()
    except SettingsError as exc:
        print(f"wrong  {exc}")
        return 1
    if given.command == "check":
        return _check(settings, given.project)
    try:
        command = _precompute if given.command == "precompute" else _effort
        return command(settings, given.project)
    except EdgeSamError as exc:
        print(exc.sentence)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What was done is kept; the same command goes on from there.")
        return 1


def _check(settings: Settings, project_id: int | None) -> int:
    is_good = True
    for finding in examine(
        settings.label_studio,
        settings.images,
        settings.queues,
        open_model=lambda: Segmenter(Bundle.open(settings.model.folder())).manifest.name,
        project_id=project_id,
    ):
        print("ok    " if finding.is_good else "wrong ", finding.sentence, flush=True)
        is_good = is_good and finding.is_good
    return 0 if is_good else 1


def _precompute(settings: Settings, project_id: int) -> int:
    os.nice(_NICE)
    precompute = Precompute(settings)
    project = precompute.project(project_id)
    if shortage := precompute.shortage(project):
        print(shortage)
    encoded = failed = 0
    with tqdm(total=project.task_count, unit=" tasks") as bar:
        for step in precompute.encode(project):
            encoded += step.encoded
            if step.complaint:
                failed += 1
                bar.write(f"Task {step.task_id}: {step.complaint}")
            bar.set_postfix(encoded=encoded, failed=failed, refresh=False)
            bar.update()
    print(f"{encoded} images encoded, the others were there; {failed} tasks failed.")
    return 1 if failed else 0


def _effort(settings: Settings, project_id: int) -> int:
    os.nice(_NICE)
    service = Service.that_only_encodes(settings)
    counted = rebuild(service.effort, LabelStudioClient(settings.label_studio), project_id)
    annotations = sum(1 for _ in tqdm(counted, unit=" annotations"))
    print(f"{annotations} annotations are counted.")
    print("week      regions  prompts  untouched  IoU    version       label")
    for row in service.effort.weeks(project_id):
        iou = "  -  " if row.mean_iou is None else f"{row.mean_iou:.3f}"
        print(
            f"{row.week}  {row.regions:7}  {row.prompts_per_region:7.2f}  "
            f"{row.untouched_share:9.0%}  {iou}  {row.version or 'by hand':12}  {row.label}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
