"""``hpdl bench step --profile``: every layer's passes are timed, each once."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench import profile as profile_module
from hpdl_mpi.bench.profile import Stopwatch, profile_step
from hpdl_mpi.bench.table import profile_table
from hpdl_mpi.nn import Context, Layer, MicroBatch, Pool, Sequential, Shape


class Clock:
    """Stands still but for those who say that time has passed; `now` in seconds."""

    def __init__(self) -> None:
        self.now = 0.0


class Sleepy(Layer):
    """Takes a known time: one second forward, two for the input's gradient, four for the weight's."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        self.clock.now += 1.0
        return x

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray:
        self.clock.now += 2.0
        return dy

    def backward_weight(self, ctx: Context) -> None:
        self.clock.now += 4.0


def test_what_a_layer_takes_counts_once_with_its_pass_and_not_with_its_container(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(profile_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    inner = Sleepy(clock)
    model = Sequential(inside=Sequential(sleepy=inner))
    model.build((1,))
    watch = Stopwatch(model)
    watch.begin_step()
    ctx = Context(MicroBatch(Pool()))
    x = np.zeros((2, 1), np.float32)
    model.forward(x, ctx)
    inner.backward(x, ctx)
    seconds = {profile.path: profile.seconds for profile in watch.layers.values()}
    # The whole backward is the sum of its halves, and counts nothing of its own.
    assert seconds["inside.sleepy"] == {"forward": [1.0], "backward_input": [2.0], "backward_weight": [4.0]}
    assert seconds[""] == seconds["inside"] == {"forward": [0.0], "backward_input": [0.0], "backward_weight": [0.0]}


def test_the_profile_of_a_real_step_has_every_layer_and_adds_up():
    result = profile_step("lenet", 4, 1, num_steps=3)
    assert json.loads(json.dumps(result))["layers"] == [
        layer | {"input_shape": list(layer["input_shape"])} for layer in result["layers"]
    ]
    by_path = {layer["path"]: layer for layer in result["layers"]}
    convolution = next(layer for layer in result["layers"] if layer["kind"].startswith("Conv2d 3x3 "))
    assert convolution["operations"] == 2 * 4 * 28 * 28 * 32 * 9
    assert min(convolution["seconds"]["forward"], convolution["seconds"]["backward_weight"]) > 0
    convolutions = [layer["makes_dx"] for layer in result["layers"] if layer["kind"].startswith("Conv2d")]
    assert convolutions == [False] + [True] * (len(convolutions) - 1)
    assert by_path[""]["kind"] == "Sequential"
    assert result["other_seconds"] < result["step_seconds"]
    text = io.StringIO()
    Console(file=text, width=100).print(profile_table(result))
    assert "Conv2d 3x3 winograd" in text.getvalue()
    assert "loss, update, rest" in text.getvalue()


def test_impossible_arguments_are_refused():
    with pytest.raises(InputError, match="unknown model"):
        profile_step("none", 4, 1)
