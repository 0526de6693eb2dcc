"""Files of tensors in the safetensors format: names, types, shapes and numbers, and nothing that could be run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn import Shape

REAL: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
"""The types of tensors that can be read, as the format calls them, and what is read of each number."""

_LENGTH_BYTES = 8
"""Of the length of the header, with which a file begins."""


@dataclass(frozen=True)
class Entry:
    """What the header of a file says about a tensor.

    Attributes
    ----------
    dtype : str
        As the format calls it: "F32", "BF16", ...
    shape : tuple of int
    offset : int
        The first of its bytes in the file.
    """

    dtype: str
    shape: Shape
    offset: int


class TensorFile:
    """A file of tensors, of which one at a time is read.

    Parameters
    ----------
    path : path-like

    Attributes
    ----------
    path : Path
    entries : dict of str to Entry
        All of its tensors by name.

    Raises
    ------
    InputError
        There is no such file, or it is not whole or not of the format.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():  # a pipe would be waited for
            what = "is a folder" if self.path.is_dir() else "is no regular file"
            raise InputError(what, where=path, expected="a .safetensors file")
        try:
            # `safe_open` compares all that the header says with the file's length: of this file, whatever its name.
            with open(self.path, "rb") as file, safe_open(f"/dev/fd/{file.fileno()}", framework="numpy"):
                self.entries = _read_header(file)
        except FileNotFoundError:
            raise InputError("no such file", where=path, expected="a .safetensors file") from None
        except OSError as error:
            raise InputError("the file cannot be read", where=path, found=error) from error
        except SafetensorError as error:
            raise InputError(
                "not a whole .safetensors file",
                where=path,
                found=error,
                remedy="copy it once more, or write one with safetensors.torch.save_file(model.state_dict(), ...)",
            ) from None

    def read(self, name: str) -> np.ndarray:
        """Return a tensor of one of the types in `REAL`; one of "BF16", which NumPy lacks, in float32.

        Raises
        ------
        InputError
            The file cannot be read any more, or has become shorter.
        """
        entry = self.entries[name]
        count = math.prod(entry.shape)
        try:
            values = np.fromfile(self.path, REAL[entry.dtype], count, offset=entry.offset)
        except OSError as error:
            raise InputError("the file cannot be read", where=self.path, found=error) from error
        if values.size != count:
            raise InputError("the file has changed", where=self.path, found=f"{values.size} of {count} numbers")
        if entry.dtype == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32
        return values.reshape(entry.shape)


def _read_header(file: BinaryIO) -> dict[str, Entry]:
    """Return the entries of a file that is known to be whole."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: Entry(entry["dtype"], tuple(entry["shape"]), _LENGTH_BYTES + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def encode(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a file of tensors, the same each time.

    Parameters
    ----------
    tensors : mapping of str to array
        C-contiguous.
    metadata : mapping of str to str
        What the header says besides.
    """
    data = save(dict(tensors), {"format": "pt"} | dict(metadata))  # other programs ask for this word
    # The library writes the metadata in another order each time.
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + data[start:]
