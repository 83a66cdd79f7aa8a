"""Prompt encoder and mask decoder as one ONNX graph, for any number of points and prompts.

Place in a click's path: embedding + prompts -> low-res logits of all four masks, and the decoder's
own estimates. Unlike the official decoder it takes a batch of prompts and an earlier mask, and
returns logits first. As there, the padding point is the caller's: (0, 0) with label -1 after the
points of a prompt without a box.

The graph computes what nn/mask_decoder.py computes, with the same weights and in another order: a
prompt has a handful of tokens and an image four thousand cells, so whatever the formula does to
every cell is done to the tokens instead where algebra allows it.

- Attention between tokens and cells never projects the cells: ``q . (W k) = (W' q) . k``. For one
  click that is 56 vectors to compare 4096 cells with, where projecting them takes 128.
- The cells stay rows of a matrix up to the last step. A transposed convolution of size and stride
  two is then a matrix product, LayerNorm2d an ordinary layer norm, and only the four finished masks
  are put in the order of pixels.

A third of the official graph's time is saved so (`python -m bench encode`); parity.py shows that
the answers stand.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from edgesam_core.export.graph import export_graph
from edgesam_core.export.layer_norm import channels_last_norms
from edgesam_core.nn.drawn_prompts import draw_prompts
from edgesam_core.nn.layer_norm import LayerNorm2d
from edgesam_core.nn.sam_model import SamModel
from edgesam_core.nn.transformer import HEADS, Attention, TwoWayBlock

INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")
OUTPUTS = ("low_res_logits", "iou_predictions")
DYNAMIC_AXES = {
    "point_coords": {0: "prompts", 1: "points"},
    "point_labels": {0: "prompts", 1: "points"},
    "mask_input": {0: "prompts"},
    "has_mask_input": {0: "prompts"},
    "low_res_logits": {0: "prompts"},
    "iou_predictions": {0: "prompts"},
}


NO_WEIGHT = 1e-30
"""What a cell counts at least for a token. Trained attention gives most cells next to nothing, and
below 1e-38 a float32 is denormal: a processor multiplies those many times slower."""


def tokens_to_image(
    attention: Attention, tokens: torch.Tensor, placed: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """What `Attention` answers when few tokens look at many cells.

    Args:
        attention: Its weights.
        tokens: [B, T, 256] queries.
        placed: [B, K, 256] the cells with their position, keys.
        image: [B, K, 256] the cells, values.

    Returns:
        [B, T, 256].
    """
    q, (to_k, to_v) = _heads(attention.q_proj(tokens)), _head_weights(attention)
    queries = (q @ to_k).flatten(1, 2)  # [B, 8 T, 256]
    # A key's bias adds the same to every score of a query, which the softmax takes out again.
    scores = queries @ placed.transpose(1, 2) / q.shape[-1] ** 0.5
    looked_at = scores.softmax(-1).clamp_min(NO_WEIGHT) @ image  # [B, 8 T, 256]
    values = looked_at.unflatten(1, (HEADS, -1)) @ to_v.transpose(1, 2)  # [B, 8, T, 16]
    return attention.out_proj(values.transpose(1, 2).flatten(2) + attention.v_proj.bias)


def image_to_tokens(
    attention: Attention, placed: torch.Tensor, placed_tokens: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """What `Attention` answers when many cells look at few tokens.

    Args:
        attention: Its weights.
        placed: [B, K, 256] the cells with their position, queries.
        placed_tokens: [B, T, 256] keys.
        tokens: [B, T, 256] values.

    Returns:
        [B, K, 256].
    """
    k, v = _heads(attention.k_proj(placed_tokens)), _heads(attention.v_proj(tokens))
    to_q = attention.q_proj.weight.unflatten(0, (HEADS, -1))  # [8, 16, 256]
    out = attention.out_proj.weight.unflatten(1, (HEADS, -1)).permute(1, 2, 0)  # [8, 16, 256]
    bias = attention.q_proj.bias.reshape(1, HEADS, -1, 1)
    keys = (k @ to_q).flatten(1, 2)  # [B, 8 T, 256]
    scores = placed @ keys.transpose(1, 2) + (k @ bias).flatten(1).unsqueeze(1)  # [B, K, 8 T]
    weights = (scores / k.shape[-1] ** 0.5).unflatten(2, (HEADS, -1)).softmax(-1)
    return weights.flatten(2) @ (v @ out).flatten(1, 2) + attention.out_proj.bias


def _heads(x: torch.Tensor) -> torch.Tensor:
    """[B, T, 128] -> [B, 8, T, 16]."""
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def _head_weights(attention: Attention) -> tuple[torch.Tensor, torch.Tensor]:
    """The projections of keys and of values, head by head: [8, 16, 256] each."""
    k, v = attention.k_proj.weight, attention.v_proj.weight
    return k.unflatten(0, (HEADS, -1)), v.unflatten(0, (HEADS, -1))


def _rows(maps: torch.Tensor) -> torch.Tensor:
    """[B, 256, s, s] -> [B, K, 256], one row for each cell."""
    return maps.flatten(2).transpose(1, 2)


def _quarters(rows: torch.Tensor, convolution: nn.Module) -> torch.Tensor:
    """A transposed convolution of size and stride two: [B, R, in] -> [B, R * 4, out]."""
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert convolution.bias is not None
    kernel = convolution.weight.permute(0, 2, 3, 1)  # [in, 2, 2, out]
    quarters = (rows @ kernel.flatten(1)).reshape(-1, rows.shape[1] * 4, kernel.shape[3])
    return quarters + convolution.bias


class DecoderGraph(nn.Module):
    """The decoder in the form in which it is exported."""

    def __init__(self, model: SamModel, input_size: int) -> None:
        """Take over a model's parts.

        Args:
            model: In evaluation mode; its parts are shared, not copied.
            input_size: S in pixels, fixed in the graph.
        """
        super().__init__()
        self.prompt_encoder = channels_last_norms(model.prompt_encoder)
        self.mask_decoder = model.mask_decoder
        self.draws_prompts = model.draws_prompts
        self.input_size = input_size

    def forward(
        self,
        image_embeddings: torch.Tensor,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All four masks of every prompt.

        Args:
            image_embeddings: [1, 256, s, s], shared by all prompts.
            point_coords: [B, N, 2] (x, y) in the S frame; half a pixel is added here.
            point_labels: [B, N] float32, -2 to 3.
            mask_input: [B, 1, 4s, 4s] earlier logits; anything where there are none.
            has_mask_input: [B] float32, 1 or 0.

        Returns:
            low_res_logits [B, 4, 4s, 4s] and iou_predictions [B, 4].
        """
        decoder, side = self.mask_decoder, self.input_size // 16
        sparse = self.prompt_encoder.sparse(point_coords, point_labels, self.input_size)
        dense = self._dense(point_coords, point_labels, mask_input, has_mask_input)
        # Added as rows: OpenVINO 2026.4 folds the addition of maps into the convolution that makes
        # `dense`, and then refuses more than one prompt.
        image = _rows(image_embeddings) + _rows(dense)  # [B, K, 256]
        position = _rows(self.prompt_encoder.pe_layer.grid(side))

        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)
        tokens, image = self._transform(tokens, image, position)

        classifiers = torch.stack(
            [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)],
            dim=1,
        )  # [B, 4, 32]
        logits = classifiers @ self._upscaled(image).transpose(1, 2)  # [B, 4, K * 16]
        # Cells by row and column, then their quarters by row and column, then the quarters' ones.
        quarters = logits.reshape(-1, 4, side, side, 2, 2, 2, 2).permute(0, 1, 2, 4, 6, 3, 5, 7)
        low_res_logits = quarters.reshape(-1, 4, 4 * side, 4 * side)
        return low_res_logits, decoder.iou_prediction_head(tokens[:, 0])

    def _dense(
        self,
        point_coords: torch.Tensor,
        point_labels: torch.Tensor,
        mask_input: torch.Tensor,
        has_mask_input: torch.Tensor,
    ) -> torch.Tensor:
        """The dense prompt [B, 256, s, s]: of what is drawn, or of an earlier mask alone."""
        side = self.input_size // 16
        if self.draws_prompts:
            drawn = draw_prompts(
                point_coords, point_labels, mask_input, has_mask_input, self.input_size
            )
            return self.prompt_encoder.dense(drawn, side)
        with_mask = self.prompt_encoder.dense(mask_input, side)
        without = self.prompt_encoder.dense(None, side)
        return torch.where(has_mask_input.reshape(-1, 1, 1, 1) > 0, with_mask, without)

    def _transform(
        self, tokens: torch.Tensor, image: torch.Tensor, position: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """nn.transformer.TwoWayTransformer, cells not projected."""
        transformer = self.mask_decoder.transformer
        token_position = tokens
        for layer in transformer.layers:
            assert isinstance(layer, TwoWayBlock)
            if layer.is_first:
                tokens = layer.self_attn(tokens, tokens, tokens)
            else:
                placed_tokens = tokens + token_position
                tokens = tokens + layer.self_attn(placed_tokens, placed_tokens, tokens)
            tokens = layer.norm1(tokens)
            placed, placed_tokens = image + position, tokens + token_position
            looked = tokens_to_image(layer.cross_attn_token_to_image, placed_tokens, placed, image)
            tokens = layer.norm2(tokens + looked)
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            placed_tokens = tokens + token_position
            looked = image_to_tokens(layer.cross_attn_image_to_token, placed, placed_tokens, tokens)
            image = layer.norm4(image + looked)
        last = transformer.final_attn_token_to_image
        looked = tokens_to_image(last, tokens + token_position, image + position, image)
        return transformer.norm_final_attn(tokens + looked), image

    def _upscaled(self, image: torch.Tensor) -> torch.Tensor:
        """MaskDecoder.output_upscaling on rows: [B, K, 256] -> [B, K * 16, 32].

        A row's sixteen rows are its quarters and their quarters, each by row and column.
        """
        first, norm, _, second, _ = self.mask_decoder.output_upscaling
        assert isinstance(norm, LayerNorm2d)
        x = _quarters(image, first)
        x = F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        return F.gelu(_quarters(x, second))


def export_decoder(model: SamModel, path: Path, *, input_size: int) -> None:
    """Write the prompt encoder and the mask decoder of a model.

    Args:
        model: Left as it is.
        path: The file to write.
        input_size: S in pixels, a multiple of 64.
    """
    s, prompts, points = input_size // 16, 2, 3
    example = {
        "image_embeddings": torch.zeros(1, 256, s, s),
        "point_coords": torch.zeros(prompts, points, 2),
        "point_labels": torch.ones(prompts, points),
        "mask_input": torch.zeros(prompts, 1, 4 * s, 4 * s),
        "has_mask_input": torch.tensor([0.0, 1.0]),
    }
    graph = DecoderGraph(model, input_size).eval()
    export_graph(graph, example, OUTPUTS, path, dynamic_axes=DYNAMIC_AXES)
