"""Job files: TOML, or the JSON of a run folder, with what the command line says otherwise."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.train.job import Job
from hpdl_mpi.train.problems import problems


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Return the job of a TOML file (or of the ``job.json`` of a run) with ``key.path=value`` overrides.

    Raises
    ------
    InputError
        The file is missing or is no TOML, a key is unknown, a value has the wrong type or is impossible.
    """
    path = Path(path)
    try:
        text = path.read_text()
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        if not isinstance(tree, dict):
            raise ValueError(f"{type(tree).__name__} in place of sections and keys")
    except FileNotFoundError:
        raise InputError("no such job file", where=path, remedy="give the path of a job, such as jobs/x.toml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the job file cannot be read", where=path, found=error) from error
    except (ValueError, RecursionError) as error:  # both decoders' errors
        raise InputError("not a valid job file", where=path, found=error) from error
    for override in overrides:
        _override(tree, override)
    if isinstance(tree.get("model"), dict) and "factory" in tree["model"]:
        tree["model"].setdefault("folder", str(path.resolve().parent))
    try:
        return Job.model_validate(tree)
    except pydantic.ValidationError as error:
        raise InputError("; ".join(problems(error, tree)), where=path) from None


def _override(tree: dict[str, Any], override: str) -> None:
    """Set ``a.b=value`` in the tree; the value is TOML, or a string as it stands.

    ``none`` removes the key, unless that is one of the words that the key takes.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError("not an override", where="--set", found=repr(override), expected="key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise InputError("not a section", where="--set", found=repr(override), expected=f"{part} to hold keys")
    if value == "none" and not _takes(parts, value):
        tree.pop(parts[-1], None)
    else:
        tree[parts[-1]] = value


def _takes(parts: Sequence[str], word: str) -> bool:
    """Return whether a word is among those that the key of this path is one of."""
    kind: Any = Job
    for part in parts:
        field = getattr(kind, "model_fields", {}).get(part)
        kind = field.annotation if field else None
    return word in get_args(kind)
