"""Official weights from the Hugging Face hub become a bundle under ``models/``.

    python -m edgesam_core fetch edge_sam_3x

Where PyTorch is installed the checkpoint is fetched and exported (bicubic, with weights to train
from); elsewhere the officially exported ONNX pair, which is served as it is. Each file is checked
against the size and sha256 that the hub has on record. A download that broke goes on where it
stopped, in the same run or the next. The licence is shown first and has to be accepted once.

Nothing is fetched while serving: this is a command that a person runs.

Source:
    The authors' files: Hugging Face space chongzhou/EdgeSAM, folder weights/ (EdgeSAM's README).
"""

from __future__ import annotations

import hashlib
import logging
import shutil
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

from edgesam_core.bundle import Bundle, staged_folder, write_manifest
from edgesam_core.errors import BundleError, EdgeSamError, UpstreamError

logger = logging.getLogger(__name__)

REPOSITORY = "chongzhou/EdgeSAM"
REPOSITORY_TYPE = "space"
MODELS = ("edge_sam", "edge_sam_3x")
INPUT_SIZE = 1024
LICENCE = "S-Lab License 1.0 (non-commercial)"
LICENCE_TEXT = Path(__file__).with_name("s_lab_license_1_0.txt")

_DOWNLOADS = ".downloads"
_ATTEMPTS = 5
_TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 18
_ACCEPTED = ".accepted-licences"


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


def fetch(
    name: str,
    models_dir: Path,
    *,
    accept_licence: bool = False,
    ask: Callable[[str], str] = input,
    endpoint: str | None = None,
) -> Path:
    """Fetch a published model and make a bundle of it.

    Args:
        name: One of `MODELS`.
        models_dir: The bundle appears under it, by that name; downloads wait in a hidden folder.
        accept_licence: The licence was accepted on the command line.
        ask: Puts a question to the person and returns the answer.
        endpoint: Address of the hub; None means what ``HF_ENDPOINT`` says, or huggingface.co.

    Returns:
        The bundle's folder. A sound one that is there already is left as it is.

    Raises:
        EdgeSamError: Unknown name, or the licence was not accepted.
        UpstreamError: The hub cannot be reached, or has no such file.
        BundleError: A file is not what the hub has on record, or its export fails its check.
    """
    if name not in MODELS:
        raise EdgeSamError(f"There is no official model {name!r}. There is: {', '.join(MODELS)}.")
    out_dir = models_dir / name
    if _is_sound(out_dir):
        return out_dir
    _confirm_licence(models_dir, accept_licence=accept_licence, ask=ask)
    downloads = models_dir / _DOWNLOADS
    _make_folder(downloads)
    if _can_export():
        files = _download([f"weights/{name}.pth"], downloads, endpoint)
        _export(name, files[0], downloads, out_dir)
    else:
        pair = [f"weights/{name}_{part}.onnx" for part in ("encoder", "decoder")]
        files = _download(pair, downloads, endpoint)
        _keep_official_pair(name, files, downloads, out_dir)
    for file in files:
        (downloads / file.name).unlink()
    return out_dir


def _is_sound(folder: Path) -> bool:
    """Whether a bundle lies there that would open."""
    if not folder.exists():
        return False
    try:
        Bundle.open(folder)
    except BundleError as exc:
        logger.warning("The folder %s is replaced: %s", folder.name, exc.sentence)
        return False
    return True


def _can_export() -> bool:
    """Whether PyTorch and what else an export needs can be imported."""
    try:
        import edgesam_core.export.write_bundle
        import edgesam_core.nn.checkpoint  # noqa: F401
    except ImportError as exc:
        logger.info("The official graphs are fetched, since an export is not possible: %s", exc)
        return False
    return True


