"""A teacher's image embeddings, computed once and kept on disk in fp16.

    python -m distillation.teacher_embeddings sam_vit_h_4b8939.pth IMAGES OUT

The same command goes on where it was stopped, and makes what has changed. What lies in OUT is
embedding_store.py's.

Papers: EdgeSAM (arXiv 2312.06660), stage 1; MobileSAM (arXiv 2306.14289), decoupled distillation.
Where this differs from EdgeSAM's code: images are resized as in serving (Pillow) and not with
torch's float filter, so that student and teacher see the same pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from distillation.embedding_store import EmbeddingStore, Entry, StoreInfo
from distillation.teachers import NetworkTeacher, load_teacher
from edgesam_core.errors import EdgeSamError, ImageError, RunError
from edgesam_core.image import read_image
from edgesam_core.preprocess import VERSION, preprocess

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
"""What is taken for an image in a folder."""


def find_images(folder: Path) -> list[str]:
    """Names of the images in a folder and the folders in it, in order.

    Raises:
        RunError: There is none.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise RunError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}).")
    return [path.relative_to(folder).as_posix() for path in paths]


def embed(
    teacher: NetworkTeacher, images: Path, out: Path, *, batch: int = 1, device: str = "cpu"
) -> EmbeddingStore:
    """Make, or complete, the store of a folder of images.

    An image that cannot be read does not stop the others: it is named at the end.

    Args:
        teacher: Whose embeddings.
        images: Folder of images, searched in depth.
        out: Folder of the store.
        batch: Images that are encoded at once.
        device: Where.

    Raises:
        RunError: Images could not be read, the disk is full, or the store is another teacher's.
    """
    names = find_images(images)
    cells = teacher.input_size // 16
    store = EmbeddingStore.create(
        out,
        StoreInfo(
            teacher.name, teacher.content_hash, teacher.input_size, VERSION, (256, cells, cells)
        ),
    )
    teacher.to(device)
    waiting: list[tuple[Entry, np.ndarray]] = []
    refused: list[str] = []
    for name in tqdm(names, unit="image", desc=f"{teacher.name} at {teacher.input_size}"):
        try:
            data = (images / name).read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            if name in store.entries and store.entries[name].sha256 == sha256:
                continue
            x, input_size_hw = preprocess(read_image(data), teacher.input_size)
        except (ImageError, OSError) as exc:
            refused.append(f"{name}: {exc}")
            continue
        waiting.append((Entry(name, sha256, input_size_hw), x))
        if len(waiting) == batch:
            _encode(teacher, store, waiting, device)
            waiting.clear()
    _encode(teacher, store, waiting, device)
    if refused:
        raise RunError(
            f"{len(refused)} of {len(names)} images could not be read, the others are done. "
            + " ".join(refused[:5])
        )
    return store


def _encode(
    teacher: NetworkTeacher,
    store: EmbeddingStore,
    waiting: list[tuple[Entry, np.ndarray]],
    device: str,
) -> None:
    """Encode some images and keep their embeddings; on a GPU in fp16, as published."""
    if not waiting:
        return
    x = torch.from_numpy(np.concatenate([x for _, x in waiting])).to(device)
    with torch.autocast(device, torch.float16, enabled=device == "cuda"):
        embeddings = teacher.encode(x).float().cpu().numpy()
    for (entry, _), embedding in zip(waiting, embeddings, strict=True):
        store.add(entry, embedding)


def main() -> int:
    """The command line; 0 when every image has its embedding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", help="checkpoint of SAM's family, or a bundle with weights")
    parser.add_argument("images", type=Path, help="folder, searched in depth")
    parser.add_argument("out", type=Path, help="folder of the embeddings; continued if it exists")
    parser.add_argument("--batch", type=int, default=1, help="images encoded at once")
    parser.add_argument(
        "--input-size", type=int, help="of an EdgeSAM; otherwise its bundle's, or 1024"
    )
    args = parser.parse_args()
    try:
        teacher = load_teacher(args.teacher, input_size=args.input_size)
        if not isinstance(teacher, NetworkTeacher):
            raise RunError("Masks have no embeddings. Name a checkpoint.")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        store = embed(teacher, args.images, args.out, batch=args.batch, device=device)
    except EdgeSamError as exc:
        print(exc.sentence, file=sys.stderr)
        return 1
    print(f"{len(store.entries)} embeddings of {store.info.teacher} in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
