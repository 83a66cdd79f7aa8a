from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgesam_core.errors import ImageError, ImageTooLarge
from edgesam_core.image import read_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def four_corners() -> Image.Image:
    """40 x 24, red top-left, green top-right, blue bottom-left, white bottom-right."""
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:12, :20], pixels[:12, 20:] = RED, GREEN
    pixels[12:, :20], pixels[12:, 20:] = BLUE, WHITE
    return Image.fromarray(pixels)


# How a camera stores a picture that is upright after the given EXIF orientation is undone.
STORED_AS = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int, kind: str) -> None:
    upright = np.asarray(four_corners())
    stored = Image.fromarray(np.ascontiguousarray(STORED_AS[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    pixels = read_image(file_of(stored, kind, exif=exif, **options))
    assert pixels.shape == upright.shape
    # The middle of each quarter, since JPEG and AVIF blur the borders.
    np.testing.assert_allclose(pixels[6::12, 10::20], upright[6::12, 10::20], atol=8)


def turned_by_a_note_that_browsers_ignore(note: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    if note == "exif of webp":
        return file_of(four_corners(), "WEBP", exif=exif, lossless=True)
    if note == "xmp of jpeg":
        return file_of(four_corners(), "JPEG", xmp=xmp.encode(), quality=95)
    text = PngInfo()
    if note == "xmp of png":
        text.add_itxt("XML:com.adobe.xmp", xmp)
    else:
        block = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
        text.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n")
    return file_of(four_corners(), pnginfo=text)


@pytest.mark.parametrize("note", ["exif of webp", "xmp of png", "xmp of jpeg", "text of png"])
def test_what_browsers_do_not_turn_is_not_turned(note: str) -> None:
    data = turned_by_a_note_that_browsers_ignore(note)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.getexif()[0x0112] == 6  # Pillow would turn it
    pixels = read_image(data)
    assert pixels.shape == (24, 40, 3)
    expected = np.asarray(four_corners())
    np.testing.assert_allclose(pixels[6::12, 10::20], expected[6::12, 10::20], atol=8)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, of damaged EXIF data
def test_damaged_exif_data_leaves_the_picture_as_it_is_stored() -> None:
    data = file_of(four_corners(), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    np.testing.assert_array_equal(read_image(data), four_corners())


def test_an_orientation_that_does_not_exist_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    np.testing.assert_array_equal(read_image(file_of(four_corners(), exif=exif)), four_corners())


def grey_ramp() -> npt.NDArray[np.uint8]:
    return np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_grey_becomes_three_equal_channels() -> None:
    pixels = read_image(file_of(Image.fromarray(grey_ramp())))
    np.testing.assert_array_equal(pixels, np.stack([grey_ramp()] * 3, axis=-1))


def test_one_bit_becomes_black_and_white() -> None:
    image = Image.fromarray(grey_ramp() > 127)
    assert image.mode == "1"
    pixels = read_image(file_of(image))
    np.testing.assert_array_equal(pixels[..., 1], np.where(grey_ramp() > 127, 255, 0))


def test_a_palette_is_resolved() -> None:
    image = four_corners().quantize(4)
    assert image.mode == "P"
    np.testing.assert_array_equal(read_image(file_of(image)), four_corners())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white_as_on_the_page(mode: str) -> None:
    image = four_corners().convert("RGBA")
    image.paste((10, 10, 10, 0), (0, 0, 20, 24))
    data = file_of(image.quantize(8) if mode == "P" else image.convert(mode))
    pixels = read_image(data)
    assert (pixels[:, :20] == 255).all()
    assert (pixels[:12, 20:] != 255).any()


def test_a_transparent_colour_of_a_png_without_alpha_is_white() -> None:
    pixels = read_image(file_of(four_corners(), transparency=RED))
    assert pixels[0, 0].tolist() == list(WHITE)
    assert pixels[0, 39].tolist() == list(GREEN)


def test_half_transparent_mixes_with_white() -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert read_image(file_of(image))[0, 0].tolist() == [127, 127, 127]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_twelve_bit_grey_in_sixteen_is_stretched_to_its_own_range(kind: str) -> None:
    levels = np.linspace(200, 4095, 256).astype(np.uint16).reshape(16, 16)
    pixels = read_image(file_of(Image.fromarray(levels), kind))
    assert pixels.shape == (16, 16, 3)
    assert (pixels.min(), pixels.max()) == (0, 255)
    np.testing.assert_allclose(pixels[..., 0].ravel(), np.arange(256), atol=1)


@pytest.mark.parametrize(
    "levels",
    [
        pytest.param(np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8), id="float"),
        pytest.param(np.linspace(0, 10**9, 64).astype(np.int32).reshape(8, 8), id="32-bit"),
    ],
)
def test_deep_tiff_is_stretched(levels: npt.NDArray[np.generic]) -> None:
    pixels = read_image(file_of(Image.fromarray(levels), "TIFF"))
    np.testing.assert_allclose(pixels[..., 2].ravel(), np.linspace(0, 255, 64), atol=1)


def test_float_pixels_that_are_no_numbers_are_black() -> None:
    levels = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    levels[0, 1] = np.nan
    assert read_image(file_of(Image.fromarray(levels), "TIFF"))[0, 1].tolist() == [0, 0, 0]


def test_a_constant_deep_picture_is_mid_grey() -> None:
    levels = np.full((8, 8), 4095, np.uint16)
    assert (read_image(file_of(Image.fromarray(levels))) == 128).all()


def test_sixteen_bit_colour_keeps_its_upper_byte() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", 0xFF00, 0x8000, 0, 0x1234, 0xABCD, 0xFFFF)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert read_image(data).tolist() == [[[255, 128, 0], [0x12, 0xAB, 255]]]


def test_cmyk_becomes_rgb() -> None:
    data = file_of(four_corners().convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_allclose(
        read_image(data)[6::12, 10::20], np.asarray(four_corners())[6::12, 10::20], atol=12
    )


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(data)[0, 0].tolist() == list(RED)


def test_what_comes_out_is_ready_to_be_shared_between_threads() -> None:
    pixels = read_image(file_of(four_corners()))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert not pixels.flags.writeable


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html><body>Log in</body></html>", id="a login page"),
        pytest.param(b"%PDF-1.7\n", id="a document"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", id="PostScript"),
        pytest.param(b"\x89PNG\r\n\x1a\n", id="only the first bytes of a PNG"),
        pytest.param(bytes(1000), id="zeros"),
    ],
)
def test_what_is_no_image_gets_a_sentence(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        read_image(data)
    assert type(caught.value) is ImageError
    assert caught.value.sentence.endswith("upload it again.") or "Upload it" in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_torn_file_gets_a_sentence(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = file_of(Image.fromarray(noise), kind)
    with pytest.raises(ImageError, match="PNG or JPEG"):
        read_image(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, of damaged EXIF data
def test_flipped_bytes_never_leak_an_exception_of_pillow() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    random = np.random.default_rng(2)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        original = file_of(Image.fromarray(noise), kind)
        for _ in range(60):
            data = bytearray(original)
            for position in random.integers(0, len(data), 4):
                data[position] ^= int(random.integers(1, 256))
            with contextlib.suppress(ImageError):
                assert read_image(bytes(data), max_pixels=10**6).ndim == 3


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d" + body + struct.pack(">I", zlib.crc32(body))
        + b"\x00\x00\x00\x00IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )  # fmt: skip


def test_an_image_without_pixels_gets_a_sentence() -> None:
    with pytest.raises(ImageError):
        read_image(png_header(0, 10))


def test_the_pixel_limit_is_checked_before_anything_is_decoded() -> None:
    # The file holds no pixel data: decoding it would give "cut off", not "too large".
    with pytest.raises(ImageTooLarge, match=r"4000 x 3000 pixels, the limit is 11.9 million"):
        read_image(png_header(4000, 3000), max_pixels=11_900_000)
    with pytest.raises(ImageError, match="cut off"):
        read_image(png_header(4000, 3000), max_pixels=12_000_000)


@pytest.mark.parametrize(
    "side", [pytest.param(12_000, id="Pillow warns"), pytest.param(60_000, id="Pillow refuses")]
)
def test_a_decompression_bomb_is_too_large(side: int) -> None:
    with pytest.raises(ImageTooLarge):
        read_image(png_header(side, side))


def test_the_sentence_of_a_torn_image_has_no_class_name_and_no_path() -> None:
    with pytest.raises(ImageError) as caught:
        read_image(file_of(four_corners(), "JPEG")[:300])
    assert "Error" not in caught.value.sentence
    assert "/" not in caught.value.sentence
