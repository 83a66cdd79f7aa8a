"""Who may ask: HTTP basic authentication, and a secret in the path.

Label Studio sends its credentials with every call but the ordinary webhooks, which carry none. A
secret path (``EDGESAM_URL_SECRET``) reaches those too, since Label Studio derives the webhook's
address from the backend's. With both set, the secret path alone admits an ordinary webhook, and
everything that Label Studio sends credentials for still needs them, START_TRAINING included.
``/health`` and ``/ready`` are open to whoever knows the path: they tell nothing worth hiding.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from flask import Request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from edgesam_core.errors import Guarded

_OPEN_ROUTES = frozenset({"health", "ready"})
_SECRET = re.compile(r"[A-Za-z0-9._~-]{1,200}")


@dataclass(frozen=True)
class AuthSettings:
    """Credentials that callers must bring; none by default."""

    basic_auth_user: str | None = None
    # User name that Label Studio is to send (`basic_auth_user` of the backend there).
    basic_auth_pass: str | None = field(default=None, repr=False)
    # Password that goes with it.
    url_secret: str | None = field(default=None, repr=False)
    # Puts every route under `/<secret>/`: letters, digits and `. _ ~ -`, best 16 or more at random.
    host: str = "127.0.0.1"
    # Address or name that `make serve` listens on. Beyond loopback nobody cancels a run, promotes
    # or rolls back without one of the three above.

    def __post_init__(self) -> None:
        """Refuse half a pair of credentials and a secret that is no path."""
        if (self.basic_auth_user is None) != (self.basic_auth_pass is None):
            raise ValueError(
                "basic_auth_user and basic_auth_pass belong together: set both or neither."
            )
        if self.url_secret is not None and not _SECRET.fullmatch(self.url_secret):
            raise ValueError(
                "url_secret should be made of letters, digits, dots, dashes, tildes and "
                "underscores, 200 at most."
            )

    @property
    def url_prefix(self) -> str:
        """What stands before every route."""
        return f"/{self.url_secret}" if self.url_secret else ""


def check_request(request: Request, route: str, settings: AuthSettings) -> None:
    """Let a request pass or refuse it.

    Args:
        request: The request.
        route: Name of the route that will answer it, ``health`` for example.
        settings: What callers must bring.

    Raises:
        Unauthorized: Credentials are asked for and these are none, or wrong ones.
    """
    if route in _OPEN_ROUTES or (route == "webhook" and settings.url_secret):
        return
    check_credentials(request, settings)


def check_guarded(request: Request, settings: AuthSettings) -> None:
    """Refuse what changes who is served what, where anybody on the network could ask for it.

    Raises:
        Guarded: No authentication is set, and the server listens on more than loopback, or is asked
            under another name than its own.
    """
    if settings.basic_auth_user is not None or settings.url_secret is not None:
        return
    # The address that is listened on. A socket of Unix has none and is taken for reachable.
    listened_on = str(request.environ.get("SERVER_NAME"))
    if not (_is_loopback(listened_on) and _is_loopback(request.remote_addr or "")):
        raise Guarded
    # A page of another site may have its own name lead to 127.0.0.1 (DNS rebinding) and then asks
    # from this machine's browser, and as one of our pages.
    name = _name_of(request.host)
    if not (_is_loopback(name) or name == settings.host.lower()):
        raise Guarded(
            "Without a password this is answered only under the server's own name. Open it as "
            "localhost, or set BASIC_AUTH_USER and BASIC_AUTH_PASS, here and in Label Studio."
        )


def _name_of(host: str) -> str:
    """The name in a Host header, without its port; empty where there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def check_credentials(request: Request, settings: AuthSettings) -> None:
    """Compare the credentials of a request in constant time.

    Raises:
        Unauthorized: They are asked for and these are none, or wrong ones.
    """
    if settings.basic_auth_user is None or settings.basic_auth_pass is None:
        return
    given = request.authorization
    user = (given.username if given else None) or ""
    password = (given.password if given else None) or ""
    # Both are always compared, so that the time taken does not tell which one is wrong.
    user_fits = hmac.compare_digest(user.encode(), settings.basic_auth_user.encode())
    password_fits = hmac.compare_digest(password.encode(), settings.basic_auth_pass.encode())
    if not (user_fits and password_fits):
        raise Unauthorized(www_authenticate=WWWAuthenticate("basic", {"realm": "EdgeSAM"}))
