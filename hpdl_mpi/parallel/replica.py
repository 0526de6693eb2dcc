"""A rank's part in a copy of the model: its layers, its flat arrays, and what it does with a micro-batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import InputError, is_integer, is_one_of, require
from hpdl_mpi.base.memory import aligned, check_memory
from hpdl_mpi.comm import Arena
from hpdl_mpi.kernels.update import Terms
from hpdl_mpi.nn import Layer, Layout, Loss, LossSums, Pool, Ranks, Sequential, Shape, make_statistics
from hpdl_mpi.nn.layer import walk
from hpdl_mpi.optim import Chunks, Optimizer
from hpdl_mpi.parallel.average import MovingAverage
from hpdl_mpi.parallel.feedback import Compression, Feedback
from hpdl_mpi.parallel.holders import hold, let_go, refuse_held
from hpdl_mpi.parallel.pipeline import Companion, Executor, Feed, Pipeline, Schedule, complete, cut, forward_only
from hpdl_mpi.parallel.shards import Sharding, cut_buckets


def checked_dtype(value: DTypeLike) -> np.dtype:
    """Return the type of a model's numbers, given by its name or as NumPy's, or raise an InputError if it is none."""
    name: Any = value.name if isinstance(value, np.dtype) else value
    if isinstance(value, type) and issubclass(value, np.generic):
        name = value.__name__
    require("training.dtype", value, is_one_of(name, ("float32", "float64")), "float32 or float64")
    return np.dtype(name)


def checked_seed(value: int) -> int:
    """Return the seed of a run as Python's integer, or raise an InputError if it is none."""
    require("seed", value, is_integer(value, 0), "an integer of at least 0")
    return int(value)


