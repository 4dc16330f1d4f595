"""Pictures from strangers: decoded the same way always, or refused with a plain sentence."""

from __future__ import annotations

import base64
import io
import re
import struct
import time
import zlib

import pytest
from PIL import Image

from adapter_store.errors import ImageError
from adapter_store.images import decode_image, decode_inline, image_digest, looks_inline, picture_kind


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def gradient(width: int = 9, height: int = 5) -> Image.Image:
    image = Image.new("RGB", (width, height))
    for x in range(width):
        for y in range(height):
            image.putpixel((x, y), (x * 20, y * 40, 128))
    return image


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_all_four_formats_are_told_by_content(kind: str) -> None:
    decoded = decode_image(encoded(gradient(), kind))
    assert (decoded.mode, decoded.size) == ("RGB", (9, 5))


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "ICO", "PDF"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(ImageError, match="not a JPEG, PNG, WEBP or GIF"):
        decode_image(encoded(gradient(32, 32), kind))


def test_one_pixel_is_a_picture() -> None:
    assert decode_image(encoded(Image.new("RGB", (1, 1), "red"), "PNG")).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_pictures_are_refused_without_an_address_or_a_path(kind: str, share: float) -> None:
    data = encoded(Image.effect_noise((64, 64), 80).convert("RGB"), kind)
    with pytest.raises(ImageError) as caught:
        decode_image(data[: int(len(data) * share)])
    assert not re.search(r"0x[0-9a-f]{6}|<_io|/[a-z]+/|BytesIO", str(caught.value))


@pytest.mark.parametrize("side", [7_000, 10_000, 60_000])
def test_a_bomb_is_refused_from_its_header(side: int) -> None:
    started = time.perf_counter()
    with pytest.raises(ImageError, match="more pixels"):
        decode_image(png_header(side, side))
    assert time.perf_counter() - started < 0.5


def test_a_small_limit_holds_for_real_pictures() -> None:
    with pytest.raises(ImageError, match="9x5"):
        decode_image(encoded(gradient(), "PNG"), max_pixels=44)
    with pytest.raises(ImageError, match="bytes"):
        decode_image(encoded(gradient(), "PNG"), max_bytes=20)


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"hello"]
)
def test_heads_without_a_body_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(data)


def test_only_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(data).getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(orientation: int) -> None:
    stored = gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(stored, "PNG", exif=exif))
    source_of_top_left = {
        1: (0, 0),
        2: (8, 0),
        3: (8, 4),
        4: (0, 4),
        5: (0, 0),
        6: (0, 4),
        7: (8, 4),
        8: (8, 0),
    }
    assert decoded.size == ((9, 5) if orientation < 5 else (5, 9))
    assert decoded.getpixel((0, 0)) == stored.getpixel(source_of_top_left[orientation])


def test_transparency_becomes_white_in_every_mode() -> None:
    clear = Image.new("RGBA", (3, 3), (200, 10, 10, 0))
    assert decode_image(encoded(clear, "PNG")).getpixel((1, 1)) == (255, 255, 255)
    assert decode_image(encoded(clear.convert("LA"), "PNG")).getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (3, 3), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert decode_image(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encoded(palette, "PNG")).getpixel((0, 0)) == (10, 20, 30)
    gray = Image.new("L", (3, 3), 7)
    assert decode_image(encoded(gray, "PNG", transparency=7)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_gray_keeps_its_shades() -> None:
    image = Image.new("I;16", (2, 1))
    image.putpixel((0, 0), 0x8000)
    image.putpixel((1, 0), 0xFFFF)
    decoded = decode_image(encoded(image, "PNG"))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(128, 128, 128), (255, 255, 255)]


def test_cmyk_jpeg_becomes_rgb() -> None:
    assert decode_image(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")).getpixel((2, 2)) == (
        255,
        255,
        255,
    )


def test_the_digest_depends_on_shape_as_well_as_on_bytes() -> None:
    wide, tall = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 4), "red")
    assert wide.tobytes() == tall.tobytes()
    assert image_digest(wide) != image_digest(tall)
    assert image_digest(wide) == image_digest(decode_image(encoded(wide, "PNG")))


def test_inline_text_is_told_from_names_and_decoded() -> None:
    data = encoded(gradient(), "PNG")
    text = base64.b64encode(data).decode()
    url = f"data:image/png;base64,{text}"
    assert looks_inline(text)
    assert looks_inline(url)
    assert not looks_inline("images/iVBOR.png")
    assert decode_inline(text) == decode_inline(url) == decode_inline(text.rstrip("=") + "\n") == data
    assert picture_kind(data) == "png"
    for bad in ("data:image/png,abc", "data:image/png;base64", "data:;base64,@@@@", "data:;base64,\u00e9"):
        with pytest.raises(ImageError):
            decode_inline(bad)
    with pytest.raises(ImageError, match="larger"):
        decode_inline("A" * 10_000, max_bytes=100)
