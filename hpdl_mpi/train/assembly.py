"""A model put together on the ranks of a job, with loaders of what it sees."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

from numpy.typing import DTypeLike

from hpdl_mpi.base.errors import HpdlError, InputError
from hpdl_mpi.comm import Communicator, SingleCommunicator, agree
from hpdl_mpi.data import Batch, Loader
from hpdl_mpi.data.sampler import Shuffle
from hpdl_mpi.nn import Layer, Loss, Shape
from hpdl_mpi.optim import Optimizer
from hpdl_mpi.parallel import ProcessGrid, Replica
from hpdl_mpi.parallel.average import checked_decay
from hpdl_mpi.parallel.grid import check_shape
from hpdl_mpi.parallel.node_memory import shares_machines
from hpdl_mpi.parallel.pipeline import Pipeline
from hpdl_mpi.parallel.replica import checked_dtype, checked_seed, refuse_layerwise
from hpdl_mpi.plan import Task, plan_pipeline
from hpdl_mpi.train.job import Parallel
from hpdl_mpi.train.launch import first_on_node, rehearse, start_threads
from hpdl_mpi.train.restore import require_same_call
from hpdl_mpi.train.source import PathLike, Source

_TEST_SHARE = 32
"""Samples of an evaluation batch that each rank has at least."""


class Assembly:
    """The grid of ranks and their threads, the pipeline, this rank's replica, and loaders of its data.

    Constructing one is collective, and so are `plan`, `build`, `rehearse` and `free`.

    Parameters
    ----------
    model, loss, optimizer : Layer, Loss, Optimizer
    parallel : Parallel
    dtype, seed, ema, comm : dtype, int, float or None, Communicator
        All as `Trainer` takes them.

    Attributes
    ----------
    grid : ProcessGrid
    threads : int
        Of each rank.
    pipeline : Pipeline
        The whole model on one rank until `plan`.
    source : Source
        Of the training data, once it is known, with what was measured of it.
    """

    def __init__(
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        *,
        parallel: Parallel,
        dtype: DTypeLike,
        seed: int,
        ema: float | None = None,
        comm: Communicator,
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.parallel, self.comm = parallel, comm
        self.dtype, self.seed = checked_dtype(dtype), checked_seed(seed)
        self.ema = None if ema is None else checked_decay(ema)
        # What decides which calls ranks make must not differ when the first ones are made.
        require_same_call(comm, {"parallel": parallel}, "Trainer")
        self.grid = _make_grid(parallel, comm)
        self.threads = start_threads(comm, parallel.threads)
        self.pipeline = Pipeline()
        self.source = Source("")
        self._replica: Replica | None = None

    @property
    def built(self) -> bool:
        """Whether there is a replica."""
        return self._replica is not None

    @property
    def replica(self) -> Replica:
        """This rank's part of the model, once `build` has made it; an `InputError` before."""
        if self._replica is None:
            raise InputError("holds no model yet", where="Trainer", remedy="call fit or load first")
        return self._replica

    @property
    def chosen(self) -> dict[str, Any]:
        """What was measured or chosen of the pipeline, by the keys of `Parallel`."""
        schedule = self.pipeline.schedule
        if schedule.num_stages == schedule.num_microbatches == 1:
            return {}
        cuts = {"cuts": list(self.pipeline.cuts)} if schedule.num_stages > 1 else {}
        return {"num_microbatches": schedule.num_microbatches} | cuts

    def plan(self, input_shape: Shape, max_share: int) -> None:
        """Decide how the model is cut and a batch divided: rank 0 measures for all. Collective.

        Parameters
        ----------
        input_shape : tuple of int
            Of one sample.
        max_share : int
            Samples of a batch that a pipeline gets at most.
        """
        settings = self.parallel
        if settings.shared_memory in ("gradients", "parameters"):
            shares_machines(self.grid)
        dp = self.grid.axis("dp")
        refuse_layerwise(self.optimizer, settings.sharded(dp.rank, dp.nodes))
        held = settings.held(len(self.optimizer.slots), self.ema, dp.rank, dp.nodes)
        task = Task(self.model, input_shape, self.loss, self.dtype, sum(held), recompute=settings.recompute)
        schedule, cuts = agree(
            self.comm,
            lambda: plan_pipeline(
                task,
                num_ranks=settings.pp,
                max_share=max_share,
                schedule=settings.schedule,
                num_chunks=settings.num_chunks,
                num_microbatches=settings.num_microbatches,
                cuts=settings.cuts,
                limit_bytes=settings.memory_limit,
            ),
        )
        packing_ranks = self.comm.node_size if settings.packs else 0
        self.pipeline = Pipeline(self.grid.axis("pp"), schedule, cuts, settings.recompute, packing_ranks)

    def build(self, input_shape: Shape, loader: Loader | None = None) -> None:
        """Make the replica, and run every kernel of training once if there is data for it. Collective.

        A node's first pipeline goes first, so that only it waits for the compiler.
        """
        first_on_node(self.grid, lambda: self._build(input_shape, loader))

    def _build(self, input_shape: Shape, loader: Loader | None) -> None:
        if self._replica is not None:
            self._replica.release()
        trains, dp = loader is not None, self.grid.axis("dp")
        self._replica = Replica(
            self.model,
            input_shape,
            self.optimizer,
            dtype=self.dtype,
            seed=self.seed,
            pipeline=self.pipeline,
            # What is not trained needs none of these.
            ema=self.ema if trains else None,
            compression=self.parallel.feedback if trains and dp.size > 1 else None,
            sharding=self.parallel.sharded(dp.rank, dp.nodes) if trains else None,
            # The node's other ranks build after its first, when that one's share is taken already.
            ranks_on_node=self.comm.node_size if self.comm.node_rank == 0 else 0,
        )
        if loader is not None:
            try:
                # The other ranks are not there yet, so this one does alone what it will do with them.
                ranks = SingleCommunicator() if self.parallel.sync_batch_norm else None
                self._rehearse(loader, partial(rehearse, ranks=ranks, compression=self.parallel.wire))
            except HpdlError:
                self._replica.release()
                self._replica = None  # nothing was trained: the data can be mended, and `fit` called again
                raise

    def rehearse(self, loader: Loader, run: Callable[[Replica, Batch, Loss], None]) -> None:
        """Let `run` compile what it needs, on one sample for each rank; a node's first pipeline first. Collective."""
        first_on_node(self.grid, lambda: self._rehearse(loader, run))

    def _rehearse(self, loader: Loader, run: Callable[[Replica, Batch, Loss], None]) -> None:
        with loader.dataset.naming_files(), closing(loader.epoch(0, limit=self.grid.shape["dp"])) as batches:
            run(self.replica, next(batches), self.loss)

    def loader(
        self, path: PathLike, batch_size: int, shuffle: Shuffle = "none", *, training: bool = False, depth: int = 2
    ) -> Loader:
        """Return a loader of this rank's share of some samples, prepared like those of `source`.

        Parameters
        ----------
        path : path-like
        batch_size : int
            Of all ranks.
        shuffle : {"block", "global", "none"}
        training : bool
            Whether samples are augmented, and masked anew in every epoch.
        depth : int
            Batches to read ahead.
        """
        classifies = self.loss.task == "classification"
        return Loader(
            self.source.at(path).open(),
            global_batch_size=batch_size,
            seed=self.seed,
            shuffle=shuffle,
            dp_rank=self.grid.coordinate("dp"),
            dp_size=self.grid.shape["dp"],
            transform=self.source.transform,
            augment=self.source.augment,
            training=training,
            target_transform=None if classifies else self.source.target_transform,
            dtype=self.dtype,
            tokens=self.model.reads_tokens,
            bucket=self.source.bucket,
            masking=self.source.masking,
            depth=depth,
            reads_inputs=self.pipeline.reads_inputs,
            reads_targets=self.pipeline.reads_targets,
        )

    def test_loader(self, path: PathLike, train_batch_size: int) -> Loader:
        """Return a loader of samples to evaluate on; tiny batches of training would only cost time here."""
        return self.loader(path, max(train_batch_size, _TEST_SHARE * self.grid.shape["dp"]))

    def free(self) -> None:
        """Give back the replica, and what this holds of the MPI library; nobody may use it any more. Collective."""
        if self._replica is not None:
            self._replica.free()
            self._replica = None
        self.grid.free()


def _make_grid(parallel: Parallel, comm: Communicator) -> ProcessGrid:
    size, pp = comm.size, parallel.pp
    if parallel.dp is None and size % pp:
        expected = f"a divisor of {size}, the number of ranks that the launcher started"
        raise InputError(
            "pipelines do not fit the ranks",
            where="parallel.pp",
            found=pp,
            expected=expected,
            remedy="start as many ranks as pipelines need, or change parallel.pp",
            shared=True,
        )
    shape = {"pp": pp, "dp": parallel.dp or size // pp}
    agree(comm, lambda: check_shape(shape, size))
    grid = ProcessGrid(comm, shape)
    if parallel.check_calls:
        # Ranks of a pipeline must not wait for one another where its schedule does not say so.
        grid.axis("dp").check_calls = True
    return grid
