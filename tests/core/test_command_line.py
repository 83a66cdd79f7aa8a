from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgesam_core.__main__ import main
from edgesam_core.overlay import BOX_COLOUR, MASK_COLOUR, NEGATIVE_COLOUR, POSITIVE_COLOUR
from tests.parts import REPOSITORY

SQUARE = np.full((4, 16, 16), -5, np.float32)
SQUARE[:, 4:12, 4:12] = 5


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A black square of 640 x 640: one cell of the painted logits is 40 pixels."""
    path = tmp_path / "photo.png"
    Image.new("RGB", (640, 640)).save(path)
    return path


@pytest.fixture
def bundle(painted_bundle: Callable[..., Path]) -> Path:
    return painted_bundle(SQUARE)


def test_segment_draws_what_it_found(
    photo: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "overlay.png"
    status = main(
        ["segment", str(photo), "--point", "320,320", "--point", "600,40,0", "--box",
         "470,470,150,150", "--model", str(bundle), "--out", str(out)]
    )  # fmt: skip
    assert status == 0
    with Image.open(out) as opened:
        picture = np.asarray(opened)
    assert picture.shape == (640, 640, 3)
    assert tuple(picture[320, 320]) == POSITIVE_COLOUR
    assert tuple(picture[40, 600]) == NEGATIVE_COLOUR
    assert tuple(picture[150, 300]) == BOX_COLOUR
    np.testing.assert_allclose(picture[250, 250], np.array(MASK_COLOUR) * 0.45, atol=1)
    assert tuple(picture[600, 320]) == (0, 0, 0)
    assert MASK_COLOUR in {tuple(pixel) for pixel in picture[320, 480:500]}  # the outline
    said = capsys.readouterr().out
    assert "score   1.000 (stability 1.000, candidate 0)" in said
    assert "% of the image" in said
    assert "ms to encode the image" in said


def test_a_named_model_is_taken_from_the_models_folder(
    photo: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "overlay.jpg"
    arguments = ["segment", str(photo), "--box", "1,1,600,600", "--out", str(out)]
    assert main([*arguments, "--model", bundle.name, "--models-dir", str(bundle.parent)]) == 0
    assert out.read_bytes().startswith(b"\xff\xd8")  # a JPEG


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param([], "neither a click nor a rectangle", id="no prompt"),
        pytest.param(["--point", "641,3"], "outside the image", id="outside"),
        pytest.param(["--box", "5,5,5,9"], "no area", id="flat box"),
        pytest.param(["--point", "3,3", "--model", "typo"], "no model 'typo'", id="no model"),
        pytest.param(["--point", "3,3", "--out", "x.unknown"], "such as .png", id="no format"),
        pytest.param(["--point", "3,3", "--out", "no/folder/x.png"], "writable", id="no folder"),
    ],
)
def test_bad_input_is_a_sentence_and_status_2(
    photo: Path,
    bundle: Path,
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["segment", str(photo), "--model", str(bundle), "--out", "o.png", *arguments]
    assert main(given) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(None, "photo.png cannot be read: No such file", id="missing"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"hello", "no image that can be read", id="text"),
    ],
)
def test_a_bad_photo_is_a_sentence_and_status_2(
    photo: Path, bundle: Path, content: bytes | None, sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    photo.unlink()
    if content is not None:
        photo.write_bytes(content)
    assert main(["segment", str(photo), "--point", "1,1", "--out", "o.png"]) == 2
    assert sentence in capsys.readouterr().err


def test_a_prompt_where_the_model_sees_nothing_is_a_sentence(
    photo: Path, painted_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    blind = painted_bundle(np.full((4, 16, 16), -5, np.float32))
    given = ["segment", str(photo), "--point", "1,1", "--model", str(blind), "--out", "o.png"]
    assert main(given) == 2
    assert "sees no object there" in capsys.readouterr().err


POINTS = [f"--point={point}" for point in ("1", "1,2,3", "a,b", "1,2,0,0", "", "1,2,-1")]
BOXES = [f"--box={box}" for box in ("1,2,3", "1,2,3,x", "")]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        *((point, "is no click: give x,y in pixels") for point in POINTS),
        *((box, "is no box: give x0,y0,x1,y1") for box in BOXES),
    ],
)
def test_a_prompt_that_cannot_be_read_is_explained(
    photo: Path, option: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["segment", str(photo), option, "--out", "o.png"])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_a_checkpoint_that_is_none_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "weights.pth"
    checkpoint.write_bytes(b"no checkpoint")
    assert main(["bundle", str(checkpoint), str(tmp_path / "out")]) == 2
    assert "weights.pth could not be read as a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    checkpoint, out = tiny_bundle / "weights.safetensors", tmp_path / "file" / "out"
    assert main(["bundle", str(checkpoint), str(out), "--input-size", "64"]) == 2
    assert "folder 'out' could not be written" in capsys.readouterr().err


def test_making_a_bundle_without_timm_says_what_to_install(
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    checkpoint = tiny_bundle / "weights.safetensors"
    assert main(["bundle", str(checkpoint), str(tmp_path / "out"), "--input-size", "64"]) == 2
    assert "needs the package timm. Install requirements-train.txt" in capsys.readouterr().err


def test_serving_and_the_command_line_run_without_torch(
    photo: Path, bundle: Path, tmp_path: Path
) -> None:
    # Blocked, not merely absent: an import of it anywhere in the serving half fails here.
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'cv2', 'scipy', 'onnx')))"
    run = "from edgesam_core.__main__ import main; sys.exit(main(sys.argv[1:]))"
    out = tmp_path / "overlay.png"
    given = ["segment", str(photo), "--point", "320,320", "--model", str(bundle), "--out", str(out)]
    finished = subprocess.run(
        [sys.executable, "-c", f"{blocked}; {run}", *given],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert out.exists()


def test_making_a_bundle_without_torch_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from edgesam_core.__main__ import main; "
        "sys.exit(main(['bundle', 'weights.pth', 'out']))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 2
    assert "needs the package torch. Install requirements-train.txt" in finished.stderr
