"""What ranks find out for one another: results, or an error, on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from hpdl_mpi.base.errors import HpdlError

Result = TypeVar("Result")


class Group(Protocol):
    """Ranks that can tell one another things: a Communicator, or `Alone`."""

    rank: int
    size: int

    def bcast_obj(self, value: Any, root: int = 0) -> Any:
        """Return the root's value on every rank. Collective."""

    def allgather_obj(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks. Collective."""


class Alone:
    """A group of one rank."""

    rank = 0
    size = 1

    def bcast_obj(self, value: Any, root: int = 0) -> Any:
        """Return the value."""
        return value

    def allgather_obj(self, value: Any) -> list[Any]:
        """Return the value, the only one."""
        return [value]


def agree(group: Group, function: Callable[[], Result]) -> Result:
    """Call a function on rank 0 and return its result, or raise its error, on every rank. Collective.

    Meant for checks of what all ranks are given alike, such as the job file: one rank looks, one rank speaks, and the
    program ends in order everywhere.

    Parameters
    ----------
    group : Group
        All ranks of the job.
    function : callable
        Returns something that can be pickled.

    Returns
    -------
    object
        What the function returned on rank 0.

    Raises
    ------
    HpdlError
        What the function raised, on every rank. Uncaught, it ends the job with its exit code and one message.
    """
    result, failure = group.bcast_obj(_attempt(function) if group.rank == 0 else None)
    if failure is not None:
        raise failure
    return result


def agree_all(group: Group, function: Callable[[], Result]) -> list[Result]:
    """Call a function on every rank and return all results, in the order of ranks. Collective.

    Meant for work that the ranks share: when one fails, the others learn it as soon as their own part is done, and no
    rank still works on what is then cleared away.

    Parameters
    ----------
    group : Group
        All ranks of the job.
    function : callable
        Returns something that can be pickled.

    Raises
    ------
    HpdlError
        What the function raised on the first rank where it did, on every rank.
    """
    outcomes = group.allgather_obj(_attempt(function))
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [result for result, _ in outcomes]


@contextmanager
def alike() -> Iterator[None]:
    """Mark an error from within as one that all ranks raise: it depends on nothing but what all of them know."""
    try:
        yield
    except HpdlError as error:
        error.shared = True
        raise


def _attempt(function: Callable[[], Result]) -> tuple[Any, HpdlError | None]:
    """Return a function's result and None, or None and its error, which all ranks will share."""
    try:
        with alike():
            return function(), None
    except HpdlError as error:
        return None, error
