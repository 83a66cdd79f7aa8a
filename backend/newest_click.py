"""The newest click on each picture, for all web processes: a few bytes in the shared store.

A newer click may reach another process than the older one that it supersedes (superseded.py), so
each click leaves word here, and each looks here once more before it costs a decode. Only the newest
is kept: where two annotators click on one picture at once, one's word may cover the other's, and at
worst a mask is decoded that nobody looks at. Times are of the machine's own clock, which all its
processes share; word from another machine is not believed.
"""

from __future__ import annotations

import json
from collections.abc import Hashable

from backend.machine_turns import machine_id
from backend.store import Store


class NewestClicks:
    """Leaves and finds word of clicks; safe between threads and processes."""

    def __init__(self, shared: Store) -> None:
        """Know what the shared store knows."""
        self._shared = shared
        self._machine = machine_id()

    def tell(self, picture: Hashable, region_ids: frozenset[str], at_s: float) -> None:
        """Leave word of a click.

        Args:
            picture: What was clicked on; equal in all processes, by its `repr`.
            region_ids: Label Studio's ids of the prompts.
            at_s: When, by `time.monotonic`.
        """
        word = json.dumps([self._machine, at_s, sorted(region_ids)])
        self._shared.put(_key(picture), word.encode())

    def since(self, picture: Hashable, at_s: float) -> frozenset[str]:
        """The prompts of the newest click on a picture; none where it is not newer than `at_s`."""
        word = self._shared.get(_key(picture))
        if word is None:
            return frozenset()
        machine, told_at_s, region_ids = json.loads(word)
        is_newer = machine == self._machine and told_at_s > at_s
        return frozenset(region_ids if is_newer else ())


def _key(picture: Hashable) -> str:
    return f"newest click {picture!r}"
