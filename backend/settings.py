"""Configuration: the environment becomes frozen dataclasses, here and nowhere else.

Each concern has its dataclass in the file that uses it; this file says which variable fills which
field. Names that the ecosystem knows are kept, ours begin with ``EDGESAM_``, and one of those that
nobody knows is an error, since a misspelt limit is no limit.

``python -m backend.settings`` prints docs/environment.md, made from the table and the dataclasses.
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from backend.auth import AuthSettings
from backend.embeddings import EmbeddingSettings
from backend.granularity import GranularitySettings
from backend.images import ImageSettings
from backend.label_studio import LabelStudioSettings
from backend.logs import LogSettings
from backend.model import ModelSettings
from backend.prefetch import PrefetchSettings
from backend.queues import QueueSettings
from backend.refinement import RefinementSettings
from backend.results import ResultSettings
from backend.second_look import SecondLookSettings
from backend.store import StoreSettings
from backend.training import TrainingSettings
from backend.versions import VersionSettings

_PREFIX = "EDGESAM_"
_TEST_PREFIX = "EDGESAM_TEST_"  # read by tests/, of no meaning here


class SettingsError(ValueError):
    """A sentence for the operator: which variable is wrong, and how."""


@dataclass(frozen=True)
class ServerSettings:
    """What a request may be."""

    max_body_bytes: int = 64 * 1024 * 1024
    # Bytes of a request; Label Studio sends the task with all its masks at every click.
    threads: int = 32
    # Requests at a time in one web process of `make serve`. Three quarters may be clicks, one
    # more is answered with 503 at once: a thread stays free for Label Studio's health check.

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        if self.max_body_bytes <= 0:
            raise ValueError("max_body_bytes should be more than 0.")
        if self.threads < 2:
            raise ValueError("threads should be 2 or more: one stays free for health checks.")

    @property
    def clicks_at_once(self) -> int:
        """How many clicks may wait or be answered at a time in one process."""
        return max(1, self.threads * 3 // 4)


@dataclass(frozen=True)
class Settings:
    """Everything that can be set; the defaults serve `models/default` beside Label Studio."""

    label_studio: LabelStudioSettings = field(default_factory=LabelStudioSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    queues: QueueSettings = field(default_factory=QueueSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    embeddings: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    prefetch: PrefetchSettings = field(default_factory=PrefetchSettings)
    refinement: RefinementSettings = field(default_factory=RefinementSettings)
    granularity: GranularitySettings = field(default_factory=GranularitySettings)
    second_look: SecondLookSettings = field(default_factory=SecondLookSettings)
    results: ResultSettings = field(default_factory=ResultSettings)
    versions: VersionSettings = field(default_factory=VersionSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    logs: LogSettings = field(default_factory=LogSettings)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """The settings that an environment asks for.

        Args:
            environ: Names and values; None means this process's own. An empty value counts as
                not given.

        Raises:
            SettingsError: An unknown ``EDGESAM_`` name, a value that cannot be read, or two that
                contradict each other.
        """
        given = {k: v for k, v in (os.environ if environ is None else environ).items() if v.strip()}
        _refuse_unknown(given)
        sections: dict[str, dict[str, Any]] = {section.name: {} for section in fields(cls)}
        for variable in VARIABLES:
            text = given.get(variable.name, variable.default)
            if text is not None:
                sections[variable.section][variable.field] = _parse(variable, text)
        built = {}
        for section in fields(cls):
            try:
                built[section.name] = _class_of(section.name)(**sections[section.name])
            except ValueError as exc:
                raise SettingsError(_in_variables(section.name, str(exc))) from exc
        return cls(**built)


@dataclass(frozen=True)
class Variable:
    """One environment variable and the field that it fills."""

    name: str
    section: str
    field: str
    parse: Callable[[str], Any] = str
    default: str | None = None
    # where it differs from the dataclass's, which is made for tests


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / Path(text).name


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


VARIABLES = (
    Variable("LABEL_STUDIO_URL", "label_studio", "url"),
    Variable("LABEL_STUDIO_API_KEY", "label_studio", "api_key"),
    Variable("MODEL", "model", "name"),
    Variable("MODEL_DIR", "model", "models_dir", _path),
    Variable("LOG_LEVEL", "logs", "level"),
    Variable("BASIC_AUTH_USER", "auth", "basic_auth_user"),
    Variable("BASIC_AUTH_PASS", "auth", "basic_auth_pass"),
    Variable("EDGESAM_URL_SECRET", "auth", "url_secret"),
    Variable("HOST", "auth", "host"),
    Variable("EDGESAM_IMAGE_HOSTS", "images", "allowed_hosts", _hosts),
    Variable("EDGESAM_CACHE_DIR", "store", "cache_dir", _path, "~/.cache/edgesam-label-studio"),
    Variable("REDIS_URL", "queues", "redis_url"),
    Variable("EDGESAM_WORKER_WAIT_S", "queues", "worker_wait_s", float),
    Variable("EDGESAM_STORE_BYTES", "store", "store_bytes", int),
    Variable("EDGESAM_STORE_URL", "store", "url"),
    Variable("EDGESAM_IMAGE_CACHE_BYTES", "images", "cache_bytes", int),
    Variable("EDGESAM_MAX_IMAGE_BYTES", "images", "max_bytes", int),
    Variable("EDGESAM_MAX_IMAGE_PIXELS", "images", "max_pixels", int),
    Variable("EDGESAM_FETCH_TIMEOUT_S", "images", "timeout_s", float),
    Variable("EDGESAM_EMBEDDING_CACHE_BYTES", "embeddings", "cache_bytes", int),
    Variable("EDGESAM_ENCODE_WAIT_S", "embeddings", "wait_s", float),
    Variable("EDGESAM_PREFETCH_TASKS", "prefetch", "next_tasks", int),
    Variable("EDGESAM_REFINEMENT_CACHE_BYTES", "refinement", "cache_bytes", int),
    Variable("EDGESAM_GRANULARITY_PRIOR", "granularity", "prior"),
    Variable("EDGESAM_SECOND_LOOK", "second_look", "mode"),
    Variable("EDGESAM_OUTPUTS", "results", "outputs"),
    Variable("EDGESAM_POLYGON_TOLERANCE_PX", "results", "polygon_tolerance_px", float),
    Variable("EDGESAM_POLYGON_MAX_VERTICES", "results", "polygon_max_vertices", int),
    Variable("EDGESAM_MIN_REGION_PX", "results", "min_region_px", int),
    Variable("EDGESAM_MAX_RLE_BYTES", "results", "max_rle_bytes", int),
    Variable(
        "EDGESAM_DATA_DIR", "versions", "data_dir", _path, "~/.local/share/edgesam-label-studio"
    ),
    Variable("EDGESAM_TRAIN_PYTHON", "training", "python", _path),
    Variable("EDGESAM_TRAIN_RECIPE", "training", "recipe", _path),
    Variable("EDGESAM_TRAIN_MINUTES", "training", "minutes", float),
    Variable("EDGESAM_TRAIN_EVERY", "training", "every_annotations", int),
    Variable("EDGESAM_RUNTIME", "model", "runtime"),
    Variable("EDGESAM_THREADS", "model", "threads", int),
    Variable("EDGESAM_LOAD_WAIT_S", "model", "load_wait_s", float),
    Variable("THREADS", "server", "threads", int),
    Variable("EDGESAM_MAX_BODY_BYTES", "server", "max_body_bytes", int),
)


def environment_page() -> str:
    """The text of docs/environment.md: every variable, its default, what it does."""
    lines = [
        "# Environment variables",
        "",
        "Made from the dataclasses by `python -m backend.settings`; a test holds it current.",
        "The server also honours `PORT` and `WEB_CONCURRENCY` (`gunicorn.conf.py`).",
        "",
        "| variable | default | what it does |",
        "|---|---|---|",
    ]
    for variable in VARIABLES:
        described = _description(variable).replace("|", "\\|")
        lines.append(f"| `{variable.name}` | {_default(variable)} | {described} |")
    return "\n".join(lines) + "\n"


def _refuse_unknown(given: Mapping[str, str]) -> None:
    known = [variable.name for variable in VARIABLES]
    for name in sorted(given):
        if name.startswith(_PREFIX) and not name.startswith(_TEST_PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise SettingsError(f"There is no setting {name}. Did you mean {near[0]}?")


def _parse(variable: Variable, text: str) -> Any:
    try:
        return variable.parse(text.strip())
    except ValueError as exc:
        kind = "a whole number" if variable.parse is int else "a number"
        raise SettingsError(f"{variable.name} should be {kind}, not {text!r:.40}.") from exc


def _in_variables(section: str, sentence: str) -> str:
    """A dataclass's complaint with the operator's names in place of the fields'."""
    for variable in VARIABLES:
        if variable.section == section:
            sentence = re.sub(rf"\b{variable.field}\b", variable.name, sentence)
    return sentence


def _class_of(section: str) -> Any:
    """The dataclass of a section."""
    factory = next(f.default_factory for f in fields(Settings) if f.name == section)
    assert factory is not MISSING
    return factory


def _default(variable: Variable) -> str:
    value: Any = variable.default
    if value is None:
        value = getattr(_class_of(variable.section)(), variable.field)
    if isinstance(value, Path) and value.is_relative_to(Path(__file__).parents[1].resolve()):
        value = value.relative_to(Path(__file__).parents[1].resolve())
    if value is None or value == ():
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _description(variable: Variable) -> str:
    """The comment lines under a field of its dataclass."""
    source = inspect.getsource(_class_of(variable.section))
    pattern = rf"^    {variable.field}: .*\n((?:    # .*\n)+)"
    found = re.search(pattern, source, re.MULTILINE)
    assert found, f"{variable.section}.{variable.field} has no line under it that explains it"
    return " ".join(line.strip().removeprefix("# ") for line in found[1].splitlines())


if __name__ == "__main__":
    sys.stdout.write(environment_page())
