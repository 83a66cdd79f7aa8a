"""Who the student learns from: a frozen network of SAM's family, or the masks themselves.

A teacher takes in a batch once and then answers its prompts, round after round. What it answers is
already what the loss wants: soft masks at the student's resolution, and which of them the next
click is drawn against. The stages do not know which teacher they have.

    teacher = load_teacher("sam_vit_h_4b8939.pth")     # or mobile_sam.pt, edge_sam_3x.pth, "masks"
    answer = teacher.for_batch(batch).answer(Prompts(box_xyxy=batch.boxes.flatten(0, 1)))

Paper: EdgeSAM (arXiv 2312.06660), section 3.2: the teacher is SAM ViT-H, its decoder runs on
embeddings that were computed once (teacher_embeddings.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import nn
from torch.nn import functional as F

from distillation.network_input import at_size, normalise
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.family import read_model
from edgesam_core.nn.sam_model import SamModel

if TYPE_CHECKING:
    from distillation.batches import Batch


@dataclass(frozen=True)
class Prompts:
    """One prompt for each of B objects, all of the same form, in the frame of the S x S input."""

    point_coords: torch.Tensor | None = None
    """[B, N, 2] (x, y), pixel indices: the prompt encoder adds the half pixel to the centre."""
    point_labels: torch.Tensor | None = None
    """[B, N]."""
    box_xyxy: torch.Tensor | None = None
    """[B, 4] x0, y0, x1, y1, pixel edges."""
    mask_input: torch.Tensor | None = None
    """[B, 1, S/4, S/4], the student's own earlier logits; a teacher does not see them."""


@dataclass(frozen=True)
class TeacherAnswer:
    """What the student's masks should have been."""

    targets: torch.Tensor
    """[B, M, S/4, S/4] float32, 0 to 1; M = 4: one for each of the student's masks, 1: for all."""
    compared: torch.Tensor
    """[B] int64, the mask among M that the next click is drawn against."""
    iou_predictions: torch.Tensor | None
    """[B, M], how sure the teacher is of each mask; None where it has no opinion."""


class BatchTeacher(Protocol):
    """A teacher that has seen the images of one batch."""

    def answer(self, prompts: Prompts) -> TeacherAnswer:
        """The teacher's masks for prompts that are in the order of the batch, image by image."""
        ...


class Teacher(Protocol):
    """Anything that can be learned from."""

    def for_batch(self, batch: Batch) -> BatchTeacher:
        """Take in the images of a batch, or their embeddings where the batch brings them."""
        ...


class MasksTeacher:
    """Ground truth as the only teacher: one mask per object, whatever the prompt."""

    def for_batch(self, batch: Batch) -> BatchTeacher:
        """Nothing to encode: the batch holds the answers."""
        return _MasksOfBatch(batch.targets.flatten(0, 1)[:, None].float() / 255)


@dataclass(frozen=True)
class _MasksOfBatch:
    targets: torch.Tensor

    def answer(self, prompts: Prompts) -> TeacherAnswer:
        compared = torch.zeros(len(self.targets), dtype=torch.int64, device=self.targets.device)
        return TeacherAnswer(self.targets, compared, None)


class NetworkTeacher(nn.Module):
    """A frozen network of SAM's family: ViT-B, ViT-L, ViT-H, MobileSAM or EdgeSAM.

    It may work at another size than the student. The images are then resized for it, prompts are
    brought to its frame, and a cell of its answer is the share of the teacher's pixels that are on.
    """

    def __init__(self, network: SamModel, *, name: str, input_size: int) -> None:
        """Freeze a network.

        Args:
            network: Any of ``edgesam_core.nn.family``; its parameters are frozen in place.
            name: For people and for the embedding store: ``sam_vit_h``.
            input_size: T, the side of the images that it must be fed, in pixels.
        """
        super().__init__()
        self.network = network.requires_grad_(False)
        self.name, self.input_size = name, input_size
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """A teacher stays in evaluation mode, also as a part of a stage that trains."""
        return super().train(False)

    @property
    def content_hash(self) -> str:
        """sha256 over names and bytes of the image encoder's tensors, in the order of the names.

        The same weights have the same hash in any file format; the decoder does not count, since
        embeddings do not depend on it.
        """
        digest = hashlib.sha256()
        for key, tensor in sorted(self.network.image_encoder.state_dict().items()):
            digest.update(key.encode() + b"\0" + str(tensor.dtype).encode() + b"\0")
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def encode(self, normalised: torch.Tensor) -> torch.Tensor:
        """[I, 3, S, S] normalised images of any S -> [I, 256, T/16, T/16]."""
        return self.network.encode(at_size(normalised, self.input_size))

    def for_batch(self, batch: Batch) -> BatchTeacher:
        """Encode the images, unless the batch has this teacher's embeddings with it."""
        embedding = batch.teacher_embeddings
        if embedding is None:
            embedding = self.encode(normalise(batch.images))
        prompts_per_image = batch.points.shape[1]
        repeated = embedding.float().repeat_interleave(prompts_per_image, dim=0)
        return _NetworkOnBatch(self, repeated, student_size=batch.images.shape[-1])


@dataclass(frozen=True)
class _NetworkOnBatch:
    teacher: NetworkTeacher
    image_embedding: torch.Tensor
    """[B, 256, T/16, T/16], one for each prompt."""
    student_size: int
    """S, the side of the student's input in pixels."""

    @torch.no_grad()
    def answer(self, prompts: Prompts) -> TeacherAnswer:
        """Four masks for points, mask 0 where there is a box.

        Paper: the teacher's masks are its logits cut at 0. Which mask a click is drawn against is
        told in the code only: the one with the teacher's highest score, of all four.
        """
        scale = self.teacher.input_size / self.student_size
        points, box = prompts.point_coords, prompts.box_xyxy
        logits, iou_predictions = self.teacher.network.decode(
            self.image_embedding,
            # A click is a pixel's index, its place that pixel's centre; a box is its edges.
            point_coords=None if points is None else (points + 0.5) * scale - 0.5,
            point_labels=prompts.point_labels,
            box_xyxy=None if box is None else box * scale,
            num_multimask_outputs=4 if box is None else 1,
        )
        side = self.student_size // 4
        targets = F.interpolate((logits > 0).float(), size=(side, side), mode="area")
        return TeacherAnswer(targets, iou_predictions.argmax(dim=1), iou_predictions.float())


def load_teacher(source: str, *, input_size: int | None = None) -> MasksTeacher | NetworkTeacher:
    """The teacher that a recipe names.

    Args:
        source: ``masks``, the path of a checkpoint, or that of a bundle with weights.
        input_size: T of an EdgeSAM, which takes any size; None: what its bundle is served at, and
            1024 for a checkpoint. SAM and MobileSAM take 1024 only.

    Raises:
        BundleError: It cannot be read, or is no network of SAM's family.
    """
    if source == "masks":
        return MasksTeacher()
    path = Path(source)
    network = read_model(path)
    own_size = network.input_size or 1024
    takes_any = isinstance(network, EdgeSam)
    size = input_size if input_size and takes_any else own_size
    return NetworkTeacher(network, name=path.stem, input_size=size)
