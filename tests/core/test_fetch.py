from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edgesam_core import fetch as fetch_module
from edgesam_core.bundle import Bundle
from edgesam_core.decode import Prompt
from edgesam_core.errors import BundleError, EdgeSamError
from edgesam_core.export.official import export_official
from edgesam_core.fetch import LICENCE, fetch
from edgesam_core.nn.checkpoint import official_state_dict
from edgesam_core.segmenter import Segmenter
from tests.core.hub import Hub, running_hub
from tests.core.networks import random_network
from tests.parts import REPOSITORY

SIZE = 64
CHECKPOINT = "weights/edge_sam_3x.pth"
ENCODER, DECODER = (f"weights/edge_sam_3x_{part}.onnx" for part in ("encoder", "decoder"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The space's files, from a random network and for a small input."""
    model, folder = random_network(), tmp_path_factory.mktemp("official")
    encoder, decoder = export_official(model, folder, input_size=SIZE)
    checkpoint = io.BytesIO()
    torch.save(official_state_dict(model), checkpoint)
    return {
        CHECKPOINT: checkpoint.getvalue(),
        ENCODER: encoder.read_bytes(),
        DECODER: decoder.read_bytes(),
    }


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(fetch_module, "INPUT_SIZE", SIZE)
    with running_hub(dict(files)) as running:
        yield running


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official pair is fetched: quick, and what a serving environment does."""
    monkeypatch.setattr(fetch_module, "_can_export", lambda: False)


def never_asked(question: str) -> NoReturn:
    raise AssertionError(f"asked: {question}")


def get(hub: Hub, models: Path, name: str = "edge_sam_3x") -> Path:
    return fetch(name, models, accept_licence=True, ask=never_asked, endpoint=hub.url)


def mask_of_a_click(folder: Path) -> npt.NDArray[np.bool_]:
    segmenter = Segmenter(Bundle.open(folder), threads=1)
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    prompt = Prompt.from_clicks([(40, 30, 1)])
    return segmenter.segment(segmenter.embed(image), [prompt])[0].mask.full()


def test_a_checkpoint_becomes_a_bundle_that_answers_a_click(hub: Hub, models: Path) -> None:
    folder = get(hub, models)
    assert folder == models / "edge_sam_3x"
    bundle = Bundle.open(folder)
    assert bundle.manifest.upsample == "bicubic"
    assert bundle.manifest.licence == LICENCE
    assert bundle.weights_path is not None
    assert mask_of_a_click(folder).shape == (60, 80)

    content, origin = hub.files[CHECKPOINT], bundle.manifest.origin
    assert f"{CHECKPOINT} of the Hugging Face space chongzhou/EdgeSAM" in origin
    assert f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}" in origin


@pytest.mark.usefixtures("no_torch")
def test_without_torch_the_official_pair_becomes_a_bundle(hub: Hub, models: Path) -> None:
    folder = get(hub, models)
    manifest = Bundle.open(folder).manifest
    assert manifest.upsample == "bilinear"
    for path in (ENCODER, DECODER):
        record = manifest.files[Path(path).name]
        assert record.bytes == len(hub.files[path])
        assert record.sha256 == hashlib.sha256(hub.files[path]).hexdigest()
        assert record.sha256 in manifest.origin
    assert mask_of_a_click(folder).shape == (60, 80)
    card = (folder / "MODEL_CARD.md").read_text()
    assert "Redistribution and use for non-commercial purpose" in card


@pytest.mark.usefixtures("no_torch")
def test_downloads_leave_nothing_behind(hub: Hub, models: Path) -> None:
    get(hub, models)
    assert [path for path in models.rglob("*") if path.suffix == ".incomplete"] == []
    assert list((models / ".downloads").iterdir()) == []


@pytest.mark.usefixtures("no_torch")
def test_what_was_fetched_completely_is_not_fetched_again(hub: Hub, models: Path) -> None:
    (models / ".downloads").mkdir(parents=True)
    (models / ".downloads" / Path(ENCODER).name).write_bytes(hub.files[ENCODER])
    Bundle.open(get(hub, models))
    assert [path for _, path, _ in hub.requests if path.startswith("/cdn/")] == [f"/cdn/{DECODER}"]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EdgeSamError, match="models folder cannot be written: Not a directory"):
        fetch("edge_sam", tmp_path / "file" / "models", accept_licence=True)


@pytest.mark.usefixtures("no_torch")
def test_a_full_disk_is_called_a_full_disk(hub: Hub, models: Path) -> None:
    sha256 = hashlib.sha256(hub.files[ENCODER]).hexdigest()
    (models / ".downloads").mkdir(parents=True)
    (models / ".downloads" / f"{sha256}.incomplete").symlink_to("/dev/full")
    with pytest.raises(EdgeSamError, match="No space left on device"):
        get(hub, models)


def test_with_torch_but_without_timm_the_official_pair_is_fetched(
    hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert Bundle.open(get(hub, models)).manifest.upsample == "bilinear"


def test_an_unknown_name_lists_the_known_ones(models: Path) -> None:
    with pytest.raises(EdgeSamError, match="There is: edge_sam, edge_sam_3x"):
        fetch("edge_sam_10x", models, ask=never_asked)


@pytest.mark.usefixtures("no_torch")
def test_the_licence_is_shown_and_asked_for_once(hub: Hub, models: Path) -> None:
    questions = []

    def yes(question: str) -> str:
        questions.append(question)
        return "yes"

    hub.files |= {path.replace("_3x", ""): content for path, content in hub.files.items()}
    fetch("edge_sam_3x", models, ask=yes, endpoint=hub.url)
    fetch("edge_sam", models, ask=yes, endpoint=hub.url)
    (question,) = questions
    assert "S-Lab License 1.0" in question
    assert "non-commercial use only" in question


@pytest.mark.parametrize("answer", [lambda _: "no", lambda _: "", input])
def test_without_consent_nothing_is_fetched(
    answer: Callable[[str], str], hub: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody there: input() meets the end
    with pytest.raises(EdgeSamError, match="--accept-licence"):
        fetch("edge_sam_3x", models, ask=answer, endpoint=hub.url)
    assert hub.requests == []
    assert not models.exists()


@pytest.mark.usefixtures("no_torch")
def test_a_sound_bundle_is_left_as_it_is_and_a_damaged_one_replaced(hub: Hub, models: Path) -> None:
    folder = get(hub, models)
    hub.requests.clear()
    get(hub, models)
    assert hub.requests == []

    (folder / Path(ENCODER).name).write_bytes(b"torn")
    get(hub, models)
    Bundle.open(folder)


def test_somebody_elses_folder_of_that_name_is_left_alone(hub: Hub, models: Path) -> None:
    (models / "edge_sam_3x").mkdir(parents=True)
    (models / "edge_sam_3x" / "notes.txt").touch()
    with pytest.raises(BundleError, match="is no model bundle"):
        get(hub, models)
    assert hub.requests == []


def test_the_command_fetches_in_an_environment_without_torch(hub: Hub, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'timm', 'onnx')));"
        "from edgesam_core.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    given = ["fetch", "edge_sam_3x", "--accept-licence", "--models-dir", str(tmp_path)]
    finished = subprocess.run(
        [sys.executable, "-c", code, *given],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env={"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "edge_sam_3x" in finished.stdout
    assert Bundle.open(tmp_path / "edge_sam_3x").manifest.upsample == "bilinear"
