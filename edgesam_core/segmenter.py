"""Puts the steps together: `Segmenter.embed` once per image, `Segmenter.segment` at every click.

It keeps no image: what a click needs arrives with it, in an `Embedding`. So two annotators on two
images, in two threads, cannot see each other's mask, and whoever calls decides what to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgesam_core.arrays import ImageRGB, LogitsMap
from edgesam_core.bundle import Bundle
from edgesam_core.candidates import Ranking, is_ambiguous, rank_candidates
from edgesam_core.decode import Decoder, DecoderOutput, Prompt
from edgesam_core.encode import Embedding, Encoder
from edgesam_core.errors import BundleError
from edgesam_core.geometry import (
    check_points_inside,
    clip_box,
    input_to_original,
    original_to_input,
)
from edgesam_core.granularity import MergeRule, ProposalNetwork, merge
from edgesam_core.manifest import SAM_DECODERS, Manifest
from edgesam_core.session import Runtime, open_session
from edgesam_core.upscale import upscale
from edgesam_core.windowed_mask import WindowedMask

BF16_DECODES_FROM_PX = 512
"""Input size from which OpenVINO decodes faster than ONNX Runtime, with bf16 only: it prepares anew
for every other number of clicks, which takes longer than it saves below (docs/decisions/006)."""


@dataclass(frozen=True, eq=False)
class Suggestion:
    """The answer to one prompt."""

    mask: WindowedMask
    # at the original size; area 0 only where every candidate is empty
    score: float
    # 0..1: stability_score or iou_prediction, x share of the clicks honoured (candidates.py)
    stability_score: float
    iou_prediction: float
    candidate_index: int
    # which of the M masks it is
    low_res_logits: LogitsMap
    # [S/4, S/4] of that candidate: the mask input of a refinement


class Segmenter:
    """A bundle, opened; safe to share between threads."""

    ranking = Ranking()
    """By what rule it chooses among the decoder's masks."""

    _proposal_network: ProposalNetwork | None = None

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, runtime: Runtime = "onnxruntime"
    ) -> None:
        """Open the graphs of a bundle.

        Args:
            bundle: Opened, so checked (bundle.py).
            threads: Threads for one run of a graph; None means all processors.
            runtime: Who runs the encoder; the decoder follows where that is faster, and the rest
                stays in ONNX Runtime.

        Raises:
            BundleError: A graph cannot be opened or is not what the manifest says.
        """
        self.manifest: Manifest = bundle.manifest
        self.ranking = Ranking(
            trusts_iou_prediction=self.manifest.trusts_iou_prediction,
            offers_mask_0_for_a_click=self.manifest.architecture not in SAM_DECODERS,
        )
        self._encoder = Encoder(
            open_session(bundle.encoder_path, threads, runtime=runtime),
            input_size=bundle.manifest.input_size,
            bundle_version=bundle.manifest.version,
            leaves_out_padding=bundle.manifest.leaves_out_padding,
        )
        bf16_decodes = bundle.manifest.input_size >= BF16_DECODES_FROM_PX
        decoder_runtime: Runtime = (
            runtime if runtime == "openvino-bf16" and bf16_decodes else "onnxruntime"
        )
        self._decoder = Decoder(open_session(bundle.decoder_path, threads, runtime=decoder_runtime))
        if bundle.granularity_path is not None:
            self._proposal_network = ProposalNetwork(
                open_session(bundle.granularity_path, threads),
                input_size=bundle.manifest.input_size,
            )
        if self.manifest.refines_with_mask_input and not self._decoder.takes_mask_input:
            raise BundleError(
                f"The model {self.manifest.name!r} promises to refine with a mask input, but its "
                "decoder takes none. Export or fetch the bundle again."
            )

    @property
    def version(self) -> str:
        """The bundle's version, part of every key of a stored embedding."""
        return self.manifest.version

    def embed(self, image: ImageRGB, *, with_proposals: bool = False) -> Embedding:
        """Encode an image: slow, once per image.

        Args:
            image: [H, W, 3] uint8 RGB, EXIF rotation applied (image.py).
            with_proposals: Look for objects, too, so that `with_proposed_box` can be used.

        Raises:
            BundleError: Proposals are wanted and the bundle has no granularity prior.
        """
        if not with_proposals:
            return self._encoder.encode(image)
        if self._proposal_network is None:
            raise BundleError(
                "The model has no granularity prior. Use it without, or choose another model."
            )
        return self._encoder.encode(image, self._proposal_network)

    def segment(
        self,
        embedding: Embedding,
        prompts: Sequence[Prompt],
        *,
        merge_rule: MergeRule | None = None,
    ) -> list[Suggestion]:
        """Answer prompts on an encoded image: fast, at every click.

        Args:
            embedding: Of the image that the prompts lie on, made by the same version.
            prompts: One per object, in original pixels.
            merge_rule: Let proposed boxes join single clicks; the embedding has proposals then.

        Returns:
            One suggestion per prompt, in order.

        Raises:
            PromptError: A prompt lies outside the image.
            BundleError: The embedding was made by another version.
        """
        if merge_rule is not None:
            prompts = [with_proposed_box(prompt, embedding, merge_rule) for prompt in prompts]
        return self.suggest(embedding, prompts, self.decode(embedding, prompts))

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[DecoderOutput]:
        """First half of `segment`, for callers that time its steps: all candidates as logits.

        Raises:
            PromptError: As `segment`.
            BundleError: As `segment`, or the graph is not what the manifest says.
        """
        if embedding.bundle_version != self.version:
            raise BundleError(
                "The image was encoded by another version of the model. Click again.",
                detail=f"embedding of {embedding.bundle_version}, serving {self.version}",
            )
        return self._decoder.decode(embedding, prompts)

    def suggest(
        self,
        embedding: Embedding,
        prompts: Sequence[Prompt],
        outputs: Sequence[DecoderOutput],
    ) -> list[Suggestion]:
        """Second half of `segment`: the chosen candidate of each output at the original size."""
        return [
            _suggestion(embedding, prompt, output, self.ranking)
            for prompt, output in zip(prompts, outputs, strict=True)
        ]


