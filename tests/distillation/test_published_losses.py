"""The published losses against the published code's own numbers, and against NumPy.

The reference was computed in fp32 on a CPU by the original code; ../shared/parity/README.md tells
with which inputs.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distillation.losses import (
    MASK_WEIGHT,
    embedding_loss,
    iou_token_loss,
    mask_hardness,
    network_teacher_loss,
    valid_bce,
    valid_dice,
)
from distillation.network_input import valid_cells
from distillation.teachers import NetworkTeacher, Prompts, TeacherAnswer
from edgesam_core.nn.checkpoint import load_state_dict
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.preprocess import preprocess


def drawn(parity_inputs: ModuleType, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The fixtures' deterministic uniform numbers in [-1, 1)."""
    count = int(np.prod(shape))
    values = 2 * parity_inputs.uniform(key, count) - 1
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def validity(rows: list[int], columns: list[int], side: int) -> torch.Tensor:
    """[I, 1, side, side] shares of cells, from rectangles on a grid of 128."""
    full = torch.zeros(len(rows), 1, 128, 128)
    for image, (height, width) in enumerate(zip(rows, columns, strict=True)):
        full[image, :, :height, :width] = 1
    return F.interpolate(full, size=(side, side), mode="bilinear")


@pytest.fixture(scope="module")
def loss_reference(shared: Path) -> dict[str, Any]:
    text = (shared / "parity" / "training_eval_reference.json").read_text()
    reference: dict[str, Any] = json.loads(text)
    return reference


@pytest.mark.parametrize("count", [1, 4])
def test_bce_and_dice_are_those_of_the_published_code(
    loss_reference: dict[str, Any], parity_inputs: ModuleType, count: int
) -> None:
    shape = (3, count, 32, 32)
    logits = 4 * drawn(parity_inputs, f"loss.student.c{count}", shape)
    teacher = 4 * drawn(parity_inputs, f"loss.teacher.c{count}", shape)
    targets, valid = (teacher > 0).float(), validity([96, 128, 128], [128, 70, 128], 32)
    bce = valid_bce(logits, targets, valid).mean()
    dice = valid_dice(logits, targets, valid).mean()
    # Both sides are fp32 sums over some thousand cells in another order: 1e-6 relative.
    assert bce.item() == pytest.approx(loss_reference[f"loss.c{count}.bce"], rel=2e-6)
    assert dice.item() == pytest.approx(loss_reference[f"loss.c{count}.dice"], rel=2e-6)
    loss = network_teacher_loss(logits, targets, valid, rounds=2)
    assert loss.item() == pytest.approx(MASK_WEIGHT / 2 * (bce + dice).item(), rel=1e-6)


def test_the_embedding_loss_is_that_of_the_published_code_but_for_its_broadcast(
    loss_reference: dict[str, Any], parity_inputs: ModuleType
) -> None:
    """The recorded value divides each image's error by the cells of every image in the batch."""
    student = drawn(parity_inputs, "pixel.student", (2, 16, 8, 8))
    teacher = drawn(parity_inputs, "pixel.teacher", (2, 16, 8, 8))
    valid = valid_cells([(96, 128), (128, 72)], 128, 8)
    counts = valid.sum(dim=(1, 2))
    assert counts.tolist() == loss_reference["pixel_loss_valid_cells"]
    alone = torch.stack(
        [embedding_loss(student[i : i + 1], teacher[i : i + 1], valid[i : i + 1]) for i in (0, 1)]
    )
    crosswise = (alone * counts)[:, None] / counts
    assert crosswise.mean().item() == pytest.approx(loss_reference["pixel_loss"], rel=2e-6)
    together = embedding_loss(student, teacher, valid)
    assert together.item() == pytest.approx(alone.mean().item(), rel=1e-6)


def test_the_gradient_of_the_embedding_loss_is_the_one_worked_out_by_hand() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 2, 5, 4, 4))
    valid = np.zeros((2, 4, 4))
    valid[0, :3], valid[1, :, :2] = 1, 1
    # d/ds of mean_i sum(valid * mean_c (s - t)^2) / sum(valid)
    by_hand = (
        2 * (student - teacher) * valid[:, None] / (2 * 5 * np.array([12, 8])[:, None, None, None])
    )
    x = torch.from_numpy(student).requires_grad_()
    embedding_loss(x, torch.from_numpy(teacher), torch.from_numpy(valid)).backward()
    np.testing.assert_allclose(x.grad, by_hand, rtol=1e-12)


