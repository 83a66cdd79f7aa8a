"""Stage 1, encoder only: the student's embedding of a photo becomes the teacher's.

    python -m distillation.teacher_embeddings TEACHER.pth IMAGES EMBEDDINGS
    python -m distillation.encoder_stage RECIPE IMAGES RUN --embeddings EMBEDDINGS
    python -m distillation.encoder_stage ... --decoder TEACHER.pth

Photos need no labels. They are shown whole, letter-boxed and un-augmented, as in serving, since the
teacher's embeddings were made of just these pixels. With ``--decoder`` the student gets the
teacher's prompt encoder and mask decoder, and what comes out can be served: MobileSAM's decoupled
distillation is this stage alone, EdgeSAM goes on with prompt_stage.py.

A student at 512 has 32 x 32 cells where its teacher at 1024 has 64 x 64: the target is then the
mean of the teacher's cells that lie in the student's.

Papers: EdgeSAM (arXiv 2312.06660), MobileSAM (arXiv 2306.14289). Where this differs from EdgeSAM's
code: the learning rate does not drop by half where the warm-up ends (optimisation.py), and
BatchNorm has the statistics of each process's own images.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from distillation.command import add_threads, naming, run_command
from distillation.configs import EncoderStageConfig
from distillation.embedding_sheet import draw_embeddings
from distillation.embedding_store import EmbeddingStore, Entry
from distillation.engine import Evaluation, Stage, StepResult, fit
from distillation.losses import embedding_loss
from distillation.network_input import valid_cells
from distillation.recipe_files import load_recipe
from distillation.step_batches import StepBatches, draw_in_workers
from edgesam_core.errors import RunError
from edgesam_core.image import read_image
from edgesam_core.nn.checkpoint import load_state_dict, official_state_dict, read_checkpoint
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.family import read_model
from edgesam_core.preprocess import VERSION, preprocess

SHEET_ROWS = 6
"""Photos on a sheet."""


@dataclass(frozen=True)
class EncoderBatch:
    """What one step needs of I photos."""

    images: torch.Tensor
    """[I, 3, S, S] float32, normalised and padded."""
    valid: torch.Tensor
    """[I, S/16, S/16] float32, 1 where a cell shows the photo."""
    teacher_embeddings: torch.Tensor
    """[I, 256, T/16, T/16] float16."""


class EncoderStage(Stage):
    """The student's image encoder beside its teacher's stored embeddings."""

    student: EdgeSam

    def __init__(
        self,
        config: EncoderStageConfig,
        images: Path,
        embeddings: Path,
        *,
        init: Path | None = None,
        decoder: Path | None = None,
    ) -> None:
        """Open everything that the run needs, so that what is wrong shows before the first step.

        Args:
            config: The recipe.
            images: Folder of the photos that the embeddings were made of.
            embeddings: A store that teacher_embeddings.py made.
            init: Weights of a student to start from instead of random ones.
            decoder: A checkpoint of SAM's family, whose prompt encoder and mask decoder the student
                takes over.

        Raises:
            RunError: The store is another teacher's, of a size that does not go with the student's,
                photos are missing, or a checkpoint is no such network.
        """
        super().__init__()
        self.config, self.steps, self.images = config, config.steps, images
        self.store = EmbeddingStore.open(embeddings)
        check_store(self.store, config, images)
        torch.manual_seed(config.seed)
        self.student = EdgeSam(trunk=config.trunk)
        cast("Any", self.student).to(memory_format=torch.channels_last)
        if init is not None:
            with naming(init):
                load_state_dict(self.student, read_checkpoint(init))
        if decoder is not None:
            with naming(decoder):
                source = read_model(decoder)
            self.student.draws_prompts = source.draws_prompts
            self.student.prompt_encoder.load_state_dict(source.prompt_encoder.state_dict())
            self.student.mask_decoder.load_state_dict(source.mask_decoder.state_dict())
        self.student.prompt_encoder.requires_grad_(False)
        self.student.mask_decoder.requires_grad_(False)
        self.held_back, self.learned_from = split_store(self.store, config.held_back)

    def forward(self, batch: EncoderBatch) -> StepResult:
        """Squared error where the photo is."""
        embedding = self.student.encode(batch.images).float()
        target = to_grid(batch.teacher_embeddings.float(), embedding.shape[-1])
        return StepResult(embedding_loss(embedding, target, batch.valid), {})

    def batches(self, first_step: int, rank: int, world: int) -> Iterator[EncoderBatch]:
        """Every photo once in an epoch, in an order drawn for it; the processes share an epoch."""
        return draw_in_workers(_Photos(self).starting_at(first_step, rank, world))

    @torch.no_grad()
    def evaluate(self, averaged: nn.Module) -> Evaluation:
        """The loss on photos that are never learned from, and both embeddings as pictures.

        ``embedding_error`` is relative: 1 for a student that answers with the teacher's mean.
        """
        student = cast("EdgeSam", averaged)
        device = next(student.parameters()).device
        losses, spreads = [], []
        shown: list[tuple[torch.Tensor, ...]] = []
        for entry in self.held_back:
            batch = self.load([entry])
            embedding = student.encode(batch.images.to(device)).float().cpu()
            target = to_grid(batch.teacher_embeddings.float(), embedding.shape[-1])
            losses.append(embedding_loss(embedding, target, batch.valid))
            inside = target[0][:, batch.valid[0] > 0]  # [256, cells of the photo]
            spreads.append(inside.var(dim=1, correction=0).mean())
            if len(shown) < SHEET_ROWS:
                shown.append((batch.images[0], target[0], embedding[0], batch.valid[0]))
        loss = torch.stack(losses).mean()
        error = loss / torch.stack(spreads).mean()
        scores = {"embedding_loss": loss.item(), "embedding_error": error.item()}
        return Evaluation(scores, draw_embeddings(shown))

    def weights(self, averaged: nn.Module) -> dict[str, torch.Tensor]:
        """Under the names of the published checkpoint, decoder included."""
        return official_state_dict(cast("EdgeSam", averaged))

    def load(self, entries: Sequence[Entry]) -> EncoderBatch:
        """Photos and their stored embeddings.

        Raises:
            RunError: A photo is gone, or not the one that the teacher saw.
        """
        size = self.config.size
        inputs, sizes_hw = [], []
        for entry in entries:
            x, input_size_hw = preprocess(self._read(entry), size)
            inputs.append(x)
            sizes_hw.append(input_size_hw)
        embeddings = np.stack([self.store.read(entry.name) for entry in entries])
        return EncoderBatch(
            images=torch.from_numpy(np.concatenate(inputs)),
            valid=valid_cells(sizes_hw, size, size // 16),
            teacher_embeddings=torch.from_numpy(embeddings),
        )

    def _read(self, entry: Entry) -> np.ndarray:
        try:
            data = (self.images / entry.name).read_bytes()
        except OSError as exc:
            raise RunError(f"{entry.name} could not be read ({exc.strerror}).") from exc
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise RunError(
                f"{entry.name} is not the image that the teacher saw. Run "
                "distillation.teacher_embeddings again: it makes what has changed."
            )
        return read_image(data)


class _Photos(StepBatches[EncoderBatch]):
    def __init__(self, stage: EncoderStage) -> None:
        super().__init__(stage.steps)
        self.stage = stage

    def draw_step(self, step: int) -> EncoderBatch:
        entries, config = self.stage.learned_from, self.stage.config
        first = (step * self.world + self.rank) * config.batch
        chosen = []
        for position in range(first, first + config.batch):
            epoch, place = divmod(position, len(entries))
            chosen.append(entries[_order(config.seed, epoch, len(entries))[place]])
        return self.stage.load(chosen)


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def check_store(store: EmbeddingStore, config: EncoderStageConfig, images: Path) -> None:
    """Refuse embeddings that this student cannot learn from.

    Raises:
        RunError: Another teacher, pre-processing or grid than the recipe's, or photos are gone.
    """
    store.require(teacher=Path(config.teacher).stem, preprocess_version=VERSION)
    if store.info.input_size % config.size:
        raise RunError(
            f"size: the teacher's input of {store.info.input_size} is no multiple of the "
            f"student's {config.size}, so its cells cannot be averaged."
        )
    gone = [name for name in store.entries if not (images / name).is_file()]
    if gone:
        raise RunError(
            f"{len(gone)} images of the embeddings are not in {images}, such as {gone[0]}."
        )
    if len(store.entries) < 2:
        raise RunError(f"{store.folder} holds {len(store.entries)} embeddings, too few to learn.")


def split_store(store: EmbeddingStore, held_back: int) -> tuple[list[Entry], list[Entry]]:
    """Photos to evaluate on and photos to learn from, told apart by the hash of their bytes.

    Returns:
        At most ``held_back`` and at most a tenth of all (but one), and the others in order.
    """
    by_hash = sorted(store.entries.values(), key=lambda entry: (entry.sha256, entry.name))
    count = max(1, min(held_back, len(by_hash) // 10))
    return by_hash[:count], sorted(by_hash[count:], key=lambda entry: entry.name)


def to_grid(teacher_embedding: torch.Tensor, cells: int) -> torch.Tensor:
    """The teacher's embedding at the student's cells: [I, 256, t, t] -> [I, 256, cells, cells].

    The mean over the teacher's cells inside each of the student's; t is a multiple of ``cells``.
    """
    return F.avg_pool2d(teacher_embedding, teacher_embedding.shape[-1] // cells)


def main() -> int:
    """The command line; 0 when the run has reached its end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("images", type=Path, help="folder of the photos")
    parser.add_argument("run", type=Path)
    parser.add_argument("--embeddings", type=Path, required=True, help="of teacher_embeddings")
    parser.add_argument("--init", type=Path, help="weights of a student to start from")
    parser.add_argument("--decoder", type=Path, help="checkpoint whose decoder the student gets")
    add_threads(parser)
    args = parser.parse_args()

    def train() -> None:
        config = load_recipe(args.recipe, EncoderStageConfig)
        stage = EncoderStage(
            config, args.images, args.embeddings, init=args.init, decoder=args.decoder
        )
        fit(stage, config, args.run, from_weights=args.init is not None)

    return run_command(train, threads=args.threads)


if __name__ == "__main__":
    sys.exit(main())
