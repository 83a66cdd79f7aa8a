from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from edgesam_core.nn.checkpoint import load_state_dict, official_state_dict
from edgesam_core.nn.sam_model import SamModel
from edgesam_core.nn.tiny_vit import build_mobile_sam
from tests.core.networks import randomise

# Maps of 40, 20, 10 and 10 cells: windows of 7 and 14 are padded, or larger than the map.
SIZE = 160
DEPTHS, HEADS, WINDOWS = (2, 2, 6, 2), (0, 4, 5, 10), (0, 7, 14, 7)

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def model() -> SamModel:
    torch.manual_seed(0)
    return randomise(build_mobile_sam(SIZE).eval())


def test_it_computes_what_the_papers_say(model: SamModel) -> None:
    image = torch.randn(1, 3, SIZE, SIZE)
    weights = {
        key.removeprefix("image_encoder."): tensor
        for key, tensor in official_state_dict(model).items()
    }
    with torch.no_grad():
        actual, expected = model.encode(image), plain_tiny_vit(weights, image)
    assert actual.shape == (1, 256, SIZE // 16, SIZE // 16)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


def test_nothing_of_the_classifier_reaches_the_embedding(model: SamModel) -> None:
    weights = official_state_dict(model)
    classifier = [
        tensor
        for key, tensor in weights.items()
        if key.startswith(("image_encoder.norm_head.", "image_encoder.head."))
    ]
    assert sum(tensor.numel() for tensor in classifier) == 321_640
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.encode(image)
        saved = [tensor.clone() for tensor in classifier]
        for tensor in classifier:
            tensor.fill_(float("nan"))
        after = model.encode(image)
        for tensor, old in zip(classifier, saved, strict=True):
            tensor.copy_(old)
    assert torch.equal(before, after)


def test_weights_loaded_after_a_run_count_in_the_next(model: SamModel) -> None:
    other = build_mobile_sam(SIZE).eval()
    image = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        other.encode(image)
        load_state_dict(other, official_state_dict(model))
        assert torch.equal(other.encode(image), model.encode(image))


def plain_tiny_vit(w: Weights, x: torch.Tensor) -> torch.Tensor:
    """MobileSAM's image encoder, written from its description and its published key names."""
    x = conv_norm(w, "patch_embed.seq.2", F.gelu(conv_norm(w, "patch_embed.seq.0", x, 2)), 2)
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            step = mb_conv if stage == 0 else attention_block
            x = step(w, f"layers.{stage}.blocks.{block}", x)
        if stage < 3:
            place = f"layers.{stage}.downsample"
            x = F.gelu(conv_norm(w, f"{place}.conv1", x))
            x = F.gelu(conv_norm(w, f"{place}.conv2", x, stride=1 if stage == 2 else 2))
            x = conv_norm(w, f"{place}.conv3", x)
    x = F.conv2d(x, w["neck.0.weight"])
    x = layer_norm(w, "neck.1", x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)
    x = F.conv2d(x, w["neck.2.weight"], padding=1)
    return layer_norm(w, "neck.3", x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)


def conv_norm(w: Weights, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    kernel = w[f"{name}.c.weight"]
    groups = x.shape[1] // kernel.shape[1]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[2] // 2, groups=groups)
    return F.batch_norm(
        x, w[f"{name}.bn.running_mean"], w[f"{name}.bn.running_var"],
        w[f"{name}.bn.weight"], w[f"{name}.bn.bias"], eps=1e-5,
    )  # fmt: skip


def layer_norm(w: Weights, name: str, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def mb_conv(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    hidden = F.gelu(conv_norm(w, f"{name}.conv1", x))
    hidden = F.gelu(conv_norm(w, f"{name}.conv2", hidden))
    return F.gelu(x + conv_norm(w, f"{name}.conv3", hidden))


def attention_block(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    x = x + in_windows(w, name, x)
    x = conv_norm(w, f"{name}.local_conv", x)
    tokens = layer_norm(w, f"{name}.mlp.norm", x.permute(0, 2, 3, 1))
    tokens = F.linear(tokens, w[f"{name}.mlp.fc1.weight"], w[f"{name}.mlp.fc1.bias"])
    tokens = F.linear(F.gelu(tokens), w[f"{name}.mlp.fc2.weight"], w[f"{name}.mlp.fc2.bias"])
    return x + tokens.permute(0, 3, 1, 2)


def in_windows(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Window by window; cells beyond the map are zeros before the norm, and are not masked."""
    window, side = WINDOWS[int(name.split(".")[1])], x.shape[-1]
    padded = F.pad(x, (0, -side % window, 0, -side % window))
    answer = torch.zeros_like(padded)
    for top in range(0, side, window):
        for left in range(0, side, window):
            place = ..., slice(top, top + window), slice(left, left + window)
            answer[place] = attention(w, f"{name}.attn", padded[place])
    return answer[..., :side, :side]


def attention(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """[1, D, window, window] -> the same; one bias per head and distance in rows and columns."""
    heads, window = HEADS[int(name.split(".")[1])], x.shape[-1]
    tokens = layer_norm(w, f"{name}.norm", x[0].flatten(1).T)  # [K, D]
    qkv = F.linear(tokens, w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"])
    y, x_ = torch.arange(window**2) // window, torch.arange(window**2) % window
    distance = (y[:, None] - y).abs() * window + (x_[:, None] - x_).abs()  # [K, K]
    answers = []
    # Query, key and value of one head lie beside each other, unlike in SAM's ViT.
    for head, one in enumerate(qkv.chunk(heads, dim=1)):
        q, k, v = one.chunk(3, dim=1)
        scores = q @ k.T / q.shape[1] ** 0.5 + w[f"{name}.attention_biases"][head][distance]
        answers.append(scores.softmax(-1) @ v)
    answer = F.linear(torch.cat(answers, 1), w[f"{name}.proj.weight"], w[f"{name}.proj.bias"])
    return answer.T.reshape(x.shape)
