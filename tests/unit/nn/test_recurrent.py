"""Recurrent layers with lengths and states; what every layer promises is shown in `test_layers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.nn import GRU, LSTM, RNN, Context, Layer, Layout, Linear, MicroBatch, Pool, Recompute, Sequential
from tests import reference as ref
from tests.recurrent_reference import recurrent, sample
from tests.threads import needs_two_threads
from tests.unit.nn.cases import recurrent_weights
from tests.unit.nn.rig import SEED, Parameters, context_key
from tests.unit.nn.test_layers import DIFFERENCES, ROUNDING, differences

STEPS, FEATURES, SIZE = 5, 3, 4

CELLS: dict[str, tuple[Callable[..., Any], str]] = {
    "tanh": (RNN, "tanh"),
    "relu": (lambda *sizes, **settings: RNN(*sizes, nonlinearity="relu", **settings), "relu"),
    "LSTM": (LSTM, "lstm"),
    "GRU": (GRU, "gru"),
}
each_cell = pytest.mark.parametrize(("make", "cell"), CELLS.values(), ids=CELLS)


class Bench:
    """A built layer with random parameters, for activations that are tuples; the pool hands out NaN."""

    def __init__(
        self,
        layer: Layer,
        features: int = FEATURES,
        dtype: type = np.float64,
        scale: float = 1.0,
        *,
        masked: bool = False,
    ) -> None:
        self.layer = layer
        shape: Any = STEPS, features
        layer.build((shape, (STEPS,)) if masked else shape)
        self.layout = Layout(layer)
        self.params, self.grads = self.layout.allocate(dtype), self.layout.allocate(dtype)
        self.layout.bind(layer, self.params, self.grads)
        self.rng = np.random.default_rng(0)
        for values in self.named_params.values():
            values[...] = scale * self.rng.normal(size=values.shape)
        self.pool = Pool(poison=True)
        self.batch = MicroBatch(self.pool, SEED)
        self.ctx = Context(self.batch, needs_dx=True)

    @property
    def named_params(self) -> Parameters:
        return self.layout.views(self.params)

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(self.params.dtype)

    def output(self, x: Any) -> Any:
        """Return copies of all that forward returns."""
        self.batch.begin(np.arange(len(x[0] if isinstance(x, tuple) else x)), training=True)
        self.batch.saving = False
        return self._copied(self.layer.forward(x, self.ctx))

    def step(self, x: Any, dy: Any) -> Any:
        """Run forward and backward; add to ``grads``; return copies of all that backward returns."""
        self.batch.begin(np.arange(len(x[0] if isinstance(x, tuple) else x)), training=True)
        self.pool.release(self.layer.forward(x, self.ctx))
        dx = self._copied(self.layer.backward(dy, self.ctx))
        assert self.ctx.leftovers() == []
        return dx

    def _copied(self, result: Any) -> Any:
        """Return copies, and let go of what they are of: the pool has all back."""
        if isinstance(result, tuple):
            copies: Any = tuple(None if member is None else member.copy() for member in result)
        else:
            copies = result.copy()
        self.pool.release(result)
        assert self.pool.bytes_live == 0
        return copies


def make_mask(lengths: list[int], steps: int = STEPS) -> np.ndarray:
    return (np.arange(steps) < np.array(lengths)[:, None]).astype(float)


LENGTHS = [3, STEPS, 0, 1]


@each_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_output_with_lengths_is_that_of_the_naive_twin(make: Any, cell: str, bidirectional: bool) -> None:
    bench = Bench(make(SIZE, 2, bidirectional=bidirectional))
    x, mask = bench.normal(len(LENGTHS), STEPS, FEATURES), make_mask(LENGTHS)
    y, handed_on = bench.output((x, mask))
    weights = recurrent_weights(bench.named_params, 2, 1 + bidirectional)
    np.testing.assert_allclose(y, recurrent(cell, x, weights, LENGTHS), rtol=0, atol=ROUNDING)
    np.testing.assert_array_equal(handed_on, mask)
    assert not y[mask == 0].any()


@each_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_with_lengths_are_those_of_each_sample_alone(make: Any, cell: str, bidirectional: bool) -> None:
    whole, alone = (Bench(make(SIZE, 2, bidirectional=bidirectional)) for _ in range(2))
    x = whole.normal(len(LENGTHS), STEPS, FEATURES)
    dy = whole.normal(len(LENGTHS), STEPS, SIZE * (1 + bidirectional))
    dx, dmask = whole.step((x, make_mask(LENGTHS)), (dy, None))
    assert dmask is None
    for i, length in enumerate(LENGTHS):
        part = alone.step(x[i : i + 1, :length].copy(), dy[i : i + 1, :length].copy())
        np.testing.assert_allclose(dx[i : i + 1, :length], part, rtol=0, atol=ROUNDING)
        assert not dx[i, length:].any()
    np.testing.assert_allclose(whole.grads, alone.grads, rtol=0, atol=ROUNDING)


@each_cell
def test_what_stands_in_the_padding_does_not_matter(make: Any, cell: str) -> None:
    bench, other = (Bench(make(SIZE, 2, bidirectional=True)) for _ in range(2))
    x, dy = bench.normal(len(LENGTHS), STEPS, FEATURES), bench.normal(len(LENGTHS), STEPS, 2 * SIZE)
    mask = make_mask(LENGTHS)
    padding = mask == 0
    changed_x, changed_dy = x.copy(), dy.copy()
    changed_x[padding], changed_dy[padding] = 1e3, np.nan
    np.testing.assert_array_equal(bench.output((x, mask))[0], bench.output((changed_x, mask))[0])
    np.testing.assert_array_equal(
        bench.step((x, mask), (dy, None))[0], other.step((changed_x, mask), (changed_dy, None))[0]
    )
    np.testing.assert_array_equal(bench.grads, other.grads)


def test_mask_of_ones_is_none() -> None:
    bench = Bench(LSTM(SIZE, bidirectional=True))
    x = bench.normal(2, STEPS, FEATURES)
    np.testing.assert_array_equal(bench.output((x, np.ones((2, STEPS))))[0], bench.output(x))


def test_hole_is_passed_by() -> None:
    bench = Bench(GRU(SIZE, bidirectional=True))
    x = bench.normal(1, STEPS, FEATURES)
    kept = np.array([0, 2, 3])
    mask = np.zeros((1, STEPS))
    mask[:, kept] = 1
    np.testing.assert_array_equal(bench.output((x, mask))[0][:, kept], bench.output(x[:, kept].copy()))


@each_cell
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_pieces_with_carried_states_are_the_whole(make: Any, cell: str, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, STEPS), min_size=1, max_size=4))
    cut = data.draw(st.integers(0, STEPS))
    bench = Bench(make(SIZE, 2, carry=True))
    x, mask = bench.normal(len(lengths), STEPS, FEATURES), make_mask(lengths)
    y, _, *last = bench.output((x, mask))
    head, _, *states = bench.output((x[:, :cut].copy(), mask[:, :cut].copy()))
    tail, _, *states = bench.output((x[:, cut:].copy(), mask[:, cut:].copy(), *states))
    np.testing.assert_allclose(np.concatenate([head, tail], 1), y, rtol=0, atol=ROUNDING)
    for found, expected in zip(states, last, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)


@each_cell
def test_states_after_the_last_step_are_those_of_the_naive_twin(make: Any, cell: str) -> None:
    bench = Bench(make(SIZE, bidirectional=True, carry=True))
    x, mask = bench.normal(len(LENGTHS), STEPS, FEATURES), make_mask(LENGTHS)
    first = tuple(bench.normal(len(LENGTHS), 2, SIZE) for _ in range(2 if cell == "lstm" else 1))
    _, _, *last = bench.output((x, mask, *first))
    (both,) = recurrent_weights(bench.named_params, 1, 2)
    for i, length in enumerate(LENGTHS):
        for d, weights in enumerate(both):
            before = tuple(state[i, d] for state in first)
            _, after = sample(cell, x[i, :length], weights, before, reverse=d == 1)
            for found, expected in zip(last, after, strict=True):
                np.testing.assert_allclose(found[i, d], expected, rtol=0, atol=ROUNDING)


@each_cell
def test_gradients_with_states_are_those_of_finite_differences(make: Any, cell: str) -> None:
    """The first states count as given: their own gradient is None."""
    bench = Bench(make(2, 2, bidirectional=True, carry=True))
    x, mask = bench.normal(2, 3, FEATURES), make_mask([3, 2], 3)
    first = tuple(bench.normal(2, 4, 2) for _ in range(2 if cell == "lstm" else 1))
    dy, dlast = bench.normal(2, 3, 4), tuple(bench.normal(2, 4, 2) for _ in first)
    dx, *others = bench.step((x, mask, *first), (dy, None, *dlast))
    assert others == [None] * (1 + len(first))

    def product() -> float:
        y, _, *last = bench.output((x, mask, *first))
        pairs = zip((dy, *dlast), (y, *last), strict=True)
        return float(sum(np.vdot(gradient, values) for gradient, values in pairs))

    np.testing.assert_allclose(dx, differences(product, x), rtol=0, atol=DIFFERENCES)
    for name, values in bench.named_params.items():
        expected = differences(product, values)
        np.testing.assert_allclose(bench.layout.views(bench.grads)[name], expected, rtol=0, atol=DIFFERENCES)


def test_gradients_of_last_states_that_are_none_are_zeros() -> None:
    bench, other = (Bench(LSTM(SIZE, carry=True)) for _ in range(2))
    x, dy, zeros = bench.normal(2, STEPS, FEATURES), bench.normal(2, STEPS, SIZE), np.zeros((2, 1, SIZE))
    np.testing.assert_array_equal(bench.step(x, (dy, None, None)), other.step(x, (dy, zeros, zeros)))
    np.testing.assert_array_equal(bench.grads, other.grads)


def test_gradient_that_is_a_view_is_read_as_it_lies() -> None:
    bench, other = (Bench(LSTM(SIZE, 2)) for _ in range(2))
    x, wide = bench.normal(2, STEPS, FEATURES), bench.normal(2, STEPS, 2 * SIZE)
    view = wide[..., SIZE:]
    np.testing.assert_array_equal(bench.step(x, view), other.step(x, view.copy()))
    np.testing.assert_array_equal(bench.grads, other.grads)


def test_number_of_steps_may_change_from_call_to_call() -> None:
    bench = Bench(LSTM(SIZE, bidirectional=True))
    for steps in (7, 0, 2):
        x = bench.normal(2, steps, FEATURES)
        expected = recurrent("lstm", x, recurrent_weights(bench.named_params, 1, 2))
        np.testing.assert_allclose(bench.output(x), expected, rtol=0, atol=ROUNDING)
        assert bench.step(x, bench.normal(2, steps, 2 * SIZE)).shape == x.shape
        assert bench.layer.output_shape((steps, FEATURES)) == (steps, 2 * SIZE)


def test_shapes_of_tuples_are_foretold() -> None:
    assert LSTM(4, 2, bidirectional=True).output_shape(((5, 3), (5,))) == ((5, 8), (5,))
    assert LSTM(4, 2, carry=True).output_shape((5, 3)) == ((5, 4), (2, 4), (2, 4))
    assert GRU(4, carry=True).output_shape(((5, 3), (5,), (1, 4))) == ((5, 4), (5,), (1, 4))


def test_stack_hands_masks_from_layer_to_layer() -> None:
    """What knows of no mask, and stands between, sees the sequences alone."""
    bench = Bench(Sequential(LSTM(SIZE, bidirectional=True), Linear(SIZE), Recompute(GRU(SIZE))), masked=True)
    alone = Bench(Sequential(LSTM(SIZE, bidirectional=True), Linear(SIZE), GRU(SIZE)))
    assert bench.layer.output_shape(((STEPS, FEATURES), (STEPS,))) == ((STEPS, SIZE), (STEPS,))
    x, dy = bench.normal(len(LENGTHS), STEPS, FEATURES), bench.normal(len(LENGTHS), STEPS, SIZE)
    y, _ = bench.output((x, make_mask(LENGTHS)))
    dx, dmask = bench.step((x, make_mask(LENGTHS)), (dy, None))
    assert dmask is None
    for i, length in enumerate(LENGTHS):
        own = np.s_[i : i + 1, :length]
        np.testing.assert_allclose(y[own], alone.output(x[own].copy()), rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(dx[own], alone.step(x[own].copy(), dy[own].copy()), rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(bench.grads, alone.grads, rtol=0, atol=ROUNDING)


def test_dropout_between_layers_is_that_of_the_naive_twin_and_follows_the_sample() -> None:
    bench = Bench(GRU(SIZE, 3, dropout=0.4))
    x, dy = bench.normal(3, STEPS, FEATURES), bench.normal(3, STEPS, SIZE)

    def drop(layer: int, values: np.ndarray) -> np.ndarray:
        return ref.dropout(values, int(context_key(f"dropout_l{layer}")), range(3), 0.4)

    weights = recurrent_weights(bench.named_params, 3)
    y = bench.output(x)
    np.testing.assert_allclose(y, recurrent("gru", x, weights, between=drop), rtol=0, atol=ROUNDING)
    dx = bench.step(x, dy)
    np.testing.assert_allclose(
        dx, differences(lambda: float(np.vdot(dy, bench.output(x))), x), rtol=0, atol=DIFFERENCES
    )

    bench.batch.begin(np.array([2]), training=True)
    bench.batch.saving = False
    one = bench.layer.forward(x[2:], bench.ctx)
    np.testing.assert_allclose(one, y[2:], rtol=0, atol=ROUNDING)
    bench.batch.begin(np.arange(3), training=False)
    plain = bench.layer.forward(x, bench.ctx)
    np.testing.assert_allclose(plain, recurrent("gru", x, weights), rtol=0, atol=ROUNDING)


def test_parameters_start_uniformly_within_one_over_the_root_of_the_size() -> None:
    layer = LSTM(100, bidirectional=True)
    layer.build((STEPS, FEATURES))
    layout = Layout(layer)
    params = layout.allocate(np.float64)
    layout.initialize(params, 0)
    for values in layout.views(params).values():
        # Of n draws the largest is below 0.98 of the bound with a probability of 0.98^n, 3e-4 for 400.
        assert 0.098 < np.abs(values).max() <= 0.1


def test_operations_are_those_of_all_products() -> None:
    layer = LSTM(4, 2, bidirectional=True)
    layer.build((5, 3))
    # both directions: 5 steps, 4 gates of 4, of 3 features and 4 states, and then of 8 and 4
    assert layer.operations((5, 3)) == 2 * 2 * 5 * 16 * ((3 + 4) + (8 + 4))


@needs_two_threads
@each_cell
def test_bits_do_not_depend_on_the_number_of_threads(make: Any, cell: str) -> None:
    """Nineteen samples are four tiles of a product, the last with one row."""
    results = []
    for threads in (1, 2):
        set_threads(threads)
        bench = Bench(make(19, 2, bidirectional=True), dtype=np.float32, scale=0.2)
        x, mask = bench.normal(19, STEPS, FEATURES), make_mask([i % (STEPS + 1) for i in range(19)])
        y, _ = bench.output((x, mask))
        dx, _ = bench.step((x, mask), (bench.normal(19, STEPS, 38), None))
        results.append((y, dx, bench.grads))
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


REFUSALS: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "images": (
        lambda: LSTM(4),
        (5, 5, 3),
        "layer LSTM: takes sequences. Found samples of shape (5, 5, 3); "
        "expected (steps, features), or a tuple of that and a mask: (steps,).",
    ),
    "features": (
        lambda: RNN(4),
        (3,),
        "layer RNN: takes sequences. Found samples of shape (3,); "
        "expected (steps, features), or a tuple of that and a mask: (steps,).",
    ),
    "nothing to see": (
        lambda: GRU(4),
        (5, 0),
        "layer GRU: takes sequences. Found samples of shape (5, 0); "
        "expected (steps, features), or a tuple of that and a mask: (steps,).",
    ),
    "a mask of other steps": (
        lambda: LSTM(4),
        ((5, 3), (6,)),
        "layer LSTM: takes sequences. Found samples of shape ((5, 3), (6,)); "
        "expected (steps, features), or a tuple of that and a mask: (steps,).",
    ),
    "states that nobody asked for": (
        lambda: GRU(4),
        ((5, 3), (1, 4)),
        "layer GRU: takes sequences. Found samples of shape ((5, 3), (1, 4)); "
        "expected (steps, features), or a tuple of that and a mask: (steps,).",
    ),
    "half of the states": (
        lambda: LSTM(4, carry=True),
        ((5, 3), (1, 4)),
        "layer LSTM: takes sequences. Found samples of shape ((5, 3), (1, 4)); "
        "expected (steps, features), or a tuple of that and a mask or states: (steps,), (1, 4), (1, 4).",
    ),
    "no state": (lambda: LSTM(0), (5, 3), "layer LSTM: has no state. Found 0; expected an integer of at least 1."),
    "no layer": (
        lambda: LSTM(4, 1.5),
        (5, 3),
        "layer LSTM: has no layer. Found 1.5; expected an integer of at least 1.",
    ),
    "dropout of all": (
        lambda: LSTM(4, dropout=1.0),
        (5, 3),
        "layer LSTM: dropout out of range. Found 1.0; expected at least 0 and below 1.",
    ),
    "no flag": (
        lambda: GRU(4, bidirectional=2),
        (5, 3),
        "layer GRU: bidirectional out of range. Found 2; expected true or false.",
    ),
    "another nonlinearity": (
        lambda: RNN(4, nonlinearity="gelu"),
        (5, 3),
        "layer RNN: no such nonlinearity. Found 'gelu'; expected 'tanh' or 'relu'.",
    ),
}


@pytest.mark.parametrize(("make", "shape", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_is_refused(make: Callable[[], Any], shape: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make().build(shape)
    assert str(caught.value) == message


def test_states_of_another_shape_are_refused_before_anything_is_computed() -> None:
    bench = Bench(GRU(SIZE, carry=True))
    with pytest.raises(InputError, match=r"takes sequences. Found samples of shape \(\(5, 3\), \(2, 4\)\)"):
        bench.output((bench.normal(2, STEPS, FEATURES), bench.normal(2, 2, SIZE)))
    assert bench.pool.bytes_live == 0
