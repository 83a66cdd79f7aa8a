"""Our implementation as ../shared/parity/check_example.py wants to call it.

    python ../shared/parity/check_example.py tests.core.parity_adapter:Adapter

Everything that decides parity comes from the code under test: pre-processing, network, up-scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgesam_core.arrays import ImageRGB, InputImage, SizeHW
from edgesam_core.candidates import stability_score
from edgesam_core.geometry import original_to_input
from edgesam_core.nn.checkpoint import load_state_dict
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.fpn import UpsampleMode
from edgesam_core.nn.prompt_encoder import assemble_points
from edgesam_core.nn.repvit import stage_outputs
from edgesam_core.preprocess import normalise_and_pad, resize, resized_size_hw
from edgesam_core.upscale import upscale

INPUT_SIZE = 1024
Array = npt.NDArray[np.float32]


class Adapter:
    """EdgeSAM with the parity weights, on the CPU."""

    def __init__(self, state_dict: Mapping[str, npt.NDArray[np.generic]]) -> None:
        self.model = EdgeSam().eval()
        tensors = {key: torch.from_numpy(np.asarray(value)) for key, value in state_dict.items()}
        load_state_dict(self.model, tensors)

    def resize(self, image: ImageRGB) -> ImageRGB:
        return resize(image, INPUT_SIZE)

    def preprocess(self, resized: ImageRGB) -> InputImage:
        return normalise_and_pad(resized, INPUT_SIZE)

    @torch.no_grad()
    def encode(self, x: InputImage, upsample_mode: UpsampleMode) -> dict[str, Array]:
        encoder: Any = self.model.image_encoder
        image = torch.from_numpy(x)
        encoder.fuse_stage3.mode = upsample_mode
        if upsample_mode == "bilinear":  # the reference has the embedding only
            return {"embedding": encoder(image).numpy()}
        steps = {"stem": encoder.backbone.stem(image)}
        for i, output in enumerate(stage_outputs(encoder.backbone, image)):
            steps[f"stage{i}"] = output
        steps["fuse_stage2"] = encoder.fuse_stage2(steps["stage2"])
        steps["fuse_stage3"] = encoder.fuse_stage3(steps["stage3"])
        x = steps["fuse_sum"] = steps["fuse_stage2"] + steps["fuse_stage3"]
        for i, layer in enumerate(encoder.neck):
            x = steps["embedding" if i == 3 else f"neck{i}"] = layer(x)
        return {name: step.numpy() for name, step in steps.items()}

    @torch.no_grad()
    def decode(
        self,
        embedding: Array,
        original_size: SizeHW,
        points: npt.NDArray[np.float64] | None,
        labels: npt.NDArray[np.int64] | None,
        box: npt.NDArray[np.float64] | None,
        mask_input: Array | None,
    ) -> dict[str, Array]:
        input_size_hw = resized_size_hw(original_size, INPUT_SIZE)
        image_embedding = torch.from_numpy(embedding).reshape(1, 256, 64, 64)
        prompt: dict[str, Any] = dict.fromkeys(["point_coords", "point_labels", "box_xyxy"])
        if points is not None and labels is not None:
            coords = original_to_input(points, original_size, input_size_hw)
            prompt["point_coords"] = torch.from_numpy(coords)[None]
            prompt["point_labels"] = torch.from_numpy(labels.astype(np.float32))[None]
        if box is not None:
            corners = original_to_input(box.reshape(2, 2), original_size, input_size_hw)
            prompt["box_xyxy"] = torch.from_numpy(corners).reshape(1, 4)
        mask = None if mask_input is None else torch.from_numpy(mask_input)[None]

        low_res_logits, iou_predictions = self.model.decode(
            image_embedding, **prompt, mask_input=mask
        )
        tokens = self.model.prompt_encoder.sparse(*assemble_points(**prompt), INPUT_SIZE)
        output_tokens, _ = self.model.mask_decoder.transform(
            image_embedding,
            self.model.prompt_encoder.pe_layer.grid(64),
            tokens,
            self.model.prompt_encoder.dense(mask, 64),
        )
        logits = low_res_logits[0].numpy()
        sizes = {"input_size_hw": input_size_hw, "original_size_hw": original_size}
        masks = [upscale(one, input_size=INPUT_SIZE, **sizes).full() for one in logits]
        return {
            "low_res": logits,
            "iou": iou_predictions[0].numpy(),
            "stability": stability_score(logits),
            "masks": np.stack(masks),
            "sparse": tokens.numpy(),
            "hs": output_tokens.numpy(),
        }
