"""Optimizers against their naive twins, on flat arrays of a layout."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn import Context, Layer, Layout, Linear, Shape
from hpdl_mpi.nn.init import Constant
from hpdl_mpi.optim import LAMB, LARS, OPTIMIZERS, SGD, Adam, AdamW, Chunks, Optimizer, clip_factor
from tests import reference as ref

STEPS = 5
CUTS = (7, 40, 65_000, 65_000, 131_200)
LARGE = 150_001
"""Elements: more than two chunks."""


class Weights(Layer):
    """Nothing but parameters: a large one, one without decay, a scalar."""

    def build(self, input_shape: Shape) -> None:
        self.declare("large", (LARGE,), Constant())
        self.declare("bare", (3, 11), Constant(), decay=False)
        self.declare("scalar", (), Constant())

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        raise NotImplementedError

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        raise NotImplementedError


class Row(NamedTuple):
    optimizer: Optimizer
    twin: Callable[..., tuple]
    settings: dict[str, Any]
    decays: tuple[str, ...] = ()
    """Settings that are zero for parameters without decay."""


ROWS = {
    "sgd": Row(SGD(0.1), ref.sgd, {}),
    "sgd, decay": Row(SGD(0.1, weight_decay=0.2), ref.sgd, {"weight_decay": 0.2}, ("weight_decay",)),
    "sgd, l1": Row(SGD(0.1, l1=0.3), ref.sgd, {"l1": 0.3}, ("l1",)),
    "momentum": Row(SGD(0.1, momentum=0.8), ref.sgd, {"momentum": 0.8}),
    "nesterov, everything": Row(
        SGD(0.1, momentum=0.8, nesterov=True, weight_decay=0.2, l1=0.3),
        ref.sgd,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2, "l1": 0.3},
        ("weight_decay", "l1"),
    ),
    "adam": Row(Adam(0.1), ref.adam, {}),
    "adam, everything": Row(
        Adam(0.1, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.2),
        ref.adam,
        {"betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.2},
        ("weight_decay",),
    ),
    "adamw": Row(AdamW(0.1, weight_decay=0.2), ref.adam, {"weight_decay": 0.2, "decoupled": True}, ("weight_decay",)),
    "lars": Row(
        LARS(0.5, momentum=0.8, weight_decay=0.2, trust=0.1),
        ref.lars,
        {"momentum": 0.8, "weight_decay": 0.2, "trust": 0.1},
        ("weight_decay", "trust"),
    ),
    "lamb": Row(
        LAMB(0.1, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.2),
        ref.lamb,
        {"betas": (0.7, 0.95), "eps": 1e-3, "weight_decay": 0.2, "adapts": True},
        ("weight_decay", "adapts"),
    ),
}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@pytest.fixture(scope="module")
def layout() -> Layout:
    model = Weights()
    model.build(())
    return Layout(model)


def gradient(layout: Layout, step: int, dtype: type = np.float64) -> np.ndarray:
    """Return a flat gradient, zero in the gaps."""
    flat = layout.allocate(dtype)
    for view in layout.views(flat).values():
        view[...] = np.random.default_rng((step, view.size)).normal(size=view.shape)
    return flat


def run(
    layout: Layout, optimizer: Optimizer, dtype: type = np.float64, *, cuts: tuple[int, ...] = (), scale: float = 1.0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return parameters and slots after some steps, taken slice by slice between `cuts`."""
    params = gradient(layout, 99, dtype)
    slots = [layout.allocate(dtype) for _ in optimizer.slots]
    edges = [0, *cuts, layout.size]
    pieces = [(slice(a, b), Chunks(layout, a, b)) for a, b in itertools.pairwise(edges)]
    for step in range(STEPS):
        grads = gradient(layout, step, dtype)
        for piece, chunks in pieces:
            views = [slot[piece] for slot in slots]
            lr = optimizer.lr / (1 + step)
            optimizer.update(params[piece], grads[piece], views, chunks, step=step, lr=lr, scale=scale)
        assert not grads.any()
    return params, slots


