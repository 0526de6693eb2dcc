"""Layers that read tokens, masks or two sequences; attention beyond one block, and what it must not depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpdl_mpi.base.errors import BadSample, InputError
from hpdl_mpi.kernels.attention_blocks import scratch_size
from hpdl_mpi.kernels.threads import set_threads
from hpdl_mpi.nn import (
    Context,
    CrossAttention,
    CrossEntropy,
    Embedding,
    Layer,
    Layout,
    LearnedPositions,
    Linear,
    Members,
    MicroBatch,
    Pool,
    Residual,
    Rotary,
    SelfAttention,
    Sequential,
    members,
)
from tests import sequence_reference as seq
from tests.threads import needs_two_threads
from tests.unit.nn.rig import SEED
from tests.unit.nn.test_layers import differences

N = 3
IDS = np.array([5, 2**40, 0])
RNG = np.random.default_rng(0)
MASK = np.array([[1.0, 1, 1, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
"""A sample padded on the right, one with a hole, and one that hides everything."""


class Bench:
    """A built layer that takes several arrays, on a pool that hands out NaN."""

    def __init__(self, layer: Layer, *inputs: np.ndarray, needs_dx: bool = True, dtype: type = np.float64) -> None:
        self.layer, self.inputs = layer, inputs
        shapes: Any = tuple(array.shape[1:] for array in inputs)
        layer.build(shapes if len(shapes) > 1 else shapes[0])
        layout = Layout(layer)
        self.params, self.grads = layout.allocate(dtype), layout.allocate(dtype)
        layout.bind(layer, self.params, self.grads)
        self.named, self.named_grads = layout.views(self.params), layout.views(self.grads)
        for values in self.named.values():
            values[...] = RNG.normal(size=values.shape)
        self.pool = Pool(poison=True)
        self.batch = MicroBatch(self.pool, SEED)
        self.ctx = Context(self.batch, needs_dx=needs_dx)

    def run(self, *inputs: np.ndarray, training: bool = False) -> Any:
        """Return copies of the results."""
        self.batch.begin(IDS[: len(inputs[0])], training=training)
        self.batch.saving = False
        y = self.layer.forward(inputs if len(inputs) > 1 else inputs[0], self.ctx)
        found = tuple(array.copy() for array in members(y))
        self.pool.release(y)
        return found if len(found) > 1 else found[0]

    def step(self, dy: Any, training: bool = True) -> Any:
        """Run forward and backward; return copies of the inputs' gradients."""
        self.batch.begin(IDS, training=training)
        self.batch.saving = True
        self.grads.fill(0)
        y = self.layer.forward(self.inputs if len(self.inputs) > 1 else self.inputs[0], self.ctx)
        self.pool.release(y)
        dx = self.layer.backward(dy, self.ctx)
        found = tuple(None if array is None else array.copy() for array in members(dx))
        self.pool.release(dx)
        assert self.pool.bytes_live == 0
        assert self.ctx.leftovers() == []
        return found


def assert_gradients(bench: Bench, dy: np.ndarray, *, training: bool = False, number: int = 0) -> None:
    """Hold the gradients of a result against finite differences, of all inputs that have any."""

    def assert_near(found: np.ndarray, array: np.ndarray) -> None:
        expected = differences(value, array)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * max(1.0, np.abs(expected).max()))

    def value() -> float:
        return float((members(bench.run(*bench.inputs, training=training))[number] * dy).sum())

    results = len(members(bench.run(*bench.inputs)))
    upstream = tuple(dy if i == number else None for i in range(results))
    found = bench.step(upstream if results > 1 else dy, training)
    for array, gradient in zip(bench.inputs, found, strict=True):
        if gradient is not None:
            assert_near(gradient, array)
    for name, gradient in bench.named_grads.items():
        assert_near(gradient, bench.named[name])


