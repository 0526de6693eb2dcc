"""The contract of a layer. A new layer is a subclass with a few methods; it need not know about MPI."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import InputError, is_flag, is_integer
from hpdl_mpi.nn.context import Context, join
from hpdl_mpi.nn.init import Initializer

Shape = tuple[int, ...]
"""The shape of one sample, without the batch dimension; of an activation of several arrays, a tuple of shapes."""


@dataclass(frozen=True)
class Parameter:
    """A trained array that a layer declares.

    Attributes
    ----------
    name : str
        Within the layer.
    shape : tuple of int
    init : Initializer
        How it starts.
    fans : (int, int)
        The numbers of inputs and outputs that it connects.
    decay : bool
        Whether weight decay applies to it.
    tied : str or None
        The full name of the parameter that it is one with, see `Sequential.tie`.
    images : tuple of (int, int, int)
        What each of its rows is made of where PyTorch has the channels of images first, see `Layer.declare`.
    least : float
        What its elements cannot be less than.
    """

    name: str
    shape: Shape
    init: Initializer
    fans: tuple[int, int]
    decay: bool = True
    tied: str | None = None
    images: tuple[Shape, ...] = ()
    least: float = -math.inf


class Layer(abc.ABC):
    """A differentiable function of an array (or a tuple of arrays), batch first.

    A layer holds no state of a micro-batch: what backward needs goes into the `Context`. Inputs and `dy` are
    borrowed, and not written to; results come from ``ctx.take``, or are the input retained, and belong to the caller,
    who releases them. One who calls a layer may write to its result only where nobody else holds it
    (``ctx.holds_alone``). A layer that works `in_place` takes its results from ``ctx.reuse_or_take``, which may be the
    input. The same object stands in a model once.

    Attributes
    ----------
    path : str
        Where the layer stands in the model, set by `build`.
    declared, tracked : dict of str to Parameter
        What `build` declared: parameters, and statistics, which forward keeps up to date while training.
    params, grads, statistics : dict of str to array
        Views into the flat arrays of a `Layout`, by local name; empty until it binds them.
    counters : tuple of str
        Names under which PyTorch's twin counts the batches it has seen; files of weights have them, we do not.
    unread : tuple of str
        Other names that files of weights may have of PyTorch's twin, such as that of a mask, and nobody needs.
    in_place : bool
        Whether a result may take the place of what it is made from, see ``ctx.reuse_or_take``.
    portable : bool
        Whether PyTorch's twin would compute the same with the same weights; `build` says where it would not.
    reads, writes : int
        Of an activation of several arrays, how many of the first ones it takes, as a tuple if there are several, and
        how many its result replaces; see `nn.members`.
    reads_tokens : bool
        Whether it takes whole numbers, such as those of words, int64.
    replayable : bool
        Whether the calls of kernels that it makes for a batch serve any other of the same shapes, seed and epoch, and
        whatever else looks at contents is `replayed`; see `kernels.recording`. Each class says so for itself.
    """

    counters: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    in_place: bool = False
    portable: bool = True
    reads: int = 1
    writes: int = 1
    reads_tokens: bool = False
    replayable: bool = False

    path: str
    declared: dict[str, Parameter]
    tracked: dict[str, Parameter]
    params: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]

    def __new__(cls, *args: Any, **kwargs: Any) -> Layer:
        layer = super().__new__(cls)
        layer.path = ""
        layer.declared, layer.params, layer.grads = {}, {}, {}
        layer.tracked, layer.statistics = {}, {}
        return layer

    @property
    def children(self) -> dict[str, Layer]:
        """The layers inside, by name, in the order in which they run."""
        return {}

    @property
    def adds(self) -> bool:
        """Whether forward adds `Context.addend` to its output, which saves its reader a pass over memory."""
        return False

    def build(self, input_shape: Shape) -> None:
        """Declare parameters for inputs of this shape; allocates nothing.

        Raises
        ------
        InputError
            The layer cannot take such inputs.
        """

    @abc.abstractmethod
    def output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of one output sample; pure, and callable at any step."""

    @abc.abstractmethod
    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        """Return y."""

    @abc.abstractmethod
    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        """Return dx (dgrad), or None if ``ctx.needs_dx`` is false; keep in `ctx` what `backward_weight` needs."""

    def backward_weight(self, ctx: Context) -> None:
        """Add the weight gradients (wgrad) into ``grads``, then let go of what was kept."""

    def backward(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        """Do both halves; override where one pass serves both."""
        dx = self.backward_input(dy, ctx)
        self.backward_weight(ctx)
        return dx

    def operations(self, input_shape: Shape) -> int:
        """Return the floating-point operations of one sample's forward pass that products make (an add counts)."""
        return 0

    def declare(
        self,
        name: str,
        shape: Shape,
        init: Initializer,
        fans: tuple[int, int] = (1, 1),
        *,
        decay: bool = True,
        images: Sequence[Shape] = (),
    ) -> None:
        """Declare a parameter, called by `build`.

        Parameters
        ----------
        name : str
            Its name within the layer.
        shape : tuple of int
        init : Initializer
        fans : (int, int)
            The numbers of inputs and outputs that it connects, which scale the initial values.
        decay : bool
            Whether weight decay applies to it.
        images : sequence of (int, int, int)
            Height, width and channels of the images that each of its rows is, one after the other, where files of
            weights have their channels first as PyTorch does. A row is an image of an array of several dims, or a
            line of features, see `images_in`.
        """
        self.declared[name] = Parameter(name, shape, init, fans, decay, images=tuple(images))

    def declare_statistic(
        self, name: str, shape: Shape, init: Initializer, *, images: Sequence[Shape] = (), least: float = -math.inf
    ) -> None:
        """Declare an array that is not trained but follows what forward sees, called by `build`.

        The data-parallel ranks take the mean of theirs after each step. Forward leaves it alone while it recomputes.
        `least` is what no element can be less than, such as 0 for variances.
        """
        self.tracked[name] = Parameter(name, shape, init, (1, 1), decay=False, images=tuple(images), least=least)

    def full_name(self, parameter: Parameter) -> str:
        """Return a parameter's name in the whole model; tied ones have one name."""
        return parameter.tied or join(self.path, parameter.name)

    def refuse(self, what: str, *, found: object, expected: object, remedy: str | None = None) -> InputError:
        """Return the error of a layer that cannot be built as asked; it names the layer's place in the model."""
        kind = type(self).__name__
        where = f"layer {self.path} ({kind})" if self.path else f"layer {kind}"
        return InputError(what, where=where, found=found, expected=expected, remedy=remedy)


def require_count(layer: Layer, value: int, what: str) -> int:
    """Return a whole number, 1 or more, of what a layer has; raise its error if that is none."""
    if not is_integer(value, 1):
        raise layer.refuse(f"has no {what}", found=repr(value), expected="an integer of at least 1")
    return int(value)


def require_flag(layer: Layer, value: bool, name: str) -> bool:
    """Return a layer's argument that is true or false; raise its error if that is neither."""
    if not is_flag(value):
        raise layer.refuse(f"{name} out of range", found=repr(value), expected="true or false")
    return bool(value)


def require_initializer(layer: Layer, value: Initializer, name: str) -> Initializer:
    """Return a layer's argument that says how parameters start; raise its error if that cannot fill an array."""
    if isinstance(value, type) or not callable(value):
        raise layer.refuse(
            f"{name} is no initialiser", found=repr(value), expected="one of nn.init, such as nn.init.HeUniform()"
        )
    return value


def walk(layer: Layer) -> Iterator[Layer]:
    """Yield a layer and all layers inside it, in the order in which they run."""
    yield layer
    for child in layer.children.values():
        yield from walk(child)


def is_replayable(model: Layer) -> bool:
    """Return whether all layers of a model are `replayable`. What a class inherits does not count: it does more."""
    return all(layer.replayable and "replayable" in vars(type(layer)) for layer in walk(model))


def has_parameters(layer: Layer) -> bool:
    """Return whether a built layer, or one inside it, has anything to learn."""
    return any(inner.declared for inner in walk(layer))
