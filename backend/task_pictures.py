"""Which pictures a task shows: what its data has in the field that the ``<Image>`` names.

The address comes out as the task has it; images.py knows what may be such an address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from backend.label_config import ImageTag
from edgesam_core.errors import ImageError

_VARIABLE = re.compile(r"\$([\w.\[\]-]+)")


def image_uri(tag: ImageTag, data: Mapping[str, Any], item_index: int | None) -> str:
    """Where the picture of a task lies, as the task says it.

    Args:
        tag: The image tag that the prompt is for.
        data: The task's ``data``.
        item_index: Which picture of a ``valueList``; None means the first.

    Raises:
        ImageError: The field is missing, empty, or has no such picture.
    """
    value: object
    whole = _VARIABLE.fullmatch(tag.value)
    if whole:
        value = _lookup(data, whole[1])
    else:
        value = _VARIABLE.sub(lambda match: str(_lookup(data, match[1]) or ""), tag.value)
    if isinstance(value, list):
        index = item_index or 0
        if index >= len(value):
            raise ImageError(
                f"The task has {len(value)} pictures, the prompt is on picture {index + 1}. "
                "Reload the page."
            )
        value = value[index]
    if not isinstance(value, str) or not value:
        raise ImageError(
            f"The task has no picture in its field {tag.value.lstrip('$')!r:.60}, which the "
            "labelling config's <Image> asks for. Correct the config or the task."
        )
    return value


def image_uris(tag: ImageTag, data: Mapping[str, Any]) -> list[str]:
    """Where the pictures of a task lie: one, or all pages of a ``valueList``.

    Raises:
        ImageError: The field is missing or empty.
    """
    whole = _VARIABLE.fullmatch(tag.value)
    pages = _lookup(data, whole[1]) if whole else None
    count = len(pages) if isinstance(pages, list) else 1
    return [image_uri(tag, data, index) for index in range(max(1, count))]


def _lookup(data: Mapping[str, Any], path: str) -> object:
    """``a``, ``a.b`` or ``a[0]`` in the task's data, a key of just that name first."""
    if path in data:
        return data[path]
    value: object = data
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value
