"""Runs a rank's program of a pipeline schedule: one loop over actions for all schedules, training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.shares import share
from hpdl_mpi.base.trace import Trace, now
from hpdl_mpi.comm import Arena, Communicator
from hpdl_mpi.kernels.packed import PackedWeights
from hpdl_mpi.kernels.recording import replayed
from hpdl_mpi.nn import Context, Layer, Loss, LossSums, MicroBatch, Pool, Ranks, Shape, joined_members, members
from hpdl_mpi.parallel.pipeline.action import Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.feed import Feed
from hpdl_mpi.parallel.pipeline.flow import Activation, Flow
from hpdl_mpi.parallel.pipeline.replays import Replay, Replays, is_one_by_one
from hpdl_mpi.parallel.pipeline.slots import Key, SharedSlots
from hpdl_mpi.parallel.pipeline.stages import Stage


class Companion(Protocol):
    """What goes on beside a batch on a rank, such as sums over other ranks."""

    def forward_done(self, sums: LossSums) -> None:
        """Note that this rank will compute no more outputs of the batch, whose sums are `sums` where there are any."""

    def layer_landed(self, layer: Layer) -> None:
        """Note that a layer's weight gradients have got all of the batch. Some layers are not told of."""

    def stage_landed(self, stage: int) -> None:
        """Note the same of a whole stage."""

    def move_along(self) -> None:
        """Go on without blocking; called often."""

    @property
    def progress(self) -> int | None:
        """See `Work.progress`."""


@dataclass
class _Visit:
    """A micro-batch on a stage: what it keeps there between its actions. Used anew from batch to batch."""

    batch: MicroBatch
    context: Context