def _confirm_licence(models_dir: Path, *, accept_licence: bool, ask: Callable[[str], str]) -> None:
    """Show the licence and have it accepted, unless that was done before."""
    accepted = models_dir / _ACCEPTED
    if accepted.exists() and LICENCE in accepted.read_text(encoding="utf-8").splitlines():
        return
    if not accept_licence:
        question = (
            f"{LICENCE_TEXT.read_text(encoding='utf-8')}\n"
            "These weights are for non-commercial use only. Do you accept this licence? (yes/no) "
        )
        try:
            answer = ask(question)
        except EOFError:  # nobody is there to answer
            answer = ""
        if answer.strip().lower() not in {"y", "yes"}:
            raise EdgeSamError(
                "Nothing was fetched, because the licence of the weights was not accepted. "
                "Answer yes, or give --accept-licence."
            )
    _make_folder(models_dir)
    with accepted.open("a", encoding="utf-8") as file:
        file.write(f"{LICENCE}\n")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise EdgeSamError(
            "The models folder cannot be written. Run the command as a user who may.",
            detail=str(exc),
        ) from exc


def _download(paths: Sequence[str], folder: Path, endpoint: str | None) -> list[HubFile]:
    """Fetch files of the repository into a folder, each checked against the hub's record."""
    try:
        found = HfApi(endpoint=endpoint).get_paths_info(
            REPOSITORY, list(paths), repo_type=REPOSITORY_TYPE
        )
        files = [_on_record(path, found) for path in paths]
        for file in files:
            _download_file(file, folder / file.name, endpoint)
    except (httpx2.HTTPError, OSError, ValueError) as exc:  # ValueError: an answer that is no JSON
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


def _download_file(file: HubFile, target: Path, endpoint: str | None) -> None:
    """Fetch one file, going on from what an earlier attempt left."""
    partial = target.with_name(f"{file.sha256}.incomplete")
    have = target if target.exists() else partial
    if have.exists() and have.stat().st_size > file.bytes:
        have.unlink()
    if have is not target:
        url = hf_hub_url(REPOSITORY, file.path, repo_type=REPOSITORY_TYPE, endpoint=endpoint)
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                _stream(url, partial, file)
                break
            except httpx2.TransportError as exc:
                if not attempts_left:
                    raise
                logger.warning("The download broke (%s) and goes on in a second.", exc)
                time.sleep(1)
    with have.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != file.sha256:
        have.unlink()
        raise BundleError(
            f"{file.name} is not the file that the hub has on record: its sha256 differs. "
            "It was removed; run the same command again."
        )
    have.replace(target)


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
                for chunk in response.iter_bytes(_CHUNK_BYTES):
                    stream.write(chunk)
                    progress.update(len(chunk))


def _export(name: str, file: HubFile, downloads: Path, out_dir: Path) -> None:
    """A bundle of our own graphs, made from the checkpoint."""
    from edgesam_core.export.write_bundle import write_bundle
    from edgesam_core.nn.checkpoint import read_checkpoint

    origin = f"Exported from {file.sentence()}."
    write_bundle(
        read_checkpoint(downloads / file.name),
        out_dir,
        name=name,
        input_size=INPUT_SIZE,
        licence=LICENCE,
        origin=origin,
        model_card=_card(name, origin, "bicubic, as trained"),
        half=False,
        overwrite=True,
    )


def _keep_official_pair(
    name: str, files: Sequence[HubFile], downloads: Path, out_dir: Path
) -> None:
    """A bundle of the official graphs as they are."""
    origin = f"Official export: {' and '.join(file.sentence() for file in files)}."
    with staged_folder(out_dir, overwrite=True) as folder:
        for file in files:
            shutil.copyfile(downloads / file.name, folder / file.name)
        card = _card(name, origin, "bilinear, as officially exported")
        (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        write_manifest(
            folder,
            name=name,
            input_size=INPUT_SIZE,
            upsample="bilinear",
            refines_with_mask_input=False,
            licence=LICENCE,
            origin=origin,
        )


def _card(name: str, origin: str, upsampling: str) -> str:
    """The model card; the licence asks for its own text beside every copy."""
    return (
        f"# {name}\n\n"
        "EdgeSAM by Chong Zhou, Xiangtai Li, Chen Change Loy and Bo Dai (arXiv 2312.06660): the "
        "authors' weights.\n\n"
        f"- Where the weights come from: {origin}\n"
        f"- Up-sampling in the feature pyramid: {upsampling}\n"
        f"- Licence of the weights: {LICENCE}\n\n"
        f"## Licence\n\n```\n{LICENCE_TEXT.read_text(encoding='utf-8')}```\n"
    )
