"""What a refusal of Label Studio means, and what to do about it.

Read in label-studio 1.23.2: ``jwt_auth/``, ``io_storages/``; seen live where the test says so. The
sentences name the setting and the place in Label Studio's pages, never a token or a path.
"""

from __future__ import annotations

import time

from backend.access_token import claims, is_personal
from backend.safe_http import HttpAnswer
from edgesam_core.errors import EdgeSamError, ImageError, UpstreamError

_GET_TOKEN = (
    "Create one in Label Studio under Account & Settings > Personal Access Token "
    "and start the backend with LABEL_STUDIO_API_KEY=<token>."
)
_MISSING_TOKEN = f"Label Studio asks for a token. {_GET_TOKEN}"
_LEGACY_DISABLED = (
    f"Label Studio no longer accepts legacy tokens, and LABEL_STUDIO_API_KEY is one. {_GET_TOKEN}"
)
_LEGACY_REFUSED = (
    "Label Studio refused the legacy token in LABEL_STUDIO_API_KEY. Compare it with Account & "
    "Settings > Legacy Token, or use a personal access token from the same page."
)
_PERSONAL_EXPIRED = f"The personal access token in LABEL_STUDIO_API_KEY has expired. {_GET_TOKEN}"
_PERSONAL_REVOKED = f"The personal access token in LABEL_STUDIO_API_KEY was revoked. {_GET_TOKEN}"
_PERSONAL_REFUSED = (
    "Label Studio refused the personal access token in LABEL_STUDIO_API_KEY: it was cut off, or "
    f"belongs to another Label Studio. {_GET_TOKEN}"
)
_ACCESS_REFUSED = (
    "Label Studio refused the access token that it had just given out. Ask its owner to enable "
    "personal access tokens under Organization > API Tokens Settings."
)
_MOVED = (
    "Label Studio sends callers of LABEL_STUDIO_URL on to another address, and the token does not "
    "follow. Set LABEL_STUDIO_URL to the address that the browser shows in the end."
)
_LOCAL_FILES_OFF = (
    "Label Studio does not serve local files. Start it with LOCAL_FILES_SERVING_ENABLED=true."
)
_NOT_ALLOWED = (
    "The owner of the token in LABEL_STUDIO_API_KEY may not see this in Label Studio. "
    "Give that user access to the project, or use the token of one who has it."
)
_NOT_THERE = (
    "Label Studio has no such file. Check that it still exists and, for cloud and local files, "
    "that the project has a source storage that holds it."
)
_STORAGE_FAILED = (
    "Label Studio could not read the file from its cloud storage. "
    "Check the storage's credentials in the project's settings."
)


def explain_refusal(answer: HttpAnswer, api_key: str | None) -> EdgeSamError:
    """The error for an answer of Label Studio that is no success.

    Args:
        answer: To a request that carried the token, if there is one.
        api_key: What the operator gave; only its kind matters.
    """
    status, said = answer.status, answer.body.decode(errors="replace")
    to_login = "/user/login" in answer.headers.get("Location", "")
    if status == 401 or to_login or (status == 403 and not api_key):
        return UpstreamError(_about_the_token(said, api_key))
    if status in (301, 302, 303, 307, 308):
        return UpstreamError(_MOVED)
    if status == 403:
        off = "LOCAL_FILES_SERVING_ENABLED" in said
        return UpstreamError(_LOCAL_FILES_OFF if off else _NOT_ALLOWED)
    if status == 404:
        return ImageError(_NOT_THERE)
    if status == 424:
        return UpstreamError(_STORAGE_FAILED)
    if status >= 500:
        return UpstreamError(
            f"Label Studio failed with an error of its own ({status}). "
            "The file may be missing there; its log has the reason."
        )
    return UpstreamError(f"Label Studio answered with status {status}, which was not expected.")


def explain_refused_exchange(answer: HttpAnswer, personal: str) -> UpstreamError:
    """The error for a personal access token that Label Studio does not exchange."""
    if b"blacklisted" in answer.body:
        return UpstreamError(_PERSONAL_REVOKED)
    expiry = claims(personal).get("exp")
    is_past = isinstance(expiry, int | float) and expiry < time.time()
    return UpstreamError(_PERSONAL_EXPIRED if is_past else _PERSONAL_REFUSED)


def _about_the_token(said: str, api_key: str | None) -> str:
    if not api_key:
        return _MISSING_TOKEN
    if is_personal(api_key):
        return _ACCESS_REFUSED
    return _LEGACY_DISABLED if "legacy token" in said else _LEGACY_REFUSED