class Replica:
    """A copy of the model, of which this rank owns a part; a pipeline's ranks together own all of it.

    Parameters
    ----------
    model : Layer
        The whole model. Built here, and this rank's layers bound. It belongs to the replica for as long as that lives.
    input_shape : tuple of int
        Of one sample.
    optimizer : Optimizer
    dtype : dtype
        float32 or float64, of parameters, gradients, optimizer slots and activations.
    seed : int
        Of the starting values and of all randomness in layers.
    pipeline : Pipeline, optional
        By default this rank owns all of the model and runs a batch in one micro-batch.
    ema : float, optional
        Decay of a moving average of the weights; without it there is none.
    compression : Compression, optional
        How sums over data-parallel ranks leave out what is carried over to the next step.
    sharding : Sharding, optional
        By which this rank keeps a part of the optimizer's state alone, and updates no other parameters.
    ranks_on_node : int
        For how many replicas like this one the machine must have memory left: for those of all its ranks where one rank
        looks before any is made; for none, 0, where another rank has looked.

    Attributes
    ----------
    stages : list of Stage
        All of the model; those of other ranks lend their shapes.
    shapes : dict of str to tuple of int
        Of all parameters of the model, by full name.
    layout : Layout
        Of this rank's parameters. A stage's lie side by side.
    owned : frozenset of str
        The names of this rank's parameters without those that tie it to a rank before it, which owns them.
    params, grads : array, shape (layout.size,)
    slots : dict of str to array
        The optimizer's state of the parameters in `shards`, one run after the other.
    shards : list of (int, int)
        What this rank updates: all of the flat arrays, in one run, or its chunk of each bucket.
    statistics_layout : Layout
    statistics : array, shape (statistics_layout.size,)
        What layers of this rank track.
    average : MovingAverage or None
        Of parameters and statistics.
    feedback : Feedback or None
        What compressed sums carry over.
    carried : array, shape (layout.size,), or None
        What compressed sums of an earlier run have left out where these are not: the next step adds it, once.
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
        pipeline: Pipeline | None = None,
        ema: float | None = None,
        compression: Compression | None = None,
        sharding: Sharding | None = None,
        ranks_on_node: int = 1,
    ) -> None:
        self.dtype, self.seed = checked_dtype(dtype), checked_seed(seed)
        refuse_held(model)
        self.model = model
        self.input_shape = input_shape
        self.pipeline = pipeline or Pipeline()
        self.stages = cut(model, input_shape, self.pipeline.cuts, self.pipeline.recompute)
        self.shapes = {
            layer.full_name(parameter): parameter.shape
            for stage in self.stages
            for layer in walk(stage.model)
            for parameter in layer.declared.values()
        }
        self._own = Sequential(*(self.stages[stage].model for stage in self.pipeline.own))
        self.layout = Layout(self._own)
        self.owned = frozenset(name for name in self.names if self.holders(name)[0] == self.pipeline.comm.rank)
        self.sharding = sharding
        self.shards = [(0, self.layout.size)]
        if sharding or compression:
            self._refuse_tied(sharding.key if sharding else "parallel.compression")
        if sharding:
            refuse_layerwise(optimizer, sharding)
            self.shards = [sharding.own(bucket) for bucket in self.buckets(sharding.max_bytes)]
        own_size = sum(stop - start for start, stop in self.shards)
        sizes = (2 + (ema is not None) + (compression is not None)) * self.layout.size + len(optimizer.slots) * own_size
        check_memory(
            sizes * self.dtype.itemsize,
            "the model's parameters, gradients and optimizer state",
            ranks_on_node,
            "take a smaller model, cut it over more ranks and nodes by a pipeline (parallel.pp), or start fewer ranks "
            "on a node",
        )
        self.params = self.layout.allocate(dtype)
        self.grads = self.layout.allocate(dtype)
        self.slots = {name: aligned(own_size, dtype) for name in optimizer.slots}
        places = accumulate((stop - start for start, stop in self.shards), initial=0)
        self._places = {start: place for (start, _), place in zip(self.shards, places, strict=False)}
        self.layout.bind(self._own, self.params, self.grads)
        self.statistics_layout, self.statistics = make_statistics(self._own, dtype)
        self.feedback = Feedback(compression, self.layout, self.dtype, self.seed) if compression else None
        self.carried: np.ndarray | None = None
        self.average = None if ema is None else MovingAverage(ema, self.layout, self.statistics_layout, dtype)
        hold(model, self)
        self.pool = Pool()
        self._arena = Arena(self.pipeline.comm)
        self._predictor: Executor | None = None
        self._optimizer = optimizer
        self._chunks = Chunks(self.layout)
        self._chunks_of: dict[tuple[int, int], Chunks] = {}
        self._owned_chunks = [(run, Chunks(self.layout, *run, names=self.owned)) for run in self.shards]
        self.reset()

    @property
    def names(self) -> list[str]:
        """The full names of this rank's parameters, in the order of the layout."""
        return [segment.name for segment in self.layout.segments]

    @property
    def output_shape(self) -> Shape:
        """The shape of one sample of the model's outputs."""
        return self.stages[-1].output_shape

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters of the model."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def buckets(self, max_bytes: int) -> list[tuple[int, int]]:
        """Return the slices of the flat arrays that data-parallel ranks sum at once; see `cut_buckets`."""
        own = self.pipeline.own
        stages = {name: min(stage for stage in own if name in self.stages[stage].names) for name in self.names}
        return list(cut_buckets(self.layout, stages, self.dtype.itemsize, max_bytes))

    def _refuse_tied(self, where: str) -> None:
        """Raise if what a rank keeps for itself would be of a parameter that another rank of the pipeline has, too."""
        tied = [name for name in self.names if len(self.holders(name)) > 1]
        if tied:
            raise InputError(
                f"{tied[0]} is tied to another rank of the pipeline", where=where, remedy="leave it out", shared=True
            )

    def holders(self, name: str) -> list[int]:
        """Return the ranks of the pipeline that have a parameter, first the one of the first stage, which owns it."""
        ranks = self.pipeline.schedule.stage_ranks
        return list(dict.fromkeys(ranks[stage] for stage, part in enumerate(self.stages) if name in part.names))

    def release(self) -> None:
        """Let go of the model: another replica may take it, and this one must not be used any more."""
        let_go(self.model, self)

    def free(self) -> None:
        """Give back the memory that ranks share, and let go of the model. Collective on the pipeline."""
        self._arena.free()
        self.release()

    def reset(self) -> None:
        """Go back to the start: initial parameters, everything else zero."""
        self.layout.initialize(self.params, self.seed)
        for array in (self.grads, *self.slots.values()):
            array.fill(0)
        self.statistics_layout.initialize(self.statistics, self.seed)
        if self.feedback:
            self.feedback.reset()
        if self.average:
            self.average.begin(self.params, self.statistics)
        self.carried = None
        self.step = 0

    def trainer(self, loss: Loss, companion: Companion | None = None, ranks: Ranks | None = None) -> Executor:
        """Return what runs batches forward and backward, as the pipeline's schedule says; see `Executor`."""
        return self._executor(complete(self.pipeline.schedule), loss, companion, ranks)

    def evaluator(self, loss: Loss | None) -> Executor:
        """Return what runs batches forward only, in the same micro-batches; without a loss it keeps the outputs."""
        schedule = self.pipeline.schedule
        return self._executor(complete(forward_only(schedule.stage_ranks, schedule.num_microbatches)), loss)

    def _executor(
        self, schedule: Schedule, loss: Loss | None, companion: Companion | None = None, ranks: Ranks | None = None
    ) -> Executor:
        return Executor(
            schedule,
            self.stages,
            self.pipeline.comm,
            pool=self.pool,
            dtype=self.dtype,
            loss=loss,
            seed=self.seed,
            companion=companion,
            arena=self._arena,
            ranks=ranks,
            packing_ranks=self.pipeline.packing_ranks,
        )

    def learn(self, feed: Feed, loss: Loss, ranks: Ranks | None = None) -> LossSums:
        """Run a batch forward and backward and add the gradient of its loss to ``grads``. Collective on the pipeline.

        Returns
        -------
        LossSums
            Zeros where the last stage is not.
        """
        executor = self.trainer(loss, ranks=ranks)
        try:
            return executor.run(feed)[0]
        finally:
            executor.free()

    def evaluate(self, feed: Feed, loss: Loss) -> LossSums:
        """Run a batch forward only and compare it with its targets; like `learn`."""
        return self.evaluator(loss).run(feed)[0]

    def predict(self, inputs: Any, sample_ids: np.ndarray) -> np.ndarray:
        """Return the model's outputs for samples that all ranks of the pipeline give. Collective on the pipeline.

        Parameters
        ----------
        inputs : array, shape (n, *input_shape), or tuple of such
            Borrowed.
        sample_ids : int64 array, shape (n,)

        Returns
        -------
        array, shape (n, *output_shape)
            On every rank; the caller owns it.
        """
        result = np.empty((len(sample_ids), *self.output_shape), self.dtype)
        # One that raises is not used again.
        predictor, self._predictor = self._predictor or self.evaluator(None), None
        outputs = predictor.run(Feed(sample_ids, inputs))[1]
        self._predictor = predictor
        if outputs:
            np.concatenate(outputs, out=result)
        self.pipeline.comm.bcast(result, root=self.pipeline.schedule.stage_ranks[-1])
        return result

    def squared_gradient(self) -> float:
        """Return the sum of squares of the gradients that this rank updates, of parameters that it owns."""
        return math.fsum(chunks.sum_squares(self.grads[slice(*run)]) for run, chunks in self._owned_chunks)

    def is_finite(self) -> bool:
        """Return whether all of this rank's parameters are numbers whose squares are."""
        return math.isfinite(self._chunks.sum_squares(self.params))

    def update(
        self,
        *,
        lr: float,
        scale: float,
        slices: Iterable[tuple[int, int]] | None = None,
        terms: Callable[[int], Terms] | None = None,
        updated: Callable[[int], None] = lambda number: None,
    ) -> None:
        """Let the optimizer take a step with `scale` times ``grads``, which are zero afterwards.

        Parameters
        ----------
        lr, scale : float
        slices : iterable of (int, int), optional
            The flat arrays in parts of whole parameters, updated as they come; by default all at once. Where the
            optimizer's state is shared, they are the buckets, of each of which this rank updates its chunk.
        terms : callable, optional
            Returns the gradients that are still to be summed, from an element on; others zero this rank's.
        updated : callable
            Is told the number of each slice when it is.
        """
        whole = self.buckets(self.sharding.max_bytes) if self.sharding else [(0, self.layout.size)]
        for number, bucket in enumerate(slices or whole):
            run = self.sharding.own(bucket) if self.sharding else bucket
            if run not in self._chunks_of:
                self._chunks_of[run] = Chunks(self.layout, *run)
            part, first = slice(*run), self._places[run[0]] if self.sharding else run[0]
            kept = slice(first, first + run[1] - run[0])
            self._optimizer.update(
                self.params[part],
                self.grads[part],
                tuple(slot[kept] for slot in self.slots.values()),
                self._chunks_of[run],
                step=self.step,
                lr=lr,
                scale=scale,
                terms=terms(run[0]) if terms else None,
            )
            if self.sharding and not self.sharding.gradients and not terms:  # partial sums of what others update
                self.grads[slice(*bucket)] = 0
            updated(number)
        self.step += 1

    def follow(self) -> None:
        """Let the moving average, if there is one, follow the weights: once after each update."""
        if self.average:
            (self.average.begin if self.step == 1 else self.average.follow)(self.params, self.statistics)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let layers have the moving average, if there is one, in place of their weights inside the context."""
        if self.average is None:
            yield
            return
        self._bind(self.average.params, self.average.statistics)
        try:
            yield
        finally:
            self._bind(self.params, self.statistics)

    def arrays(self, *, averaged: bool = False) -> dict[str, np.ndarray]:
        """Return views of this rank's parameters and statistics by full name; of their moving averages if asked."""
        source = self.average if averaged and self.average else self
        return self.layout.views(source.params) | self.statistics_layout.views(source.statistics)

    def move(self, params: np.ndarray, grads: np.ndarray) -> None:
        """Have other flat arrays from now on, which hold what its own do; the caller owns them. Local."""
        self.params, self.grads = params, grads
        self._bind(params, self.statistics)

    def _bind(self, params: np.ndarray, statistics: np.ndarray) -> None:
        self.layout.bind(self._own, params, self.grads)
        self.statistics_layout.bind_statistics(self._own, statistics)


def refuse_layerwise(optimizer: Optimizer, sharding: Sharding | None) -> None:
    """Raise an InputError if updates need what no rank has alone."""
    if sharding and optimizer.layerwise:
        what = f"{type(optimizer).__name__} looks at whole parameters, which shards cut"
        remedy = "take another optimizer, or leave it out"
        raise InputError(what, where=sharding.key, remedy=remedy, shared=True)
