"""A served model on disk: an immutable folder whose every file is vouched for.

``manifest.json`` (manifest.py) names the model, what it needs, where it comes from, and size and
sha256 of every file. `Bundle.open` reads every byte and refuses a folder in which one file is
missing, short or changed, and says which. `staged_folder` and `write_manifest` make one: filled
under another name, flushed to disk, then renamed, so that nobody ever sees half of it.

A folder that holds the official exported pair ``*_encoder.onnx`` and ``*_decoder.onnx`` beside a
manifest is a bundle like any other. Files that the manifest does not list are ignored: they are
never opened, and a desktop's hidden files should not stop a service. Hashes find damage and
accidents; they are no signature, since whoever may write the folder may write the manifest too.

Opening the graphs is session.py's part, exporting them edgesam_core.export's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgesam_core import preprocess
from edgesam_core.errors import BundleError
from edgesam_core.manifest import (
    GRANULARITY_NAME,
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    check_values,
    content_version,
    damaged,
)

WEIGHTS_NAME = "weights.safetensors"
"""Optional file of a bundle: what training starts from."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files were checked when it was opened."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Check every file of a bundle against its manifest.

        Raises:
            BundleError: Something is missing, torn or changed; the sentence names the file.
        """
        try:
            text = (path / MANIFEST_NAME).read_text(encoding="utf-8")
        except OSError as exc:
            raise BundleError(
                f"The model folder {path.name!r} has no readable {MANIFEST_NAME}. Make one with "
                "`python -m edgesam_core bundle` or `python -m edgesam_core fetch`.",
                detail=str(exc),
            ) from exc
        except UnicodeDecodeError as exc:
            raise BundleError(damaged(MANIFEST_NAME, "it is not text"), detail=str(exc)) from exc
        manifest = Manifest.from_json(text)
        for name, record in manifest.files.items():
            _check_file(path / name, record)
        if manifest.version != content_version(manifest):
            raise BundleError(damaged(MANIFEST_NAME, "it does not fit its own version"))
        if manifest.preprocess_version != preprocess.VERSION:
            raise BundleError(
                f"The model {manifest.name!r} was made for image pre-processing "
                f"{manifest.preprocess_version!r}, this version does {preprocess.VERSION!r}. "
                "Make the bundle again with this version."
            )
        bundle = cls(path, manifest)
        _ = bundle.encoder_path, bundle.decoder_path
        return bundle

    @property
    def encoder_path(self) -> Path:
        """The graph that turns an image into its embedding."""
        return self.path / self._graph_name("encoder")

    @property
    def decoder_path(self) -> Path:
        """The graph that turns an embedding and prompts into logits."""
        return self.path / self._graph_name("decoder")

    @property
    def granularity_path(self) -> Path | None:
        """The graph that proposes boxes of objects; None in a bundle without granularity prior."""
        return self.path / GRANULARITY_NAME if self.manifest.has_granularity_prior else None

    @property
    def weights_path(self) -> Path | None:
        """What training starts from; None where the bundle can only serve."""
        return self.path / WEIGHTS_NAME if WEIGHTS_NAME in self.manifest.files else None

    def _graph_name(self, part: str) -> str:
        """``encoder.onnx``, or the one ``*_encoder.onnx`` of an official pair."""
        plain = f"{part}.onnx"
        names = [n for n in self.manifest.files if n == plain or n.endswith(f"_{plain}")]
        if plain in names:
            return plain
        if len(names) != 1:
            raise BundleError(
                f"The model {self.manifest.name!r} lists {len(names)} files for its {part}, "
                f"expected one {plain}. Make or fetch the bundle again."
            )
        return names[0]


def find_bundle(name_or_path: str, models_dir: Path) -> Path:
    """The folder that an operator means by a name under ``models/`` or by a path.

    Args:
        name_or_path: ``default``, ``edge_sam_3x``, ``./my/bundle`` or an absolute path. A name of
            an existing folder under ``models_dir`` wins over a path.
        models_dir: Where named bundles lie.

    Raises:
        BundleError: There is no such folder; the sentence lists the names that there are.
    """
    if name_or_path and name_or_path not in (".", "..") and "/" not in name_or_path:
        named = models_dir / name_or_path
        if named.is_dir():
            return named
    path = Path(name_or_path)
    if name_or_path and path.is_dir():
        return path
    there = sorted(p.parent.name for p in models_dir.glob(f"*/{MANIFEST_NAME}"))
    raise BundleError(
        f"There is no model {Path(name_or_path).name!r}. "
        + (f"There is: {', '.join(there)}. " if there else "The models folder holds none. ")
        + "Give one of these names or the path of a bundle folder.",
        detail=f"looked for {name_or_path!r} in {models_dir} and as a path",
    )


@contextmanager
def staged_folder(out_dir: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``out_dir`` when the block ends without an error.

    It lies beside ``out_dir`` (the same file system, so that the rename is atomic), is flushed to
    disk before the rename, and is removed when the block fails.

    Args:
        out_dir: The folder to appear.
        overwrite: Take the place of an existing bundle or empty folder. Bundles are immutable, so
            this is for rebuilding one by name; a program that has the old one open keeps its files.

    Raises:
        BundleError: ``out_dir`` is there already, and ``overwrite`` is False or it is no bundle.
        OSError: It cannot be written.
    """
    if out_dir.exists():
        if not overwrite:
            raise BundleError(
                f"There is already a folder {out_dir.name!r}. Remove it or choose another name."
            )
        check_replaceable(out_dir)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-", dir=out_dir.parent))
    try:
        stage.chmod(0o755)  # mkdtemp's 0700 would hide the model from a service's own user
        yield stage
        for path in sorted(stage.rglob("*")):
            _flush(path)
        _flush(stage)
        if out_dir.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}-old-", dir=out_dir.parent))
            out_dir.rename(old / out_dir.name)
            stage.rename(out_dir)
            shutil.rmtree(old)
        else:
            stage.rename(out_dir)
        _flush(out_dir.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_replaceable(path: Path) -> None:
    """Refuse to throw away what is no bundle: a mistyped name may be that of somebody's photos.

    Raises:
        BundleError: A file lies there, or a folder that has something in it and no manifest.
    """
    if not path.is_dir() or (any(path.iterdir()) and not (path / MANIFEST_NAME).exists()):
        raise BundleError(
            f"What is called {path.name!r} is no model bundle and is not replaced. Remove it or "
            "choose another name."
        )


def write_manifest(
    folder: Path,
    *,
    name: str,
    input_size: int,
    upsample: str,
    refines_with_mask_input: bool,
    licence: str,
    origin: str,
    architecture: str = "edge_sam",
    draws_prompts: bool = False,
    trusts_iou_prediction: bool = False,
    leaves_out_padding: bool = False,
    scores: Mapping[str, Any] | None = None,
    created_utc: str | None = None,
) -> Manifest:
    """Vouch for every file that lies in a folder now: the last step of making a bundle.

    Hidden files and sub-folders are left out. The fields are those of `Manifest`.

    Args:
        folder: Holds the finished files; a manifest that is there is replaced.
        name: What people call the model.
        input_size: S in pixels.
        upsample: "bicubic", "bilinear" or "none".
        refines_with_mask_input: Whether earlier logits may be fed back.
        licence: Licence of the weights, as an SPDX id or a name.
        origin: A sentence that says where the weights come from.
        architecture: A name of nn/family.py.
        draws_prompts: Whether the decoder draws prompts as a map, too.
        trusts_iou_prediction: Whether a mask may be chosen by the decoder's own estimate.
        leaves_out_padding: Whether the encoder is given no padding.
        scores: Measured quality.
        created_utc: ISO 8601; None means now.

    Returns:
        The manifest as written.

    Raises:
        BundleError: A value makes no sense, or a graph is missing.
    """
    files = {
        path.name: _record_of(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_NAME and not path.name.startswith(".")
    }
    manifest = Manifest(
        name=name,
        version="",
        architecture=architecture,
        input_size=input_size,
        draws_prompts=draws_prompts,
        trusts_iou_prediction=trusts_iou_prediction,
        leaves_out_padding=leaves_out_padding,
        upsample=upsample,
        refines_with_mask_input=refines_with_mask_input,
        licence=licence,
        origin=origin,
        created_utc=created_utc or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        scores=dict(scores or {}),
        files=files,
    )
    manifest = replace(manifest, version=content_version(manifest))
    check_values(manifest)
    _ = Bundle(folder, manifest).encoder_path, Bundle(folder, manifest).decoder_path
    temporary = folder / f".{MANIFEST_NAME}"
    temporary.write_text(manifest.to_json(), encoding="utf-8")
    _flush(temporary)
    temporary.replace(folder / MANIFEST_NAME)
    _flush(folder)
    return manifest


def _record_of(path: Path) -> FileRecord:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileRecord(bytes=file.tell(), sha256=digest)


def _check_file(path: Path, expected: FileRecord) -> None:
    try:
        actual = _record_of(path)
    except (OSError, ValueError) as exc:  # ValueError: a name that no file can have
        raise BundleError(
            damaged(path.name, "it is missing or cannot be read"), detail=str(exc)
        ) from exc
    if actual.bytes != expected.bytes:
        raise BundleError(
            damaged(path.name, f"it has {actual.bytes} bytes instead of {expected.bytes}")
        )
    if actual.sha256 != expected.sha256:
        raise BundleError(damaged(path.name, "its content was changed (sha256 differs)"))


def _flush(path: Path) -> None:
    """Make a file or folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
