"""Official weights from the Hugging Face hub become a bundle under ``models/``.

    python -m edgesam_core fetch edge_sam_3x

Where PyTorch is installed the checkpoint is fetched and exported (bicubic, with weights to train
from); elsewhere the officially exported ONNX pair, which is served as it is. The licence is shown
first and has to be accepted once. The files themselves are download.py's part.

Nothing is fetched while serving: this is a command that a person runs.

Source:
    The authors' files: Hugging Face space chongzhou/EdgeSAM, folder weights/ (EdgeSAM's README).
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from edgesam_core.bundle import Bundle, check_replaceable, staged_folder, write_manifest
from edgesam_core.download import HubFile, download
from edgesam_core.errors import BundleError, EdgeSamError

logger = logging.getLogger(__name__)

MODELS = ("edge_sam", "edge_sam_3x")
INPUT_SIZE = 1024
LICENCE = "S-Lab License 1.0 (non-commercial)"
LICENCE_TEXT = Path(__file__).with_name("s_lab_license_1_0.txt")

_DOWNLOADS = ".downloads"
_ACCEPTED = ".accepted-licences"


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
        EdgeSamError: Unknown name, the licence was not accepted, or the folder cannot be written.
        UpstreamError: The hub cannot be reached, or has no such file.
        BundleError: Something else has the bundle's name, a file is not what the hub has on record,
            or its export fails its check.
    """
    if name not in MODELS:
        raise EdgeSamError(f"There is no official model {name!r}. There is: {', '.join(MODELS)}.")
    out_dir = models_dir / name
    if _is_sound(out_dir):
        return out_dir
    try:
        _confirm_licence(models_dir, accept_licence=accept_licence, ask=ask)
        _fetch_into(out_dir, models_dir / _DOWNLOADS, endpoint)
    except OSError as exc:
        raise EdgeSamError(
            f"The models folder cannot be written: {exc.strerror}. Run the command as a user who "
            "may, on a disk that has room; it goes on where it stopped.",
            detail=str(exc),
        ) from exc
    return out_dir


def _fetch_into(out_dir: Path, downloads: Path, endpoint: str | None) -> None:
    """Fetch what a bundle can be made of here, make it, and clear up."""
    downloads.mkdir(exist_ok=True)
    name = out_dir.name
    if _can_export():
        files = download([f"weights/{name}.pth"], downloads, endpoint=endpoint)
        _export(name, files[0], downloads, out_dir)
    else:
        pair = [f"weights/{name}_{part}.onnx" for part in ("encoder", "decoder")]
        files = download(pair, downloads, endpoint=endpoint)
        _keep_official_pair(name, files, downloads, out_dir)
    for file in files:
        (downloads / file.name).unlink()


def _is_sound(folder: Path) -> bool:
    """Whether a bundle lies there that would open; what is not to be replaced is refused."""
    if not folder.exists():
        return False
    try:
        Bundle.open(folder)
    except BundleError as exc:
        check_replaceable(folder)
        logger.warning("The folder %s is replaced: %s", folder.name, exc.sentence)
        return False
    return True


def _can_export() -> bool:
    """Whether PyTorch and what else an export needs can be imported."""
    try:
        import_module("edgesam_core.export.write_bundle")
        import_module("edgesam_core.nn.timm_import").import_timm()
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
    models_dir.mkdir(parents=True, exist_ok=True)
    with accepted.open("a", encoding="utf-8") as file:
        file.write(f"{LICENCE}\n")


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
