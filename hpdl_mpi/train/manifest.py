"""The manifest of a checkpoint: what its files are, checked before anything of them is believed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.train.problems import problems
from hpdl_mpi.train.progress import Progress
from hpdl_mpi.train.section import Positive

FORMAT = 2
DAMAGED = "a damaged checkpoint"

Count = Annotated[int, Field(ge=0)]


class StoredFile(TypedDict):
    """One file of a checkpoint, and its slices: kind, parameter, first and last + 1 element of each."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]  # in the checkpoint's folder, nowhere else
    sha256: str
    slices: list[tuple[str, str, Count, Count]]


def _require_fields(progress: Any) -> Any:
    """Refuse what leaves fields out: their defaults are those of a run that begins."""
    missing = [field.name for field in fields(Progress) if isinstance(progress, dict) and field.name not in progress]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    return progress


def _kind_of_shape(value: Any) -> str:
    """Tell the shape of one array from those of several; the name of the former is empty, and no part of a path."""
    return "arrays" if isinstance(value, list) and value and isinstance(value[0], list) else ""


_Sizes = tuple[Positive, ...]
InputShape = Annotated[
    Annotated[_Sizes, pydantic.Tag("")] | Annotated[tuple[_Sizes, ...], pydantic.Tag("arrays")],
    pydantic.Discriminator(_kind_of_shape),
]


class _Stated(TypedDict):
    format: int


class Manifest(_Stated):
    """What a checkpoint says about itself. The slices of a parameter follow each other without gaps."""

    step: Count
    dtype: Literal["float32", "float64"]
    input_shape: InputShape
    parameters: dict[str, tuple[Count, ...]]
    files: list[StoredFile]
    progress: Annotated[Progress, pydantic.BeforeValidator(_require_fields)]


_STATED, _MANIFEST = pydantic.TypeAdapter(_Stated), pydantic.TypeAdapter(Manifest)


def read_manifest(checkpoint: Path) -> Manifest:
    """Return the manifest of a checkpoint.

    Raises
    ------
    InputError
        It is missing, damaged or of another format.
    """
    path = checkpoint / "manifest.json"
    try:
        data = path.read_bytes()
        found = _STATED.validate_json(data, strict=True)["format"]
        if found == FORMAT:
            if not _is_sealed(json.loads(data)):
                raise damaged(path, "another checksum than its own")
            return _MANIFEST.validate_json(data, strict=True)
    except OSError as error:
        raise damaged(path, error.strerror) from error
    except pydantic.ValidationError as error:
        raise damaged(path, problems(error)[0]) from None
    raise InputError(
        "a checkpoint of another format",
        where=checkpoint,
        found=found,
        expected=FORMAT,
        remedy="use the version of hpdl_mpi that wrote it",
    )


def seal(manifest: dict[str, Any]) -> bytes:
    """Return the bytes of a manifest's file: it also holds a checksum of all the rest."""
    return json.dumps(manifest | {"sha256": _digest(manifest)}, allow_nan=False).encode()


def _is_sealed(manifest: dict[str, Any]) -> bool:
    return manifest.pop("sha256", None) == _digest(manifest)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def damaged(path: Path, found: object) -> InputError:
    """Return the error of a damaged file of a checkpoint."""
    return InputError(DAMAGED, where=path, found=found, remedy=remedy(path))


def remedy(path: Path) -> str:
    """Return what to do about a damaged file of a checkpoint."""
    return f"remove the folder {path.parent} to continue from the checkpoint before it"
