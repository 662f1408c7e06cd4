"""Image files as a viewer shows them: turned as their camera noted, in RGB. The one reader of the library."""

import io
import os
from typing import IO, Any

import numpy as np
from PIL import Image

from petx.errors import UserError

ORIENTATION = 0x0112  # EXIF's tag
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SHOWN = ("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "RGBX")  # modes that Pillow brings to RGB as they are seen
_CLEAR = {
    "RGBA": "RGBA",
    "LA": "RGBA",
    "PA": "RGBA",
    "RGBa": "RGBA",
    "La": "LA",
}  # with an alpha channel, and by way of
_WORDS = (*_SHOWN, *_CLEAR, "I;16")
_TAIL = 64  # bytes of a file's end in which its last mark is looked for


def read_picture(path: str | os.PathLike | bytes, name: str | None = None) -> Image.Image:
    """The picture at ``path`` in mode RGB, turned as its EXIF orientation says, transparent parts on white.

    ``path`` may be the bytes of a file; ``name`` is what messages then call it.

    Raises :class:`UserError` naming the file if it is missing, no picture, cut short, or of a mode that has no one way
    to be seen: floating or 32-bit numbers, LAB.
    """
    called = str(path) if name is None else name
    try:
        with Image.open(_opened(path)) as file:
            file.load()  # before the orientation is asked for: some formats turn themselves here
            return _shown(_turned(file), called)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no such image: {called}") from error
    except Exception as error:  # a decoder of a format may raise anything on damaged bytes
        raise UserError(f"cannot read {called} as an image: {str(error) or type(error).__name__}") from error


def _opened(path: str | os.PathLike | bytes) -> str | os.PathLike | IO[bytes]:
    return io.BytesIO(path) if isinstance(path, bytes) else path


def check_picture(path: str | os.PathLike | bytes, name: str | None = None) -> None:
    """Raise :class:`UserError` if the file at ``path``, or of these bytes, is no picture or is cut short.

    A JPEG or PNG that ends with its format's last mark counts as whole; any other is read.
    """
    try:
        with Image.open(_opened(path)) as file:
            kind, known = file.format, file.mode in _WORDS
        with io.BytesIO(path) if isinstance(path, bytes) else open(path, "rb") as opened:
            opened.seek(max(0, opened.seek(0, os.SEEK_END) - _TAIL))
            tail = opened.read()
    except Exception as error:
        called = path if name is None else name
        raise UserError(f"cannot read {called!s} as an image: {str(error) or type(error).__name__}") from error
    if not known or {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(kind or "", b"\0" * 2 * _TAIL) not in tail:
        read_picture(path, name)


def _turned(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(ORIENTATION)
    except Exception:  # damaged notes of the camera: a viewer shows the picture as it lies
        return picture
    return picture.transpose(_TURNED[orientation]) if orientation in _TURNED else picture


def _shown(picture: Image.Image, name: str) -> Image.Image:
    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM", None) and _is_16_bit(picture)):
        values = np.asarray(picture, dtype=np.int64)
        if isinstance(picture.info.get("transparency"), int):  # the one grey that stands for nothing
            values = np.where(values == picture.info["transparency"], 65535, values)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if mode in _CLEAR or "transparency" in picture.info:
        clear = picture.convert(_CLEAR.get(mode, "RGBA")).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    if mode not in _SHOWN:
        raise UserError(f"cannot read {name} as an image: its mode is {mode}; wanted one of {', '.join(_WORDS)}")
    return picture.convert("RGB")


def _is_16_bit(picture: Image.Image) -> bool:
    extremes: Any = picture.getextrema()  # of one band
    return extremes[0] >= 0 and extremes[1] <= 65535
