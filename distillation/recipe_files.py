"""Recipes: YAML files that fill a stage's configuration (configs.py)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from distillation.configs import EngineConfig, Phase
from distillation.run_folder import write_whole
from edgesam_core.errors import RunError

Config = TypeVar("Config")


def load_recipe(path: Path, kind: type[Config]) -> Config:
    """Read a recipe of one stage; unknown keys are refused.

    Raises:
        RunError: The file cannot be read, or a key is unknown, missing, of another type or
            contradicts another.
    """
    try:
        return build_config(kind, yaml.safe_load(path.read_text()))
    except (OSError, ValueError, yaml.YAMLError, RunError) as exc:
        raise RunError(f"{path.name}: {exc}. Compare it with distillation/configs.py.") from exc


def build_config(kind: type[Config], fields: Any, **more: Any) -> Config:
    """A configuration from a table of a recipe.

    Args:
        kind: Its dataclass.
        fields: The table, as YAML gives it.
        more: Fields that are known already.

    Raises:
        RunError: It is no table, or a key is unknown, missing, of another type or contradicts
            another.
    """
    if not isinstance(fields, dict):
        raise RunError(f"expected a table, got {fields!r}")
    hints = get_type_hints(kind)
    for name, value in fields.items():
        if name not in hints:
            raise RunError(f"{name}: there is no such key")
        _check_type(name, value, hints[name])
    if "phases" in fields:
        if not isinstance(fields["phases"], list):
            raise RunError(f"phases: expected a list of tables, got {fields['phases']!r}")
        more["phases"] = tuple(build_config(Phase, phase) for phase in fields["phases"])
    try:
        return kind(**{**fields, **more})
    except TypeError as exc:  # a key is missing
        raise RunError(str(exc)) from exc


def _check_type(name: str, value: Any, wanted: Any) -> None:
    """Refuse a value of another type; what is one of a few words is ``__post_init__``'s."""
    if get_origin(wanted) is dict and isinstance(value, dict):
        for key, one in value.items():
            _check_type(f"{name}, {key}", one, get_args(wanted)[1])
    elif wanted is float and type(value) not in (int, float):
        exponent = " (a number with an exponent needs a point, too: 1.0e-3)"
        raise RunError(f"{name}: expected a number, got {value!r}{exponent}")
    elif (wanted in (int, bool, str) or get_origin(wanted) is dict) and type(value) is not wanted:
        raise RunError(f"{name}: expected {getattr(wanted, '__name__', wanted)}, got {value!r}")


def save_recipe(config: EngineConfig, path: Path) -> None:
    """Write the resolved configuration beside the weights, so that a run can be repeated."""
    fields = dataclasses.asdict(config)
    if "phases" in fields:
        fields["phases"] = list(fields["phases"])
    write_whole(path, yaml.safe_dump(fields, sort_keys=False).encode())