class Executor:
    """Runs batches through this rank's stages, with the ranks before and after. Calls are collective.

    A rank that has the whole model, and one micro-batch at a time, computes the actions of one for each shape, and
    replays them for all others, if the layers are `replayable`.

    It adds to the gradients that the stages' layers are bound to, and knows nothing of their update. An executor that
    has raised is not used again.

    Parameters
    ----------
    schedule : Schedule
        Complete: with messages, and with reductions if it trains.
    stages : sequence of Stage
        All stages of the model; those of other ranks lend their shapes.
    comm : Communicator
        The ranks of the pipeline, in its order.
    pool : Pool
    dtype : dtype
        Of activations.
    loss : Loss, optional
        None to predict.
    seed : int
    companion : Companion, optional
        Is told how far a batch that trains has come, and moved along between actions.
    arena : Arena, optional
        Memory for messages between ranks of one machine; executors that run by turns can have one together.
    ranks : Ranks, optional
        See `MicroBatch`. They run as many micro-batches, some of them without samples.
    packing_ranks : int, optional
        See `Pipeline`.

    Attributes
    ----------
    trace : Trace or None
        Where each action, message and wait is recorded, if it is set.
    """

    def __init__(
        self,
        schedule: Schedule,
        stages: Sequence[Stage],
        comm: Communicator,
        *,
        pool: Pool,
        dtype: DTypeLike,
        loss: Loss | None,
        seed: int = 0,
        companion: Companion | None = None,
        arena: Arena | None = None,
        ranks: Ranks | None = None,
        packing_ranks: int | None = None,
    ) -> None:
        assert schedule.num_ranks == comm.size, "a schedule has a program for each rank"
        assert schedule.num_stages == len(stages), "a schedule has the model's stages"
        reduces = any(action.op is Op.REDUCE for action in schedule.actions())
        trains = any(action.op in (Op.I, Op.B) for action in schedule.actions())
        assert reduces == trains, "a schedule to train is complete"
        assert loss is not None or not trains, "training needs a loss"
        self.trace: Trace | None = None
        self._schedule = schedule
        self._program = schedule.programs[comm.rank]
        self._trains = trains
        self._stages = stages
        self._comm = comm
        self._pool = pool
        self._dtype = np.dtype(dtype)
        self._loss = loss
        self._seed = seed
        self._companion = companion
        self._ranks = ranks
        forwards = [index for index, action in enumerate(self._program) if action.op is Op.F]
        self._last_forward = forwards[-1]
        self._last_backward = {a.stage: a.microbatch for a in self._program if a.op in (Op.W, Op.B)}
        self._idle: dict[int, list[_Visit]] = {stage: [] for stage in range(len(stages))}
        self._live: dict[Key, _Visit] = {}
        whole = len(stages) == 1 and is_one_by_one(self._program)
        known = loss is None or type(loss).__call__ is Loss.__call__  # another one is to be called each time
        self._replays = Replays(stages[0].model, pool) if whole and known else None
        self._replaying: dict[Key, Replay] = {}
        packing_ranks = comm.node_size if packing_ranks is None else packing_ranks
        packs = packing_ranks > 0 and trains and schedule.num_microbatches > 1
        self._packer = PackedWeights(packing_ranks) if packs else None
        self._action = self._program[0]
        self._shapes_of: dict[Shape, dict[Op, list[Shape]]] = {}
        self._shapes = self._shapes_from(stages[0].input_shape)
        arena = arena or Arena(comm)
        self._slots = SharedSlots(schedule, arena, dtype)
        self._forward, self._backward = (
            Flow(op, schedule, comm, pool, dtype, self._slots, arena, self._move_along) for op in (Op.RECV_F, Op.RECV_B)
        )
        # How each message begins, how far from the action's stage the one is that gets it, and as what that does so.
        self._moves = {
            Op.SEND_F: (self._forward.send, 1, Op.RECV_F),
            Op.RECV_F: (self._forward.receive, 0, Op.RECV_F),
            Op.SEND_B: (self._backward.send, -1, Op.RECV_B),
            Op.RECV_B: (self._backward.receive, 0, Op.RECV_B),
        }

    def _shapes_from(self, input_shape: Shape) -> dict[Op, list[Shape]]:
        """Return what each stage takes in both directions, for samples of this shape; made once for each."""
        if input_shape not in self._shapes_of:
            shapes = [input_shape]
            for stage in self._stages:
                shapes.append(stage.model.output_shape(shapes[-1]))
            self._shapes_of[input_shape] = {Op.RECV_F: shapes[:-1], Op.RECV_B: shapes[1:]}
        return self._shapes_of[input_shape]

    def run(self, feed: Feed) -> tuple[LossSums, list[np.ndarray]]:
        """Run a batch.

        Returns
        -------
        sums : LossSums
            Of this rank's micro-batches where the last stage is, zeros elsewhere.
        outputs : list of array
            Where the last stage is and there is no loss: each micro-batch's outputs. The caller owns them.
        """
        for array in (*members(feed.inputs), feed.targets):
            assert array is None or len(array) == len(feed.sample_ids), "each sample has its number"
        self._feed = feed
        self._sums = LossSums(0.0, 0.0, 0.0)
        self._outputs: list[np.ndarray] = []
        size, count = len(feed.sample_ids), self._schedule.num_microbatches
        self._bounds = [share(size, number, count) for number in range(count)]
        self._shapes = self._shapes_from(feed.input_shape or self._stages[0].input_shape)
        if self._packer:
            began = now()
            if self._packer.renew() and self.trace:
                self.trace.add("update", "packed weights", began)
        self._slots.prepare(max(stop - start for start, stop in self._bounds), self._shapes)
        # Others use the pool too, and go on after an error; between ranks a message may still be on its way.
        with self._pool.restored() if self._comm.size == 1 else nullcontext():
            self._perform_all()
        self._finish_messages()
        assert not self._live, f"nothing is left after a batch, but {list(self._live)}"
        return self._sums, self._outputs

    def free(self) -> None:
        """Let go of what is kept from batch to batch: packed weights and recordings. No further one is run. Local."""
        if self._packer:
            self._packer.clear()
        if self._replays:
            self._replays.clear()

    def _perform_all(self) -> None:
        for index, action in enumerate(self._program):
            try:
                self._perform(action)
            except Exception as error:
                if self._comm.size > 1:
                    error.add_note(self._place(index))
                raise
            if index == self._last_forward and self._companion:
                self._companion.forward_done(self._sums)

    def _place(self, index: int) -> str:
        from hpdl_mpi.parallel.pipeline.picture import draw_place  # loads much that a run without a failure needs not

        return draw_place(self._schedule, self._comm.rank, index)

    def _perform(self, action: Action) -> None:
        self._comm.begin(action)
        self._action = action
        if action.op is Op.REDUCE:
            if self._companion:
                self._companion.stage_landed(action.stage)
        else:
            start, stop = self._bounds[action.microbatch]
            # A batch with fewer samples than micro-batches leaves some of them empty, on all ranks of the pipeline.
            if start < stop or self._ranks is not None:
                self._begin(action)
        self._move_along()

    def _move_along(self) -> int | None:
        """Move messages and the companion along; return how far the latter is, see `Work.progress`. Local."""
        self._forward.move_along()
        self._backward.move_along()
        if self._companion is None:
            return None
        self._companion.move_along()
        return self._companion.progress

    def _begin(self, action: Action) -> None:
        """Compute, or begin to send or to receive."""
        if action.op is Op.F:
            self._compute_forward(action)
        elif action.op in (Op.I, Op.B):
            self._compute_dgrad(action)
        elif action.op is Op.W:
            self._compute(action, self._backward_weight)
        else:
            self._move(action)

    def _finish_messages(self) -> None:
        start = now()
        self._forward.finish()
        self._backward.finish()
        if self.trace:
            self.trace.add("wait", "messages", start)

    def _compute(self, action: Action, compute: Callable[[Action], Any]) -> Any:
        """Let an action be computed, or replay what was computed for another micro-batch; return what that returns."""
        key = action.stage, action.microbatch
        began = now()
        if replay := self._replaying.get(key):
            result = replay.perform(action.op, partial(compute, action))
            if action.op in (Op.W, Op.B) or not self._trains:
                self._replaying.pop(key).end()
        else:
            result = compute(action)
        if self.trace:
            self.trace.add("compute", str(action), began)
        return result

    def _compute_forward(self, action: Action) -> None:
        stage, number = key = action.stage, action.microbatch
        whole, part = self._feed, slice(*self._bounds[number])
        x = self._forward.take(key, self.trace) if stage > 0 else self._samples(part)
        last = stage + 1 == len(self._stages)
        targets = whole.targets[part] if last and self._loss and whole.targets is not None else None
        feed = replace(whole, sample_ids=whole.sample_ids[part], inputs=x, targets=targets)
        replay = self._replays.begin(feed) if self._replays else None
        if replay:
            self._replaying[key] = replay
            feed = replay.feed
        result = self._compute(action, partial(self._forward_pass, feed))
        if last and self._loss is not None:
            assert isinstance(result, LossSums), "nothing is called behind the loss"
            self._sums = LossSums(*(one + other for one, other in zip(self._sums, result, strict=True)))
        elif last:
            assert isinstance(result, np.ndarray), "nothing is called behind the copy"
            self._outputs.append(result)

    def _forward_pass(self, feed: Feed, action: Action) -> LossSums | np.ndarray | None:
        """Compute a stage's outputs; at the last stage return how they compare with targets, or a copy of them."""
        stage, number = key = action.stage, action.microbatch
        visit = self._idle[stage].pop() if self._idle[stage] else self._new_visit(stage)
        replayed(partial(visit.batch.begin, feed.sample_ids, epoch=feed.epoch, training=self._trains))
        assert feed.inputs is not None, "a stage is fed"
        y = self._stages[stage].model.forward(feed.inputs, visit.context)
        if stage > 0:
            self._pool.release(feed.inputs)
        result: LossSums | np.ndarray | None = None
        if stage + 1 < len(self._stages):
            self._forward.put(y, (stage + 1, number))
        elif self._loss is None:
            result = replayed(y.copy)
            self._pool.release(y)
        else:
            assert feed.targets is not None, "the last stage is fed"
            result, gradient = self._loss(y, feed.targets, feed.scale, visit.context)
            if gradient is not None:
                self._backward.put(gradient, key)
            self._pool.release(y)
        if self._trains:
            self._live[key] = visit
        else:
            self._end(key, visit)
        return result

    def _samples(self, part: slice) -> Activation:
        assert self._feed.inputs is not None, "the first stage is fed"
        arrays = tuple(array[part] for array in members(self._feed.inputs))
        shape, dtype = self._shapes[Op.RECV_F][0], self._dtype
        if self._stages[0].model.reads_tokens:
            dtype = np.dtype(np.int64)
        fit = joined_members(tuple(array.shape[1:] for array in arrays)) == shape
        if not (fit and all(array.dtype == dtype and array.flags.c_contiguous for array in arrays)):
            found = (f"shape {array.shape}, {array.dtype}, strides {array.strides}" for array in arrays)
            raise InputError(  # kernels would misread them
                "the model cannot take these samples",
                where="inputs",
                found="; ".join(found),
                expected=f"C-contiguous samples of shape {shape}, {dtype}",
            )
        return joined_members(arrays)

    def _compute_dgrad(self, action: Action) -> None:
        """Compute the gradient of a stage's input, and that of its weights too if the action says both."""
        key = action.stage, action.microbatch
        dy = None if key in self._replaying else self._backward.take(key, self.trace)
        self._compute(action, partial(self._backward_pass, dy))

    def _backward_pass(self, dy: Activation | None, action: Action) -> None:
        stage, number = key = action.stage, action.microbatch
        both = action.op is Op.B
        model, visit = self._stages[stage].model, self._live[key]
        if dy is None:
            dy = self._backward.take(key)
        if both:
            replayed(self._listen, visit)
        dx = (model.backward if both else model.backward_input)(dy, visit.context)
        self._pool.release(dy)
        if stage > 0:
            assert dx is not None, "a stage gives the one before its gradient"
            self._backward.put(dx, (stage - 1, number))
        if both:
            self._end(key, self._live.pop(key))

    def _backward_weight(self, action: Action) -> None:
        key = action.stage, action.microbatch
        visit = self._live.pop(key)
        replayed(self._listen, visit)
        self._stages[action.stage].model.backward_weight(visit.context)
        self._end(key, visit)

    def _listen(self, visit: _Visit) -> None:
        """Let the companion hear of layers whose weight gradients this action ends, if it is a stage's last."""
        last = self._companion is not None and self._last_backward[self._action.stage] == self._action.microbatch
        visit.batch.landed = self._companion.layer_landed if self._companion and last else None

    def _end(self, key: Key, visit: _Visit) -> None:
        """Let go of all that a micro-batch has kept on a stage."""
        assert not visit.batch.kept, f"a layer keeps something after its backward: {visit.context.leftovers()}"
        self._idle[key[0]].append(visit)
        self._forward.free(key)
        self._backward.free(key)

    def _new_visit(self, stage: int) -> _Visit:
        batch = MicroBatch(self._pool, self._seed, self._ranks, self._packer)
        return _Visit(batch, Context(batch, needs_dx=stage > 0))

    def _move(self, action: Action) -> None:
        """Begin to send or to receive."""
        begin, offset, receives = self._moves[action.op]
        stage = action.stage + offset
        start, stop = self._bounds[action.microbatch]
        began = now()
        begin((stage, action.microbatch), self._shapes[receives][stage], stop - start)
        if self.trace:
            self.trace.add("receive" if offset == 0 else "send", str(action), began)
