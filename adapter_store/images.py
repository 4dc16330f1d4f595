"""Decode untrusted picture bytes into plain RGB, or say why not.

JPEG, PNG, WEBP and GIF (first frame) are told by their content, never by a
name. The size in the header is checked before a pixel is decoded. Messages of
:class:`ImageError` are written here: they never repeat a library's text, so no
object address or path can leak.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from urllib.parse import unquote_to_bytes

from PIL import Image

from adapter_store.errors import ImageError

MAX_PIXELS = 40_000_000
MAX_BYTES = 20 * 1024 * 1024
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF"}
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What base64 of each accepted format starts with; "/9j/" would else look like a path.
_BASE64_HEADS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")


def picture_kind(head: bytes) -> str | None:
    """Return "png", "jpg", "webp" or "gif" for the first 12 bytes of a file, or None."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    return None


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Decode one picture to RGB: upright, 8 bits, transparency on white, first frame.

    Raises:
        ImageError: not one of the four formats, too large, truncated or damaged.
    """
    if len(data) > max_bytes:
        raise ImageError(
            f"the picture has {len(data)} bytes; at most {max_bytes} are accepted", param="image"
        )
    kind = _kind_of(data)
    image = _open(data, kind, max_pixels)
    try:
        image.load()
        upright = _upright(image)
        return _to_rgb(upright)
    except MemoryError:
        raise ImageError("the picture is too large to decode", param="image") from None
    except Exception:  # noqa: BLE001
        # Decoders raise many types on damaged bytes, and their text may show an object address.
        raise ImageError(f"the {FORMATS[kind]} picture is truncated or damaged", param="image") from None


def count_pixels(data: bytes, *, max_pixels: int = MAX_PIXELS) -> int:
    """Return how many pixels a picture has, from its header alone.

    Raises:
        ImageError: empty, not one of the four formats, or too many.
    """
    with _open(data, _kind_of(data), max_pixels) as image:
        return image.size[0] * image.size[1]


def image_digest(image: Image.Image) -> str:
    """Return the sha256 over mode, size and pixels, as hex.

    Two pictures with the same bytes of pixels but another shape differ.
    """
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def looks_inline(text: str) -> bool:
    """Say whether text is a data: URL or bare base64 of a picture, not a name."""
    if text[:5].lower() == "data:":
        return True
    return len(text) >= 32 and text.startswith(_BASE64_HEADS) and "." not in text[:64]


def decode_inline(text: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of a ``data:...;base64,`` URL or of bare base64 text.

    Raises:
        ImageError: not base64, or more than ``max_bytes`` once decoded.
    """
    body = text
    if text[:5].lower() == "data:":
        head, comma, body = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ImageError('the data: URL is not base64; write "data:image/png;base64,..."', param="image")
    if len(body) > max_bytes * 3 // 2 + 1024:
        raise ImageError(f"the picture is larger than the {max_bytes} bytes accepted", param="image")
    try:
        raw = unquote_to_bytes(body) if "%" in body else body.encode("ascii")
        raw = raw.translate(None, b" \t\r\n").rstrip(b"=")
        return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("the picture is not valid base64", param="image") from None


def _kind_of(data: bytes) -> str:
    if not data:
        raise ImageError("the picture is empty (0 bytes)", param="image")
    kind = picture_kind(data[:12])
    if kind is None:
        raise ImageError("the bytes are not a JPEG, PNG, WEBP or GIF picture", param="image")
    return kind


def _open(data: bytes, kind: str, max_pixels: int) -> Image.Image:
    too_many = f"the picture has more pixels than the {max_pixels} accepted"
    try:
        image = Image.open(io.BytesIO(data), formats=(FORMATS[kind],))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(too_many, param="image") from None
    except Exception:  # noqa: BLE001
        raise ImageError(f"the {FORMATS[kind]} picture is truncated or damaged", param="image") from None
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{too_many} ({width}x{height})", param="image")
    if width < 1 or height < 1:
        raise ImageError("the picture has no pixels", param="image")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001
        return image  # damaged EXIF data says nothing about the pixels
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I"):
        # 16-bit gray: keep the high byte; a plain convert would clip at 255.
        wide = image if image.mode == "I" else image.convert("I")
        return wide.point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
