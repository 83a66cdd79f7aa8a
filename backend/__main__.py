"""The command line of the service: ``python -m backend check`` says what is wrong with a set-up.

It reads the same settings as the server, so it is run where the server runs. Starting the server is
gunicorn's part (``make serve``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from backend.doctor import examine
from backend.settings import Settings, SettingsError
from edgesam_core.bundle import Bundle
from edgesam_core.segmenter import Segmenter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when all is well, 1 when something has to be mended."""
    parser = argparse.ArgumentParser(prog="python -m backend", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="check")
    check = commands.add_parser(
        "check", help="walk the way of a click through Label Studio and say what is wrong"
    )
    check.add_argument(
        "--project", type=int, help="its number; without it, the newest with a model attached"
    )
    return _check(parser.parse_args(arguments).project)


def _check(project_id: int | None) -> int:
    try:
        settings = Settings.from_env()
    except SettingsError as exc:
        print(f"wrong  {exc}")
        return 1
    is_good = True
    for finding in examine(
        settings.label_studio,
        settings.images,
        open_model=lambda: Segmenter(Bundle.open(settings.model.folder())).manifest.name,
        project_id=project_id,
    ):
        print("ok    " if finding.is_good else "wrong ", finding.sentence, flush=True)
        is_good = is_good and finding.is_good
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
