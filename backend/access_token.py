"""The Authorization header for Label Studio, from either kind of token.

A legacy token is sent as it is. A personal access token is a JWT that Label Studio accepts only in
exchange for an access token, which lives for 300 s: it is exchanged when first needed and again
before it ends, by one thread while the others wait. Which kind a token is shows in its shape. The
exchange itself is passed in (label_studio.py); nothing here is logged or put into an error.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Callable
from typing import Any

from backend.one_at_a_time import OneAtATime

_LIFETIME_S = 300.0  # Label Studio's, where the access token does not say its own
_EARLY_S = 60.0  # exchanged this long before its end, so that a slow download does not outlive it


def is_personal(api_key: str) -> bool:
    """Whether this is a personal access token (a JWT: three parts) and not a legacy token."""
    return api_key.count(".") == 2


def claims(token: str) -> dict[str, Any]:
    """What a JWT says about itself, not verified; empty where it cannot be read."""
    try:
        payload = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, binascii.Error):
        return {}
    return found if isinstance(found, dict) else {}


class AccessToken:
    """Keeps the header of one API key; thread-safe, one exchange at a time."""

    def __init__(
        self,
        api_key: str | None,
        exchange: Callable[[str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is exchanged before the first ``header``.

        Args:
            api_key: Legacy token, personal access token, or None.
            exchange: Personal access token to access token; raises one of our errors.
            clock: Seconds, never going back.
        """
        self._api_key = api_key
        self._exchange = exchange
        self._clock = clock
        self._exchanging = OneAtATime()
        self._access: str | None = None
        self._renew_at = 0.0

    def header(self) -> dict[str, str]:
        """``Authorization`` for the next request; empty without an API key.

        Raises:
            EdgeSamError: What the exchange raised.
        """
        if not self._api_key:
            return {}
        if not is_personal(self._api_key):
            return {"Authorization": f"Token {self._api_key}"}
        return {"Authorization": f"Bearer {self._current(self._api_key)}"}

    def forget(self, header: dict[str, str]) -> bool:
        """Drop an access token that was refused; True when a new one may do better."""
        refused = header.get("Authorization", "")
        if refused == f"Bearer {self._access}":
            self._access = None
        return refused.startswith("Bearer ")

    def _current(self, personal: str) -> str:
        asked_at = self._clock()
        with self._exchanging.turn():
            access = self._access
            if access and asked_at < self._renew_at:
                return access
            self._access = None
            access = self._exchange(personal)
            # By its own account of its lifetime, so that two clocks that differ do no harm.
            said = claims(access)
            try:
                lifetime = float(said["exp"]) - float(said["iat"])
            except (KeyError, TypeError, ValueError):
                lifetime = _LIFETIME_S
            self._renew_at = self._clock() + max(lifetime - _EARLY_S, lifetime / 2)
            self._access = access
            return access
