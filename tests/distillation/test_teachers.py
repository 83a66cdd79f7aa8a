"""Teachers: the masks themselves, and networks that see the images at their own size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from distillation.batches import Batch
from distillation.teachers import MasksTeacher, NetworkTeacher, Prompts, load_teacher
from edgesam_core.errors import BundleError
from edgesam_core.nn.checkpoint import official_state_dict
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.family import ARCHITECTURES
from edgesam_core.nn.sam_model import SamModel
from tests.parts import REPOSITORY

BOXES = Prompts(box_xyxy=torch.tensor([[8.0, 8.0, 24.0, 40.0]]).repeat(4, 1))
POINTS = Prompts(torch.full((4, 1, 2), 20.0), torch.ones(4, 1))


def batch_of(size: int = 64) -> Batch:
    """Two images with two prompts each."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        images=torch.randint(0, 256, (2, 3, size, size), generator=generator, dtype=torch.uint8),
        targets=torch.randint(
            0, 256, (2, 2, size // 4, size // 4), generator=generator, dtype=torch.uint8
        ),
        boxes=torch.zeros(2, 2, 4),
        points=torch.zeros(2, 2, 2),
        valid=torch.full((2, size // 4, size // 4), 255, dtype=torch.uint8),
    )


@pytest.fixture
def network() -> EdgeSam:
    torch.manual_seed(0)
    return EdgeSam()


class Spotter(SamModel):
    """A network whose masks can be foretold: mask m is on in the pixels right of prompt + m.

    Its embedding is the image's mean colour; it notes what it was shown.
    """

    def __init__(self) -> None:
        super().__init__("spotter", nn.Identity(), published_prefixes={})
        self.asked: list[dict[str, torch.Tensor | None]] = []

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        side = image.shape[-1] // 16
        return image.mean(dim=(1, 2, 3))[:, None, None, None].expand(-1, 256, side, side)

    def decode(
        self, image_embedding: torch.Tensor, *, num_multimask_outputs: int = 4,
        **prompt: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        self.asked.append(prompt)
        side = 4 * image_embedding.shape[-1]
        columns = torch.arange(side).float()
        starts = torch.arange(num_multimask_outputs)[:, None] + 1.0
        logits = (columns - starts + 0.5)[:, None].expand(-1, side, -1)
        ious = torch.tensor([0.1, 0.2, 0.9, 0.3])[:num_multimask_outputs]
        count = len(image_embedding)
        return logits.expand(count, -1, -1, -1), ious.expand(count, -1)


def test_masks_teach_the_same_whatever_is_asked() -> None:
    batch = batch_of()
    teacher = MasksTeacher().for_batch(batch)
    for prompts in (BOXES, POINTS):
        answer = teacher.answer(prompts)
        assert torch.equal(answer.targets[3, 0], batch.targets[1, 1].float() / 255)
        assert answer.compared.tolist() == [0, 0, 0, 0]
        assert answer.iou_predictions is None


def test_a_network_answers_clicks_with_four_masks_and_boxes_with_one(network: EdgeSam) -> None:
    teacher = NetworkTeacher(network, name="edge_sam", input_size=64).for_batch(batch_of())
    answer = teacher.answer(POINTS)
    assert answer.targets.shape == (4, 4, 16, 16)
    assert set(answer.targets.unique().tolist()) <= {0.0, 1.0}
    assert not answer.targets.requires_grad
    answer = teacher.answer(BOXES)
    assert answer.targets.shape == (4, 1, 16, 16)
    assert answer.compared.tolist() == [0, 0, 0, 0]


def test_clicks_are_drawn_against_the_mask_that_the_teacher_is_surest_of() -> None:
    teacher = NetworkTeacher(Spotter(), name="spotter", input_size=64).for_batch(batch_of())
    assert teacher.answer(POINTS).compared.tolist() == [2, 2, 2, 2]


def test_each_prompt_is_answered_from_its_own_image(network: EdgeSam) -> None:
    batch, teacher = batch_of(), NetworkTeacher(network, name="edge_sam", input_size=64)
    both = teacher.for_batch(batch).answer(POINTS)
    alone = Batch(
        batch.images[1:], batch.targets[1:], batch.boxes[1:], batch.points[1:], batch.valid[1:]
    )
    second = teacher.for_batch(alone).answer(Prompts(torch.full((2, 1, 2), 20.0), torch.ones(2, 1)))
    torch.testing.assert_close(both.iou_predictions[2:], second.iou_predictions)
    assert not torch.equal(both.iou_predictions[:2], both.iou_predictions[2:])


def test_a_teacher_of_another_size_gets_images_and_prompts_in_its_own_frame() -> None:
    spotter = Spotter()
    teacher = NetworkTeacher(spotter, name="spotter", input_size=128).for_batch(batch_of(64))
    teacher.answer(POINTS)
    # The middle of pixel 20 lies at 20.5 of 64, that is at 41 of 128: the middle of pixel 40.5.
    assert spotter.asked[0]["point_coords"].unique().tolist() == [40.5]
    answer = teacher.answer(BOXES)
    assert spotter.asked[1]["box_xyxy"][0].tolist() == [16, 16, 48, 80]
    # On from column 1 of 32 on: half of the first of 16 columns.
    assert answer.targets[0, 0, 0].tolist() == [0.5] + [1.0] * 15


def test_stored_embeddings_replace_the_look_at_the_image(network: EdgeSam) -> None:
    batch, teacher = batch_of(), NetworkTeacher(network, name="edge_sam", input_size=64)
    seen = teacher.for_batch(batch).answer(BOXES)
    generator = torch.Generator().manual_seed(5)
    stored = torch.randn(2, 256, 4, 4, generator=generator).half()
    told = Batch(**{**vars(batch), "teacher_embeddings": stored})
    answer = teacher.for_batch(told).answer(BOXES)
    expected, _ = network.decode(
        stored.float().repeat_interleave(2, 0), box_xyxy=BOXES.box_xyxy, num_multimask_outputs=1
    )
    assert torch.equal(answer.targets, (expected > 0).float())
    assert not torch.equal(answer.iou_predictions, seen.iou_predictions)


def test_a_teacher_stays_frozen_inside_a_stage_that_trains(network: EdgeSam) -> None:
    stage = nn.Module()
    stage.teacher = NetworkTeacher(network.train(), name="edge_sam", input_size=64)
    stage.train()
    assert not any(module.training for module in stage.teacher.modules())
    assert not any(parameter.requires_grad for parameter in stage.parameters())


def test_the_hash_is_that_of_the_encoder_and_of_nothing_else(
    network: EdgeSam, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    teacher = NetworkTeacher(network, name="edge_sam", input_size=64)
    before = teacher.content_hash
    weights = {k: v.contiguous() for k, v in official_state_dict(network).items()}
    save_file(weights, tmp_path / "edge_sam.safetensors")
    read = load_teacher(str(tmp_path / "edge_sam.safetensors"))
    assert isinstance(read, NetworkTeacher)
    assert read.content_hash == before
    with torch.no_grad():
        network.mask_decoder.iou_token.weight += 1
        assert teacher.content_hash == before
        next(network.image_encoder.neck.parameters()).add_(1)
        assert teacher.content_hash != before


def test_a_recipe_names_its_teacher(network: EdgeSam, tmp_path: Path) -> None:
    assert isinstance(load_teacher("masks"), MasksTeacher)
    torch.save(official_state_dict(network), tmp_path / "edge_sam_3x.pth")
    teacher = load_teacher(str(tmp_path / "edge_sam_3x.pth"), input_size=512)
    assert isinstance(teacher, NetworkTeacher)
    assert (teacher.name, teacher.input_size) == ("edge_sam_3x", 512)
    with pytest.raises(BundleError, match="no_such"):
        load_teacher(str(tmp_path / "no_such.pth"))


def test_a_bundle_teaches_at_the_size_that_it_is_served_at_unless_told_otherwise() -> None:
    bundle = REPOSITORY / "models" / "default"
    served_at = json.loads((bundle / "manifest.json").read_text())["input_size"]
    for asked, fed in ((None, served_at), (256, 256)):
        teacher = load_teacher(str(bundle), input_size=asked)
        assert isinstance(teacher, NetworkTeacher)
        assert teacher.input_size == fed != 1024


def test_mobile_sam_teaches_a_small_student_at_its_own_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(official_state_dict(ARCHITECTURES["mobile_sam"].build()), tmp_path / "mobile_sam.pt")
    teacher = load_teacher(str(tmp_path / "mobile_sam.pt"), input_size=512)
    assert isinstance(teacher, NetworkTeacher)
    assert (teacher.name, teacher.input_size) == ("mobile_sam", 1024)
    stored = torch.randn(2, 256, 64, 64, generator=torch.Generator().manual_seed(5)).half()
    told = Batch(**{**vars(batch_of()), "teacher_embeddings": stored})
    targets = teacher.for_batch(told).answer(POINTS).targets
    assert targets.shape == (4, 4, 16, 16)
    assert 0 < targets.mean() < 1
