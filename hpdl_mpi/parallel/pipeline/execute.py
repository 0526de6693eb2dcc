"""Runs a rank's program of a pipeline schedule: one loop over actions for all schedules, training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.shares import share
from hpdl_mpi.comm import Communicator, Work
from hpdl_mpi.comm.communicator import COLLECTIVE_TAG
from hpdl_mpi.nn import Context, Loss, LossSums, MicroBatch, Pool
from hpdl_mpi.parallel.pipeline.action import Action, Op, Schedule
from hpdl_mpi.parallel.pipeline.stages import Stage

_Key = tuple[int, int]
"""Stage and micro-batch."""


@dataclass
class Feed:
    """What a rank's share of a batch gives to its stages; the arrays are borrowed.

    Attributes
    ----------
    sample_ids : int64 array, shape (n,)
        On every rank.
    inputs : array, shape (n, ...), optional
        Where the first stage is.
    targets : array, shape (n, ...), optional
        Where the last stage is, unless it is to predict.
    epoch : int
    scale : float
        Multiplies the gradient of the loss sum.
    """

    sample_ids: np.ndarray
    inputs: np.ndarray | None = None
    targets: np.ndarray | None = None
    epoch: int = 0
    scale: float = 1.0


@dataclass
class _Slot:
    """What a micro-batch keeps on one stage between its actions; reused from batch to batch."""

    batch: MicroBatch
    context: Context


@dataclass
class _Incoming:
    """A message that will be, or has been, received."""

    array: np.ndarray
    work: Work


@dataclass
class _Flow:
    """What is between actions: outputs on their way forward or gradients on their way back, by receiving stage."""

    here: dict[_Key, np.ndarray] = field(default_factory=dict)
    coming: dict[_Key, _Incoming] = field(default_factory=dict)
    leaving: dict[_Key, np.ndarray] = field(default_factory=dict)


class Executor:
    """Runs batches through this rank's stages, with the ranks before and after. Calls are collective.

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
    reduce : callable, optional
        Is called with the number of a stage when this rank's part of its gradient is whole.
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
        reduce: Callable[[int], None] = lambda stage: None,
    ) -> None:
        assert schedule.num_ranks == comm.size, "a schedule has a program for each rank"
        assert schedule.num_stages == len(stages), "a schedule has the model's stages"
        reduces = any(action.op is Op.REDUCE for action in schedule.actions())
        trains = any(action.op in (Op.I, Op.B) for action in schedule.actions())
        assert reduces == trains, "a schedule to train is complete"
        assert loss is not None or not trains, "training needs a loss"
        self._schedule = schedule
        self._program = schedule.programs[comm.rank]
        self._trains = trains
        self._stages = stages
        self._comm = comm
        self._pool = pool
        self._dtype = np.dtype(dtype)
        self._loss = loss
        self._seed = seed
        self._reduce = reduce
        self._idle: dict[int, list[_Slot]] = {stage: [] for stage in range(len(stages))}
        self._live: dict[_Key, _Slot] = {}
        self._forward, self._backward = _Flow(), _Flow()
        self._sending: list[tuple[Work, np.ndarray]] = []
        self._do = {
            Op.F: self._compute_forward,
            Op.I: self._compute_dgrad,
            Op.W: self._compute_wgrad,
            Op.B: self._compute_backward,
            Op.SEND_F: self._send_output,
            Op.RECV_F: self._receive_input,
            Op.SEND_B: self._send_gradient,
            Op.RECV_B: self._receive_gradient,
        }

    def run(self, feed: Feed) -> tuple[LossSums, list[np.ndarray]]:
        """Run a batch.

        Returns
        -------
        sums : LossSums
            Of this rank's micro-batches where the last stage is, zeros elsewhere.
        outputs : list of array
            Where the last stage is and there is no loss: each micro-batch's outputs. The caller owns them.
        """
        for array in (feed.inputs, feed.targets):
            assert array is None or len(array) == len(feed.sample_ids), "each sample has its number"
        self._feed = feed
        self._sums = LossSums(0.0, 0.0, 0.0)
        self._outputs: list[np.ndarray] = []
        size, count = len(feed.sample_ids), self._schedule.num_microbatches
        self._bounds = [share(size, number, count) for number in range(count)]
        for index, action in enumerate(self._program):
            try:
                self._perform(action)
            except Exception as error:
                if self._comm.size > 1:
                    error.add_note(self._where(index))
                raise
        for work, array in self._sending:
            work.wait()
            self._pool.release(array)
        self._sending.clear()
        left = [*self._live, *self._forward.here, *self._forward.coming, *self._forward.leaving]
        left += [*self._backward.here, *self._backward.coming, *self._backward.leaving]
        assert not left, f"nothing is left after a batch, but {left}"
        return self._sums, self._outputs

    def _perform(self, action: Action) -> None:
        if action.op is Op.REDUCE:
            self._reduce(action.stage)
        else:
            start, stop = self._bounds[action.microbatch]
            if start < stop:  # a batch with fewer samples than micro-batches leaves some of them empty, on all ranks
                self._do[action.op](action.stage, action.microbatch)
        self._forget_sent()

    def _where(self, index: int) -> str:
        """Return this rank's program around the action that failed."""
        around = [str(action) for action in self._program[max(0, index - 3) : index + 4]]
        around[min(index, 3)] = f"[{around[min(index, 3)]}]"
        return f"rank {self._comm.rank} of the pipeline, action {index + 1} of {len(self._program)}: {' '.join(around)}"

    # What computes.

    def _compute_forward(self, stage: int, number: int) -> None:
        part = slice(*self._bounds[number])
        slot = self._idle[stage].pop() if self._idle[stage] else self._new_slot(stage)
        slot.batch.begin(self._feed.sample_ids[part], epoch=self._feed.epoch, training=self._trains)
        if stage == 0:
            assert self._feed.inputs is not None, "the first stage is fed"
            x = self._feed.inputs[part]
            self._check_samples(x)
        else:
            x = self._take(self._forward, (stage, number))
        y = self._stages[stage].model.forward(x, slot.context)
        if stage > 0:
            self._pool.release(x)
        if self._trains:
            self._live[stage, number] = slot
        else:
            self._idle[stage].append(slot)
        if stage + 1 < len(self._stages):
            self._hand_on(self._forward, y, (stage + 1, number))
        else:
            self._finish(y, part, slot, (stage, number))

    def _check_samples(self, x: np.ndarray) -> None:
        """Refuse what kernels would misread."""
        shape = self._stages[0].input_shape
        if x.shape[1:] != shape or x.dtype != self._dtype or not x.flags.c_contiguous:
            raise InputError(
                "the model cannot take these samples",
                where="inputs",
                found=f"shape {x.shape}, {x.dtype}, strides {x.strides}",
                expected=f"C-contiguous samples of shape {shape}, {self._dtype}",
            )

    def _finish(self, y: np.ndarray, part: slice, slot: _Slot, key: _Key) -> None:
        """Compare the model's outputs with their targets, or keep a copy of them."""
        if self._loss is None:
            self._outputs.append(y.copy())
        else:
            assert self._feed.targets is not None, "the last stage is fed"
            sums, gradient = self._loss(y, self._feed.targets[part], self._feed.scale, slot.context)
            self._sums = LossSums(*(one + other for one, other in zip(self._sums, sums, strict=True)))
            if gradient is not None:
                self._backward.here[key] = gradient
        self._pool.release(y)

    def _compute_dgrad(self, stage: int, number: int) -> None:
        self._go_back(stage, number, self._stages[stage].model.backward_input)

    def _compute_backward(self, stage: int, number: int) -> None:
        self._go_back(stage, number, self._stages[stage].model.backward)
        self._idle[stage].append(self._live.pop((stage, number)))

    def _go_back(self, stage: int, number: int, half: Callable[[np.ndarray, Context], np.ndarray | None]) -> None:
        dy = self._take(self._backward, (stage, number))
        dx = half(dy, self._live[stage, number].context)
        self._pool.release(dy)
        if stage > 0:
            assert dx is not None, "a stage gives the one before its gradient"
            self._hand_on(self._backward, dx, (stage - 1, number))

    def _compute_wgrad(self, stage: int, number: int) -> None:
        slot = self._live.pop((stage, number))
        self._stages[stage].model.backward_weight(slot.context)
        self._idle[stage].append(slot)

    def _new_slot(self, stage: int) -> _Slot:
        batch = MicroBatch(self._pool, self._seed)
        return _Slot(batch, Context(batch, needs_dx=stage > 0))

    # What moves.

    def _hand_on(self, flow: _Flow, array: np.ndarray, key: _Key) -> None:
        """Leave a result for another stage of this rank, or for the send that follows."""
        here = self._schedule.stage_ranks[key[0]] == self._comm.rank
        (flow.here if here else flow.leaving)[key] = array

    def _take(self, flow: _Flow, key: _Key) -> np.ndarray:
        """Return what another stage left or sent, and wait for it if need be."""
        if key in flow.here:
            return flow.here.pop(key)
        incoming = flow.coming.pop(key)
        incoming.work.wait()
        return incoming.array

    def _send_output(self, stage: int, number: int) -> None:
        self._send(self._forward, (stage + 1, number), 0)

    def _send_gradient(self, stage: int, number: int) -> None:
        self._send(self._backward, (stage - 1, number), 1)

    def _receive_input(self, stage: int, number: int) -> None:
        source = self._schedule.stage_ranks[stage - 1]
        self._receive(self._forward, (stage, number), self._stages[stage].input_shape, source, 0)

    def _receive_gradient(self, stage: int, number: int) -> None:
        source = self._schedule.stage_ranks[stage + 1]
        self._receive(self._backward, (stage, number), self._stages[stage].output_shape, source, 1)

    def _send(self, flow: _Flow, key: _Key, kind: int) -> None:
        array = flow.leaving.pop(key)
        dest = self._schedule.stage_ranks[key[0]]
        self._sending.append((self._comm.isend(array, dest, self._tag(key, kind)), array))

    def _receive(self, flow: _Flow, key: _Key, shape: tuple[int, ...], source: int, kind: int) -> None:
        start, stop = self._bounds[key[1]]
        array = self._pool.take((stop - start, *shape), self._dtype)
        flow.coming[key] = _Incoming(array, self._comm.irecv(array, source, self._tag(key, kind)))

    def _tag(self, key: _Key, kind: int) -> int:
        """Return the tag of a message to a stage; those of one tag are sent and received in one order, as is proved."""
        return (2 * (key[0] * self._schedule.num_microbatches + key[1]) + kind) % COLLECTIVE_TAG

    def _forget_sent(self) -> None:
        """Give back the arrays of messages that have left; this also moves the others along."""
        still = []
        for work, array in self._sending:
            if work.test():
                self._pool.release(array)
            else:
                still.append((work, array))
        self._sending = still