def test_a_mask_hides_steps_from_all_that_look() -> None:
    x = RNG.normal(size=(N, 5, 24))
    bench = Bench(SelfAttention(2, 2), x, MASK)
    y = bench.run(x, MASK)
    np.testing.assert_allclose(y, seq.self_attention(x, 2, mask=MASK), rtol=0, atol=1e-14)
    assert (y[2] == 0).all(), "what sees nothing is 0"
    assert_gradients(bench, RNG.normal(size=y.shape))
    assert (bench.step(RNG.normal(size=y.shape))[0][2] == 0).all()


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_a_mask_of_another_dtype_is_refused(dtype: type) -> None:
    bench = Bench(SelfAttention(2, 2), np.zeros((N, 5, 24)), MASK)
    message = rf"a mask of something else\. Found shape \(3, 5\), {np.dtype(dtype)}; expected shape \(3, 5\), float64"
    with pytest.raises(InputError, match=message):
        bench.run(np.zeros((N, 5, 24)), MASK.astype(dtype))


@pytest.mark.parametrize("shape", [(N, 4), (N, 6), (N - 1, 5)])
def test_a_mask_of_other_steps_is_refused(shape: tuple[int, int]) -> None:
    bench, across = Bench(SelfAttention(2, 2), np.zeros((N, 5, 24)), MASK), (np.zeros((N, 2, 8)), np.zeros((N, 5, 16)))
    with pytest.raises(
        InputError, match=r"a mask of something else\. Found shape .*; expected shape \(3, 5\), float64"
    ):
        bench.run(np.zeros((N, 5, 24)), np.ones(shape))
    bench = Bench(CrossAttention(2, 2), *across, MASK)
    with pytest.raises(
        InputError, match=r"a mask of something else\. Found shape .*; expected shape \(3, 5\), float64"
    ):
        bench.run(*across, np.ones(shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_may_be_as_low_as_numbers_go(dtype: type) -> None:
    x = np.ones((1, 3, 6), dtype)
    x[:, :, :2], x[:, :, 2:4] = 1e18, -1e19  # scores of -1.4e37: far below those of any text, but not hidden
    layer = SelfAttention(1)
    layer.build((3, 6))
    batch = MicroBatch(Pool())
    batch.begin(np.arange(1), training=False)
    assert (layer.forward(x, Context(batch)) == 1).all()


def test_a_mask_and_causality_hide_together() -> None:
    x = RNG.normal(size=(N, 5, 16))
    bench = Bench(SelfAttention(2, 1, causal=True), x, MASK)
    expected = seq.self_attention(x, 2, 1, causal=True, mask=MASK)
    np.testing.assert_allclose(bench.run(x, MASK), expected, rtol=0, atol=1e-14)
    assert_gradients(bench, RNG.normal(size=expected.shape))


@pytest.mark.parametrize("masked", [False, True])
def test_cross_attention_looks_at_the_memory(masked: bool) -> None:
    q, kv = RNG.normal(size=(N, 4, 8)), RNG.normal(size=(N, 5, 8))
    inputs = (q, kv, MASK) if masked else (q, kv)
    bench = Bench(CrossAttention(4, 2), *inputs)
    expected = seq.cross_attention(q, kv, 4, 2, mask=MASK if masked else None)
    np.testing.assert_allclose(bench.run(*inputs), expected, rtol=0, atol=1e-14)
    assert_gradients(bench, RNG.normal(size=expected.shape))


def test_dropped_weights_are_those_of_a_sample_wherever_it_is() -> None:
    x = RNG.normal(size=(N, 5, 18))
    bench = Bench(SelfAttention(2, 1, causal=True, dropout=0.4), RNG.normal(size=(N, 5, 20)))
    x = bench.inputs[0]
    y = bench.run(x, training=True)
    assert np.abs(y - bench.run(x)).max() > 0.1
    assert_gradients(bench, RNG.normal(size=y.shape), training=True)
    bench.batch.begin(IDS[1:2], training=True)
    bench.batch.saving = False
    alone = bench.layer.forward(x[1:2], bench.ctx)
    np.testing.assert_array_equal(alone, y[1:2])


def test_dropped_weights_keep_their_mean() -> None:
    v = np.ones((N, 64, 12))
    v[:, :, :8] = 0
    bench = Bench(SelfAttention(1, dropout=0.25), v)
    y = bench.run(v, training=True)
    # Means of 64 weights that are 0 or 4/3 of 1/64: a deviation of sqrt(1/3 / 64) each, over 192 queries.
    assert y.mean() == pytest.approx(1.0, abs=5 * np.sqrt(1 / 3 / 64 / (N * 64)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("steps", "dim", "causal"), [(300, 20, True), (530, 8, False), (97, 100, True)])
def test_attention_of_many_blocks_is_that_of_the_definition(steps: int, dim: int, causal: bool, dtype: type) -> None:
    heads, groups = 2, 1
    rng = np.random.default_rng(steps)
    x = rng.normal(size=(2, steps, (heads + 2 * groups) * dim))
    mask = (rng.random((2, steps)) < 0.8).astype(float)
    mask[1, -40:] = 0
    layer = SelfAttention(heads, groups, causal=causal)
    layer.build(((steps, x.shape[2]), (steps,)))
    batch = MicroBatch(Pool(poison=True))
    batch.begin(np.arange(2), training=True)
    ctx = Context(batch, needs_dx=True)
    y = layer.forward((x.astype(dtype), mask.astype(dtype)), ctx)
    parts = x.reshape(2, steps, heads + 2 * groups, dim)
    scores = np.einsum("nthd,nsgd->nhts", parts[:, :, :heads], parts[:, :, heads : heads + 1]) / np.sqrt(dim)
    hidden = (mask == 0)[:, None, None, :] | (np.triu(np.ones((steps, steps), bool), 1) if causal else False)
    scores[np.broadcast_to(hidden, scores.shape)] = -np.inf
    top = np.maximum(scores.max(-1, keepdims=True), -1e30)
    weights = np.exp(scores - top)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    v = parts[:, :, heads + 1]
    expected = np.einsum("nhts,nsd->nthd", weights, v)
    # Sums of `steps` terms below 1 in size, some 10 roundings each.
    bound = 10 * steps * np.finfo(dtype).eps
    np.testing.assert_allclose(y.reshape(expected.shape), expected, rtol=0, atol=bound)
    dy = rng.normal(size=expected.shape)
    (dx, _) = layer.backward(dy.reshape(y.shape).astype(dtype), ctx)
    dweights = np.einsum("nthd,nsd->nhts", dy, v)
    dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) / np.sqrt(dim)
    gradients = np.zeros_like(parts)
    gradients[:, :, :heads] = np.einsum("nhts,nsd->nthd", dscores, parts[:, :, heads])
    gradients[:, :, heads] = np.einsum("nhts,nthd->nsd", dscores, parts[:, :, :heads])
    gradients[:, :, heads + 1] = np.einsum("nhts,nthd->nsd", weights, dy)
    size = np.abs(gradients).max()
    np.testing.assert_allclose(dx.reshape(gradients.shape), gradients, rtol=0, atol=bound * size)


@needs_two_threads
def test_attention_gives_the_same_bits_on_several_threads() -> None:
    x = RNG.normal(size=(N, 40, 36)).astype(np.float32)
    results = []
    for threads in (1, 2):
        set_threads(threads)
        try:
            layer = SelfAttention(3, causal=True, dropout=0.1)
            layer.build((40, 36))
            batch = MicroBatch(Pool(poison=True))
            batch.begin(IDS, training=True)
            ctx = Context(batch, needs_dx=True)
            y = layer.forward(x, ctx)
            results.append((y.tobytes(), layer.backward(y, ctx).tobytes()))
        finally:
            set_threads(1)
    assert results[0] == results[1]


def test_memory_of_attention_grows_with_the_length_and_not_with_its_square() -> None:
    assert scratch_size(4096, 64) < 5 * scratch_size(1024, 64)
    peaks = []
    for steps in (512, 2048):
        pool = Pool()
        layer = SelfAttention(2, causal=True)
        layer.build((steps, 96))
        batch = MicroBatch(pool)
        batch.begin(np.arange(1), training=True)
        ctx = Context(batch, needs_dx=True)
        x = pool.take((1, steps, 96), np.float32)
        x[...] = 1
        y = layer.forward(x, ctx)
        pool.release(layer.backward(y, ctx))
        peaks.append(pool.peak_live)
    assert peaks[1] < 4.1 * peaks[0]


def test_embedding_takes_rows_and_sums_gradients_into_them() -> None:
    tokens = np.array([[1, 3, 1], [0, 0, 3]])
    bench = Bench(Embedding(4, 5), tokens, needs_dx=False)
    np.testing.assert_array_equal(bench.run(tokens), bench.named["weight"][tokens])
    dy = RNG.normal(size=(2, 3, 5))
    assert bench.step(dy) == (None,)
    expected = np.zeros((4, 5))
    np.add.at(expected, tokens, dy)
    np.testing.assert_allclose(bench.named_grads["weight"], expected, rtol=0, atol=1e-15)


def test_embedding_scales_rows_and_their_gradients() -> None:
    tokens = np.array([[1, 3, 1], [0, 0, 3]])
    plain, scaled = (Bench(Embedding(4, 5, scale=scale), tokens, needs_dx=False) for scale in (1.0, 3.0))
    scaled.params[...] = plain.params
    np.testing.assert_allclose(scaled.run(tokens), 3 * plain.run(tokens), rtol=1e-15)
    dy = RNG.normal(size=(2, 3, 5))
    for bench in (plain, scaled):
        bench.step(dy)
    np.testing.assert_allclose(scaled.grads, 3 * plain.grads, rtol=0, atol=1e-14)


def test_embedding_marks_what_stands_for_nothing() -> None:
    tokens = np.array([[2, 1, 0], [0, 0, 0]])
    bench = Bench(Embedding(4, 5, mask=0), tokens, needs_dx=False)
    y, mask = bench.run(tokens)
    np.testing.assert_array_equal(y, bench.named["weight"][tokens])
    np.testing.assert_array_equal(mask, tokens != 0)
    bench.step((y, None))
    assert (bench.named_grads["weight"][3] == 0).all()


@pytest.mark.parametrize("token", [-1, 4, 2**50])
def test_a_token_outside_the_vocabulary_is_named_with_its_sample(token: int) -> None:
    tokens = np.array([[0, 1], [2, token], [3, 3]])
    bench = Bench(Embedding(4, 5), tokens, needs_dx=False)
    with pytest.raises(
        BadSample, match=rf"a token is outside the vocabulary. Found {token}; expected 0 to 3"
    ) as caught:
        bench.run(tokens)
    assert caught.value.sample == IDS[1]


def test_a_sequence_longer_than_the_context_is_refused_when_built_and_when_run() -> None:
    with pytest.raises(InputError, match=r"longer than the context\. Found 7 steps; expected at most 6"):
        LearnedPositions(6).build((7, 2))
    bench = Bench(LearnedPositions(6), np.zeros((1, 4, 2)))
    with pytest.raises(InputError, match="longer than the context"):
        bench.run(np.zeros((1, 7, 2)))


def test_members_are_exchanged_and_left_out() -> None:
    a, b, c = RNG.normal(size=(N, 2)), RNG.normal(size=(N, 3)), RNG.normal(size=(N, 4))
    bench = Bench(Members(2, 0), a, b, c)
    first, second = bench.run(a, b, c)
    np.testing.assert_array_equal(first, c)
    np.testing.assert_array_equal(second, a)
    da, db, dc = bench.step((c, a))
    np.testing.assert_array_equal(da, a)
    assert db is None
    np.testing.assert_array_equal(dc, c)


def test_layers_that_know_of_one_array_hand_the_others_on() -> None:
    """A decoder's layer in small: attention to itself, to a memory, and what is in between."""
    x, memory = RNG.normal(size=(N, 4, 6)), RNG.normal(size=(N, 5, 6))
    attend_self = Residual(Sequential(Linear(18), SelfAttention(3, causal=True, masked=False), Linear(6)))
    attend_memory = Residual(
        Sequential(Linear(6), Members(1, 0, 2), Linear(12), Members(1, 0, 2), CrossAttention(3), Linear(6))
    )
    bench = Bench(Sequential(attend_self, attend_memory, Linear(5)), x, memory, MASK)
    y, memory_after, mask_after = bench.run(x, memory, MASK)
    assert memory_after.tobytes() == memory.tobytes()
    assert mask_after.tobytes() == MASK.tobytes()
    p = bench.named

    def linear(x: np.ndarray, path: str) -> np.ndarray:
        return x @ p[f"{path}.weight"].T + p[f"{path}.bias"]

    h = x + linear(seq.self_attention(linear(x, "0.body.0"), 3, causal=True), "0.body.2")
    seen = seq.cross_attention(linear(h, "1.body.0"), linear(memory, "1.body.2"), 3, mask=MASK)
    np.testing.assert_allclose(y, linear(h + linear(seen, "1.body.5"), "2"), rtol=0, atol=1e-12)
    assert_gradients(bench, RNG.normal(size=y.shape))


def test_gradient_of_the_memory_is_that_of_all_who_read_it() -> None:
    x, memory = RNG.normal(size=(N, 4, 6)), RNG.normal(size=(N, 5, 12))
    bench = Bench(Sequential(Residual(CrossAttention(3)), Residual(CrossAttention(3)), Members(0)), x, memory)
    assert_gradients(bench, RNG.normal(size=x.shape))


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: SelfAttention(4, 3), None, "heads cannot share keys and values evenly"),
        (lambda: SelfAttention(2, dropout=1.0), None, "dropout out of range"),
        (lambda: SelfAttention(2), (5, 13), "needs the queries, keys and values of all heads"),
        (lambda: CrossAttention(2), ((5, 4), (3, 9)), "needs queries, and the keys and values of a memory"),
        (lambda: Members(1, 1), None, "needs the numbers of arrays"),
        (lambda: Members(2), ((5,), (3,)), "there are not so many arrays"),
        (lambda: Embedding(4, 5, mask=4), None, "mask is no token"),
        (lambda: Embedding(4, 5, scale=0.0), None, "scale out of range"),
        (lambda: LearnedPositions(4), (5,), "needs sequences"),
        (lambda: LearnedPositions(5, leading=True), (4, 2), r"images of another size\. Found 4 steps; expected 5"),
        (lambda: Rotary(2, base=0.0), None, "base out of range"),
        (lambda: Rotary(2, base="long"), None, "base out of range"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Layer], shape: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make().build(shape)


class TestTokensThatDoNotCount:
    """`CrossEntropy.ignore_index`."""

    @staticmethod
    def evaluate(outputs: np.ndarray, targets: np.ndarray, **settings: Any) -> Any:
        batch = MicroBatch(Pool(poison=True))
        batch.begin(np.arange(len(outputs)), training=True)
        return CrossEntropy(**settings)(outputs, targets, 1.0, Context(batch))

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_sums_and_gradients_are_those_of_the_others(self, smoothing: float) -> None:
        outputs = RNG.normal(size=(4, 50, 7))
        targets = RNG.integers(7, size=(4, 50))
        targets[0, 3:] = targets[2] = -100
        sums, gradient = self.evaluate(outputs, targets, label_smoothing=smoothing, ignore_index=-100)
        counts = targets >= 0
        expected, theirs = self.evaluate(outputs[counts], targets[counts], label_smoothing=smoothing)
        np.testing.assert_allclose(sums, expected, rtol=1e-14)
        np.testing.assert_array_equal(gradient[counts], theirs)
        assert (gradient[~counts] == 0).all()

    def test_nothing_may_count(self) -> None:
        sums, gradient = self.evaluate(RNG.normal(size=(2, 3)), np.array([-1, -1]), ignore_index=-1)
        assert sums == (0.0, 0.0, 0.0, 0.0)
        assert (gradient == 0).all()

    def test_gradient_takes_the_place_of_outputs_that_nobody_else_holds(self) -> None:
        outputs, targets = RNG.normal(size=(3, 4, 9)), RNG.integers(9, size=(3, 4))
        _, expected = self.evaluate(outputs, targets, label_smoothing=0.1)
        pool = Pool(poison=True)
        batch = MicroBatch(pool)
        batch.begin(np.arange(3), training=True)
        mine = pool.take(outputs.shape, np.float64)
        mine[...] = outputs
        _, gradient = CrossEntropy(0.1)(mine, targets, 1.0, Context(batch))
        assert gradient is mine
        assert pool.count(mine) == 2
        np.testing.assert_array_equal(gradient, expected)
