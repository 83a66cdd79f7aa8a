"""Where things lie in Label Studio: what task data writes, as addresses; asks nobody.

Task data names files in Label Studio's own way (``/data/upload/...``, ``s3://...``). Its address is
that of ``LABEL_STUDIO_URL``: what a task or ``/setup`` claims about it is not believed.

The paths were read in label-studio 1.23.2: ``io_storages/urls.py``, ``proxy_api.py``.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote, urlencode

from urllib3.util import parse_url

from backend.safe_http import Origin, origin_of, read_url
from edgesam_core.errors import ImageError

CLOUD_SCHEMES = ("s3", "gs", "azure-blob")
"""Storages whose files Label Studio resolves for a task."""

_FILE_PATH = re.compile(
    r"/(data/(upload|local-files)|storage-data/uploaded|tasks/\d+/(resolve|presign))/"
)


class LabelStudioAddress:
    """Origin and path prefix of one Label Studio."""

    def __init__(self, url: str) -> None:
        """Take it apart.

        Args:
            url: From `LabelStudioSettings`, path prefix and all.
        """
        parts = read_url(url)
        self.origin: Origin = origin_of(parts)
        self._prefix = (parts.path or "").rstrip("/")
        self._root = f"{parts.scheme}://{parts.netloc}"

    def owns(self, url: str) -> bool:
        """Whether an absolute address is Label Studio's own: origin and path prefix both fit."""
        try:
            parts = read_url(url)
        except ImageError:
            return False
        path = unquote(parts.path or "/")
        if origin_of(parts) != self.origin or ".." in path.split("/"):
            return False
        return path == self._prefix or path.startswith(self._prefix + "/")

    def resolve(self, path_or_url: str) -> str:
        """The absolute address of a path in Label Studio; other addresses as they are.

        A path prefix is added where task data lacks it, also to a whole address of a file.
        """
        if path_or_url.startswith("/"):
            return self._root + self._prefixed(path_or_url)
        if "://" not in path_or_url:
            return self._root + self._prefixed("/" + path_or_url)
        parts = read_url(path_or_url)
        if origin_of(parts) == self.origin and _FILE_PATH.match(parts.path or ""):
            return self._root + self._prefixed(parts.request_uri)
        return path_or_url

    def presign(self, task_id: int, uri: str) -> str:
        """The address at which Label Studio hands over a cloud file of a task.

        It redirects to the storage with a signature, or passes the bytes on itself, as the
        storage's owner chose. Both ``/presign/`` and ``/resolve/`` exist; the former is the older.
        """
        encoded = base64.urlsafe_b64encode(uri.encode()).decode()
        return self.resolve(f"/tasks/{int(task_id)}/presign/?" + urlencode({"fileuri": encoded}))

    def _prefixed(self, path: str) -> str:
        bare = path.partition("?")[0]
        inside = bare == self._prefix or bare.startswith(self._prefix + "/")
        return path if inside else self._prefix + path


def is_file_path(path: str) -> bool:
    """Whether a path, perhaps behind a prefix, is one where Label Studio serves tasks' files."""
    return _FILE_PATH.search(path) is not None


def is_loopback(url: str) -> bool:
    """Whether an address names the machine that asks, which in a container is the container."""
    host = (parse_url(url).host or "").strip("[]").lower()
    return host == "localhost" or host == "::1" or host.startswith("127.")
