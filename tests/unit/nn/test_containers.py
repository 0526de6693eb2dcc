"""Containers name their layers, run backward only where it is wanted, and count what their layers do."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn import (
    Context,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    MicroBatch,
    Parallel,
    Pool,
    ReLU,
    ReLU6,
    Residual,
    Sequential,
    Shape,
    Tanh,
    walk,
)
from tests.unit.nn.cases import LAYERS
from tests.unit.nn.rig import BATCH, Case, Rig


class Probe(Layer):
    """Passes everything on and writes down what happens to it."""

    def __init__(self, log: list[tuple[str, str]], learns: bool) -> None:
        self.log, self.learns = log, learns

    def build(self, input_shape: Shape) -> None:
        if self.learns:
            self.declare("weight", (1,), lambda out, key, fan_in, fan_out: None)

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        self.log.append(("forward", self.path))
        ctx.retain(x)
        return x

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        self.log.append(("input" if ctx.needs_dx else "input, no dx", self.path))
        if not ctx.needs_dx:
            return None
        ctx.retain(dy)
        return dy

    def backward_weight(self, ctx: Context) -> None:
        self.log.append(("weight", self.path))


def visits(make: Callable[[Callable[[bool], Probe]], Layer], *, needs_dx: bool = False) -> list[tuple[str, str]]:
    """Return what backward, in halves, does to the probes of a container."""
    log: list[tuple[str, str]] = []
    rig = Rig(Case(lambda: make(lambda learns: Probe(log, learns)), (4,), lambda x, p: x), needs_dx=needs_dx)
    rig.step(rig.x, rig.dy, halves=True)
    assert rig.pool.bytes_live == 0
    return [visit for visit in log if visit[0] != "forward"]


def test_names_and_paths_lead_to_every_layer() -> None:
    layer = LAYERS["nested"].make()
    layer.build((3, 2, 2))
    assert [inner.path for inner in walk(layer)] == [
        *("", "0", "0.0", "1", "1.0", "1.0.0", "1.1", "1.last", "1.last.0", "1.last.1"),
        *("2", "2.body", "2.body.0", "2.body.1", "2.shortcut", "3", "3.body"),
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sequential(Tanh(), **{"0": Tanh()}),
        lambda: Parallel(Tanh(), **{"0": Tanh()}),
        lambda: Residual(Tanh(), Tanh(), names=("a", "a")),
    ],
)
def test_no_layer_takes_the_name_of_another(make: Callable[[], Layer]) -> None:
    with pytest.raises(InputError, match="two layers have one name"):
        make()


@pytest.mark.parametrize("wrong", [[Tanh()], Tanh, None])
def test_what_is_no_layer_is_refused(wrong: object) -> None:
    with pytest.raises(InputError, match=r"what is called '1' is no layer.*Call the class of a layer.*\*layers"):
        Sequential(Tanh(), wrong)


def test_backward_stops_at_the_first_layer_that_learns() -> None:
    assert visits(lambda probe: Sequential(probe(False), probe(True), probe(False), probe(True))) == [
        *[("input", "3"), ("input", "2"), ("input, no dx", "1")],
        *[("weight", "3"), ("weight", "2"), ("weight", "1")],
    ]


def test_backward_goes_to_the_front_if_something_before_it_learns() -> None:
    assert visits(lambda probe: Sequential(probe(False), probe(True)), needs_dx=True) == [
        *[("input", "1"), ("input", "0"), ("weight", "1"), ("weight", "0")]
    ]


@pytest.mark.parametrize("container", [Residual, Parallel])
def test_backward_leaves_out_branches_that_learn_nothing(container: type[Layer]) -> None:
    names = {Residual: ("body", "shortcut"), Parallel: ("0", "1")}[container]
    assert visits(lambda probe: container(probe(False), probe(True))) == [
        ("input, no dx", names[1]),
        ("weight", names[1]),
    ]


def test_nothing_in_front_of_a_nested_container_wants_a_gradient() -> None:
    visited = visits(lambda probe: Sequential(probe(False), Sequential(probe(False), Residual(probe(True)))))
    assert visited == [("input, no dx", "1.1.body"), ("weight", "1.1.body")]


@pytest.mark.parametrize("container", [Sequential, lambda layer: Residual(Sequential(layer)), Parallel])
def test_container_without_parameters_has_nothing_to_do_backward(container: Callable[[Layer], Layer]) -> None:
    rig = Rig(Case(lambda: container(Tanh()), (4,), lambda x, p: x), needs_dx=False)
    assert rig.step(rig.x, rig.dy) is None
    assert rig.pool.bytes_live == 0
    # The output was kept for a backward that does not come.
    assert rig.ctx.leftovers() == []


def test_operations_are_those_of_the_products() -> None:
    linear, conv = 2 * 12 * 5, 2 * (4 * 3) * 6 * (3 * 3 * 2)
    for make, shape, expected in (
        (lambda: Linear(5), (12,), linear),
        (lambda: Linear(5), (3, 12), 3 * linear),
        (lambda: Conv2d(6, 3, padding=1), (4, 3, 2), conv),
        (lambda: Sequential(Linear(5), ReLU(), Linear(12)), (12,), 2 * linear),
        (lambda: Parallel(Linear(5), Linear(5), ReLU()), (12,), 2 * linear),
        (lambda: Residual(Linear(5), Linear(5)), (12,), 2 * linear),
    ):
        layer = make()
        layer.build(shape)
        assert layer.operations(shape) == expected


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("1.weight", "0.weight", r"layer Sequential: 1\.weight and 0\.weight cannot be one\. Found shapes \(2, 3\)"),
        ("0.weight", "0.weight", r"0\.weight and 0\.weight cannot be one"),
        ("1.bias", "9.bias", r"no such parameter to tie\. Found 9\.bias; expected 0\.bias or 0\.weight or 1\.bias"),
        ("head", "0.bias", r"no such parameter to tie\. Found head"),
    ],
)
def test_what_cannot_be_tied_is_refused(name: str, to: str, message: str) -> None:
    model = Sequential(Linear(3), Linear(2)).tie(name, to=to)
    with pytest.raises(InputError, match=message):
        model.build((4,))


def test_a_parameter_is_tied_to_one_that_stays() -> None:
    model = Sequential(Linear(3), Linear(3), Linear(3)).tie("1.weight", "0.weight").tie("2.weight", "1.weight")
    with pytest.raises(InputError, match="the second not tied to another"):
        model.build((3,))


class Twice(Layer):
    """y = relu(x) + x, by a layer that works in place and is given the context of this one."""

    def __init__(self) -> None:
        self._relu = ReLU()

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        return self._plus(self._relu.forward(x, ctx), x, ctx)

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        return self._plus(self._relu.backward_input(dy, ctx), dy, ctx)

    def _plus(self, result: np.ndarray, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take(x.shape, x.dtype)
        y[...] = result + x
        ctx.release(result)
        return y


@pytest.mark.parametrize("activation", [ReLU, ReLU6])
@pytest.mark.parametrize(
    "around",
    [
        lambda layer: Residual(layer),
        lambda layer: Parallel(layer, layer),
        lambda layer: Parallel(Flatten(), layer),
        lambda layer: Residual(Flatten(), layer),
        lambda layer: Sequential(Flatten(), layer),
        lambda layer: Sequential(Dropout(0.0), layer, Flatten(), Residual(layer)),
        lambda layer: Sequential(Residual(Flatten()), Residual(Dropout(0.0), layer)),
    ],
)
def test_nothing_takes_the_place_of_what_the_caller_holds(
    around: Callable[[Layer], Layer], activation: type[Layer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> list[np.ndarray]:
        layer = around(activation())
        rig = Rig(Case(lambda: layer, (4,), lambda x, p: x))
        rig.batch.begin(np.arange(3), training=True)
        x, dy = rig.ctx.take((3, 4), np.float64), rig.ctx.take((3, *layer.output_shape((4,))), np.float64)
        x[...] = np.linspace(-9.0, 9.0, x.size).reshape(x.shape)
        dy[...] = np.arange(1.0, dy.size + 1).reshape(dy.shape)
        before = [x.copy(), dy.copy()]
        y = layer.forward(x, rig.ctx)
        results = [y.copy(), layer.backward(dy, rig.ctx)]
        np.testing.assert_array_equal(x, before[0])
        np.testing.assert_array_equal(dy, before[1])
        return results

    in_place = run()
    monkeypatch.setattr(Context, "holds_alone", lambda self, array: False)
    for found, expected in zip(in_place, run(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_layer_that_calls_another_with_its_own_context_keeps_its_input() -> None:
    rig = Rig(Case(lambda: Sequential(Linear(4), Twice()), (4,), lambda x, p: x))
    h = rig.x @ rig.named_params["0.weight"].T + rig.named_params["0.bias"]
    np.testing.assert_allclose(rig.output(rig.x), np.maximum(h, 0) + h, rtol=1e-12)
    dx = rig.step(rig.x, rig.dy)
    np.testing.assert_allclose(dx, (rig.dy * ((h > 0) + 1.0)) @ rig.named_params["0.weight"], rtol=1e-12)


@pytest.mark.parametrize("activation", [ReLU, ReLU6])
def test_relu_takes_the_place_of_what_only_it_needs(activation: Callable[[], Layer]) -> None:
    width = 1000

    def peak(make: Callable[[], Layer]) -> int:
        rig = Rig(Case(lambda: Sequential(Linear(width), make(), Linear(width)), (4,), lambda x, p: x))
        rig.step(rig.x, rig.dy)
        return rig.pool.peak_live

    array = BATCH * width * 8
    assert peak(Tanh) - peak(activation) >= array


def test_a_micro_batch_begins_anew_after_an_error() -> None:
    batch = MicroBatch(Pool())
    batch.begin(np.arange(2), training=True)
    batch.recomputing, batch.saving = True, False  # as an error inside `Recompute` leaves it
    batch.begin(np.arange(2), training=True)
    assert (batch.recomputing, batch.saving) == (False, True)
