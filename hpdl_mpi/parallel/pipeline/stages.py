"""A model cut into stages, and the place of a rank among those that hold them.

A stage is a run of the model's outermost layers, under the names they have there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Literal

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator, SingleCommunicator
from hpdl_mpi.nn import Layer, Recompute, Sequential, Shape, walk
from hpdl_mpi.nn.layout import refuse_shared
from hpdl_mpi.parallel.pipeline.action import Schedule
from hpdl_mpi.parallel.pipeline.named import make_schedule

Recomputed = Literal["none", "stage", "block"]
"""What keeps its input alone until backward: nothing, whole stages, or the outermost layers that are made of layers."""


@dataclass(frozen=True)
class Pipeline:
    """How a model is cut and trained by the ranks of a pipeline, this one among them. Alike on all of them.

    Attributes
    ----------
    comm : Communicator
        The ranks, in the order of the schedule's.
    schedule : Schedule
        Of a step, computations only.
    cuts : tuple of int
        The numbers of the outermost layers at which stages begin, but for the first.
    recompute : {"none", "stage", "block"}
    packing_ranks : int, optional
        Ranks of this machine, of whatever pipeline, that keep packed weights, where steps have several micro-batches; 0
        for none. By default those of this pipeline.
    """

    comm: Communicator = field(default_factory=SingleCommunicator)
    schedule: Schedule = field(default_factory=lambda: make_schedule("1f1b", 1, 1))
    cuts: tuple[int, ...] = ()
    recompute: Recomputed = "none"
    packing_ranks: int | None = None

    @property
    def own(self) -> list[int]:
        """The numbers of this rank's stages."""
        return [stage for stage, rank in enumerate(self.schedule.stage_ranks) if rank == self.comm.rank]

    @property
    def reads_inputs(self) -> bool:
        """Whether this rank has the first stage."""
        return self.schedule.stage_ranks[0] == self.comm.rank

    @property
    def reads_targets(self) -> bool:
        """Whether this rank has the last stage."""
        return self.schedule.stage_ranks[-1] == self.comm.rank


@dataclass(frozen=True)
class Stage:
    """A part of a model.

    Attributes
    ----------
    model : Layer
        Built. Its layers have the paths, so the names and random keys, that they have in the whole model.
    input_shape, output_shape : tuple of int, or tuple of such
        Of one sample.
    """

    model: Layer
    input_shape: Shape
    output_shape: Shape

    @cached_property
    def names(self) -> frozenset[str]:
        """The full names of its parameters."""
        return frozenset(
            layer.full_name(parameter) for layer in walk(self.model) for parameter in layer.declared.values()
        )


def cut(model: Layer, input_shape: Shape, cuts: Sequence[int], recompute: Recomputed = "none") -> list[Stage]:
    """Cut a model before the outermost layers of these numbers, and build the stages; allocates nothing.

    Parameters
    ----------
    model : Layer
        A Sequential if there are cuts.
    input_shape : tuple of int
        Of one sample.
    cuts : sequence of int
        Rising; one fewer than there are stages.
    recompute : {"none", "stage", "block"}

    Raises
    ------
    InputError
        The model is no Sequential, the cuts leave a stage without layers, there are no blocks to recompute, or a layer
        stands in the model twice.
    """
    if not cuts and recompute != "block":
        parts = [model]
    else:
        layers = list(pieces(model, recompute).items())
        bounds = [0, *cuts, len(layers)]
        if any(start >= stop for start, stop in pairwise(bounds)):
            raise InputError(
                "the cuts leave a stage without layers",
                where="parallel.cuts",
                found=list(cuts),
                expected=f"rising numbers of layers from 1 to {len(layers) - 1}",
            )
        parts = [Sequential(**dict(layers[start:stop])) for start, stop in pairwise(bounds)]
    if recompute == "stage":
        parts = [Recompute(part) for part in parts]
    stages = []
    for part in parts:
        part.build(input_shape)
        output_shape = part.output_shape(input_shape)
        stages.append(Stage(part, input_shape, output_shape))
        input_shape = output_shape
    if isinstance(model, Sequential):
        model.join_tied()
    refuse_shared(model)
    return stages


def pieces(model: Layer, recompute: Recomputed = "none") -> dict[str, Layer]:
    """Return the layers that a model can be cut between, by name: the outermost ones.

    Parameters
    ----------
    model : Sequential
    recompute : {"none", "stage", "block"}
        With "block", those that are made of layers are wrapped so that they keep their inputs alone.

    Raises
    ------
    InputError
        The model is no Sequential, or has no blocks where they are to be recomputed.
    """
    if not isinstance(model, Sequential):
        found = type(model).__name__
        raise InputError("only a Sequential can be cut into stages", where="model", found=found)
    if recompute != "block":
        return dict(model.children)
    if not any(layer.children for layer in model.children.values()):
        raise InputError(
            "the model has no blocks, outermost layers that are made of layers",
            where="parallel.recompute",
            found=recompute,
            expected="none or stage",
        )
    return {name: Recompute(layer) if layer.children else layer for name, layer in model.children.items()}
