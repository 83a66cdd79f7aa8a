"""EdgeSAM: RepViT and a feature pyramid before SAM's prompt encoder and mask decoder.

With RepViT-M1 it is the published network (9,582,112 parameters), with RepViT-M2.3 a larger
student of the same form, to be trained here and then to teach the small one.

Paper: EdgeSAM, "Prompt-In-the-Loop Distillation for SAM" (arXiv 2312.06660).
"""

from __future__ import annotations

from edgesam_core.nn.fpn import ImageEncoder, UpsampleMode
from edgesam_core.nn.repvit import Trunk, published_prefixes
from edgesam_core.nn.sam_model import SamModel

_NAMES: dict[Trunk, str] = {"repvit_m1": "edge_sam", "repvit_m2_3": "edge_sam_m2_3"}


class EdgeSam(SamModel):
    """The student. Fully convolutional: the size of its input is the size of what it is given."""

    image_encoder: ImageEncoder

    def __init__(
        self,
        upsample: UpsampleMode = "bicubic",
        *,
        draws_prompts: bool = False,
        trunk: Trunk = "repvit_m1",
    ) -> None:
        """Build with random weights; ``checkpoint.load_state_dict`` brings published ones.

        Args:
            upsample: How the feature pyramid enlarges.
            draws_prompts: Whether prompts are drawn as a map, too (drawn_prompts.py). Published
                weights were trained without.
            trunk: timm's name of the backbone; "repvit_m1" is EdgeSAM's.
        """
        super().__init__(
            _NAMES[trunk],
            ImageEncoder(upsample, trunk),
            # Nobody published the larger one: its checkpoints have timm's names.
            published_prefixes=published_prefixes() if trunk == "repvit_m1" else {},
            draws_prompts=draws_prompts,
        )

    @property
    def upsample(self) -> UpsampleMode:
        """How its feature pyramid enlarges."""
        return self.image_encoder.fuse_stage3.mode
