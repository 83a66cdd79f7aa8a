"""Who answers in a training on a project's labels: annotators, elsewhere the frozen base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch

from distillation.batches import Batch
from distillation.network_input import zeros_beyond
from distillation.project_batches import ProjectBatch
from distillation.teachers import NetworkTeacher, Prompts, TeacherAnswer
from edgesam_core.nn.edge_sam import EdgeSam


class ProjectTeacher(torch.nn.Module):
    """The annotators, and the frozen base model where they said nothing."""

    def __init__(self, base: EdgeSam) -> None:
        """Freeze the base.

        Args:
            base: Its parameters are frozen in place.
        """
        super().__init__()
        self.base = NetworkTeacher(base, name="base", input_size=base.input_size or 0)

    def for_batch(self, batch: Batch) -> _ProjectOnBatch:
        """Embed the images again as the base does, if anything is to be asked of it."""
        asked = cast("ProjectBatch", batch)
        prompts_per_image = batch.points.shape[1]
        rows = asked.from_base.flatten().nonzero()[:, 0]
        embedding = None
        if len(rows):
            with torch.no_grad():
                of_images = embed_features(cast("EdgeSam", self.base.network), asked)
            embedding = of_images[rows // prompts_per_image]
        targets = batch.targets.flatten(0, 1)[:, None].float() / 255
        return _ProjectOnBatch(self.base.network, targets, rows, embedding)


@dataclass(frozen=True)
class _ProjectOnBatch:
    base: Any
    targets: torch.Tensor
    """[B, 1, S/4, S/4]."""
    rows: torch.Tensor
    """Which of the B prompts the base answers."""
    embedding: torch.Tensor | None
    """[len(rows), 256, S/16, S/16]."""

    @torch.no_grad()
    def answer(self, prompts: Prompts) -> TeacherAnswer:
        """The annotators' masks; the base's mask 0 elsewhere."""
        compared = torch.zeros(len(self.targets), dtype=torch.int64, device=self.targets.device)
        if self.embedding is None:
            return TeacherAnswer(self.targets, compared, None)
        asked = {k: v[self.rows] for k, v in vars(prompts).items() if v is not None}
        asked.pop("mask_input", None)  # the student's own, which the base did not answer
        logits, _ = self.base.decode(self.embedding, **asked, num_multimask_outputs=1)
        targets = self.targets.clone()
        targets[self.rows] = (logits > 0).to(targets.dtype)
        return TeacherAnswer(targets, compared, None)


def embed_features(student: EdgeSam, batch: ProjectBatch) -> torch.Tensor:
    """What follows the trunk: [I, 256, S/16, S/16], zero where the trunk computed nothing."""
    device, cells = next(student.parameters()).device, batch.images.shape[-1] // 16
    embeddings = []
    for features in batch.features:  # of oblong images each has its own size
        stage2, stage3 = (x[None].to(device).float() for x in features)
        embeddings.append(zeros_beyond(student.image_encoder.embed(stage2, stage3), cells))
    return torch.cat(embeddings)
