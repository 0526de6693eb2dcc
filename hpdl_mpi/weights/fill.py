"""Weights from a file become those of a model: what does not fit is told in one message, before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn import Layer
from hpdl_mpi.weights.file import REAL, TensorFile
from hpdl_mpi.weights.tensors import Tensor, counters, tensors, unread

_SHOWN = 5
"""How many tensors a message names of each kind."""


def check(file: TensorFile, model: Layer, skip: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return the tensors of a model that are to be read, by their names in a file. Allocates nothing.

    A file may lack the name in front of all of them, as one of a model's body does that stands alone.

    Parameters
    ----------
    file : TensorFile
    model : Layer
        Built, all of it.
    skip : sequence of str
        Patterns of names, ``fc.*``, of tensors that are not: what they match of the model stays as it is, and what
        they match of the file is passed over.

    Raises
    ------
    InputError
        The file lacks tensors, or has others, or of other shapes, or of types that are not real numbers; or a pattern
        matches nothing; or all are left out.
    """
    expected = tensors(model)
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in (*expected, *file.entries)):
            raise InputError("nothing has such a name", where="init.skip", found=pattern, expected=_some(expected))

    body = _missing_front(file, expected)

    def wanted(name: str) -> bool:
        return not any(fnmatchcase(one, pattern) for one in (*spellings(name), body + name) for pattern in skip)

    def spellings(*names: str) -> list[str]:
        return [one for name in names for one in dict.fromkeys((name, name.removeprefix(body)))]

    found: dict[str, Tensor] = {}
    missing: list[str] = []
    for name, tensor in expected.items():
        if wanted(name):
            present = [one for one in spellings(name, *tensor.aliases) if one in file.entries]
            found |= dict.fromkeys((*present[:1], *filter(wanted, present[1:])), tensor)
            missing += [] if present else [f"{name} {tensor.shape}"]
    if expected and not found and not missing:
        raise InputError(
            "leaves nothing to begin with", where="init.skip", found=", ".join(skip), remedy="leave out init"
        )
    known = set(spellings(*counters(model), *unread(model)))
    unexpected = [
        f"{name} {entry.shape}"
        for name, entry in file.entries.items()
        if name not in found and name not in known and wanted(name)
    ]
    mismatched = list(_mismatched(file, found))
    problems = {"missing": missing, "unexpected": unexpected, "different": mismatched}
    if any(problems.values()):
        raise InputError(
            "the tensors are not those of the model",
            where=file.path,
            found="; ".join(f"{kind}: {_some(names)}" for kind, names in problems.items() if names),
            expected="the names and shapes of PyTorch's state_dict of this model",
            remedy="take the model that they were made for, or leave tensors out on both sides: --init-skip 'NAME.*'",
        )
    return found


def _missing_front(file: TensorFile, names: Iterable[str]) -> str:
    """Return what all names begin with, the dot included, if no name of a file does; else nothing."""
    fronts = {name.partition(".")[0] + "." for name in names}
    if len(fronts) != 1 or any(name.startswith(tuple(fronts)) for name in file.entries):
        return ""
    return fronts.pop()


def fill(file: TensorFile, model: Layer, arrays: Mapping[str, np.ndarray], skip: Sequence[str] = ()) -> None:
    """Read the tensors of a model from a file. Local: each rank reads those that it has.

    Parameters
    ----------
    file : TensorFile
    model : Layer
        Built, all of it.
    arrays : mapping of str to array
        Parameters and statistics that this rank has, by full name, to be written; others are not read.
    skip : sequence of str
        See `check`.

    Raises
    ------
    InputError
        What `check` raises, or a number is none, or too large, or too small, or what is one in the model differs.
    """
    names: dict[str, str] = {}
    for name, tensor in check(file, model, skip).items():
        if tensor.name in names:
            _require_same(file, name, names[tensor.name], tensor, arrays[tensor.name])
        elif tensor.name in arrays:
            names[tensor.name] = name
            target = arrays[tensor.name]
            with np.errstate(over="ignore"):  # it is looked for below
                tensor.inward(file.read(name), target)
            if not np.isfinite(target).all():
                raise InputError(
                    "a number is not finite",
                    where=f"{file.path}: {name}",
                    expected=f"numbers that {target.dtype} holds",
                )
            if target.size and target.min() < tensor.parameter.least:
                raise InputError(
                    "a number is too small",
                    where=f"{file.path}: {name}",
                    found=target.min(),
                    expected=f"at least {tensor.parameter.least:g}",
                )


def _require_same(file: TensorFile, name: str, first: str, tensor: Tensor, values: np.ndarray) -> None:
    """Raise if a tensor of the file has other values than the one of which the model has it."""
    other = np.empty_like(values)
    tensor.inward(file.read(name), other)
    if not np.array_equal(other, values):
        raise InputError(
            "two tensors differ that are one in the model",
            where=file.path,
            found=f"{first} and {name}",
            expected="the same numbers",
            remedy=f"take a model where they are not tied, or leave one out: --init-skip {name}",
        )


def _mismatched(file: TensorFile, found: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in found.items():
        entry = file.entries[name]
        if entry.shape != tensor.shape:
            yield f"{name} {entry.shape}, not {tensor.shape}"
        elif entry.dtype not in REAL:
            yield f"{name} of type {entry.dtype}, not {' or '.join(REAL)}"


def _some(names: Sequence[str] | Mapping[str, Tensor]) -> str:
    """Return names as a text, the first of them if there are many."""
    rest = len(names) - _SHOWN
    return ", ".join(list(names)[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
