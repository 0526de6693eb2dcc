"""What pydantic found, in words for people."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pydantic

from hpdl_mpi.base.errors import in_line

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_SHOULD = "Input should be "
"""How pydantic begins most of what it says."""


def problems(
    error: pydantic.ValidationError, given: Any = None, section: str = "", known: Sequence[str] = ()
) -> list[str]:
    """Return all that pydantic found in a section, each with the full path of its key.

    Parameters
    ----------
    error : pydantic.ValidationError
    given : mapping, optional
        What was checked. What is wrong with a value of several possible types is said once then, about its key.
    section : str
        The path of the section's own key.
    known : sequence of str
        Its keys.
    """
    found: dict[tuple, list[ErrorDetails]] = {}
    for issue in error.errors():
        path = issue["loc"] if given is None else _keys(issue, given)
        found.setdefault(path, []).append(issue)
    return [
        in_line(f"{key}: {what}" if key else what)
        for path, issues in found.items()
        if not any(path == other[: len(path)] for other in found if len(other) > len(path))  # tried in vain
        for key in [".".join(str(part) for part in (section, *path) if part != "")]
        for what in _said(issues, known)
    ]


def _keys(issue: ErrorDetails, given: Any) -> tuple:
    """Return the part of an issue's place that is keys: where there is a choice, pydantic adds what it tried."""
    keys: list[int | str] = []
    for part in issue["loc"]:
        if isinstance(given, Mapping) and part in given:
            given = given[part]
        elif isinstance(part, int):
            given = given[part] if isinstance(given, Sequence) else None
        elif issue["type"] != "missing":
            continue
        keys.append(part)
    return tuple(keys)


def _said(issues: Sequence[ErrorDetails], known: Sequence[str]) -> list[str]:
    """Return what is wrong with one key; what its value should be, of several types, in one clause."""
    said: list[str] = []
    wanted: list[str] = []
    for issue in issues:
        if issue["type"] == "extra_forbidden":
            said.append("unknown key" + (f"; expected {' or '.join(known)}" if known else ""))
        elif issue["type"] == "missing":
            said.append("missing")
        elif issue["type"] == "value_error":
            said.append(str(issue["ctx"]["error"]))
        else:
            message = issue["msg"]
            wanted.append(message.removeprefix(_SHOULD) if wanted else f"{message[:1].lower()}{message[1:]}")
    if wanted:
        said.append(f"{' or '.join(wanted)}; found {reprlib.repr(issues[0]['input'])}")
    return said
