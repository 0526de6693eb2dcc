"""One image: from the bytes of a file to an array, by Pillow. Whatever is wrong with it is a `BadImage`."""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from hpdl_mpi.base.errors import HpdlError, InputError

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Pillow's modes of at most 8 bits per channel, once an image is decoded; which a file may exceed."""

MAX_PIXELS = 89_478_485
"""Those of 256 MiB in RGB, the bound of Pillow itself; a few bytes can claim more."""

_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, IndexError, KeyError, OverflowError, RuntimeError),
    *(struct.error, zlib.error),
)
"""What Pillow raises when it opens or loads damaged files; anywhere else these are bugs of ours."""


class BadImage(InputError):
    """A file that is no image, or one that cannot be used."""


@dataclass(frozen=True)
class Form:
    """What every image is made into.

    Attributes
    ----------
    size : int, optional
        Height and width; by default an image keeps its own.
    grayscale : bool
        One channel in place of three, by the weights of ITU-R 601-2.
    """

    size: int | None = None
    grayscale: bool = False


def measure(stream: BinaryIO, form: Form) -> tuple[int, int]:
    """Return height and width of what `decode` would return; reads no more than the header.

    Raises
    ------
    BadImage
        Empty, of an unknown format, of more than 8 bits per channel, or too large.
    """
    with _open(stream, form) as image:
        return (form.size, form.size) if form.size else (image.height, image.width)


def decode(stream: BinaryIO, form: Form) -> np.ndarray:
    """Return the pixels of an image, uint8 (height, width, 3), or (height, width, 1) if `form.grayscale`.

    Colours of any kind become red, green and blue; transparency is dropped. With `form.size` the shorter side is made
    that long, larger or smaller, by a triangle filter as wide as the scale (what Pillow calls bilinear), and a square
    is cut from the middle: as torchvision's ``Resize`` and ``CenterCrop`` do.

    Raises
    ------
    BadImage
        What `measure` finds, or damage further on.
    """
    with _open(stream, form) as image:
        with _naming_damage():
            image.load()
        if image.mode == "P" and "transparency" in image.info:
            pixels = image.convert("RGBA").convert("L" if form.grayscale else "RGB")
        else:
            pixels = image.convert("L" if form.grayscale else "RGB")
        if form.size is not None:
            pixels = pixels.resize(_resized(pixels.size, form.size), Image.Resampling.BILINEAR)
            left, top = (round((side - form.size) / 2) for side in pixels.size)
            pixels = pixels.crop((left, top, left + form.size, top + form.size))
        return np.asarray(pixels).reshape(pixels.height, pixels.width, 1 if form.grayscale else 3)


def _resized(sides: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the sides of an image whose shorter one is made `size` long."""
    shorter = min(sides)
    width, height = (size * side // shorter for side in sides)
    return width, height


def _open(stream: BinaryIO, form: Form) -> ImageFile:
    with _naming_damage():
        head = stream.read(16)
        if not head:
            raise BadImage("an empty file")
        stream.seek(0)
        try:
            image = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError as error:
            known = ", ".join(FORMATS)
            raise BadImage("not an image", found=f"first bytes {head.hex()}", expected=f"one of {known}") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            # Pillow names a limit of its own beside the number.
            _refuse_pixels(re.sub(r"^Image size \((\d+ pixels)\).*", r"\1", str(error)))
    deep = image.mode[0] in "IF" or _is_deep(image)
    if deep or image.mode not in MODES:
        kind = "more than 8 bits per channel" if deep else f"Pillow's mode {image.mode}"
        raise BadImage(
            "pixels of a kind that does not fit into 8 bits",
            found=f"{image.format} of {kind}",
            remedy="scale and save it with 8 bits per channel first",
        )
    for sides in (image.size, _resized(image.size, form.size) if form.size else (0, 0)):
        if math.prod(sides) > MAX_PIXELS:
            _refuse_pixels(f"{sides[1]} x {sides[0]} pixels (height x width)")
    return image


def _is_deep(image: ImageFile) -> bool:
    """Return whether colours have more than 8 bits in the file, of which Pillow would drop some without a word."""
    for codec, _, _, args in image.tile:
        if codec == "zip" and isinstance(args, str) and ";16" in args:
            return True
        if codec in ("ppm", "ppm_plain") and isinstance(args, tuple) and args[1] > 255:
            return True
    return False


def _refuse_pixels(found: object) -> NoReturn:
    remedy = "scale or cut it first"
    raise BadImage("too many pixels", found=found, expected=f"at most {MAX_PIXELS}, also when scaled", remedy=remedy)


@contextmanager
def _naming_damage() -> Iterator[None]:
    """Turn what Pillow raises into a BadImage, and what the system does into another InputError."""
    try:
        yield
    except HpdlError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError("cannot be read", found=error.strerror) from error
        raise BadImage("a damaged image", found=error) from error
