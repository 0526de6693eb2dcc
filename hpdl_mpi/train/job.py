"""The job: what its file may say, checked before anything is allocated.

Sections with a `name` (model, optimizer, lr_schedule, loss) take further keys: the keywords of what they name, with
the types of its signature. So a constructor is the one place that says what can be set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import ConfigDict, Field

from hpdl_mpi.base.errors import InputError, is_integer, require
from hpdl_mpi.comm import ALLREDUCES, AUTO, LIBRARY
from hpdl_mpi.parallel.feedback import Compression
from hpdl_mpi.parallel.node_memory import MemorySharing
from hpdl_mpi.parallel.pipeline import Recomputed
from hpdl_mpi.parallel.shards import Sharding
from hpdl_mpi.train.job_data import Data
from hpdl_mpi.train.section import Positive, Section, Text

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
Factory = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
Signal = Literal["SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM"]

_ALGORITHMS = (AUTO, LIBRARY, *(name for name, kind in ALLREDUCES.items() if not kind.in_window))
"""What sums gradients that lie in each rank's own memory; `shared_memory` has algorithms of its own."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


_MODEL_NAME: pydantic.TypeAdapter[str] = pydantic.TypeAdapter(Name | Factory)
MODEL_NAME = "a name of letters, digits, '_', '.' and '-' that begins with a letter or digit, or module:function"
"""In words what `is_model_name` tells."""


def is_model_name(value: object) -> bool:
    """Return whether a summary can name a model so: by rules of a job's `name`, or as its factory."""
    try:
        _MODEL_NAME.validate_python(value, strict=True)
    except pydantic.ValidationError:
        return False
    return True


class Named(Section):
    """A name and the keywords of what it names."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    name: Text

    @property
    def keywords(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.__pydantic_extra__ or {})


class Model(Section):
    """A reference model by name, or any function that returns a Layer as ``module:function``."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)
    name: Text | None = None
    factory: Factory | None = None
    folder: Text | None = None
    """Where the factory's module is looked up first: the job file's folder."""

    @property
    def keywords(self) -> dict[str, Any]:
        """Arguments of the model's function."""
        return dict(self.__pydantic_extra__ or {})

    @pydantic.model_validator(mode="after")
    def _one_of_both(self) -> Model:
        if (self.name is None) == (self.factory is None):
            raise ValueError("give either name or factory")
        return self


class EarlyStopping(Section):
    """When a run ends because evaluations no longer get better; the best checkpoint is kept."""

    metric: Literal["loss", "accuracy", "top5", "rmse"] = "loss"
    patience: Positive
    """Evaluations in a row that are not better than the best one before them."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """By how much the metric must change to be better."""


class Training(Section):
    """How long, in which batches, towards what."""

    epochs: Positive | None = None
    steps: Positive | None = None
    global_batch_size: Positive
    loss: Named
    dtype: Literal["float32", "float64"] = "float32"
    accumulate: Positive = 1
    eval_every: Positive | None = None
    """Steps between evaluations; by default one after every epoch."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    early_stopping: EarlyStopping | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, which is what evaluations see."""
    exact: bool = False
    """Convolutions sum in the order of their definition, as if each had `exact`."""

    @pydantic.field_validator("loss", mode="before")
    @classmethod
    def _name_alone(cls, loss: Any) -> Any:
        return {"name": loss} if isinstance(loss, str) else loss

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            both = " (--set training.epochs=none removes that key)" if self.epochs else ""
            raise ValueError(f"give either epochs or steps{both}")
        return self


class Held(NamedTuple):
    """What a rank keeps, by the size of its parameters."""

    parameters: float
    gradients: float
    state: float


