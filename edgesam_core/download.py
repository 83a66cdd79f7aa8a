"""Files of the authors' space on the Hugging Face hub, each checked against the hub's record.

A download that broke goes on where it stopped, in the same run or the next. What becomes of the
files is fetch.py's part.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    tqdm,
)

from edgesam_core.errors import BundleError, UpstreamError

logger = logging.getLogger(__name__)

REPOSITORY = "chongzhou/EdgeSAM"
REPOSITORY_TYPE = "space"

CHUNK_BYTES = 1 << 18
"""As much of what arrived is lost at most where a connection breaks."""

_ATTEMPTS = 5
_PAUSE_S = 1.0
_TIMEOUT_S = 30


@dataclass(frozen=True)
class HubFile:
    """A file as the hub has it on record."""

    path: str
    # within the repository
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rpartition("/")[2]

    def sentence(self) -> str:
        """Where it lies, exactly enough to find it again."""
        return (
            f"{self.path} of the Hugging Face {REPOSITORY_TYPE} {REPOSITORY} "
            f"({self.bytes} bytes, sha256 {self.sha256})"
        )


def download(
    paths: Sequence[str],
    folder: Path,
    *,
    endpoint: str | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> list[HubFile]:
    """Bring files of the repository into a folder.

    Args:
        paths: Within the repository.
        folder: Gets each file under its own name; one that is there and whole is not fetched again.
        endpoint: Address of the hub; None means what ``HF_ENDPOINT`` says, or huggingface.co.
        wait: Lets so many seconds pass before a download that broke goes on.

    Returns:
        What the hub has on record of each, in the order of ``paths``.

    Raises:
        UpstreamError: The hub cannot be reached, or has no such file.
        BundleError: A file is not what the hub has on record.
        OSError: The folder cannot be written, or its disk is full.
    """
    try:
        found = HfApi(endpoint=endpoint).get_paths_info(
            REPOSITORY, list(paths), repo_type=REPOSITORY_TYPE
        )
        files = [_on_record(path, found) for path in paths]
        for file in files:
            _download_file(file, folder / file.name, endpoint, wait)
    except (
        httpx2.HTTPError,
        httpx2.InvalidURL,
        ConnectionError,
        ValueError,  # an answer that is no JSON
    ) as exc:
        raise UpstreamError(
            "The official weights could not be fetched. Check the network (or HF_ENDPOINT) and "
            "run the same command again; it goes on where it stopped.",
            detail=str(exc),
        ) from exc
    return files


def _on_record(path: str, found: Sequence[object]) -> HubFile:
    """What the hub says about a path."""
    for entry in found:
        if isinstance(entry, RepoFile) and entry.path == path and entry.lfs is not None:
            return HubFile(path, bytes=entry.lfs.size, sha256=entry.lfs.sha256)
    raise UpstreamError(
        f"The hub has no checksum on record for {path}, so the file cannot be checked. "
        "Look whether it was moved."
    )


def _download_file(
    file: HubFile, target: Path, endpoint: str | None, wait: Callable[[float], None]
) -> None:
    """Fetch one file, going on from what an earlier attempt left."""
    partial = target.with_name(f"{file.sha256}.incomplete")
    if target.exists():
        target.replace(partial)  # nothing is missing of it, if it is what it was
    if partial.exists() and partial.stat().st_size > file.bytes:
        partial.unlink()
    url = hf_hub_url(REPOSITORY, file.path, repo_type=REPOSITORY_TYPE, endpoint=endpoint)
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            _stream(url, partial, file)
            break
        except httpx2.TransportError as exc:
            if not attempts_left:
                raise
            logger.warning("The download broke (%s) and goes on in a moment.", exc)
            wait(_PAUSE_S)
    with partial.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != file.sha256:
        partial.unlink()
        raise BundleError(
            f"{file.name} is not the file that the hub has on record: its sha256 differs. "
            "It was removed; run the same command again."
        )
    partial.replace(target)


def _stream(url: str, partial: Path, file: HubFile) -> None:
    """Append to a file what it lacks.

    Not hf_hub_download, which throws away what it has when it is interrupted, nor its http_get,
    which writes ten megabytes at a time: on a bad line that is never.
    """
    with partial.open("ab") as stream:
        have = stream.tell()
        if have == file.bytes:
            return
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={have}-"}
        with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as response:
            hf_raise_for_status(response)
            if response.status_code != httpx2.codes.PARTIAL_CONTENT:
                stream.truncate(0)  # the whole file comes again
                have = 0
            with tqdm(  # type: ignore[no-untyped-call]
                desc=file.name, total=file.bytes, initial=have, unit="B", unit_scale=True
            ) as progress:
                for chunk in response.iter_bytes(CHUNK_BYTES):
                    stream.write(chunk)
                    progress.update(len(chunk))
