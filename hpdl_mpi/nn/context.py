"""What a layer knows and keeps while one micro-batch passes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.kernels.gemm import Packer
from hpdl_mpi.kernels.random import derive_key
from hpdl_mpi.nn.pool import Pool


class Ranks(Protocol):
    """Ranks that each have a micro-batch of their own at the same time, and layers that look at all of them."""

    size: int

    def allgather(self, array: np.ndarray, out: np.ndarray) -> None:
        """Write every rank's array, in the order of ranks, into everyone's `out`, shape (size, *shape). Collective."""


class MicroBatch:
    """What all layers share while one micro-batch passes through the model.

    Attributes
    ----------
    pool : Pool
    training : bool
        Dropout drops and statistics run only when set.
    saving : bool
        Whether forward keeps what backward needs.
    recomputing : bool
        Whether this forward repeats one: it draws the same and counts nothing, running statistics for one, twice.
    kept : int
        How many values layers keep for backward now.
    packer : Packer or None
        Where products find weights packed, for all micro-batches between two updates.
    landed : callable or None
        Is told of each layer in a container whose weight gradients have got all that this micro-batch adds.
    ranks : Ranks or None
        With whom batch normalisation, while training, takes the moments of all their samples; they may be none here.
    sample_ids : int64 array, shape (n,)
        The samples' numbers in the dataset: randomness belongs to them, not to ranks or positions.
    capacity : int
        Steps of a sequence that layers are to remember, see `nn.decoding`; 0 but for that: each forward stands alone.
    past : int
        Steps of the sequences that layers have seen before and remember.
    seed, epoch : int
    """

    __slots__ = (
        "capacity",
        "epoch",
        "kept",
        "landed",
        "packer",
        "past",
        "pool",
        "ranks",
        "recomputing",
        "sample_ids",
        "saving",
        "seed",
        "training",
    )

    def __init__(self, pool: Pool, seed: int = 0, ranks: Ranks | None = None, packer: Packer | None = None) -> None:
        self.pool, self.ranks, self.packer = pool, ranks, packer
        self.seed = seed
        self.epoch = 0
        self.training = False
        self.saving = False
        self.recomputing = False
        self.kept = 0
        self.capacity = self.past = 0
        self.landed: Callable[[Any], None] | None = None
        self.sample_ids: np.ndarray = np.zeros(0, np.int64)

    def begin(self, sample_ids: np.ndarray, *, epoch: int = 0, training: bool) -> None:
        """Get ready for the next micro-batch: one to learn from (`training`), or one to evaluate."""
        self.sample_ids = sample_ids
        self.epoch = epoch
        self.training = self.saving = training
        self.recomputing = False  # an error may have ended the last one in the middle of it


def join(path: str, name: str) -> str:
    """Return the path of what is called `name` inside the layer at `path`.

    What has no name is the layer itself, and so is what has one with "#" in front, which only tells it from others.
    """
    if name.startswith("#"):
        return path
    return f"{path}.{name}" if path and name else path or name


class Addend(NamedTuple):
    """An array like a layer's output, to be added to it, and the limits that the sum is clipped to."""

    values: np.ndarray
    limits: tuple[float, float]


