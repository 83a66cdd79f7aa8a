"""EdgeSAM for the click: an image and prompts in, masks out.

What is listed here is public; everything else may change. Opening a model and asking it:

    bundle = Bundle.open(find_bundle("default", Path("models")))
    segmenter = Segmenter(bundle)
    embedding = segmenter.embed(read_image(Path("photo.jpg").read_bytes()))
    (suggestion,) = segmenter.segment(embedding, [Prompt.from_clicks([(420, 310, 1)])])
    mask = suggestion.mask.full()

This half runs on NumPy, Pillow and ONNX Runtime. `edgesam_core.nn` (PyTorch) and
`edgesam_core.export` are never imported from here.
"""

from edgesam_core.bundle import Bundle, find_bundle
from edgesam_core.decode import Prompt
from edgesam_core.encode import Embedding
from edgesam_core.errors import (
    BundleError,
    EdgeSamError,
    ImageError,
    ImageTooLarge,
    PromptError,
)
from edgesam_core.image import read_image
from edgesam_core.manifest import Manifest
from edgesam_core.segmenter import Segmenter, Suggestion
from edgesam_core.windowed_mask import WindowedMask

__all__ = [
    "Bundle",
    "BundleError",
    "EdgeSamError",
    "Embedding",
    "ImageError",
    "ImageTooLarge",
    "Manifest",
    "Prompt",
    "PromptError",
    "Segmenter",
    "Suggestion",
    "WindowedMask",
    "find_bundle",
    "read_image",
]