def test_the_gradient_of_the_loss_under_a_network_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 5, generator=generator, dtype=torch.float64).requires_grad_()
    targets = torch.rand(2, 4, 5, 5, generator=generator, dtype=torch.float64)
    valid = torch.rand(2, 1, 5, 5, generator=generator, dtype=torch.float64)
    hardness = torch.rand(2, 4, generator=generator, dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return network_teacher_loss(x, targets, valid, rounds=2, hardness=hardness)

    assert torch.autograd.gradcheck(loss, (logits,))


def test_padding_teaches_nothing() -> None:
    logits = torch.zeros(1, 4, 8, 8, requires_grad=True)
    valid = torch.ones(1, 1, 8, 8)
    valid[..., 5:] = 0
    network_teacher_loss(logits, torch.ones(1, 4, 8, 8), valid, rounds=1).backward()
    assert logits.grad is not None
    assert bool((logits.grad[..., :5] != 0).all())
    assert bool((logits.grad[..., 5:] == 0).all())


def test_a_confident_mistake_still_teaches() -> None:
    """BCE on sigmoid outputs, as published, has no gradient here."""
    logits = torch.full((1, 1, 4, 4), 40.0, requires_grad=True)
    valid_bce(logits, torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)).sum().backward()
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad, 1 / 16)


def test_a_mask_weighs_more_the_further_the_student_is_behind() -> None:
    truth = torch.zeros(1, 8, 8)
    truth[:, :4] = 1
    found, empty = truth * 8 - 4, torch.full((1, 8, 8), -4.0)
    half = empty.clone()
    half[:, :2] = 4
    logits = torch.stack([found, half, empty], dim=1)
    hardness = mask_hardness(logits, truth[:, None].expand(1, 3, 8, 8), truth)
    expected = torch.sigmoid(torch.tensor([1 / 1 - 1, 1 / 0.5 - 1, 1e6]))
    np.testing.assert_allclose(hardness[0], expected, rtol=1e-5)


def test_the_iou_token_is_measured_against_the_teachers() -> None:
    student, teacher = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.9, 0.8]])
    assert iou_token_loss(student, teacher).item() == pytest.approx((0.16 + 0.04) / 2)


@pytest.fixture(scope="module")
def published_student(parity_inputs: ModuleType) -> EdgeSam:
    """Parity weights; BatchNorm in evaluation mode and the prompt encoder frozen, as recorded."""
    student = EdgeSam().eval()
    tensors = {k: torch.from_numpy(v) for k, v in parity_inputs.state_dict().items()}
    load_state_dict(student, tensors)
    student.prompt_encoder.requires_grad_(False)
    return student


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["point", "box"])
def test_a_step_is_that_of_the_published_code(
    shared: Path, parity_inputs: ModuleType, published_student: EdgeSam, kind: str
) -> None:
    """Losses of both rounds, wrong cells, clicks and gradients, at 1024.

    Tolerances: logits agree to 4e-5 between fp32 and fp64, so that a cell or two of the teacher's
    65,536 may fall on the other side of 0: one moves a loss by about 1e-5. Gradient norms add up
    rounding through the whole encoder: 1e-3.
    """
    reference = json.loads((shared / "parity" / "train_step_reference.json").read_text())
    wanted = reference[kind]
    images = [make() for make in parity_inputs.IMAGES.values()]
    inputs, sizes = zip(*(preprocess(image, 1024) for image in images), strict=True)
    student = published_student
    student.zero_grad()
    embedding = student.encode(torch.from_numpy(np.concatenate(inputs)))
    noise = 0.7 * drawn(parity_inputs, "teacher.embedding", (2, 256, 64, 64))
    teacher_embedding = (embedding.detach() + noise).half()
    assert teacher_embedding.float().std().item() == pytest.approx(
        reference["teacher_embedding"]["std"], rel=1e-5
    )
    teacher = NetworkTeacher(copy.deepcopy(student), name="a copy", input_size=1024)
    counts = reference["prompts_per_image"]
    repeats = torch.tensor(counts)
    teachers = [
        teacher.for_batch(one_image(teacher_embedding[i : i + 1], prompts=count))
        for i, count in enumerate(counts)
    ]
    valid = F.interpolate(full_validity(sizes), size=(256, 256), mode="bilinear")
    valid = valid.repeat_interleave(repeats, dim=0)
    shown = embedding.repeat_interleave(repeats, dim=0)

    boxes = torch.tensor(reference["boxes_1024"]) if kind == "box" else None
    points = torch.tensor(reference["points_1024"])[:, None] if kind == "point" else None
    labels = None if points is None else torch.ones(len(points), 1)
    total = torch.zeros(())
    for round_index, expected in enumerate(wanted["rounds"]):
        prompts = Prompts(points, labels, boxes)
        answer = joined(
            [one.answer(part) for one, part in zip(teachers, split(prompts, counts), strict=True)]
        )
        logits, _ = student.decode(
            shown, point_coords=points, point_labels=labels, box_xyxy=boxes,
            num_multimask_outputs=answer.targets.shape[1],
        )  # fmt: skip
        scale = MASK_WEIGHT / 2
        bce = scale * valid_bce(logits, answer.targets, valid).mean()
        dice = scale * valid_dice(logits, answer.targets, valid).mean()
        assert bce.item() == pytest.approx(expected["bce"], abs=2e-5)
        assert dice.item() == pytest.approx(expected["dice"], abs=2e-5)
        total = total + network_teacher_loss(logits, answer.targets, valid, rounds=2)
        on = answer.targets.mean(dim=(-2, -1)).flatten()
        np.testing.assert_allclose(on, expected["target_on"], atol=2 / 65536)

        if round_index == 0:
            following = wanted["rounds"][1]
            if kind == "point":
                assert answer.compared.tolist() == following["teacher_best"]
            click, label = first_wrong_cell(logits, answer, valid, following)
            points = click if points is None else torch.cat([points, click], 1)
            labels = label if labels is None else torch.cat([labels, label], 1)

    assert total.item() == pytest.approx(wanted["total"], abs=4e-5)
    total.backward()
    encoder = gradient_norm(student.image_encoder)
    decoder = gradient_norm(student.mask_decoder)
    assert encoder == pytest.approx(wanted["grad_norm_encoder"], rel=1e-3)
    assert decoder == pytest.approx(wanted["grad_norm_decoder"], rel=1e-3)
    idle = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert sorted(idle) == wanted["params_without_grad"]


