"""Errors for people: where it happened, what was found, what was expected, what to do.

Each carries the exit code of the process that it ends. The command line prints the message of an `HpdlError`
without a traceback; any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

BAD_INPUT = 2
"""Exit code for input that the user must mend: a job file, an option, a dataset, a checkpoint."""

FAILURE = 1
"""Exit code for every other failure."""

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
_SEPARATORS = (0x2028, 0x2029)
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_BYTES = range(0xDC80, 0xDD00)

_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*_CONTROLS, *_SEPARATORS, *_DIRECTIONS, *_BYTES)}
"""Of what a file's name may have: control characters, ends of lines, what turns the direction of writing, and bytes
that are no text. A message stays on its line, reads as it is written, and drives no terminal."""

_NO_TEXT = re.compile(r"\\udc([89a-f][0-9a-f])")
"""A byte that is no text, as Python writes it."""


class HpdlError(Exception):
    """A failure explained to the person who runs the job.

    Parameters
    ----------
    what : str
        The failure in one clause, without a full stop.
    where : str, optional
        The key, file or rank that it concerns; it opens the message.
    found, expected : object, optional
        What was met and what was needed, in the user's terms.
    remedy : str, optional
        What to do about it: an imperative sentence without a full stop.
    shared : bool
        Every rank raises it alike, so rank 0 speaks for all and each ends by itself.
    """

    exit_code = FAILURE
    shared = False

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        expected: object = None,
        remedy: str | None = None,
        shared: bool = False,
    ) -> None:
        self.shared = shared
        head = f"{in_line(where)}: {what}" if where is not None else what
        facts = [f"found {in_line(found)}"] if found is not None else []
        facts += [f"expected {in_line(expected)}"] if expected is not None else []
        sentences = [head] + (["; ".join(facts)] if facts else []) + ([remedy] if remedy else [])
        super().__init__(". ".join(s[:1].upper() + s[1:] if i else s for i, s in enumerate(sentences)) + ".")

    def __reduce__(self) -> tuple:
        # Exceptions pickle as a call with their arguments; the constructor would compose the message once more.
        return _restore, (type(self), self.args, self.__dict__)


class InputError(HpdlError, ValueError):
    """Bad input, found before or while it is used: exit code 2."""

    exit_code = BAD_INPUT


class BadSample(InputError):
    """A sample that cannot be learnt from; `sample` is its number in the dataset, for those who know the files."""

    def __init__(self, what: str, *, sample: int, **facts: Any) -> None:
        super().__init__(what, **facts)
        self.sample = sample


class TrainingError(HpdlError, RuntimeError):
    """Training cannot go on: the loss is not finite, ranks have drifted apart, a peer has failed."""


class MismatchError(TrainingError):
    """Ranks do not make the same calls. A group that finds it need not be all ranks."""


class StorageError(HpdlError, RuntimeError):
    """A file could not be written; what was saved before is intact."""


def require(key: str, value: Any, possible: bool, expected: str) -> None:
    """Raise an `InputError` for a setting that cannot be; a number must be finite.

    Parameters
    ----------
    key : str
        Its name, as the user gives it.
    value : object
    possible : bool
    expected : str
    """
    if not possible or (is_number(value) and not is_finite(value)):
        raise InputError("out of range", where=key, found=repr(value), expected=expected)


def require_kind(key: str, value: object, kind: type | tuple[type, ...], *, optional: bool = False) -> None:
    """Raise an `InputError` for an argument that is no instance of a class, nor None if that will do."""
    if not (isinstance(value, kind) or (optional and value is None)):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(one.__name__ for one in kinds)
        raise InputError("of another kind", where=key, found=repr(value), expected=expected)


def is_number(value: object) -> bool:
    """Return whether a setting is a real number, Python's or NumPy's."""
    return not isinstance(value, bool) and isinstance(value, Real)


def is_finite(value: object) -> bool:
    """Return whether a setting is a real number that a float can be."""
    try:
        return is_number(value) and math.isfinite(value)  # type: ignore[arg-type]
    except OverflowError:  # an integer of hundreds of digits
        return False


def is_integer(value: object, least: float = -math.inf) -> bool:
    """Return whether a setting is a whole number, Python's or NumPy's, and not below `least`."""
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= least


def is_flag(value: object) -> bool:
    """Return whether a setting is true or false, Python's or NumPy's."""
    from numpy import bool_  # the help of the command line does without NumPy

    return isinstance(value, bool | bool_)


def is_one_of(value: object, choices: Iterable[str]) -> bool:
    """Return whether a setting is one of some words; what else it is does not matter, an array or what has no hash."""
    return isinstance(value, str) and value in tuple(choices)


def integers(value: Any, least: float = -math.inf) -> tuple[int, ...] | None:
    """Return whole numbers, in a sequence or an array, as Python's; None if they are not, or one is below `least`."""
    numbers = _listed(value)
    possible = numbers is not None and all(is_integer(number, least) for number in numbers)
    return tuple(map(int, numbers)) if numbers is not None and possible else None


def finite_numbers(value: Any) -> tuple[float, ...] | None:
    """Return finite numbers, in a sequence or an array, as Python's; None if they are not."""
    numbers = _listed(value)
    possible = numbers is not None and all(map(is_finite, numbers))
    return tuple(map(float, numbers)) if numbers is not None and possible else None


def _listed(value: Any) -> Sequence | None:
    """Return what is in a sequence or an array; None if it is neither, or a text."""
    items = value.tolist() if hasattr(value, "tolist") else value
    return items if isinstance(items, Sequence) and not isinstance(items, str | bytes) else None


@contextmanager
def amended(before: str = "", after: str = "") -> Iterator[None]:
    """Add to the message of an `InputError` from within: in front, whose the key is; at the end, what to do."""
    try:
        yield
    except InputError as error:
        amend(error, before, after)
        raise


def amend(error: InputError, before: str = "", after: str = "") -> None:
    """Add to the message of an error, as `amended` does."""
    error.args = (f"{in_line(before)}{error}{in_line(after)}",)


def in_line(fact: object) -> str:
    """Return a text with what would not stay on its line escaped, and the bytes in it that are no text: ``\\xfd``."""
    return _NO_TEXT.sub(r"\\x\1", str(fact).translate(_ESCAPES))


def _restore(kind: type[HpdlError], args: tuple, attributes: dict) -> HpdlError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error
