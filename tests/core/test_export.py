from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch.nn import functional as F

from edgesam_core.errors import BundleError
from edgesam_core.export import graph, parity
from edgesam_core.export.decoder import export_decoder, tokens_to_image
from edgesam_core.export.encoder import encoder_graph, export_encoder
from edgesam_core.export.fuse import fused
from edgesam_core.export.graph import halve_constants
from edgesam_core.export.upsample import BicubicTwice
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.transformer import Attention
from edgesam_core.session import open_session, run_graph
from tests.core.networks import random_network

SIZE = 128
SIDE = SIZE // 16
OUTPUTS = ["low_res_logits", "iou_predictions"]

# fp32 against fp32 in another order: about 1e-5 of the values' size was measured.
RELATIVE = 1e-4

FloatArray = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def encoder_path(model: EdgeSam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    export_encoder(model, path, input_size=SIZE)
    return path


@pytest.fixture(scope="module")
def decoder_path(model: EdgeSam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    export_decoder(model, path, input_size=SIZE)
    return path


@pytest.fixture(scope="module")
def image() -> FloatArray:
    return np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), np.float32)


@pytest.fixture(scope="module")
def embedding() -> FloatArray:
    return np.random.default_rng(1).standard_normal((1, 256, SIDE, SIDE), np.float32)


def relative_difference(actual: FloatArray, expected: FloatArray) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.sqrt(np.square(expected).mean()))


def in_pytorch(
    model: EdgeSam, embedding: FloatArray, tokens: FloatArray, mask_input: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """One prompt's logits and IoU predictions, from tokens [N, 3] of x, y and label."""
    mask = None if mask_input is None else torch.from_numpy(mask_input)[None]
    coords, labels = (torch.from_numpy(part)[None] for part in (tokens[:, :2], tokens[:, 2]))
    with torch.no_grad():
        logits, iou = model.mask_decoder(
            torch.from_numpy(embedding),
            model.prompt_encoder.pe_layer.grid(SIDE),
            model.prompt_encoder.sparse(coords, labels, SIZE),
            model.prompt_encoder.dense(mask, SIDE),
        )
    return logits.numpy(), iou.numpy()


def through_the_graph(
    path: Path,
    embedding: FloatArray,
    tokens: FloatArray,
    mask_input: FloatArray | None = None,
    has_mask_input: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """A batch's logits and IoU predictions, from tokens [B, N, 3]."""
    prompts = len(tokens)
    if mask_input is None:
        mask_input = np.zeros((prompts, 1, 4 * SIDE, 4 * SIDE), np.float32)
        has_mask_input = np.zeros(prompts, np.float32)
    inputs = {
        "image_embeddings": embedding,
        "point_coords": np.ascontiguousarray(tokens[..., :2]),
        "point_labels": np.ascontiguousarray(tokens[..., 2]),
        "mask_input": mask_input,
        "has_mask_input": has_mask_input,
    }
    logits, iou = run_graph(open_session(path, 1), inputs, OUTPUTS)
    return logits, iou


def random_tokens(prompts: int, points: int, seed: int = 0) -> FloatArray:
    random = np.random.default_rng(seed)
    coords = random.uniform(0, SIZE, (prompts, points, 2))
    labels = random.integers(-2, 4, (prompts, points, 1))
    return np.concatenate([coords, labels], -1).astype(np.float32)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (4, 4), (32, 32), (7, 12)])
def test_bicubic_by_convolution_equals_bicubic_borders_included(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    expected = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    assert (BicubicTwice(3)(x) - expected).abs().max() < 1e-5


def test_folding_changes_no_answer_and_leaves_the_model_as_it_was(
    model: EdgeSam, image: FloatArray
) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(image)).numpy()
        folded = fused(model.image_encoder)(torch.from_numpy(image)).numpy()
        exported = encoder_graph(model)(torch.from_numpy(image)).numpy()
    assert relative_difference(folded, expected) < RELATIVE
    assert relative_difference(exported, expected) < RELATIVE
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_encoder_graph_equals_pytorch(
    model: EdgeSam, encoder_path: Path, image: FloatArray
) -> None:
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(image)).numpy()
    session = open_session(encoder_path, 1)
    (actual,) = run_graph(session, {"image": image}, ["image_embeddings"])
    assert relative_difference(actual, expected) < RELATIVE


