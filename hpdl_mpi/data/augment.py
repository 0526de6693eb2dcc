"""What a job says about augmentation: settings, and the shape that samples have after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from hpdl_mpi.base.errors import InputError, integers, is_flag, is_integer, is_number, require
from hpdl_mpi.base.output import counted
from hpdl_mpi.data.transform import Shape

Size = int | Sequence[int]
"""Of a square, or (height, width)."""


def _pair(size: Any) -> tuple[int, int]:
    height, width = integers(size) or (int(size), int(size))
    return height, width


_MOST_PIXELS = 2**15
"""Of a side: beyond any photograph, and far from what numbers of an image overflow at."""

_MOST_JITTER = 100.0
"""Of brightness and its like; 1 changes them to nothing or twice as much."""


def _is_length(value: Any, least: int) -> bool:
    return is_integer(value, least) and value <= _MOST_PIXELS


def _is_size(value: Any) -> bool:
    sides = integers(value)
    return all(_is_length(side, 1) for side in (sides if sides and len(sides) == 2 else [value]))


def _is_part(value: Any) -> bool:
    return is_number(value) and 0 < value <= 1


_SIZE = _is_size, f"an integer of 1 to {_MOST_PIXELS}, or two: height and width", _pair
_PART = _is_part, "a number above 0, at most 1", float
_KEYS: dict[str, tuple[Callable[[Any], bool], str, Callable[[Any], Any]]] = {
    "flip": (is_flag, "true or false", bool),
    "crop": _SIZE,
    "pad": (lambda value: _is_length(value, 0), f"an integer of 0 to {_MOST_PIXELS}", int),
    "resized_crop": _SIZE,
    "central_fraction": _PART,
    "jitter": (lambda value: isinstance(value, Jitter), "a Jitter", lambda value: value),
    "cutout": (lambda value: _is_length(value, 1), f"an integer of 1 to {_MOST_PIXELS}", int),
    "mixup": (lambda value: is_number(value) and 1e-3 <= value <= 1, "a number of 0.001 to 1", float),
}
"""What each key may be, how that is said, and what it becomes, of NumPy's kinds too; a None by default may stay."""


@dataclass(frozen=True)
class Jitter:
    """How far colours may change: see `kernels.color.jitter`.

    Parameters
    ----------
    brightness, contrast, saturation : float
        Factors are drawn from ``max(0, 1 - x)`` to ``1 + x``.
    hue : float
        The hue turns by ``-hue`` to ``hue`` of the circle; at most 0.5, which is all of it.

    Raises
    ------
    InputError
        A number is out of range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            most = 0.5 if name == "hue" else _MOST_JITTER
            expected = f"a number of 0 to {most:g}"
            require(f"augment.jitter.{name}", value, is_number(value) and 0 <= value <= most, expected)
            object.__setattr__(self, name, float(value))


@dataclass(frozen=True)
class Augment:
    """How training images are varied, each by what is drawn for (seed, epoch, sample id). Immutable and hashable.

    The order is: crop, mirror, colours, the transform, cutout, mixup. Samples to evaluate or to predict are cropped in
    the middle, and nothing else.

    Parameters
    ----------
    flip : bool
        Mirror every other image, left to right.
    crop : int or (int, int), optional
        Height and width of a window at a random place.
    pad : int
        Black pixels (0 as stored) around images before they are cropped.
    resized_crop : int or (int, int), optional
        Height and width that a window of random place, size and shape is resized to, as torchvision's
        RandomResizedCrop: 8 to 100 % of the area, sides of 3 : 4 to 4 : 3.
    central_fraction : float
        Of the largest window in the middle that has the shape of `resized_crop`, the part of its sides that is
        evaluated: 0.875 is 224 pixels of 256.
    jitter : Jitter
    cutout : int, optional
        Side of a square whose middle is a random pixel, and which is set to the mean (DeVries and Taylor, 2017).
    mixup : float, optional
        Alpha of the Beta distribution of the parts in which two samples, and their targets, are mixed; see
        `kernels.mixup`. Above 0, at most 1.

    Raises
    ------
    InputError
        A value is out of range, or two do not go together.
    """

    flip: bool = False
    crop: Size | None = None
    pad: int = 0
    resized_crop: Size | None = None
    central_fraction: float = 0.875
    jitter: Jitter = Jitter()
    cutout: int | None = None
    mixup: float | None = None

    def __post_init__(self) -> None:
        for key in fields(self):
            value = getattr(self, key.name)
            if value is None and key.default is None:
                continue
            possible, expected, convert = _KEYS[key.name]
            require(f"augment.{key.name}", value, possible(value), expected)
            object.__setattr__(self, key.name, convert(value))
        if self.crop and self.resized_crop:
            raise InputError("both say how images are cropped", where="augment.crop and resized_crop")
        if self.pad and not self.crop:
            raise InputError("a border is for what is cropped", where="augment.pad", remedy="give augment.crop")
        if self.central_fraction != Augment.central_fraction and not self.resized_crop:
            raise InputError(
                "it says what is evaluated of what training crops and resizes",
                where="augment.central_fraction",
                remedy="give augment.resized_crop",
            )
        if self.crop and self.pad >= min(_pair(self.crop)):
            expected = f"less than the crop, {min(_pair(self.crop))}"
            raise InputError(
                "a window could lie in the border alone", where="augment.pad", found=self.pad, expected=expected
            )

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of what is cropped."""
        size = self.crop or self.resized_crop
        return None if size is None else _pair(size)

    @property
    def jitters(self) -> bool:
        """Whether colours change."""
        return self.jitter != Jitter()

    @property
    def of_images(self) -> bool:
        """Whether anything is set that only images can take; mixup suits all samples."""
        return self.flip or self.jitters or self.size is not None or self.cutout is not None

    def output_shape(self, shape: Shape, where: Any = "data.augment") -> Shape:
        """Return the shape of a sample after augmentation, from that of a transformed one; pure.

        Raises
        ------
        InputError
            Samples of this shape cannot be augmented; `where` they are opens the message.
        """
        if not self.of_images:
            return shape
        if len(shape) != 3:
            raise InputError(
                "only images can be augmented",
                where=where,
                found=f"samples of shape {shape}",
                expected="(height, width, channels)",
                remedy='leave data.augment out; images without channels need data.transform.layout = "hw"',
            )
        height, width, channels = shape
        if self.jitters and channels != 3 and (channels != 1 or self.jitter.saturation or self.jitter.hue):
            raise InputError(
                "these colours cannot change as data.augment.jitter says",
                where=where,
                found=f"images of {counted(channels, 'channel')}",
                expected="3 channels, red, green and blue; or 1, without saturation and hue",
                remedy='leave jitter out, or see whether data.transform.layout is that of the images: "hwc" or "chw"',
            )
        sides = self.size or (height, width)
        if self.cutout and self.cutout > min(sides):
            raise InputError(
                "nothing could be left of an image",
                where="data.augment.cutout",
                found=self.cutout,
                expected=f"at most {min(sides)}, of images of {sides[0]} x {sides[1]} pixels (height x width)",
            )
        if self.size is None:
            return shape
        needed = [side - 2 * self.pad for side in self.size]
        if self.crop and (height < needed[0] or width < needed[1]):
            border = f", and a border of {self.pad}" if self.pad else ""
            raise InputError(
                "images are smaller than the crop",
                where=where,
                found=f"{height} x {width} pixels (height x width){border}",
                expected="at least {} x {} pixels in all".format(*self.size),
                remedy="lower data.augment.crop, raise data.augment.pad, or take data.augment.resized_crop, which "
                "enlarges",
            )
        return (*self.size, channels)
