"""What a bundle says about itself: the content of ``manifest.json``, read strictly.

The manifest is the one file of a bundle that no record vouches for, so its version does: a hash of
all that can change an answer. The other files are bundle.py's part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgesam_core import preprocess
from edgesam_core.errors import BundleError

FORMAT = 1
"""Version of the manifest's own form; another one is refused."""

MANIFEST_NAME = "manifest.json"
GRANULARITY_NAME = "granularity.onnx"
"""Optional file of a bundle: the graph that proposes boxes of objects."""

PYRAMID_MODES = ("bicubic", "bilinear")
UPSAMPLE_MODES = (*PYRAMID_MODES, "none")
SAM_DECODERS = ("sam_vit_b", "sam_vit_l", "sam_vit_h", "mobile_sam")
"""Architectures whose decoder was trained as SAM's: it knows how good its masks are, and its mask 0
never answered a single click."""

_T = TypeVar("_T")
_STRIDE_PX = 64  # the encoder's 32, and an even number of cells for the feature pyramid


@dataclass(frozen=True)
class FileRecord:
    """What a file must be: its length and the sha256 of its bytes."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about itself, the content of ``manifest.json``."""

    name: str
    # for people and for Label Studio's model_version: "default", "edge_sam_3x"
    version: str
    # content hash, 12 hex digits (`content_version`)
    input_size: int
    # S in pixels, the side of the encoder's square input; a multiple of 64
    upsample: str
    # how the encoder's feature pyramid enlarges: "bicubic" as trained, "bilinear" in official
    # files, "none" in an encoder without one
    refines_with_mask_input: bool
    # whether earlier logits may be fed back; False where measured to hurt, or where it cannot be
    licence: str
    origin: str
    # a sentence: where the weights come from
    files: Mapping[str, FileRecord]
    architecture: str = "edge_sam"
    # a name of nn/family.py
    preprocess_version: str = preprocess.VERSION
    created_utc: str = ""
    draws_prompts: bool = False
    # whether its decoder draws prompts as a map, too (nn/drawn_prompts.py); the graph does so by
    # itself, whoever trains its weights on must know
    trusts_iou_prediction: bool = False
    # whether a mask may be chosen by the decoder's own estimate (candidates.py)
    leaves_out_padding: bool = False
    # whether its encoder takes any height and width, and is given the image alone (encode.py)
    scores: Mapping[str, Any] = field(default_factory=dict)
    # measured quality, in the words of whoever measured
    format: int = FORMAT

    @property
    def has_granularity_prior(self) -> bool:
        """Whether the bundle has the third graph, so that proposed boxes can join clicks."""
        return GRANULARITY_NAME in self.files

    def to_json(self) -> str:
        """The text of ``manifest.json``: stable order, readable, with a line end."""
        fields = asdict(self)
        order = ("format", "name", "version", "architecture", "input_size", "preprocess_version")
        head = {key: fields.pop(key) for key in order}
        files = dict(sorted(fields.pop("files").items()))
        return json.dumps({**head, **fields, "files": files}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read and check a manifest; unknown keys are ignored.

        Raises:
            BundleError: Not JSON, a field missing or of the wrong type, or another format.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as exc:  # RecursionError: brackets in brackets in ...
            raise BundleError(damaged(MANIFEST_NAME, "it is not JSON"), detail=str(exc)) from exc
        if not isinstance(raw, dict):
            raise BundleError(damaged(MANIFEST_NAME, "it is not a JSON object"))
        if raw.get("format") != FORMAT:
            raise BundleError(
                f"The model bundle has format {raw.get('format')!r}, this version reads {FORMAT}. "
                "Update the program or fetch the bundle again."
            )
        manifest = cls(
            format=FORMAT,
            name=_take(raw, "name", str),
            version=_take(raw, "version", str),
            architecture=_take(raw, "architecture", str),
            input_size=_take(raw, "input_size", int),
            preprocess_version=_take(raw, "preprocess_version", str),
            upsample=_take(raw, "upsample", str),
            refines_with_mask_input=_take(raw, "refines_with_mask_input", bool),
            licence=_take(raw, "licence", str),
            origin=_take(raw, "origin", str),
            created_utc=_take(raw, "created_utc", str),
            draws_prompts=_take(raw, "draws_prompts", bool, default=False),
            trusts_iou_prediction=_take(raw, "trusts_iou_prediction", bool, default=False),
            leaves_out_padding=_take(raw, "leaves_out_padding", bool, default=False),
            scores=_take(raw, "scores", dict),
            files={name: _file_record(name, v) for name, v in _take(raw, "files", dict).items()},
        )
        check_values(manifest)
        return manifest


def content_version(manifest: Manifest) -> str:
    """The hash of everything in a bundle that can change an answer: 12 hex digits.

    That is every file and the fields that say how to run them. Name, licence, origin, date and
    scores are left out: correcting a sentence must not make every stored embedding worthless.
    """
    content = {
        "architecture": manifest.architecture,
        "input_size": manifest.input_size,
        "preprocess_version": manifest.preprocess_version,
        "upsample": manifest.upsample,
        "refines_with_mask_input": manifest.refines_with_mask_input,
        "files": {name: record.sha256 for name, record in manifest.files.items()},
    }
    if manifest.trusts_iou_prediction:  # younger than the format: older versions stay what they are
        content["trusts_iou_prediction"] = True
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def damaged(name: str, what: str) -> str:
    """The sentence for one bad file of a bundle, by its name."""
    return f"The model bundle is damaged: {name}: {what}. Restore the bundle or choose another one."


def _take(raw: dict[str, Any], key: str, kind: type[_T], default: _T | None = None) -> _T:
    """A field of the JSON object, of exactly this type (so that True is no int)."""
    value = raw.get(key, default)
    if type(value) is not kind:
        raise BundleError(
            damaged(MANIFEST_NAME, f"{key!r} is {value!r:.40}, expected {kind.__name__}")
        )
    return value


def _file_record(name: str, raw: object) -> FileRecord:
    # A name from outside never leaves the folder.
    if not name or name != Path(name).name or name in (MANIFEST_NAME, "..") or "\\" in name:
        raise BundleError(damaged(MANIFEST_NAME, f"{name!r:.60} is not a plain file name"))
    if not isinstance(raw, dict):
        raise BundleError(damaged(MANIFEST_NAME, f"the record of {name!r:.60} is not an object"))
    return FileRecord(bytes=_take(raw, "bytes", int), sha256=_take(raw, "sha256", str))


def check_values(manifest: Manifest) -> None:
    """Refuse values that no program could have written.

    Raises:
        BundleError: The sentence names the field.
    """
    if manifest.input_size <= 0 or manifest.input_size % _STRIDE_PX:
        raise BundleError(
            damaged(MANIFEST_NAME, f"input_size {manifest.input_size} is no multiple of 64")
        )
    if manifest.upsample not in UPSAMPLE_MODES:
        raise BundleError(
            damaged(MANIFEST_NAME, f"upsample is {manifest.upsample!r:.40}, expected one of "
                     f"{', '.join(UPSAMPLE_MODES)}")
        )  # fmt: skip
    if not manifest.name:
        raise BundleError(damaged(MANIFEST_NAME, "the name is empty"))