def first_wrong_cell(
    logits: torch.Tensor, answer: TeacherAnswer, valid: torch.Tensor, expected: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's click, drawn without chance: the first wrong cell in raster order."""
    rows = torch.arange(len(logits))
    predicted = (logits[rows, answer.compared] > 0) & (valid[:, 0] > 0)
    target = (answer.targets[rows, answer.compared] > 0) & (valid[:, 0] > 0)
    spilled = (predicted & ~target).sum(dim=(1, 2))
    missed = (target & ~predicted).sum(dim=(1, 2))
    np.testing.assert_allclose(spilled, expected["false_positive"], atol=2)
    np.testing.assert_allclose(missed, expected["false_negative"], atol=2)
    first = (predicted ^ target).flatten(1).int().argmax(dim=1)
    click = 4.0 * torch.stack([first % 256, first // 256], dim=-1)
    label = target.flatten(1).gather(1, first[:, None]).float()
    assert click.tolist() == expected["new_point"]
    assert label[:, 0].tolist() == expected["new_label"]
    return click[:, None], label


def one_image(teacher_embedding: torch.Tensor, prompts: int) -> Any:
    """What a teacher asks of a batch that brings its embeddings."""
    return SimpleNamespace(
        images=torch.zeros(1, 3, 1024, 1024, dtype=torch.uint8),
        points=torch.zeros(1, prompts, 2),
        teacher_embeddings=teacher_embedding,
    )


def split(prompts: Prompts, counts: list[int]) -> list[Prompts]:
    """The prompts of each image; the reference has two for one and three for the other."""
    fields = [prompts.point_coords, prompts.point_labels, prompts.box_xyxy]
    parts = [[None] * len(counts) if f is None else f.split(counts) for f in fields]
    return [Prompts(*values) for values in zip(*parts, strict=True)]


def joined(answers: list[TeacherAnswer]) -> TeacherAnswer:
    ious = [a.iou_predictions for a in answers if a.iou_predictions is not None]
    return TeacherAnswer(
        torch.cat([a.targets for a in answers]),
        torch.cat([a.compared for a in answers]),
        torch.cat(ious),
    )


def full_validity(sizes_hw: tuple[tuple[int, int], ...]) -> torch.Tensor:
    full = torch.zeros(len(sizes_hw), 1, 1024, 1024)
    for image, (height, width) in enumerate(sizes_hw):
        full[image, :, :height, :width] = 1
    return full


def gradient_norm(module: torch.nn.Module) -> float:
    norms = [p.grad.norm() for p in module.parameters() if p.grad is not None]
    return float(torch.stack(norms).norm())
