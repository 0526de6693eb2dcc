"""A rank's copy of the model: its layers, its flat arrays, and what it does with a micro-batch."""

from __future__ import annotations

import math
import weakref

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import require
from hpdl_mpi.base.memory import check_memory
from hpdl_mpi.comm import SingleCommunicator
from hpdl_mpi.nn import Layer, Layout, Loss, LossSums, Pool, Shape
from hpdl_mpi.nn.layer import walk
from hpdl_mpi.optim import Chunks, Optimizer
from hpdl_mpi.parallel.pipeline import Executor, Feed, Schedule, Stage, complete, forward_only, make_schedule

FORWARD = complete(forward_only((0,), num_microbatches=1))
"""One micro-batch through a whole model."""

_LEARN = complete(make_schedule("1f1b", num_ranks=1, num_microbatches=1))

_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

_owners: weakref.WeakKeyDictionary[Layer, weakref.ref[Replica]] = weakref.WeakKeyDictionary()
"""Which replica has last given a layer its parameters; it may be gone."""


class Replica:
    """Owns the flat arrays of a model and runs micro-batches through it. Local: knows no other rank.

    Parameters
    ----------
    model : Layer
        Built and bound here. Its layers with parameters belong to the replica for as long as that lives.
    input_shape : tuple of int
        Of one sample.
    optimizer : Optimizer
    dtype : dtype
        float32 or float64, of parameters, gradients, optimizer slots and activations.
    seed : int
        Of the starting values and of all randomness in layers.
    ranks_on_node : int
        For how many replicas like this one the machine must have memory left: for those of all its ranks where one rank
        looks before any is made; for none, 0, where another rank has looked.

    Attributes
    ----------
    layout : Layout
    params, grads : array, shape (layout.size,)
    slots : dict of str to array
        The optimizer's state, like `params`.
    step : int
        Updates done.

    Raises
    ------
    InputError
        There is not enough memory for the flat arrays, found out before they are allocated; a setting is out of range;
        or another replica that is still alive holds a part of the model.
    """

    def __init__(
        self,
        model: Layer,
        input_shape: Shape,
        optimizer: Optimizer,
        *,
        dtype: DTypeLike,
        seed: int,
        ranks_on_node: int = 1,
    ) -> None:
        require("training.dtype", dtype, dtype in _DTYPES, "float32 or float64")
        require("seed", seed, isinstance(seed, (int, np.integer)) and seed >= 0, "an integer of at least 0")
        _refuse_owned(model)
        model.build(input_shape)
        self.model = model
        self.input_shape = input_shape
        self.dtype = np.dtype(dtype)
        self.seed = seed
        self.layout = Layout(model)
        check_memory(
            (2 + len(optimizer.slots)) * self.layout.size * self.dtype.itemsize,
            "the model's parameters, gradients and optimizer state",
            ranks_on_node,
        )
        self.params = self.layout.allocate(dtype)
        self.grads = self.layout.allocate(dtype)
        self.slots = {name: self.layout.allocate(dtype) for name in optimizer.slots}
        self.layout.bind(model, self.params, self.grads)
        _owners.update({layer: weakref.ref(self) for layer in walk(model) if layer.declared})
        self.pool = Pool()
        self._optimizer = optimizer
        self._chunks = Chunks(self.layout)
        self._stage = Stage(model, input_shape, model.output_shape(input_shape))
        self.reset()

    def release(self) -> None:
        """Let go of the model: another replica may take it, and this one must not be used any more."""
        for layer in walk(self.model):
            if _owner(layer) is self:
                del _owners[layer]

    def reset(self) -> None:
        """Go back to the start: initial parameters, everything else zero."""
        self.layout.initialize(self.params, self.seed)
        for array in (self.grads, *self.slots.values()):
            array.fill(0)
        self.step = 0

    def executor(self, schedule: Schedule, loss: Loss | None) -> Executor:
        """Return what runs batches through the model: in micro-batches as a complete schedule for one rank says."""
        return Executor(
            schedule, [self._stage], SingleCommunicator(), pool=self.pool, dtype=self.dtype, loss=loss, seed=self.seed
        )

    def learn(
        self, inputs: np.ndarray, targets: np.ndarray, sample_ids: np.ndarray, loss: Loss, *, epoch: int, scale: float
    ) -> LossSums:
        """Run a micro-batch forward and backward and add `scale` times the loss sum's gradient to ``grads``.

        Parameters
        ----------
        inputs : array, shape (n, *input_shape)
            Borrowed.
        targets : array, shape (n, ...)
        sample_ids : int64 array, shape (n,)
        loss : Loss
        epoch : int
        scale : float
        """
        return self.executor(_LEARN, loss).run(Feed(sample_ids, inputs, targets, epoch, scale))[0]

    def evaluate(self, inputs: np.ndarray, targets: np.ndarray, sample_ids: np.ndarray, loss: Loss) -> LossSums:
        """Run a micro-batch forward only and compare it with its targets."""
        return self.executor(FORWARD, loss).run(Feed(sample_ids, inputs, targets))[0]

    def predict(self, inputs: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
        """Return a copy of the model's outputs for a micro-batch of at least one sample; the caller owns it."""
        return self.executor(FORWARD, None).run(Feed(sample_ids, inputs))[1][0]

    def gradient_norm(self) -> float:
        """Return the Euclidean norm of ``grads``."""
        return self._chunks.norm(self.grads)

    def is_finite(self) -> bool:
        """Return whether all parameters are numbers whose squares are."""
        return math.isfinite(self._chunks.norm(self.params))

    def update(self, *, lr: float, scale: float) -> None:
        """Let the optimizer take a step with `scale` times ``grads``, which are zero afterwards."""
        self._optimizer.update(
            self.params, self.grads, tuple(self.slots.values()), self._chunks, step=self.step, lr=lr, scale=scale
        )
        self.step += 1


def _owner(layer: Layer) -> Replica | None:
    """Return the living replica that holds a layer's parameters."""
    found = _owners.get(layer)
    return found() if found else None


def _refuse_owned(model: Layer) -> None:
    """Raise if a living replica holds a part of the model, which would leave that one's parameters."""
    for layer in walk(model):
        if _owner(layer) is not None:
            raise layer.refuse(
                "another trainer holds it already",
                found=None,
                expected=None,
                remedy="make the model anew for each trainer",
            )
