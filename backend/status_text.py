"""Numbers and times as the status page writes them; a dash where there is none."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, TypeGuard

DASH = "\N{EN DASH}"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it can be counted with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: Any) -> str:
    """A share of 1 as ``81.0 %``."""
    return f"{100 * value:.1f} %" if is_number(value) else DASH


def decimal(value: Any) -> str:
    """A number with two digits after the point."""
    return f"{value:.2f}" if is_number(value) else DASH


def measure(value: Any) -> str:
    """A loss or error, with four digits."""
    return f"{value:.4g}" if is_number(value) else DASH


def words(name: str) -> str:
    """A name of the log as words: ``click_iou`` is click IoU."""
    return name.replace("_", " ").replace("iou", "IoU")


def moment(iso: Any) -> str:
    """A UTC time to the minute, ``2026-11-21 23:20``."""
    try:
        return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M}"
    except (TypeError, ValueError):
        return DASH


def minutes(value: Any) -> str:
    """So many minutes in words."""
    if not is_number(value) or value < 0:
        return DASH
    if value < 1:
        return "less than a minute"
    if value < 90:
        return f"{value:.0f} min"
    return f"{value / 60:.1f} h"
