"""Which all-reduce suits a size of array and a place of ranks: a table, measured or not."""

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

Memory = Literal["private", "shared"]
"""Where the arrays lie: each rank's own, or in windows that the ranks of a machine share."""


_LIBRARY_BYTES = 24 << 10


class Rule(BaseModel):
    """Which algorithm arrays of up to so many bytes take; the last rule of a list holds for all that are longer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    up_to: Annotated[int, Field(ge=0)] | None = None
    algorithm: Literal[(*ALLREDUCES, LIBRARY)]  # type: ignore[valid-type]


Rules = Annotated[list[Rule], Field(min_length=1)]


class Table(BaseModel):
    """What was measured.

    Attributes
    ----------
    rules : dict
        Rules by the place of the ranks, see `place_of`, and by where the arrays lie.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    version: Literal[1] = 1
    rules: dict[str, dict[Memory, Rules]] = {}


def place_of(comm: Communicator) -> str:
    """Return the number of machines and the most ranks on one, as a table names them."""
    return f"{comm.num_nodes}x{max(map(comm.nodes.count, comm.nodes))}"


def default_rules(comm: Communicator, memory: Memory) -> list[Rule]:
    """Return what suits most machines."""
    if comm.num_nodes == 1:
        if memory == "shared":
            return [Rule(algorithm="window")]
        return [Rule(up_to=1 << 15, algorithm="one_shot"), Rule(algorithm="two_shot")]
    short = Rule(up_to=1 << 13, algorithm="recursive_doubling")
    if comm.num_nodes < comm.size:
        return [short, Rule(algorithm="hierarchical")]
    # Where rounds are many and short, what Python does for each of them counts.
    few = [Rule(up_to=_LIBRARY_BYTES, algorithm=LIBRARY)] if comm.library_name() else []
    return [short, *few, Rule(up_to=1 << 19, algorithm="halving_doubling"), Rule(algorithm="ring")]


def choose_allreduce(comm: Communicator, nbytes: int, memory: Memory = "private") -> str:
    """Return the algorithm for an array of so many bytes, the same on all ranks. Collective.

    Raises
    ------
    InputError
        The table of this user is damaged.
    """

    def find() -> str:
        table = read_table(table_path())
        rules = table.rules.get(place_of(comm), {}).get(memory) or default_rules(comm, memory)
        return next(rule.algorithm for rule in rules if rule.up_to is None or nbytes <= rule.up_to or rule is rules[-1])

    return agree(comm, find)


def table_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where this user's table is: ``HPDL_ALLREDUCE_TABLE``, or among the user's settings."""
    if "HPDL_ALLREDUCE_TABLE" in environ:
        return Path(environ["HPDL_ALLREDUCE_TABLE"])
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
    except (OSError, ValueError, RecursionError) as error:  # pydantic's own is a ValueError
        found = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else error
        remedy = "make it anew with `hpdl bench allreduce --tune`, or delete it"
        raise InputError("not a table of all-reduces", where=path, found=found, remedy=remedy) from error
