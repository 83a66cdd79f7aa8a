"""A network in training, asked through the code that serves: pre-processing, prompts, candidates.

So a number during training means what the number of the exported bundle means; what can still
differ is the export, and that has its own parity check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edgesam_core.decode import Decoder
from edgesam_core.encode import Encoder
from edgesam_core.export.decoder import INPUTS as DECODER_INPUTS
from edgesam_core.export.decoder import OUTPUTS as DECODER_OUTPUTS
from edgesam_core.export.decoder import DecoderGraph
from edgesam_core.export.granularity import EncoderWithFeatures
from edgesam_core.granularity import FEATURES, ProposalNetwork
from edgesam_core.granularity import OUTPUTS as PRIOR_OUTPUTS
from edgesam_core.nn.edge_sam import EdgeSam
from edgesam_core.nn.granularity import GranularityPrior
from edgesam_core.segmenter import Segmenter


class TorchSegmenter(Segmenter):
    """Answers like a ``Segmenter``, from a PyTorch model instead of a bundle."""

    version = "in training"

    def __init__(
        self, model: EdgeSam, input_size: int, prior: GranularityPrior | None = None
    ) -> None:
        """Look at a model; it is not copied, so later steps of training show.

        Args:
            model: On any device; put into evaluation mode for each answer and back.
            input_size: S in pixels, a multiple of 64.
            prior: A granularity prior on top of it, in evaluation mode, on the same device.
        """
        encoder = _ModuleSession(
            model,
            EncoderWithFeatures(model.image_encoder),
            {"image": (1, 3, input_size, input_size)},
            ("image_embeddings", *FEATURES),
        )
        decoder = _ModuleSession(
            model,
            DecoderGraph(model, input_size),
            dict.fromkeys(DECODER_INPUTS, ()),
            DECODER_OUTPUTS,
        )
        self._encoder = Encoder(encoder, input_size=input_size, bundle_version=self.version)
        self._decoder = Decoder(decoder)
        if prior is not None:
            proposals = _ModuleSession(model, prior, dict.fromkeys(FEATURES, ()), PRIOR_OUTPUTS)
            self._proposal_network = ProposalNetwork(proposals, input_size=input_size)


class _ModuleSession:
    """A module behind the interface of an open graph (session.py)."""

    def __init__(
        self,
        model: EdgeSam,
        graph: Callable[..., Any],
        inputs: Mapping[str, Sequence[int]],
        outputs: Sequence[str],
    ) -> None:
        self._model, self._graph = model, graph
        self.inputs, self._outputs = inputs, tuple(outputs)

    def run(
        self, output_names: Sequence[str], inputs: Mapping[str, np.ndarray]
    ) -> list[np.ndarray]:
        device = next(self._model.parameters()).device
        tensors = [torch.from_numpy(inputs[name]).to(device) for name in self.inputs]
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.inference_mode():
                answers = self._graph(*tensors)
        finally:
            self._model.train(was_training)
        answers = answers if isinstance(answers, tuple) else (answers,)
        by_name = dict(zip(self._outputs, answers, strict=True))
        return [by_name[name].float().cpu().numpy() for name in output_names]
