"""The store of embeddings: what is in it is right, and stays so whatever happens while it grows."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distillation import teacher_embeddings
from distillation.embedding_store import EmbeddingStore, Entry, StoreInfo
from distillation.teacher_embeddings import embed
from distillation.teachers import NetworkTeacher
from edgesam_core.errors import RunError
from edgesam_core.nn.checkpoint import official_state_dict
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.preprocess import VERSION, preprocess

NAMES = ["a.png", "deeper/b.png", "deeper/c.png"]


@pytest.fixture(scope="module")
def teacher() -> NetworkTeacher:
    torch.manual_seed(0)
    return NetworkTeacher(EdgeSam(), name="edge_sam", input_size=64)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def encoded(teacher: NetworkTeacher, path: Path) -> np.ndarray:
    x, _ = preprocess(np.asarray(Image.open(path)), teacher.input_size)
    return teacher.encode(torch.from_numpy(x))[0].numpy()


def test_every_image_has_the_teachers_embedding_in_fp16(
    teacher: NetworkTeacher, images: Path, tmp_path: Path
) -> None:
    embed(teacher, images, tmp_path / "out", batch=2)
    store = EmbeddingStore.open(tmp_path / "out")
    assert sorted(store.entries) == NAMES
    assert store.info == StoreInfo("edge_sam", teacher.content_hash, 64, VERSION, (256, 4, 4))
    for name in NAMES:
        embedding = store.read(name)
        assert isinstance(embedding, np.memmap)
        # fp16 has eleven bits: half a thousandth of a value of about 1.
        expected = encoded(teacher, images / name)
        np.testing.assert_allclose(embedding, expected, rtol=1e-3, atol=1e-4)
    assert store.entries["a.png"].input_size_hw == (38, 64)


def test_what_is_there_is_not_made_again_but_what_has_changed_is(
    teacher: NetworkTeacher, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = embed(teacher, images, out)
    times = {p.name: p.stat().st_mtime_ns for p in (out / "embeddings").iterdir()}
    Image.new("RGB", (50, 30), "red").save(images / "a.png")
    after = embed(teacher, images, out)
    assert {p.name: p.stat().st_mtime_ns for p in (out / "embeddings").iterdir()}.items() > (
        times.items()
    )
    assert after.entries["a.png"].sha256 != before.entries["a.png"].sha256
    expected = encoded(teacher, images / "a.png")
    np.testing.assert_allclose(
        EmbeddingStore.open(out).read("a.png"), expected, rtol=1e-3, atol=1e-4
    )


def test_a_line_torn_by_a_kill_is_made_whole(
    teacher: NetworkTeacher, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    embed(teacher, images, out)
    index = (out / "index.jsonl").read_text()
    (out / "index.jsonl").write_text(index[:-20])
    assert sorted(EmbeddingStore.open(out).entries) == NAMES[:2]
    embed(teacher, images, out)
    assert (out / "index.jsonl").read_text() == index


@pytest.mark.parametrize("file", ["embedding", "index"])
def test_a_full_disk_leaves_a_store_that_can_be_read_and_goes_on(
    teacher: NetworkTeacher,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    out, real_fsync = tmp_path / "out", os.fsync
    # Flushed for each image: the embedding, its folder, the index; before them, the description.
    calls_before_it_is_full = 2 + 3 + (0 if file == "embedding" else 2)

    def fsync(descriptor: int) -> None:
        nonlocal calls_before_it_is_full
        calls_before_it_is_full -= 1
        if calls_before_it_is_full < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match="No space left"):
        embed(teacher, images, out)
    monkeypatch.undo()
    store = EmbeddingStore.open(out)
    assert "a.png" in store.entries
    for name in store.entries:
        assert store.read(name).shape == (256, 4, 4)
    assert sorted(embed(teacher, images, out).entries) == NAMES


def test_a_store_of_another_teacher_or_size_is_refused_by_name(
    teacher: NetworkTeacher, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    embed(teacher, images, out)
    torch.manual_seed(1)
    namesake = NetworkTeacher(EdgeSam(), name="edge_sam", input_size=64)
    with pytest.raises(RunError, match="teacher_hash"):
        embed(namesake, images, out)
    larger = NetworkTeacher(teacher.network, name="edge_sam", input_size=128)
    with pytest.raises(RunError, match="input_size of these embeddings is 64, wanted is 128"):
        embed(larger, images, out)
    assert sorted(EmbeddingStore.open(out).entries) == NAMES


def test_an_unreadable_image_is_named_and_the_others_are_made(
    teacher: NetworkTeacher, images: Path, tmp_path: Path
) -> None:
    (images / "b_broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(RunError, match=r"1 of 4 images .* b_broken.png: "):
        embed(teacher, images, tmp_path / "out")
    assert sorted(EmbeddingStore.open(tmp_path / "out").entries) == NAMES


def test_a_folder_without_images_is_refused(teacher: NetworkTeacher, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="empty holds no image"):
        embed(teacher, tmp_path / "empty", tmp_path / "out")


def test_numbers_beyond_fp16_are_not_stored(tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path / "out", StoreInfo("t", "0", 64, VERSION, (1, 2, 2)))
    with pytest.raises(RunError, match=r"wide\.png.*fp16"):
        store.add(Entry("wide.png", "0" * 64, (64, 64)), np.full((1, 2, 2), 1e5, np.float32))
    assert not store.entries


def test_a_damaged_embedding_is_named(
    teacher: NetworkTeacher, images: Path, tmp_path: Path
) -> None:
    store = embed(teacher, images, tmp_path / "out")
    path = tmp_path / "out" / "embeddings" / f"{store.entries['a.png'].sha256}.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"the embedding of a\.png"):
        store.read("a.png")


@pytest.mark.slow
def test_the_command_makes_a_store_and_names_what_it_cannot(
    teacher: NetworkTeacher, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    torch.save(official_state_dict(teacher.network), tmp_path / "small.pth")
    out = tmp_path / "out"
    command = ["teacher_embeddings", str(tmp_path / "small.pth"), str(images), str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--input-size", "64"])
    assert teacher_embeddings.main() == 0
    assert "3 embeddings of small" in capsys.readouterr().out
    assert json.loads((out / "store.json").read_text())["input_size"] == 64
    monkeypatch.setattr("sys.argv", [*command, "--input-size", "128"])
    assert teacher_embeddings.main() == 1
    assert "input_size" in capsys.readouterr().err