def expected(layout: Layout, row: Row, scale: float = 1.0) -> dict[str, list[np.ndarray]]:
    """Return what the twin makes of each parameter: its value and its state."""
    start, results = layout.views(gradient(layout, 99)), {}
    for name, p in start.items():
        settings = row.settings | (dict.fromkeys(row.decays, 0.0) if name == "bare" else {})
        counts = row.twin in (ref.adam, ref.lamb)
        state = [np.zeros_like(p)] * (2 if counts else 1)
        for step in range(STEPS):
            g, lr = scale * layout.views(gradient(layout, step))[name], row.optimizer.lr / (1 + step)
            time = [step + 1] if counts else []
            p, *state = row.twin(p, g, *state, *time, lr=lr, **settings)
        results[name] = [p, *state[: len(row.optimizer.slots)]]
    return results


@every_row
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_are_those_of_the_naive_twin(layout: Layout, row: Row, dtype: type) -> None:
    """About ten operations on numbers of size 1 to 5 in each of five steps, each rounded."""
    params, slots = run(layout, row.optimizer, dtype, scale=0.5)
    for name, wanted in expected(layout, row, scale=0.5).items():
        for flat, values in zip((params, *slots), wanted, strict=True):
            bound = 250 * float(np.finfo(dtype).eps)
            np.testing.assert_allclose(layout.views(flat)[name], values, rtol=0, atol=bound, err_msg=name)


@every_row
def test_update_of_slices_is_that_of_the_whole_to_the_bit(layout: Layout, row: Row) -> None:
    """Ranks that share the update cut parameters and chunks anywhere, or between parameters if it is by layer."""
    whole, slots = run(layout, row.optimizer)
    between = tuple(segment.start for segment in layout.segments)
    parts, part_slots = run(layout, row.optimizer, cuts=between if row.optimizer.layerwise else CUTS)
    np.testing.assert_array_equal(parts, whole)
    for part, slot in zip(part_slots, slots, strict=True):
        np.testing.assert_array_equal(part, slot)


def test_chunks_cover_every_parameter_once_and_no_gap(layout: Layout) -> None:
    seen = np.zeros(layout.size, int)
    for start, stop in Chunks(layout).bounds:
        seen[start:stop] += 1
    wanted = np.zeros(layout.size, int)
    for segment in layout.segments:
        wanted[segment.start : segment.stop] = 1
    np.testing.assert_array_equal(seen, wanted)


def test_decay_is_that_of_the_parameter(layout: Layout) -> None:
    chunks = Chunks(layout)
    (bare,) = [segment for segment in layout.segments if segment.name == "bare"]
    for (start, _), decay in zip(chunks.bounds, chunks.decays, strict=True):
        assert decay == (0.0 if bare.start <= start < bare.stop else 1.0)