class Parallel(Section):
    """The grid of ranks, and the threads of each.

    Attributes
    ----------
    dp : int, optional
        Data-parallel ranks; by default what remains of the world after pp.
    pp : int
        Ranks of a pipeline.
    threads : int, optional
        Threads per rank; by default the cores of a node shared among its ranks.
    schedule : str
        Of the pipeline: a name that ``hpdl schedule show`` knows, or a CSV file.
    num_chunks : int, optional
        Stages on each rank, for schedules that leave a choice.
    num_microbatches : int, optional
        That each pipeline's share of a batch is cut into; by default four for each of its ranks, one without a
        pipeline, and more where `memory_limit` asks for it.
    cuts : sequence of int, optional
        The numbers of the outermost layers at which stages begin, but for the first; by default stages take equal time.
    recompute : {"none", "stage", "block"}
        What keeps its input alone and runs forward once more in backward: whole stages, or the model's outermost
        layers that are made of layers.
    pack_weights : bool
        Keep copies of matrices that are packed for the products of all micro-batches of a step, if these are several,
        where memory is plentiful; with `memory_limit`, or one copy of the parameters for a machine, there are none.
    bucket_cap_mb : float
        Megabytes of gradients that are summed over the data-parallel ranks at once, while backward goes on.
    algorithm : str
        How they are summed: ``auto``, ``library``, or a name that ``hpdl schedule show allreduce`` knows, but not
        ``window``, which is what `shared_memory` is for.
    compression : {"bf16", "fp16", "powersgd", "top-k"}, optional
        Round what messages between machines carry of them to half the bytes; or sum products of thin matrices, or the
        largest of them alone, and carry the rest over to the next step. The MPI library's sums take none, and the
        largest are collected by a way of their own.
    compression_rank : int, optional
        Of the matrices; by default 4.
    compression_density : float, optional
        Which part the largest are; by default 0.01.
    sharding : {"none", "optimizer", "gradients"}
        Let each data-parallel rank keep the optimizer's state of its share of the parameters alone, and update it; with
        "gradients" also no others' sums. Under ``auto`` and ``ring`` a rank sums its share alone; another algorithm
        sums all of it on all ranks.
    shared_memory : {"auto", "none", "gradients", "parameters"}
        With "gradients", let the data-parallel ranks of a machine have these in memory that they share, where they sum
        them without a message; so it is with "auto" where all of them are on one machine that has the memory, and
        nothing else is said of how they sum. With "parameters" there is also one copy of these for all, of which each
        rank updates its share, and keeps the optimizer's state of that alone.
    sync_batch_norm : bool
        Let batch normalisation take means and variances over the micro-batches that all data-parallel ranks have at
        once, not over a rank's own.
    timeout_seconds : float
        How long a rank may wait for others in training until the run ends, with a report of where each of them is.
    check_calls : bool
        Compare the ranks' collectives before each, not once in a step: to find where their calls part.
    memory_limit : int or str, optional
        Bytes of a rank, or a text such as "2 GiB": for parameters, gradients, optimizer state and activations.
    """

    dp: Positive | None = None
    pp: Positive = 1
    threads: Positive | None = None
    schedule: Text = "1f1b"
    num_chunks: Positive | None = None
    num_microbatches: Positive | None = None
    cuts: Annotated[tuple[Positive, ...], pydantic.BeforeValidator(_as_tuple)] | None = None
    recompute: Recomputed = "none"
    pack_weights: bool = True
    bucket_cap_mb: Annotated[float, Field(gt=0, le=1e9)] = 25.0
    algorithm: Literal[_ALGORITHMS] = AUTO  # type: ignore[valid-type]
    compression: Literal["bf16", "fp16", "powersgd", "top-k"] | None = None
    compression_rank: Positive | None = None
    compression_density: Annotated[float, Field(gt=0, le=1)] | None = None
    sharding: Literal["none", "optimizer", "gradients"] = "none"
    shared_memory: MemorySharing = "auto"
    sync_batch_norm: bool = False
    timeout_seconds: Annotated[float, Field(ge=1, le=1e9)] = 300.0
    check_calls: bool = False
    memory_limit: Annotated[pydantic.ByteSize, Field(gt=0)] | None = None

    @pydantic.model_validator(mode="after")
    def _whole_sums(self) -> Parallel:
        if self.compression in ("powersgd", "top-k") and self.sharding != "none":
            raise ValueError(f"compression = {self.compression!r} needs the sums of whole buckets: sharding = 'none'")
        shares = self.shared_memory in ("gradients", "parameters")
        if shares and (self.sharding != "none" or self.feedback):
            other = "sharding" if self.sharding != "none" else "compression"
            what = f"{other} = {getattr(self, other)!r}"
            raise ValueError(f"shared_memory = {self.shared_memory!r} and {what} are two ways to sum: leave one out")
        if shares and self.algorithm != AUTO:
            what = f"shared_memory = {self.shared_memory!r} has an algorithm of its own"
            raise ValueError(f"{what}: leave out algorithm = {self.algorithm!r}")
        return self

    @pydantic.model_validator(mode="after")
    def _compressible(self) -> Parallel:
        if self.compression == "top-k" and self.algorithm != AUTO:
            what = "compression = 'top-k' has an algorithm of its own"
            raise ValueError(f"{what}: leave out algorithm = {self.algorithm!r}")
        if self.compression and self.algorithm == LIBRARY:
            what = f"algorithm = {LIBRARY!r} leaves the messages to MPI"
            raise ValueError(f"{what}: leave out compression = {self.compression!r}, or take another algorithm")
        return self

    @pydantic.model_validator(mode="after")
    def _of_a_compression(self) -> Parallel:
        for key, kind in (("compression_rank", "powersgd"), ("compression_density", "top-k")):
            value = getattr(self, key)
            if value is not None and self.compression != kind:
                raise ValueError(f"{key} = {value!r} is of compression = {kind!r}: take that, or leave out {key}")
        return self

    @property
    def feedback(self) -> Compression | None:
        """How sums leave out what is carried over, if they do."""
        if self.compression == "powersgd":
            return Compression("powersgd", rank=self.compression_rank or Compression.rank)
        if self.compression == "top-k":
            return Compression("top-k", density=self.compression_density or Compression.density)
        return None

    @property
    def wire(self) -> str | None:
        """How messages carry gradients in less, if they do."""
        return self.compression if self.compression in ("bf16", "fp16") else None

    def sharded(self, rank: int, nodes: Sequence[int]) -> Sharding | None:
        """Return what a data-parallel rank keeps, if they share anything; `nodes` are the machines of all of them."""
        max_bytes, node = round(self.bucket_cap_mb * 1e6), nodes[rank]
        if self.shared_memory == "parameters" and nodes.count(node) > 1:
            machines = list(dict.fromkeys(nodes))
            index, count = nodes[:rank].count(node), nodes.count(node)
            copy, num_copies = machines.index(node), len(machines)
            return Sharding(index, count, max_bytes, one_copy=True, copy=copy, num_copies=num_copies)
        if self.sharding == "none" or len(nodes) == 1:
            return None
        return Sharding(rank, len(nodes), max_bytes, gradients=self.sharding == "gradients")

    @property
    def packs(self) -> bool:
        """Whether weights may be packed, see `pack_weights`."""
        return self.pack_weights and self.memory_limit is None and self.shared_memory != "parameters"

    def held(self, num_slots: int, ema: float | None, rank: int, nodes: Sequence[int]) -> Held:
        """Return what a data-parallel rank keeps, see `sharded`, with an optimizer of so many slots."""
        sharding = self.sharded(rank, nodes)
        count = sharding.count if sharding else 1
        state = num_slots / count + (ema is not None) + (self.feedback is not None and len(nodes) > 1)
        return Held(1 / count if sharding and sharding.one_copy else 1.0, 1.0, state)

    def accumulating(self, accumulate: int) -> Parallel:
        """Return the section with as many micro-batches as ``training.accumulate`` asks for, if it asks for several.

        Raises
        ------
        InputError
            Not a number of at least 1, or both keys ask.
        """
        require("training.accumulate", accumulate, is_integer(accumulate, 1), "an integer of at least 1")
        if accumulate > 1 and self.num_microbatches not in (None, accumulate):
            raise InputError(
                "both say into how many micro-batches a batch is cut",
                where="training.accumulate and parallel.num_microbatches",
                found=f"{accumulate} and {self.num_microbatches}",
                remedy="leave one of them out",
            )
        return self.model_copy(update={"num_microbatches": int(accumulate)}) if accumulate > 1 else self


class Checkpoint(Section):
    """When the state is written, and how much of the past is kept."""

    every: Positive | None = None
    """Steps between checkpoints, besides one after every epoch."""
    keep: Positive = 2
    signal: Signal = "SIGUSR1"
    """Ends the run with a checkpoint, as Ctrl-C and SIGTERM do."""


class Init(Section):
    """Weights that the run begins with."""

    file: Text
    """A .safetensors file."""
    skip: Annotated[tuple[Text, ...], pydantic.BeforeValidator(_as_tuple)] = ()
    """Patterns of names that are left out, such as ``fc.*``."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _of_a_file(cls, settings: Any) -> Any:
        if isinstance(settings, dict) and "skip" in settings and "file" not in settings:
            raise ValueError("says what is left out of no file: give init.file (--init), or leave out init.skip")
        return settings


class Job(Section):
    """All that a run depends on; see the tables of its sections."""

    name: Name
    seed: int = Field(0, ge=0)
    model: Model
    data: Data
    training: Training
    optimizer: Named
    lr_schedule: Named = Named(name="constant")
    parallel: Parallel = Parallel()
    checkpoint: Checkpoint = Checkpoint()
    init: Init | None = None
