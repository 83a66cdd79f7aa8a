"""A folder of a teacher's image embeddings in fp16, which is safe to write and cheap to read.

    store.json               teacher, hash of its encoder, input size, pre-processing, shape
    index.jsonl              one line per image: name, sha256 of its bytes, size in the input
    embeddings/SHA256.npy    [256, T/16, T/16] float16, 2 MB at 1024

One file per image, written under another name, flushed and renamed, and only then its line in the
index: so a kill at any moment leaves whole embeddings and perhaps half a line, which is skipped; a
full disk leaves what was there. EdgeSAM's code keeps one big file per process, which is a little
faster to copy, and has to be cut back by hand after a kill.

Made by teacher_embeddings.py, read by encoder_stage.py.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distillation.run_folder import make_folder, write_whole
from edgesam_core.arrays import SizeHW
from edgesam_core.errors import RunError


@dataclass(frozen=True)
class StoreInfo:
    """What has to be the same for embeddings to be comparable; ``store.json``."""

    teacher: str
    """Its name, the checkpoint's without ending."""
    teacher_hash: str
    """sha256 of its image encoder's tensors."""
    input_size: int
    """T in pixels."""
    preprocess_version: str
    """Of ``edgesam_core.preprocess``."""
    shape: tuple[int, ...]
    """[256, T/16, T/16]."""


@dataclass(frozen=True)
class Entry:
    """One image of a store."""

    name: str
    """Path inside the folder of images, with slashes."""
    sha256: str
    """Of the file's bytes."""
    input_size_hw: SizeHW
    """(height, width) of the image inside the teacher's input, in pixels."""


class EmbeddingStore:
    """A folder of embeddings, opened; it grows by ``add`` only."""

    def __init__(self, folder: Path, info: StoreInfo, entries: Mapping[str, Entry]) -> None:
        """Hold what ``open`` or ``create`` found."""
        self.folder, self.info, self.entries = folder, info, dict(entries)

    @classmethod
    def open(cls, folder: Path) -> EmbeddingStore:
        """A store that exists.

        Raises:
            RunError: There is none, or what describes it cannot be read.
        """
        try:
            fields = json.loads((folder / "store.json").read_text())
            info = StoreInfo(**{**fields, "shape": tuple(fields["shape"])})
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise RunError(
                f"{folder} holds no teacher embeddings ({exc}). "
                "Make them with python -m distillation.teacher_embeddings."
            ) from exc
        return cls(folder, info, {entry.name: entry for entry in _read_index(folder)})

    @classmethod
    def create(cls, folder: Path, info: StoreInfo) -> EmbeddingStore:
        """A store for one teacher; one that exists is continued.

        Raises:
            RunError: The folder holds the embeddings of another teacher, size or pre-processing.
        """
        if (folder / "store.json").exists():
            store = cls.open(folder)
            store.require(**dataclasses.asdict(info))
            # Without the half line that a kill may have left, so that the next begins a line.
            lines = "".join(map(_line, store.entries.values()))
            write_whole(folder / "index.jsonl", lines.encode())
            return store
        make_folder(folder / "embeddings")
        description = json.dumps(dataclasses.asdict(info), indent=2) + "\n"
        write_whole(folder / "store.json", description.encode())
        return cls(folder, info, {})

    def require(self, **wanted: object) -> None:
        """Refuse a store that is not what was asked for.

        Args:
            wanted: Fields of ``StoreInfo`` by name.

        Raises:
            RunError: A field differs; the sentence has its name and both values.
        """
        for name, value in wanted.items():
            found = getattr(self.info, name)
            if found != value:
                raise RunError(
                    f"{self.folder}: {name} of these embeddings is {found}, wanted is {value}. "
                    "Name another folder, or make them again in an empty one."
                )

    def add(self, entry: Entry, embedding: np.ndarray) -> None:
        """Keep an embedding; it is on the disk when this returns.

        Args:
            entry: The image's.
            embedding: [256, T/16, T/16], any float type.

        Raises:
            RunError: The disk is full, or the numbers do not fit into fp16.
        """
        with np.errstate(over="ignore"):
            halved = embedding.astype(np.float16)
        if not np.isfinite(halved).all():
            raise RunError(f"{entry.name}: the teacher's embedding does not fit into fp16.")
        serialised = io.BytesIO()
        np.save(serialised, halved)
        write_whole(self._path(entry), serialised.getbuffer())
        try:
            with (self.folder / "index.jsonl").open("a") as index:
                index.write(_line(entry))
                index.flush()
                os.fsync(index.fileno())
        except OSError as exc:
            raise RunError(f"index.jsonl could not be written ({exc.strerror}).") from exc
        self.entries[entry.name] = entry

    def read(self, name: str) -> np.ndarray:
        """The embedding of an image, mapped and not loaded: [256, T/16, T/16] float16.

        Raises:
            RunError: It is missing or damaged.
        """
        path = self._path(self.entries[name])
        try:
            embedding: np.ndarray = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as exc:
            raise RunError(f"{path}, the embedding of {name}, could not be read ({exc}).") from exc
        if embedding.shape != self.info.shape or embedding.dtype != np.float16:
            raise RunError(
                f"{path}, the embedding of {name}: expected {self.info.shape} float16, "
                f"got {embedding.shape} {embedding.dtype}."
            )
        return embedding

    def _path(self, entry: Entry) -> Path:
        return self.folder / "embeddings" / f"{entry.sha256}.npy"


def _line(entry: Entry) -> str:
    return json.dumps(dataclasses.asdict(entry)) + "\n"


def _read_index(folder: Path) -> Iterator[Entry]:
    path = folder / "index.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            fields = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        height, width = fields["input_size_hw"]
        yield Entry(fields["name"], fields["sha256"], (height, width))
