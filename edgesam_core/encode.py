"""An image becomes its embedding: the slow half, done once per image.

Fourth step of a click's path: [1, 3, S, S] float32 -> [1, 256, S/16, S/16] float32. The embedding
carries everything a later click needs to know about its image, so that nothing has to remember the
last image: the original's size, the size inside the input, and the version of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgesam_core.arrays import ImageEmbedding, ImageRGB, SizeHW
from edgesam_core.errors import BundleError
from edgesam_core.granularity import FEATURES, ProposalNetwork, Proposals
from edgesam_core.preprocess import preprocess
from edgesam_core.session import Session, run_graph

_CHANNELS = 256
_STRIDE = 16
_COARSEST_STRIDE = 32


@dataclass(frozen=True, eq=False)
class Embedding:
    """An encoded image, and what is needed to decode clicks on it."""

    image_embedding: ImageEmbedding
    # [1, 256, S/16, S/16] float32
    original_size_hw: SizeHW
    # of the image after the EXIF rotation
    input_size_hw: SizeHW
    # of the image inside the S x S input, without padding
    input_size: int
    # S
    bundle_version: str
    # of the bundle that encoded it; no other can decode it
    proposals: Proposals | None = None
    # where objects may be (granularity.py); None where nobody asked

    @property
    def nbytes(self) -> int:
        """What keeping it costs."""
        proposals = 0 if self.proposals is None else self.proposals.nbytes
        return self.image_embedding.nbytes + proposals


class Encoder:
    """An open encoder graph; safe to share between threads."""

    def __init__(
        self,
        session: Session,
        *,
        input_size: int,
        bundle_version: str,
        leaves_out_padding: bool = False,
    ) -> None:
        """Take an open graph (session.py).

        Args:
            session: ``image`` [1, 3, S, S] -> ``image_embeddings`` [1, 256, S/16, S/16]; in a
                bundle with a granularity prior also the features that it looks at.
            input_size: S.
            bundle_version: Goes into every embedding.
            leaves_out_padding: Whether the graph takes any height and width, and gets no padding
                (`encode`).

        Raises:
            BundleError: The graph's input has another name or size.
        """
        inputs = {
            name: [side if isinstance(side, int) else "any" for side in shape]
            for name, shape in session.inputs.items()
        }
        side = "any" if leaves_out_padding else input_size
        if inputs != {"image": [1, 3, side, side]}:
            raise BundleError(
                f"The encoder takes {inputs}, expected one image of {side} x {side} pixels. "
                "Export or fetch the bundle again."
            )
        self._leaves_out_padding = leaves_out_padding
        self._session = session
        self._input_size = input_size
        self._bundle_version = bundle_version

    def encode(self, image: ImageRGB, proposal_network: ProposalNetwork | None = None) -> Embedding:
        """The embedding of an image.

        Where padding is left out, only the part that shows image is computed, rounded up to
        whole cells of the coarsest map (32 pixels), and the rest of the embedding is zero. Whether
        masks bear that depends on the training (docs/decisions/006).

        Args:
            image: [H, W, 3] uint8 RGB, EXIF rotation applied (image.py).
            proposal_network: Of the same bundle: look for objects, too.

        Raises:
            ValueError: The array is no RGB image.
            BundleError: The graph answers something else than the manifest says.
        """
        x, input_size_hw = preprocess(image, self._input_size)
        if self._leaves_out_padding:
            height, width = shown_part_hw(input_size_hw)
            x = np.ascontiguousarray(x[:, :, :height, :width])
        names = ["image_embeddings", *(FEATURES if proposal_network else ())]
        image_embedding, *features = run_graph(self._session, {"image": x}, names)
        cells = self._input_size // _STRIDE
        rows, columns = (n // _STRIDE for n in x.shape[2:])
        if image_embedding.shape != (1, _CHANNELS, rows, columns):
            raise BundleError(
                f"The encoder answered with shape {image_embedding.shape}. "
                "Export or fetch the bundle again."
            )
        if self._leaves_out_padding:
            filled = np.zeros((1, _CHANNELS, cells, cells), dtype=np.float32)
            filled[:, :, :rows, :columns] = image_embedding
            image_embedding = filled
        return Embedding(
            image_embedding=image_embedding,
            original_size_hw=(image.shape[0], image.shape[1]),
            input_size_hw=input_size_hw,
            input_size=self._input_size,
            bundle_version=self._bundle_version,
            proposals=proposal_network.propose(features) if proposal_network else None,
        )


def shown_part_hw(input_size_hw: SizeHW) -> SizeHW:
    """How much of an input is computed where padding is left out.

    Args:
        input_size_hw: Height and width in pixels of the image inside the input.

    Returns:
        The same, rounded up to whole cells of the coarsest map (32 pixels).
    """
    height, width = (-(-n // _COARSEST_STRIDE) * _COARSEST_STRIDE for n in input_size_hw)
    return height, width