@pytest.mark.parametrize("make", [SGD, Adam, AdamW, LAMB])
def test_decay_of_matrices_leaves_biases_alone(make: type[SGD] | type[Adam]) -> None:
    model = Linear(3)
    model.build((2,))
    layout = Layout(model)
    optimizer = make(0.1, weight_decay=0.5, matrices_only=True)
    params, grads = layout.allocate(np.float64), layout.allocate(np.float64)
    slots = [layout.allocate(np.float64) for _ in optimizer.slots]
    params.fill(1.0)
    optimizer.update(params, grads, slots, Chunks(layout), step=0, lr=0.1)
    views = layout.views(params)
    assert (views["bias"] == 1).all()
    assert (views["weight"] < 1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norm_is_that_of_all_elements(layout: Layout, dtype: type) -> None:
    flat = gradient(layout, 0, dtype)
    exact = math.sqrt(math.fsum(float(value) ** 2 for value in flat))
    # Sums of 65,536 positive terms in float64: their relative error is below 65,536 times 1.1e-16.
    assert math.sqrt(Chunks(layout).sum_squares(flat)) == pytest.approx(exact, rel=1e-11)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norm_of_single_precision_neither_overflows_nor_vanishes(layout: Layout, size: float) -> None:
    flat = layout.allocate(np.float32)
    layout.views(flat)["bare"][...] = size
    assert Chunks(layout).sum_squares(flat) == pytest.approx(33 * size**2, rel=2e-6, abs=0)


def test_norm_of_a_slice_is_its_own(layout: Layout) -> None:
    flat = gradient(layout, 0)
    assert Chunks(layout, 5, 6).sum_squares(flat[5:6]) == flat[5] ** 2
    assert Chunks(layout, 5, 5).sum_squares(flat[5:5]) == 0


def test_clipping_shortens_long_gradients_only() -> None:
    g = np.random.default_rng(0).normal(size=100)
    norm = float(np.linalg.norm(g))
    for limit in (0.5, norm * 0.99, norm * 1.01, 1e3):
        # 1e-6 keeps the division from failing at zero, and shortens the gradient by as much relative to its norm
        np.testing.assert_allclose(clip_factor(norm, limit) * g, ref.clip(g, limit), rtol=2e-6 / norm)
    assert clip_factor(norm, None) == 1.0
    assert clip_factor(0.0, 1.0) == 1.0


def test_optimizers_are_found_by_name() -> None:
    assert {"sgd": SGD, "adam": Adam, "adamw": AdamW, "lars": LARS, "lamb": LAMB} == OPTIMIZERS
    assert (SGD(1.0).slots, SGD(1.0, momentum=0.5).slots, Adam().slots) == ((), ("velocity",), ("first", "second"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-1.0), "optimizer.lr: out of range. Found -1.0; expected at least 0."),
        (lambda: SGD(math.nan), "optimizer.lr: out of range. Found nan; expected at least 0."),
        (lambda: SGD(math.inf), "optimizer.lr: out of range. Found inf; expected at least 0."),
        (
            lambda: SGD(1.0, momentum=1.0),
            "optimizer.momentum: out of range. Found 1.0; expected at least 0 and below 1.",
        ),
        (lambda: SGD(1.0, weight_decay=-1), "optimizer.weight_decay: out of range. Found -1; expected at least 0."),
        (lambda: SGD(1.0, l1=-1), "optimizer.l1: out of range. Found -1; expected at least 0."),
        (
            lambda: SGD(1.0, momentum=0.9, nesterov="no"),
            "optimizer.nesterov: out of range. Found 'no'; expected true or false.",
        ),
        (
            lambda: SGD(1.0, nesterov=True),
            "optimizer.nesterov: needs momentum. Found momentum = 0; expected above 0.",
        ),
        (lambda: Adam(-1.0), "optimizer.lr: out of range. Found -1.0; expected at least 0."),
        (lambda: Adam(betas=(0.9, 1.0)), "optimizer.betas: out of range. Found 1.0; expected at least 0 and below 1."),
        (lambda: Adam(eps=0.0), "optimizer.eps: out of range. Found 0.0; expected above 0."),
        (lambda: AdamW(weight_decay=-1), "optimizer.weight_decay: out of range. Found -1; expected at least 0."),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Optimizer], message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize("make", [lambda: LARS(0.1), lambda: LAMB(0.1)])
def test_layerwise_rate_of_what_is_zero_is_one(layout: Layout, make: Callable[[], Optimizer]) -> None:
    optimizer, params, grads = make(), layout.allocate(np.float64), gradient(layout, 0)
    slots = [layout.allocate(np.float64) for _ in optimizer.slots]
    optimizer.update(params, grads, slots, Chunks(layout), step=0, lr=0.1)
    assert np.isfinite(params).all()
    assert params.any()
