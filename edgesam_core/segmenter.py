"""Puts the steps together: `Segmenter.embed` once per image, `Segmenter.segment` at every click.

It keeps no image: what a click needs arrives with it, in an `Embedding`. So two annotators on two
images, in two threads, cannot see each other's mask, and whoever calls decides what to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgesam_core.arrays import ImageRGB, LogitsMap
from edgesam_core.bundle import Bundle
from edgesam_core.candidates import rank_candidates
from edgesam_core.decode import Decoder, DecoderOutput, Prompt
from edgesam_core.encode import Embedding, Encoder
from edgesam_core.errors import BundleError
from edgesam_core.manifest import Manifest
from edgesam_core.session import open_session
from edgesam_core.upscale import upscale
from edgesam_core.windowed_mask import WindowedMask


@dataclass(frozen=True, eq=False)
class Suggestion:
    """The answer to one prompt."""

    mask: WindowedMask
    # at the original size; area 0 only where every candidate is empty
    score: float
    # 0..1: stability_score x share of the clicks honoured (candidates.py)
    stability_score: float
    iou_prediction: float
    candidate_index: int
    # which of the M masks it is
    low_res_logits: LogitsMap
    # [S/4, S/4] of that candidate: the mask input of a refinement


class Segmenter:
    """A bundle, opened; safe to share between threads."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        """Open both graphs of a bundle.

        Args:
            bundle: Opened, so checked (bundle.py).
            threads: Threads for one run of a graph; None means all processors.

        Raises:
            BundleError: A graph cannot be opened or is not what the manifest says.
        """
        self.manifest: Manifest = bundle.manifest
        self._encoder = Encoder(
            open_session(bundle.encoder_path, threads),
            input_size=bundle.manifest.input_size,
            bundle_version=bundle.manifest.version,
        )
        self._decoder = Decoder(open_session(bundle.decoder_path, threads))
        if self.manifest.refines_with_mask_input and not self._decoder.takes_mask_input:
            raise BundleError(
                f"The model {self.manifest.name!r} promises to refine with a mask input, but its "
                "decoder takes none. Export or fetch the bundle again."
            )

    @property
    def version(self) -> str:
        """The bundle's version, part of every key of a stored embedding."""
        return self.manifest.version

    def embed(self, image: ImageRGB) -> Embedding:
        """Encode an image: slow, once per image.

        Args:
            image: [H, W, 3] uint8 RGB, EXIF rotation applied (image.py).
        """
        return self._encoder.encode(image)

    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Suggestion]:
        """Answer prompts on an encoded image: fast, at every click.

        Args:
            embedding: Of the image that the prompts lie on, made by the same version.
            prompts: One per object, in original pixels.

        Returns:
            One suggestion per prompt, in order.

        Raises:
            PromptError: A prompt lies outside the image.
            BundleError: The embedding was made by another version.
        """
        return self.suggest(embedding, prompts, self.decode(embedding, prompts))

    def decode(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[DecoderOutput]:
        """First half of `segment`, for callers that time its steps: all candidates as logits."""
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
            _suggestion(embedding, prompt, output)
            for prompt, output in zip(prompts, outputs, strict=True)
        ]


def _suggestion(embedding: Embedding, prompt: Prompt, output: DecoderOutput) -> Suggestion:
    """The first candidate that has a pixel at the original size, else the first, empty."""
    suggestions = []
    for candidate in rank_candidates(output, prompt, embedding):
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