def test_a_bilinear_model_stays_bilinear(image: FloatArray, tmp_path: Path) -> None:
    bilinear, bicubic = random_network(upsample="bilinear"), random_network()
    export_encoder(bilinear, tmp_path / "encoder.onnx", input_size=SIZE)
    session = open_session(tmp_path / "encoder.onnx", 1)
    (actual,) = run_graph(session, {"image": image}, ["image_embeddings"])
    with torch.no_grad():
        expected, other = (m.encode(torch.from_numpy(image)).numpy() for m in (bilinear, bicubic))
    assert relative_difference(actual, expected) < RELATIVE
    assert relative_difference(actual, other) > 0.01


def test_the_encoder_has_no_resize_and_one_convolution_per_token_mixer(encoder_path: Path) -> None:
    nodes = onnx.load(encoder_path).graph.node
    kinds = [node.op_type for node in nodes]
    assert "Resize" not in kinds
    assert "BatchNormalization" not in kinds
    official = 130  # with branches, REFERENCE 2.4
    token_mixers, bicubic = 23, 4
    assert kinds.count("Conv") == official - token_mixers + bicubic


@pytest.mark.parametrize("points", [1, 2, 5, 17])
@pytest.mark.parametrize("prompts", [1, 3])
def test_decoder_graph_equals_pytorch_for_any_number_of_points_and_prompts(
    points: int, prompts: int, model: EdgeSam, decoder_path: Path, embedding: FloatArray
) -> None:
    tokens = random_tokens(prompts, points)
    logits, iou = through_the_graph(decoder_path, embedding, tokens)
    for row in range(prompts):
        expected, expected_iou = in_pytorch(model, embedding, tokens[row], None)
        assert relative_difference(logits[row : row + 1], expected) < RELATIVE
        assert relative_difference(iou[row : row + 1], expected_iou) < RELATIVE


@pytest.mark.parametrize("label", [-2, -1, 0, 1, 2, 3])
def test_decoder_graph_knows_every_label(
    label: int, model: EdgeSam, decoder_path: Path, embedding: FloatArray
) -> None:
    tokens = np.array([[[30.5, 77, 1], [90, 12.25, label]]], np.float32)
    logits, _ = through_the_graph(decoder_path, embedding, tokens)
    expected, _ = in_pytorch(model, embedding, tokens[0], None)
    assert relative_difference(logits, expected) < RELATIVE


def test_attention_that_sees_one_cell_only_is_the_same() -> None:
    torch.manual_seed(0)
    attention = Attention(128).eval()
    tokens, image = torch.randn(2, 3, 256), torch.randn(2, 64, 256)
    with torch.no_grad():
        attention.q_proj.weight *= 300  # all other weights are far below what float32 can hold
        expected = attention(tokens, image, image)
        actual = tokens_to_image(attention, tokens, image, image)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_padding_point_and_box_equal_the_models_own_rules(
    model: EdgeSam, decoder_path: Path, embedding: FloatArray
) -> None:
    box, point = torch.tensor([[20.0, 30, 90, 100]]), torch.tensor([[[50.0, 60]]])
    whole = torch.from_numpy(embedding)
    with torch.no_grad():
        by_box, _ = model.decode(whole, box_xyxy=box)
        by_point, _ = model.decode(whole, point_coords=point, point_labels=torch.ones(1, 1))
    corners = np.array([[[20, 30, 2], [90, 100, 3]]], np.float32)
    padded = np.array([[[50, 60, 1], [0, 0, -1]]], np.float32)
    for tokens, expected in ((corners, by_box), (padded, by_point)):
        logits, _ = through_the_graph(decoder_path, embedding, tokens)
        assert relative_difference(logits, expected.numpy()) < RELATIVE
    alone, _ = through_the_graph(decoder_path, embedding, padded[:, :1])
    assert relative_difference(alone, by_point.numpy()) > 0.01  # the padding point matters


