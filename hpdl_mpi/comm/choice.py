"""Which all-reduce suits a size of array and a place of ranks: a table, measured or not.

It is for arrays that are each rank's own. Those that lie in windows which ranks of a machine share are summed there.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from hpdl_mpi.base.agree import agree
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm.collectives import ALLREDUCES, LIBRARY
from hpdl_mpi.comm.communicator import Communicator

_SHORT_BYTES, _LIBRARY_BYTES = 8 << 10, 24 << 10
"""Up to which few rounds count most, and the library's own are the fastest."""

_NAMES = (*(name for name, kind in ALLREDUCES.items() if not kind.in_window), LIBRARY)


class Rule(BaseModel):
    """Which algorithm arrays of up to so many bytes take; the last rule of a list holds for all that are longer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    up_to: Annotated[int, Field(ge=0)] | None = None
    algorithm: Literal[_NAMES]  # type: ignore[valid-type]


Rules = Annotated[list[Rule], Field(min_length=1)]


class Table(BaseModel):
    """What was measured.

    Attributes
    ----------
    rules : dict
        Rules by the place of the ranks, see `place_of`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    version: Literal[2] = 2
    rules: dict[str, Rules] = {}


def place_of(comm: Communicator) -> str:
    """Return the number of machines and the most ranks on one, as a table names them."""
    return f"{comm.num_nodes}x{max(map(comm.nodes.count, comm.nodes))}"


def default_rules(comm: Communicator) -> list[Rule]:
    """Return what suits most machines."""
    if comm.num_nodes == 1:
        return [Rule(up_to=1 << 15, algorithm="one_shot"), Rule(algorithm="two_shot")]
    short = Rule(up_to=_SHORT_BYTES, algorithm="recursive_doubling")
    if comm.num_nodes < comm.size:
        return [short, Rule(algorithm="hierarchical")]
    # Where rounds are short, what Python does for each of them counts.
    few = [Rule(up_to=_LIBRARY_BYTES, algorithm=LIBRARY)] if comm.library_name() else []
    return [*few, short, Rule(up_to=1 << 19, algorithm="halving_doubling"), Rule(algorithm="ring")]


def choose_allreduce(comm: Communicator, nbytes: int, *, joint: bool = True) -> str:
    """Return the algorithm for arrays of so many bytes, each rank's own; the same on all ranks. Collective.

    Parameters
    ----------
    comm : Communicator
    nbytes : int
    joint : bool
        See `make_allreduce`; the library's is not chosen without it.

    Raises
    ------
    InputError
        The table of this user is damaged.
    """

    def find() -> str:
        table = read_table(table_path()) if comm.size > 1 else Table()
        known = table.rules.get(place_of(comm)) or default_rules(comm)
        rules = [rule for rule in known if joint or rule.algorithm != LIBRARY] or [Rule(algorithm="ring")]
        return next(rule.algorithm for rule in rules if rule.up_to is None or nbytes <= rule.up_to or rule is rules[-1])

    return agree(comm, find)


def table_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where this user's table is: ``HPDL_ALLREDUCE_TABLE``, or among the user's settings."""
    if named := environ.get("HPDL_ALLREDUCE_TABLE"):
        return Path(named)
    folder = environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(folder, "hpdl_mpi", "allreduce.json")


@functools.lru_cache
def read_table(path: Path) -> Table:
    """Return the table in a file; an empty one if there is none.

    Raises
    ------
    InputError
        The file is damaged.
    """
    try:
        return Table.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        return Table()
    except OSError as error:
        remedy = "let it be read, or name another one in HPDL_ALLREDUCE_TABLE"
        raise InputError("the table of all-reduces cannot be read", where=path, found=error, remedy=remedy) from error
    except (ValueError, RecursionError) as error:  # pydantic's own is a ValueError
        found = _first_error(error) if isinstance(error, pydantic.ValidationError) else error
        remedy = "delete it, then make it anew with `hpdl bench allreduce --tune`"  # which keeps other places' rules
        raise InputError("not a table of all-reduces", where=path, found=found, remedy=remedy) from error


def _first_error(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    return ": ".join((*map(str, first["loc"]), first["msg"]))
