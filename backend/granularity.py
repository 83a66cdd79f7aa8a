"""Whether proposed boxes join single clicks, and by which rule they are merged.

The first of these that says anything decides:

1. the request: ``context.granularity_prior`` (Label Studio passes a context on as it is);
2. the project: ``model_granularity_prior`` at a smart keypoint control of its labelling config;
3. the server: ``EDGESAM_GRANULARITY_PRIOR``.

Each says ``off``, ``best`` or ``mean`` (edgesam_core/granularity.py). A request or a project that
asks a model for what it does not have is told so; the server's setting then means ``off``, so that
it can stand whichever model is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgesam_core.errors import LabelConfigError, RequestError
from edgesam_core.granularity import MERGE_RULES, MergeRule
from edgesam_core.manifest import Manifest

OFF = "off"
CHOICES = (OFF, *MERGE_RULES)
CONTEXT_KEY = "granularity_prior"
ATTRIBUTE = "model_granularity_prior"


@dataclass(frozen=True)
class GranularitySettings:
    """What a single click means where neither the request nor the project says so."""

    prior: str = OFF
    # Box that joins a single click, for models that propose boxes of objects: `off`, `best` (the
    # likeliest of the five nearest) or `mean` (of these five, by confidence). A project may say
    # otherwise (docs/granularity.md).

    def __post_init__(self) -> None:
        """Refuse what is no choice."""
        if self.prior not in CHOICES:
            raise ValueError(
                f"prior should be one of {', '.join(CHOICES)}, not {self.prior!r:.40}."
            )


def merge_rule(
    context: Mapping[str, Any] | None,
    project_choice: str | None,
    settings: GranularitySettings,
    manifest: Manifest,
) -> MergeRule | None:
    """How proposed boxes are merged for this request; None where clicks stay alone.

    Args:
        context: ``params.context`` of the request.
        project_choice: Of the labelling config, checked (label_config.py); None where it is silent.
        settings: Of the server.
        manifest: Of the model that is served.

    Raises:
        RequestError: The context's choice is none, or the model cannot do what it asks for.
        LabelConfigError: The model cannot do what the project asks for.
    """
    asked = (context or {}).get(CONTEXT_KEY)
    if asked is not None and asked not in CHOICES:
        raise RequestError(
            f"context.{CONTEXT_KEY} is {asked!r:.40}. Send one of {', '.join(CHOICES)}."
        )
    explicit = asked if asked is not None else project_choice
    chosen = next((rule for rule in MERGE_RULES if rule == (explicit or settings.prior)), None)
    if chosen is None or manifest.has_granularity_prior:
        return chosen
    if asked is not None:
        raise RequestError(
            f"The model {manifest.name!r} has no granularity prior. Send the click without "
            f"context.{CONTEXT_KEY}, or serve a model that has one."
        )
    if project_choice is not None:
        raise LabelConfigError(
            f"The labelling config asks for a granularity prior, which the model "
            f"{manifest.name!r} does not have. Remove {ATTRIBUTE}, or serve a model that has one."
        )
    return None
