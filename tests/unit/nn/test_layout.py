"""The flat layout: order, alignment, views, gaps."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.memory import ALIGNMENT
from hpdl_mpi.nn import Layout, Linear, ReLU, Sequential
from hpdl_mpi.optim import SGD, Adam, Chunks, Optimizer
from tests.unit.nn.cases import LAYERS
from tests.unit.nn.rig import Case, Rig

CASE = LAYERS["nested"]


@pytest.fixture
def layout() -> Layout:
    return Rig(CASE).layout


def test_parameters_lie_in_the_reverse_order_of_execution(layout: Layout) -> None:
    assert [segment.name for segment in layout.segments] == [
        *("3.body.bias", "3.body.weight", "2.shortcut.bias", "2.shortcut.weight", "2.body.0.bias", "2.body.0.weight"),
        *("1.last.0.bias", "1.last.0.weight", "1.0.0.bias", "1.0.0.weight"),
    ]


def test_segments_follow_each_other_without_overlap(layout: Layout) -> None:
    ends = [0, *(segment.stop for segment in layout.segments)]
    for segment, end in zip(layout.segments, ends, strict=False):
        assert end <= segment.start < end + 32
        assert segment.stop - segment.start == np.prod(segment.shape)
    assert ends[-1] <= layout.size < ends[-1] + 32
    assert layout.num_parameters == (4 * 4 + 4) + 2 * (7 * 4 + 4) + (2 * 3 + 3) + (2 * 2 + 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_parameter_is_aligned_in_every_dtype(layout: Layout, dtype: type) -> None:
    flat = layout.allocate(dtype)
    assert flat.shape == (layout.size,)
    assert not flat.any()
    for view in layout.views(flat).values():
        assert view.ctypes.data % ALIGNMENT == 0
        assert np.shares_memory(view, flat)


def test_layers_see_and_change_the_flat_arrays() -> None:
    rig = Rig(CASE)
    layer = rig.layer.children["3"].children["body"]
    layer.params["bias"][:] = 17
    layer.grads["bias"][:] = 19
    segment = rig.layout.segments[0]
    assert (rig.params[segment.start : segment.stop] == 17).all()
    assert (rig.grads[segment.start : segment.stop] == 19).all()


@pytest.mark.parametrize(
    "optimizer",
    [SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1, l1=0.1), Adam(0.1, weight_decay=0.1)],
    ids=["sgd", "adam"],
)
def test_gaps_stay_zero_whatever_is_done(optimizer: Optimizer) -> None:
    rig = Rig(CASE)
    slots = [rig.layout.allocate(np.float64) for _ in optimizer.slots]
    rig.layout.initialize(rig.params, 3)
    for step in range(2):
        rig.step(rig.x, rig.dy)
        optimizer.update(rig.params, rig.grads, slots, Chunks(rig.layout), step=step, lr=0.1)
    gaps = np.ones(rig.layout.size, bool)
    for segment in rig.layout.segments:
        gaps[segment.start : segment.stop] = False
    assert gaps.any()
    for array in (rig.params, rig.grads, *slots):
        assert not array[gaps].any()
        assert array is rig.grads or array[~gaps].any()


def test_model_without_parameters_has_an_empty_layout() -> None:
    rig = Rig(Case(lambda: Sequential(ReLU()), (3,), lambda x, p: x))
    assert (rig.layout.size, rig.layout.num_parameters, rig.layout.segments) == (0, 0, ())
    assert Chunks(rig.layout).sum_squares(rig.grads) == 0


def test_layer_that_stands_in_a_model_twice_is_refused() -> None:
    shared = Linear(3)
    model = Sequential(shared, ReLU(), shared)
    model.build((3,))
    with pytest.raises(InputError) as caught:
        Layout(model)
    assert str(caught.value) == (
        "parameter 2.weight: the same layer stands in the model more than once. Found 2 places; expected one. "
        "Make a layer for each place; Sequential.tie lets them share parameters."
    )


def test_layer_without_parameters_may_stand_in_a_model_twice() -> None:
    relu = ReLU()
    case = Case(lambda: Sequential(Linear(3), relu, Linear(3), relu), (3,), lambda x, p: x)
    other = case._replace(make=lambda: Sequential(Linear(3), ReLU(), Linear(3), ReLU()))
    shared, own = Rig(case), Rig(other)
    np.testing.assert_array_equal(shared.step(shared.x, shared.dy), own.step(own.x, own.dy))
    np.testing.assert_array_equal(shared.grads, own.grads)