class Context:
    """Belongs to one layer and one micro-batch; containers give each of their layers a `child`.

    Parameters
    ----------
    batch : MicroBatch
    path : str
        The layer's path in the whole model, whatever stage holds it.
    needs_dx : bool
        Whether anything before the layer wants the gradient of its input.
    needs_backward : bool
        Whether backward comes to this layer at all.

    Attributes
    ----------
    saved : dict
        What `save` keeps until `drop`.
    addend : Addend or None
        What a layer that `adds` is to add to its output.
    remembered : dict
        What `remember` keeps until the decoder forgets: pairs of an array, and whether it grows.
    donated : bool
        Whether a layer that works `in_place` may do so: whoever calls it needs what it hands over, x or dy, no more.
    """

    __slots__ = (
        "_children",
        "_key",
        "addend",
        "batch",
        "donated",
        "needs_backward",
        "needs_dx",
        "path",
        "remembered",
        "saved",
    )

    def __init__(self, batch: MicroBatch, path: str = "", *, needs_dx: bool = False, needs_backward: bool = True):
        self.batch = batch
        self.path = path
        self.needs_dx = needs_dx
        self.needs_backward = needs_backward
        self.saved: dict[str, Any] = {}
        self.remembered: dict[str, tuple[np.ndarray, bool]] = {}
        self.addend: Addend | None = None
        self.donated = False
        self._children: dict[str, Context] = {}
        self._key: tuple[tuple[int, int], np.uint64] | None = None

    def child(self, name: str, *, needs_dx: bool = True, needs_backward: bool = True) -> Context:
        """Return the context of the layer `name` inside this one, the same at every call."""
        if name not in self._children:
            self._children[name] = Context(self.batch, join(self.path, name))
        child = self._children[name]
        child.needs_dx, child.needs_backward, child.addend, child.donated = needs_dx, needs_backward, None, False
        return child

    @property
    def training(self) -> bool:
        """Whether the micro-batch is one to learn from."""
        return self.batch.training

    @property
    def key(self) -> np.uint64:
        """The random key of (seed, epoch, layer path); draws add the sample id."""
        of = (self.batch.seed, self.batch.epoch)
        if self._key is None or self._key[0] != of:
            self._key = of, derive_key(*of, self.path)
        return self._key[1]

    def take(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Return an array from the pool, held once; whoever gets it as a result releases it."""
        return self.batch.pool.take(shape, dtype)

    def holds_alone(self, array: np.ndarray) -> bool:
        """Return whether an array is of the pool and held once: who has it may write to it."""
        return self.batch.pool.count(array) == 1

    def reuse_or_take(self, array: np.ndarray) -> np.ndarray:
        """Return an array for a result of the shape of x or dy: that itself where nobody else holds or needs it."""
        if self.donated and self.holds_alone(array):
            self.retain(array)
            return array
        return self.take(array.shape, array.dtype)

    def retain(self, array: Any) -> None:
        """Hold an array once more."""
        self.batch.pool.retain(array)

    def release(self, array: Any) -> None:
        """Let go of an array held once."""
        self.batch.pool.release(array)

    @property
    def saves(self) -> bool:
        """Whether `save` keeps anything: backward will come."""
        return self.batch.saving and self.needs_backward

    def save(self, **values: Any) -> None:
        """Keep arrays (held until `drop`) and plain values for backward, if backward will come."""
        if self.saves:
            for name, value in values.items():
                assert name not in self.saved, f"{self.path}: one micro-batch at a time may use a context"
                self.saved[name] = value
                self.batch.kept += 1
                self.batch.pool.retain(value)

    def drop(self, *names: str) -> None:
        """Let go of what was kept under these names."""
        for name in names:
            self.batch.pool.release(self.saved.pop(name))
            self.batch.kept -= 1

    @property
    def remembers(self) -> bool:
        """Whether sequences come in pieces: a layer that looks back is to remember what it has seen."""
        return self.batch.capacity > 0

    def recall(self, name: str) -> np.ndarray | None:
        """Return what an earlier piece of the sequences has left under a name, or None if none has."""
        return self.remembered[name][0] if name in self.remembered else None

    def remember(self, name: str, array: np.ndarray, *, grows: bool = False) -> None:
        """Keep an array, of the sequences one after the other, for their next piece, in place of that of the last.

        One that `grows` has room for `capacity` steps of each, (n, capacity, ...), of which those seen are written.
        """
        self.retain(array)
        self.release(self.recall(name))
        self.remembered[name] = array, grows

    def descendants(self) -> Iterator[Context]:
        """Yield this context and all below."""
        yield self
        for child in self._children.values():
            yield from child.descendants()

    def leftovers(self) -> list[str]:
        """Return the paths and names of all that is still kept here and below: nothing, after a whole step."""
        mine = [f"{self.path}:{name}" for name in self.saved]
        return mine + [name for child in self._children.values() for name in child.leftovers()]
