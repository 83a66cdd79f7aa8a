"""What the training commands have in common."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from edgesam_core.errors import EdgeSamError, RunError


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``, which ``run_command`` wants."""
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")


@contextmanager
def naming(file: Path | str) -> Iterator[None]:
    """Put the name of a file before the sentence about what is wrong with it.

    Raises:
        RunError: In place of any ``EdgeSamError``.
    """
    try:
        yield
    except EdgeSamError as exc:
        raise RunError(f"{file}: {exc.sentence}", detail=exc.detail) from exc


def run_command(action: Callable[[], None], *, threads: int) -> int:
    """Do what was asked for, with a log of it; what is wrong becomes one sentence.

    Args:
        action: May raise any ``EdgeSamError``.
        threads: Of PyTorch; 0 leaves it the choice.

    Returns:
        The exit status.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if threads:
        torch.set_num_threads(threads)
    try:
        action()
    except EdgeSamError as exc:
        print(exc.sentence, file=sys.stderr)
        return 1
    return 0