def test_a_batch_equals_its_prompts_one_by_one(decoder_path: Path, embedding: FloatArray) -> None:
    tokens = random_tokens(4, 3)
    random = np.random.default_rng(5)
    masks = random.normal(0, 5, (4, 1, 4 * SIDE, 4 * SIDE)).astype(np.float32)
    has_mask = np.array([0, 1, 1, 0], np.float32)
    logits, iou = through_the_graph(decoder_path, embedding, tokens, masks, has_mask)
    for row in range(4):
        one = slice(row, row + 1)
        single = through_the_graph(decoder_path, embedding, tokens[one], masks[one], has_mask[one])
        assert relative_difference(logits[one], single[0]) < RELATIVE
        assert relative_difference(iou[one], single[1]) < RELATIVE


def test_mask_input_counts_only_where_the_flag_says_so(
    model: EdgeSam, decoder_path: Path, embedding: FloatArray
) -> None:
    tokens = random_tokens(1, 2)
    mask = np.random.default_rng(5).normal(0, 5, (1, 1, 4 * SIDE, 4 * SIDE)).astype(np.float32)
    yes, no = np.ones(1, np.float32), np.zeros(1, np.float32)
    with_mask, _ = through_the_graph(decoder_path, embedding, tokens, mask, yes)
    ignored, _ = through_the_graph(decoder_path, embedding, tokens, mask * np.nan, no)
    expected_with, _ = in_pytorch(model, embedding, tokens[0], mask[0])
    expected_without, _ = in_pytorch(model, embedding, tokens[0], None)
    assert relative_difference(with_mask, expected_with) < RELATIVE
    assert relative_difference(ignored, expected_without) < RELATIVE
    assert relative_difference(with_mask, ignored) > 0.01


def test_constants_are_halved_only_where_nothing_is_lost() -> None:
    exact = np.random.default_rng(0).standard_normal(2048).astype(np.float16).astype(np.float32)
    values = {"exact": exact, "inexact": exact / 3, "huge": exact + 1e6, "small": exact[:8]}
    sums = [onnx.helper.make_node("ReduceSum", [name], [f"{name}_sum"]) for name in values]
    graph = onnx.helper.make_graph(
        sums, "constants", [],
        [onnx.helper.make_tensor_value_info(f"{n}_sum", 1, [1]) for n in values],
        [onnx.numpy_helper.from_array(array, name) for name, array in values.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    halve_constants(model)
    onnx.checker.check_model(model)
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    assert sorted(stored) == ["exact_fp16", "huge", "inexact", "small"]
    assert np.array_equal(stored["exact_fp16"].astype(np.float32), exact)


def test_a_graph_too_large_for_one_file_keeps_its_weights_beside_it(
    model: EdgeSam, decoder_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ViT-H is; here the limit is smaller instead.
    monkeypatch.setattr(graph, "MAX_FILE_BYTES", 1_000_000)
    export_decoder(model, tmp_path / "decoder.onnx", input_size=SIZE)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "decoder.onnx", "decoder.onnx.data",
    ]  # fmt: skip
    assert (tmp_path / "decoder.onnx").stat().st_size < 1_000_000
    inputs = {
        "image_embeddings": np.ones((1, 256, SIDE, SIDE), np.float32),
        "point_coords": np.full((1, 2, 2), 20, np.float32),
        "point_labels": np.array([[1, -1]], np.float32),
        "mask_input": np.zeros((1, 1, 4 * SIDE, 4 * SIDE), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }
    paths = (decoder_path, tmp_path / "decoder.onnx")
    one, two = (run_graph(open_session(path), inputs, OUTPUTS) for path in paths)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_wrong_encoder_is_named(model: EdgeSam, tmp_path: Path) -> None:
    export_encoder(random_network(upsample="bilinear"), tmp_path / "e.onnx", input_size=SIZE)
    export_decoder(model, tmp_path / "d.onnx", input_size=SIZE)
    with pytest.raises(BundleError, match="differs from PyTorch: embedding"):
        parity.check_parity(model, tmp_path / "e.onnx", tmp_path / "d.onnx", input_size=SIZE)


def test_an_answer_that_is_no_number_is_a_difference_wherever_it_stands(
    model: EdgeSam, encoder_path: Path, decoder_path: Path, image: FloatArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(parity, "_images", lambda input_size: [image, image * np.nan])
    with pytest.raises(BundleError, match="embedding by nan of its size"):
        parity.check_parity(model, encoder_path, decoder_path, input_size=SIZE)
