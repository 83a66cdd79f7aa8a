"""The bytes of an image file become RGB pixels, upright.

Second step of a click's path: bytes -> [H, W, 3] uint8. What comes out is what the annotator sees
in the browser: turned as the camera says, transparent parts white, the first frame of an animation.
Everything that can be wrong with a file becomes one sentence; Pillow's exceptions end here. Colour
profiles are not applied, as in the published predictor.

Fetching the bytes is backend/images.py's part, resizing preprocess.py's.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image

from edgesam_core.arrays import ImageRGB
from edgesam_core.errors import ImageError, ImageTooLarge

DEFAULT_MAX_PIXELS = 60_000_000
"""About 9000 x 6600, 240 MB while it is decoded. Pillow itself refuses from 179 million on."""

# What a browser shows, and what scanners and microscopes write. Formats that Pillow hands to other
# programs (EPS to Ghostscript) or that hold no pixels (PDF, WMF) are not tried at all.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")

# What Pillow's decoders raise on damaged files; they leak from format to format.
_UNREADABLE = (
    OSError,  # also UnidentifiedImageError, and truncated files
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    AssertionError,
    AttributeError,
    NotImplementedError,
    struct.error,
    zlib.error,
)

# EXIF orientation -> what makes the picture upright (Exif 2.32, tag 0x0112); 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageRGB:
    """The pixels of an image file.

    Args:
        data: The whole file: JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, JPEG 2000 or PPM.
        max_pixels: Larger images are refused from their header, before any pixel is decoded.

    Returns:
        [H, W, 3] uint8 RGB, EXIF rotation applied; read-only.

    Raises:
        ImageTooLarge: Over the pixel limit, or over Pillow's own limit against decompression bombs.
        ImageError: Empty, not an image, cut off, or of a kind that cannot be turned into RGB.
    """
    if not data:
        raise ImageError("The image file is empty. Upload it again.")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageTooLarge(detail=str(exc)) from exc
    except _UNREADABLE as exc:
        raise ImageError(
            "The file is no image that can be read. Save it as PNG or JPEG and upload it again.",
            detail=f"{len(data)} bytes: {type(exc).__name__}: {exc}",
        ) from exc
    with image:
        width, height = image.size
        if width < 1 or height < 1:
            raise ImageError(f"The image has no pixels ({width} x {height}). Upload another one.")
        if width * height > max_pixels:
            raise ImageTooLarge(
                f"The image has {width} x {height} pixels, the limit is "
                f"{max_pixels / 1e6:.3g} million. Make it smaller or raise the limit."
            )
        try:
            upright = _to_rgb(_turn_upright(image))
            return np.asarray(upright)
        except _UNREADABLE as exc:
            raise ImageError(
                "The image file is cut off or damaged. Save it as PNG or JPEG and upload it again.",
                detail=f"{image.format} {image.mode} {width} x {height}: {exc}",
            ) from exc


def _turn_upright(image: Image.Image) -> Image.Image:
    """Undo the camera's rotation where a browser undoes it, and nowhere else.

    Annotator and model must see the same picture. Chromium 156 was seen to follow the orientation
    in the EXIF data of JPEG, PNG and AVIF, and to ignore it in WebP, in XMP and in ImageMagick's
    text chunk, all of which Pillow follows.
    """
    image.load()  # PNG may tell its EXIF data after the pixels
    if image.format == "WEBP":
        return image
    for copy in ("xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        image.info.pop(copy, None)
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _UNREADABLE:
        orientation = 1  # damaged EXIF data: browsers show such a picture as it is stored
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as 8-bit RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _deep_grey_to_rgb(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Grey with more than 8 bits (16-bit, 32-bit, float), stretched from its own range to 0..255.

    Such files come from microscopes and scanners, which seldom use the whole range: dividing 12-bit
    data by 256 would give a black picture. A constant picture becomes mid-grey.
    """
    levels = np.asarray(image).astype(np.float32)
    finite = np.isfinite(levels)
    if not finite.any():
        raise ValueError("no finite pixel")
    low, high = float(levels[finite].min()), float(levels[finite].max())
    stretched = (levels - low) * (255 / (high - low)) if high > low else np.full_like(levels, 128)
    grey = np.nan_to_num(stretched, nan=0, posinf=255, neginf=0).round().clip(0, 255)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
