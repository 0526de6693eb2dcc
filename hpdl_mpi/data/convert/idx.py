"""IDX, the format of MNIST and its relatives: a big-endian header, then the numbers; gzipped or not.

Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert.files import reading
from hpdl_mpi.data.convert.limits import check_claim
from hpdl_mpi.data.writer import Split

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
SPLITS = {"train": ("train-images",), "test": ("t10k-images", "test-images")}
MAX_DIMS = 8
_GZIP = b"\x1f\x8b"
_AGAIN = "get the file again: it is incomplete or damaged"


def recognises(names: Iterable[str]) -> bool:
    """Tell whether a folder with files of these names is meant for `read_splits`."""
    return any(pattern in name for name in names for patterns in SPLITS.values() for pattern in patterns)


def read_splits(source: Path) -> dict[str, Split]:
    """Read a folder with pairs of images and labels, or one file of images whose labels lie beside it.

    Returns
    -------
    dict of str to Split
        "train" and, from a folder, "test"; arrays ``x`` and ``y``. Grey images gain a channel dimension of 1.

    Raises
    ------
    InputError
        A pair is incomplete, or a file is not what its header says.
    """
    if source.is_file():
        return {"train": _read_pair(source)}
    found = {split: _find_images(source, patterns) for split, patterns in SPLITS.items()}
    if found["train"] is None:
        raise InputError(
            "no file of training images",
            where=source,
            expected="names such as train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz, or a folder of images "
            "for each class",
        )
    return {split: _read_pair(images) for split, images in found.items() if images is not None}


def _find_images(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    files = sorted(f for f in folder.iterdir() if any(p in f.name for p in patterns))
    if len(files) > 1:
        raise InputError(
            "more than one candidate",
            where=folder,
            found=", ".join(f.name for f in files),
            remedy="name one file of images as the source",
        )
    return files[0] if files else None


def _read_pair(images: Path) -> Split:
    labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels == images or not labels.is_file():
        raise InputError(
            "no labels found beside the images",
            where=images,
            expected="the same name with 'labels' in place of 'images'",
        )
    x, y = read_idx(images), read_idx(labels)
    if y.ndim != 1 or len(x) != len(y):
        raise InputError(
            "images and labels do not fit",
            where=images,
            found=f"images {x.shape}, labels {y.shape}",
            expected="one label per image",
        )
    return Split({"x": x[..., None] if x.ndim == 3 else x, "y": y})


def read_idx(path: Path) -> np.ndarray:
    """Return the array of one IDX file, in native byte order; the caller owns it.

    The header is checked against the length of the file before memory is taken, and no more than it announces is
    ever decompressed.

    Raises
    ------
    InputError
        Cannot be read, not IDX, longer or shorter than the header says, or damaged.
    """
    with reading(path):
        size = path.stat().st_size
        with open(path, "rb") as file:
            compressed = file.read(2) == _GZIP
        try:
            with gzip.open(path) if compressed else open(path, "rb") as stream:
                return _read_stream(stream, size, compressed, path)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError("damaged gzip data", where=path, found=error, remedy=_AGAIN) from error


def _read_stream(stream: io.BufferedIOBase, size: int, compressed: bool, path: Path) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or not 1 <= magic[3] <= MAX_DIMS:
        raise InputError("not an IDX file", where=path, found=f"first bytes {magic.hex()}", expected="0000, type, dims")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise InputError("shorter than its header", where=path, remedy=_AGAIN)
    shape = struct.unpack(f">{magic[3]}I", header)
    dtype = np.dtype(TYPES[magic[2]])
    claimed = math.prod(shape) * dtype.itemsize
    present = size - 4 - len(header)
    if not compressed and claimed != present:
        raise InputError(
            "length does not fit its header",
            where=path,
            found=f"{present} bytes",
            expected=f"{claimed} for shape {shape} of {dtype.name}",
            remedy=_AGAIN,
        )
    check_claim(claimed, size, path)
    data = np.empty(claimed, np.uint8)
    filled = 0
    while filled < claimed and (got := stream.readinto(data.data[filled:])):
        filled += got
    if filled < claimed or stream.read(1):
        raise InputError(
            f"holds {'less' if filled < claimed else 'more'} than its header says",
            where=path,
            expected=f"{claimed} bytes for shape {shape} of {dtype.name}",
            remedy=_AGAIN,
        )
    return data.view(dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