def with_proposed_box(prompt: Prompt, embedding: Embedding, rule: MergeRule) -> Prompt:
    """A single click, joined by the box that the granularity prior proposes for it.

    Anything more than one positive click already says how much is meant and stays as it is, and so
    does a click that no proposal contains. A box that reaches into the input's padding is cut at
    the image's border, as a drawn one is; the published code leaves it.

    Args:
        prompt: In original pixels.
        embedding: Of the image, made with proposals.
        rule: How the proposals around the click are merged (granularity.py).

    Raises:
        PromptError: The click lies outside the image.
        ValueError: The embedding was made without proposals.
    """
    if embedding.proposals is None:
        raise ValueError("embedding: expected one with proposals")
    if not is_ambiguous(prompt):
        return prompt
    sizes = embedding.original_size_hw, embedding.input_size_hw
    check_points_inside(prompt.point_coords, embedding.original_size_hw)
    ((x, y),) = original_to_input(prompt.point_coords, *sizes)
    box = merge(embedding.proposals, float(x), float(y), rule)
    if box is None:
        return prompt
    corners = input_to_original(box.reshape(2, 2), *sizes)
    return replace(prompt, box_xyxy=clip_box(corners.reshape(4), embedding.original_size_hw))


def _suggestion(
    embedding: Embedding, prompt: Prompt, output: DecoderOutput, ranking: Ranking
) -> Suggestion:
    """The first candidate that has a pixel at the original size, else the first, empty."""
    suggestions = []
    for candidate in rank_candidates(output, prompt, embedding, ranking):
        low_res_logits = output.low_res_logits[candidate.index]
        mask = upscale(
            low_res_logits,
            input_size=embedding.input_size,
            input_size_hw=embedding.input_size_hw,
            original_size_hw=embedding.original_size_hw,
        )
        suggestion = Suggestion(
            mask=mask,
            score=candidate.score,
            stability_score=candidate.stability_score,
            iou_prediction=candidate.iou_prediction,
            candidate_index=candidate.index,
            low_res_logits=low_res_logits,
        )
        if mask.area > 0:
            return suggestion
        suggestions.append(suggestion)
    return suggestions[0]
