"""The folder of a run: every file in it is whole, whatever happens while it is written.

    recipe.yaml           the resolved configuration
    checkpoint.pt         all that a run needs to go on as if nothing had happened
    student.safetensors   the averaged weights, under their official names
    log.jsonl             one line every few steps, one for every evaluation
    curves.png            drawn from log.jsonl
    samples_STEP.png      what the averaged student answers on held-back images

A file is written under another name, flushed to the disk, and only then given its own: a process
that is killed, or a disk that is full, leaves the earlier file as it was. Measuring uses these
functions, too, and does without PyTorch, which is therefore imported late.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgesam_core.errors import RunError

CHECKPOINT, WEIGHTS, LOG = "checkpoint.pt", "student.safetensors", "log.jsonl"


def make_folder(folder: Path) -> None:
    """Make a folder, and those it lies in, unless it is there.

    Raises:
        RunError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise RunError(f"The folder {folder} could not be made ({exc.strerror}).") from exc


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Replace a file by new content, or leave it as it was.

    Raises:
        RunError: It cannot be written: the disk is full, the folder is gone or not ours.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        _flush_folder(path.parent)
    except OSError as exc:
        unfinished.unlink(missing_ok=True)
        raise RunError(
            f"{path.name} could not be written ({exc.strerror}). What was there before still is: "
            "make room and start the same command again."
        ) from exc


def _flush_folder(folder: Path) -> None:
    """Make a renaming last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(run: Path, state: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Write the averaged weights and the training state.

    The weights first: after a kill between the two, the steps since the last checkpoint are done
    again and both are written again.
    """
    import torch
    from safetensors.torch import save

    write_whole(run / WEIGHTS, save({k: v.detach().contiguous() for k, v in weights.items()}))
    serialised = io.BytesIO()
    torch.save(dict(state), serialised)
    write_whole(run / CHECKPOINT, serialised.getbuffer())


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """The training state to go on from; None where a run begins.

    Raises:
        RunError: There is a checkpoint, but it cannot be read.
    """
    import torch

    path = run / CHECKPOINT
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # unpickling and zip errors of several kinds; all mean the same
        raise RunError(
            f"{path} could not be read. Take it away and start from {WEIGHTS} with --init."
        ) from exc
    return state


def append_to_log(run: Path, row: Mapping[str, Any]) -> None:
    """Add a line to the log.

    Raises:
        RunError: The disk is full.
    """
    append_line(run / LOG, row)


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line to a file of JSON lines, on a line of its own after one that a kill has torn.

    Raises:
        RunError: The disk is full.
    """
    try:
        with path.open("ab+") as lines:
            if lines.tell():
                lines.seek(-1, os.SEEK_END)
                if lines.read() != b"\n":
                    lines.write(b"\n")
            lines.write(json.dumps(row).encode() + b"\n")
    except OSError as exc:
        raise RunError(f"{path.name} could not be written ({exc.strerror}). Make room.") from exc


def read_log(run: Path) -> list[dict[str, Any]]:
    """The rows of the log; a last line that a kill has torn is left out."""
    return read_lines(run / LOG)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, none if it is not there; torn ones are left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def forget_after(run: Path, step: int) -> None:
    """Drop the log's rows of steps that will be done again."""
    kept = [json.dumps(row) + "\n" for row in read_log(run) if row["step"] <= step]
    if (run / LOG).exists():
        write_whole(run / LOG, "".join(kept).encode())


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write [H, W, 3] uint8 RGB as PNG."""
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(picture).save(png, format="PNG")
    write_whole(path, png.getvalue())
