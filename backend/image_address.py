"""What task data writes in place of an image, read without asking anybody.

A ``data:`` URI is the image itself. A signed address changes with each signature and still names
the same image. Fetching is images.py's part.
"""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from urllib3.util import parse_url

from edgesam_core.errors import ImageError, ImageTooLarge

_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
_SIGNATURE = re.compile("x-(amz|goog)-")
_TOKENS = frozenset({"token", "access_token"})
_BESIDE_A_SIGNATURE = re.compile(
    "signature|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid"
    "|sig|s[vsrpet]|srt|spr|skoid|sktid|sk[tesv]"  # Azure's
)


def is_data_uri(uri: str) -> bool:
    """Whether the image itself stands in the task, as a ``data:`` URI."""
    return uri[:16].lstrip()[:5].lower() == "data:"


def read_data_uri(uri: str, max_bytes: int) -> bytes:
    """The bytes inside a ``data:`` URI, base64 or percent-encoded (RFC 2397).

    Raises:
        ImageError: Cut off or not base64.
        ImageTooLarge: Over ``max_bytes``.
    """
    head, comma, payload = uri.strip().partition(",")
    is_base64 = head.lower().endswith(";base64")
    too_large = ImageTooLarge(
        f"The image inside the task is larger than {max_bytes / 1e6:g} MB. "
        "Make it smaller, or raise EDGESAM_MAX_IMAGE_BYTES."
    )
    # An escape takes three characters for one, so that much is certain before it is decoded.
    if len(payload) > 4 * max_bytes + 4:
        raise too_large
    data = unquote_to_bytes(payload)
    if is_base64:
        data = b"".join(data.split())
        try:
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
        except binascii.Error as exc:
            raise ImageError(
                "The image inside the task (a data URI) is damaged. Import the task again."
            ) from exc
    if len(data) > max_bytes:
        raise too_large
    if not comma or not data:
        raise ImageError("The image inside the task (a data URI) is empty. Import the task again.")
    return data


def without_signature(url: str) -> str:
    """An address without what changes each time it is signed, so that it names the same image.

    Amazon's and Google's signature fields are unmistakable. Others (``token``, ``sig``, ...) could
    as well choose the image, so they are taken out only where the path already ends in a file name
    of an image.
    """
    parts = parse_url(url)
    names_image = (parts.path or "").lower().endswith(_IMAGE_ENDINGS)
    fields = {
        field: field.partition("=")[0].lower() for field in (parts.query or "").split("&") if field
    }
    is_signed = not {"sig", "signature"}.isdisjoint(fields.values())

    def is_signature(name: str) -> bool:
        if _SIGNATURE.match(name) or (names_image and name in _TOKENS):
            return True
        return names_image and is_signed and _BESIDE_A_SIGNATURE.fullmatch(name) is not None

    kept = "&".join(field for field, name in fields.items() if not is_signature(name))
    return parts._replace(query=kept or None, fragment=None).url
