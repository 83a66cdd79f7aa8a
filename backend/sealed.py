"""An entry that names its own key and carries a checksum of its bytes.

Both shared stores write entries in this form: one line of text, then the value. Whatever does not
begin with exactly the line that its key and its value would be given is not that entry: torn,
tampered with, or another key's. It is the one check between a shared store and a mask.
"""

from __future__ import annotations

import hashlib

MAX_LINE_BYTES = 1024


def seal(key: str, value: bytes) -> bytes:
    """The line that goes before a value.

    Args:
        key: ASCII without line breaks, at most 900 characters.
        value: 2 MB take 1.5 ms where the processor has instructions for SHA-256.
    """
    assert key.isprintable(), "a line break in a key"
    assert len(key) < MAX_LINE_BYTES - 100, "a key as long as a path"
    return f"edgesam-entry 1 {hashlib.sha256(value).hexdigest()} {key}\n".encode()


def is_sealed(line: bytes, key: str, value: bytes) -> bool:
    """Whether an entry's line and value belong together and to this key."""
    return line == seal(key, value)
