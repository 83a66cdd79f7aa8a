"""An embedding as bytes and back, for the shared store: NumPy's own format, nothing pickled.

One ``.npz`` without compression (float16 of a network's output hardly shrinks). Everything that an
`Embedding` knows goes in: sizes, the bundle's version, proposals where there are any. 2 MB take
about 1 ms each way.
"""

from __future__ import annotations

import io
import zipfile

import numpy as np

from edgesam_core.encode import Embedding
from edgesam_core.granularity import Proposals


def embedding_to_bytes(embedding: Embedding) -> bytes:
    """All of an embedding; its numbers rounded to float16."""
    arrays = {
        "image_embedding": embedding.image_embedding.astype(np.float16, copy=False),
        "sizes": np.array(
            [*embedding.original_size_hw, *embedding.input_size_hw, embedding.input_size]
        ),
        "bundle_version": np.array(embedding.bundle_version),
    }
    if embedding.proposals is not None:
        arrays["boxes_xyxy"] = embedding.proposals.boxes_xyxy
        arrays["scores"] = embedding.proposals.scores
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def bytes_to_embedding(data: bytes) -> Embedding | None:
    """The embedding with float16 numbers; None where another version of this file wrote it."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            height, width, input_height, input_width, input_size = map(int, arrays["sizes"])
            proposals = None
            if "scores" in arrays:
                proposals = Proposals(arrays["boxes_xyxy"], arrays["scores"])
            return Embedding(
                image_embedding=arrays["image_embedding"],
                original_size_hw=(height, width),
                input_size_hw=(input_height, input_width),
                input_size=input_size,
                bundle_version=str(arrays["bundle_version"]),
                proposals=proposals,
            )
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
