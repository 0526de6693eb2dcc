"""``hpdl bench step --profile``: every layer's passes are timed, each once."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest
from rich.console import Console

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench.profile import Stopwatch, profile_step
from hpdl_mpi.bench.table import profile_table
from hpdl_mpi.nn import Context, Layer, MicroBatch, Pool, Sequential, Shape, walk

SLEEP = 0.02


class Sleepy(Layer):
    """Takes a known time: one sleep forward, two for the input's gradient, three for the weight's."""

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        time.sleep(SLEEP)
        return x

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        time.sleep(2 * SLEEP)
        return dy

    def backward_weight(self, ctx: Context) -> None:
        time.sleep(3 * SLEEP)


def test_what_a_layer_takes_counts_once_with_its_pass_and_not_with_its_container():
    inner = Sleepy()
    model = Sequential(inside=Sequential(sleepy=inner))
    model.build((1,))
    watch = Stopwatch(model)
    watch.begin_step()
    ctx = Context(MicroBatch(Pool()))
    x = np.zeros((2, 1), np.float32)
    model.forward(x, ctx)
    inner.backward(x, ctx)
    seconds = {profile.path: profile.seconds for profile in watch.layers.values()}
    taken = seconds["inside.sleepy"]
    assert taken["forward"][0] >= SLEEP
    # The whole backward is the sum of its halves, and counts nothing of its own.
    assert 2 * SLEEP <= taken["backward_input"][0] < taken["backward_weight"][0]
    assert seconds[""]["forward"][0] < SLEEP
    assert seconds["inside"]["forward"][0] < SLEEP


def test_the_profile_of_a_real_step_has_every_layer_and_adds_up():
    result = profile_step("lenet", 4, 1, num_steps=3)
    assert json.loads(json.dumps(result))["layers"] == [
        layer | {"input_shape": list(layer["input_shape"])} for layer in result["layers"]
    ]
    by_path = {layer["path"]: layer for layer in result["layers"]}
    convolution = next(layer for layer in result["layers"] if layer["kind"].startswith("Conv2d 3x3 "))
    assert convolution["operations"] == 2 * 4 * 28 * 28 * 32 * 9
    assert min(convolution["seconds"]["forward"], convolution["seconds"]["backward_weight"]) > 0
    assert by_path[""]["kind"] == "Sequential"
    assert result["other_seconds"] < result["step_seconds"]
    text = io.StringIO()
    Console(file=text, width=100).print(profile_table(result))
    assert "Conv2d 3x3 winograd" in text.getvalue()
    assert "loss, update, rest" in text.getvalue()


def test_impossible_arguments_are_refused():
    with pytest.raises(InputError, match="unknown model"):
        profile_step("none", 4, 1)


def test_every_layer_has_a_stopwatch():
    model = Sequential(Sleepy(), Sequential(Sleepy()))
    model.build((1,))
    assert set(Stopwatch(model).layers) == set(walk(model))
