"""The replay set: drawn scenes with exact masks, numbered, for ever the same.

They stand for what the base model could do before a project's own labels came. The first
``GATE_SCENES`` are the gate's and never trained on; those after them are mixed into the batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distillation.synth import Scene, procedural_scene

GATE_SCENES = 48
"""Scenes 0 to 47 are what the gate asks about; those from 48 on are replayed in training."""

REPLAY_SEED = 1106
"""Of the scenes, for ever: two versions are compared on the same."""


def replay_scene(number: int, size: int, photos: Sequence[np.ndarray] = ()) -> Scene:
    """A drawn scene by its number, for ever the same."""
    return procedural_scene(np.random.default_rng((REPLAY_SEED, number)), size, photos)
