"""The table of layers under test. A new layer adds a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpdl_mpi.nn import (
    GELU,
    GRU,
    LSTM,
    RNN,
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Context,
    Conv2d,
    Dropout,
    Dropout2d,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    Layer,
    LayerNorm,
    LeakyReLU,
    Linear,
    MaxPool2d,
    Parallel,
    Recompute,
    ReLU,
    ReLU6,
    Residual,
    Sequential,
    Shape,
    Sigmoid,
    SiLU,
    Softmax,
    StochasticDepth,
    Tanh,
)
from hpdl_mpi.nn.init import Uniform
from tests import reference as ref
from tests.recurrent_reference import recurrent
from tests.unit.nn.rig import IDS, Case, Parameters, context_key
from tests.unit.nn.sequence_cases import SEQUENCES


def _conv(path: str, **settings: Any) -> Callable[[np.ndarray, Parameters], np.ndarray]:
    return lambda x, p: ref.conv2d(x, p[f"{path}weight"], p.get(f"{path}bias", 0.0), **settings)


def _batch_norm_of(eps: float = 1e-5, path: str = "") -> Callable[[np.ndarray, Parameters], np.ndarray]:
    return lambda x, p: ref.batch_norm(x, p[f"{path}weight"], p[f"{path}bias"], eps)


_batch_norm = _batch_norm_of()


def _linear(path: str = "") -> Callable[[np.ndarray, Parameters], np.ndarray]:
    return lambda x, p: ref.linear(x, p[f"{path}weight"], p.get(f"{path}bias", 0.0))


def recurrent_weights(p: Parameters, num_layers: int = 1, directions: int = 1) -> list[list[list[np.ndarray]]]:
    """Return the parameters of a recurrent layer as the naive twin takes them."""
    kinds = [kind for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if f"{kind}_l0" in p]
    ends = [[f"_l{layer}", f"_l{layer}_reverse"][:directions] for layer in range(num_layers)]
    return [[[p[kind + end] for kind in kinds] for end in layer] for layer in ends]


def _recurrent(cell: str, **settings: int) -> Callable[[np.ndarray, Parameters], np.ndarray]:
    return lambda x, p: recurrent(cell, x, recurrent_weights(p, **settings))


class Bias(Layer):
    """y = x + bias, with dy itself as dx and kept for backward_weight: no layer may write to what it is given."""

    def build(self, input_shape: Shape) -> None:
        self.declare("bias", input_shape[-1:], Uniform(-1.0, 1.0))

    def output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.take(x.shape, x.dtype)
        np.add(x, self.params["bias"], out=y)
        return y

    def backward_input(self, dy: np.ndarray, ctx: Context) -> np.ndarray | None:
        ctx.save(dy=dy)
        if not ctx.needs_dx:
            return None
        ctx.retain(dy)
        return dy

    def backward_weight(self, ctx: Context) -> None:
        self.grads["bias"] += ctx.saved["dy"].sum(axis=0)
        ctx.drop("dy")


def _clipped_block(x: np.ndarray, p: Parameters) -> np.ndarray:
    return ref.relu(ref.relu6(_linear("4.body.1.")(ref.relu(x), p)) + x)


def _network(x: np.ndarray, p: Parameters) -> np.ndarray:
    x = ref.max_pool(ref.relu(_conv("0.", padding=(1, 1))(x, p)), (2, 2), stride=(2, 2))
    x = ref.relu(_linear("4.")(ref.flatten(x), p))
    return _linear("out.")(x, p)


def _nested(x: np.ndarray, p: Parameters) -> np.ndarray:
    x = np.concatenate([_conv("1.0.0.")(x, p), ref.relu(x), np.tanh(_conv("1.last.0.")(x, p))], -1)
    x = ref.sigmoid(_linear("2.body.0.")(x, p)) + _linear("2.shortcut.")(x, p)
    return _linear("3.body.")(x, p) + x


def _tied(x: np.ndarray, p: Parameters) -> np.ndarray:
    x = np.tanh(_linear("0.")(x, p))
    x = _linear("2.body.")(x, p) + x
    return x @ p["0.weight"].T + p["3.bias"]


LAYERS: dict[str, Case] = {
    "Linear": Case(lambda: Linear(5), (7,), _linear()),
    "Linear, no bias": Case(lambda: Linear(4, bias=False), (3,), _linear()),
    "Linear, one to one": Case(lambda: Linear(1), (1,), _linear()),
    "Linear, of sequences": Case(lambda: Linear(5), (4, 3), _linear()),
    "Conv2d": Case(lambda: Conv2d(4, 3, padding=1), (5, 4, 3), _conv("", padding=(1, 1))),
    "Conv2d, uneven": Case(
        lambda: Conv2d(2, (2, 3), stride=(2, 1), padding=(0, 1), bias=False),
        (5, 4, 3),
        _conv("", stride=(2, 1), padding=(0, 1)),
    ),
    "Conv2d, stride above kernel": Case(lambda: Conv2d(3, 2, stride=3), (6, 9, 2), _conv("", stride=(3, 3))),
    "Conv2d, 7 x 7, stride 2": Case(
        lambda: Conv2d(3, 7, stride=2, padding=3), (6, 5, 3), _conv("", stride=(2, 2), padding=(3, 3))
    ),
    "Conv2d, 11 x 11, stride 4": Case(
        lambda: Conv2d(2, 11, stride=4, padding=2), (9, 12, 1), _conv("", stride=(4, 4), padding=(2, 2))
    ),
    "Conv2d, one channel": Case(lambda: Conv2d(1, 2), (4, 3, 1), _conv("")),
    "Conv2d, of the whole image": Case(lambda: Conv2d(3, (4, 2)), (4, 2, 2), _conv("")),
    "Conv2d, padding above kernel": Case(lambda: Conv2d(2, 1, padding=(2, 3)), (3, 2, 2), _conv("", padding=(2, 3))),
    "Conv2d, in the padding alone": Case(
        lambda: Conv2d(2, 1, stride=(1, 8), padding=(0, 3)), (4, 2, 2), _conv("", stride=(1, 8), padding=(0, 3))
    ),
    "Conv2d, of one pixel": Case(lambda: Conv2d(5, 1), (3, 4, 6), _conv("")),
    "Conv2d, of one pixel, no bias": Case(lambda: Conv2d(5, 1, bias=False), (2, 2, 3), _conv("")),
    "Conv2d, of one pixel, stride": Case(lambda: Conv2d(3, 1, stride=2), (5, 4, 2), _conv("", stride=(2, 2))),
    "Conv2d, grouped": Case(
        lambda: Conv2d(4, (2, 3), stride=(1, 2), padding=1, groups=2),
        (4, 5, 6),
        _conv("", stride=(1, 2), padding=(1, 1), groups=2),
        joined=True,
    ),
    "Conv2d, grouped, some together": Case(
        lambda: Conv2d(28, 2, groups=14), (3, 4, 42), _conv("", groups=14), joined=True
    ),
    "Conv2d, grouped, exact": Case(
        lambda: Conv2d(4, 3, padding=1, groups=2, exact=True), (4, 5, 6), _conv("", padding=(1, 1), groups=2)
    ),
    "Conv2d, grouped, of one pixel": Case(
        lambda: Conv2d(6, 1, groups=3, bias=False), (2, 3, 9), _conv("", groups=3), joined=True
    ),
    "Conv2d, grouped, of one pixel, apart": Case(lambda: Conv2d(48, 1, groups=3), (2, 3, 51), _conv("", groups=3)),
    "Conv2d, grouped, Winograd": Case(
        lambda: Conv2d(16, 3, padding=1, groups=2), (4, 4, 16), _conv("", padding=(1, 1), groups=2), tiled=True
    ),
    "Conv2d, depthwise": Case(
        lambda: Conv2d(5, 3, padding=1, groups=5), (4, 5, 5), _conv("", padding=(1, 1), groups=5)
    ),
    "Conv2d, depthwise, uneven": Case(
        lambda: Conv2d(18, (3, 2), stride=(2, 3), padding=(1, 0), groups=18, bias=False),
        (5, 6, 18),
        _conv("", stride=(2, 3), padding=(1, 0), groups=18),
    ),
    "Conv2d, depthwise, multiplied": Case(lambda: Conv2d(6, 2, groups=3), (3, 3, 3), _conv("", groups=3), joined=True),
    "Conv2d, Winograd": Case(lambda: Conv2d(17, 3, padding=1), (7, 10, 9), _conv("", padding=(1, 1)), tiled=True),
    "Conv2d, Winograd, no padding": Case(lambda: Conv2d(8, 3, bias=False), (6, 9, 33), _conv(""), tiled=True),
    "Conv2d, Winograd, much padding": Case(
        lambda: Conv2d(8, 3, padding=(3, 2)), (4, 3, 8), _conv("", padding=(3, 2)), tiled=True
    ),
    "Conv2d, Winograd, 5 x 5": Case(lambda: Conv2d(9, 5, padding=2), (5, 4, 8), _conv("", padding=(2, 2)), tiled=True),
    "Conv2d, Winograd, stride 2": Case(
        lambda: Conv2d(9, 3, stride=2, padding=1), (7, 6, 8), _conv("", stride=(2, 2), padding=(1, 1)), tiled=True
    ),
    "Conv2d, exact": Case(lambda: Conv2d(8, 3, padding=1, exact=True), (4, 4, 8), _conv("", padding=(1, 1))),
    "MaxPool2d": Case(lambda: MaxPool2d(2), (5, 4, 3), lambda x, p: ref.max_pool(x, (2, 2), stride=(2, 2))),
    "MaxPool2d, overlapping": Case(
        lambda: MaxPool2d((3, 2), stride=(2, 1), padding=1),
        (5, 4, 2),
        lambda x, p: ref.max_pool(x, (3, 2), stride=(2, 1), padding=(1, 1)),
    ),
    "MaxPool2d, stride above kernel": Case(
        lambda: MaxPool2d(1, stride=3), (5, 4, 1), lambda x, p: ref.max_pool(x, (1, 1), stride=(3, 3))
    ),
    "MaxPool2d, of the whole image": Case(
        lambda: MaxPool2d((5, 4)), (5, 4, 3), lambda x, p: ref.max_pool(x, (5, 4), stride=(5, 4))
    ),
    "AvgPool2d": Case(lambda: AvgPool2d(2), (5, 4, 3), lambda x, p: ref.avg_pool(x, (2, 2), stride=(2, 2))),
    "AvgPool2d, overlapping": Case(
        lambda: AvgPool2d((3, 2), stride=(2, 1), padding=1),
        (5, 4, 2),
        lambda x, p: ref.avg_pool(x, (3, 2), stride=(2, 1), padding=(1, 1)),
    ),
    "AvgPool2d, stride above kernel": Case(
        lambda: AvgPool2d(1, stride=3), (5, 4, 1), lambda x, p: ref.avg_pool(x, (1, 1), stride=(3, 3))
    ),
    "AvgPool2d, of the whole image": Case(
        lambda: AvgPool2d((5, 4)), (5, 4, 3), lambda x, p: ref.avg_pool(x, (5, 4), stride=(5, 4))
    ),
    "GlobalAvgPool2d": Case(GlobalAvgPool2d, (3, 4, 5), lambda x, p: x.mean((1, 2))),
    "AdaptiveAvgPool2d": Case(
        lambda: AdaptiveAvgPool2d((2, 3)), (4, 6, 3), lambda x, p: ref.adaptive_avg_pool(x, (2, 3))
    ),
    "AdaptiveAvgPool2d, overlapping": Case(
        lambda: AdaptiveAvgPool2d(3), (5, 7, 2), lambda x, p: ref.adaptive_avg_pool(x, (3, 3))
    ),
    "AdaptiveAvgPool2d, above the image": Case(
        lambda: AdaptiveAvgPool2d((5, 3)), (2, 3, 2), lambda x, p: ref.adaptive_avg_pool(x, (5, 3))
    ),
    "AdaptiveAvgPool2d, of the whole image": Case(
        lambda: AdaptiveAvgPool2d(1), (3, 2, 4), lambda x, p: ref.adaptive_avg_pool(x, (1, 1))
    ),
    "AdaptiveAvgPool2d, of each pixel": Case(lambda: AdaptiveAvgPool2d((3, 2)), (3, 2, 4), lambda x, p: x),
    "BatchNorm2d": Case(BatchNorm2d, (4, 3, 5), _batch_norm, mixes=True),
    "BatchNorm2d, of features": Case(lambda: BatchNorm2d(eps=0.1), (4,), _batch_norm_of(0.1), mixes=True),
    "BatchNorm2d, ReLU": Case(
        lambda: BatchNorm2d(activation="relu"), (3, 3, 18), lambda x, p: ref.relu(_batch_norm(x, p)), mixes=True
    ),
    "BatchNorm2d, ReLU6": Case(
        lambda: BatchNorm2d(activation="relu6"), (3, 3, 18), lambda x, p: ref.relu6(_batch_norm(x, p)), mixes=True
    ),
    "LayerNorm": Case(LayerNorm, (5,), lambda x, p: ref.layer_norm(x, p["weight"], p["bias"], 1e-5)),
    "LayerNorm, of sequences": Case(
        lambda: LayerNorm(eps=0.1), (3, 18), lambda x, p: ref.layer_norm(x, p["weight"], p["bias"], 0.1)
    ),
    "GroupNorm": Case(lambda: GroupNorm(3), (4, 3, 6), lambda x, p: ref.group_norm(x, 3, p["weight"], p["bias"], 1e-5)),
    "GroupNorm, one group": Case(
        lambda: GroupNorm(1, eps=0.1), (2, 3, 5), lambda x, p: ref.group_norm(x, 1, p["weight"], p["bias"], 0.1)
    ),
    "GroupNorm, of each channel": Case(
        lambda: GroupNorm(5), (3, 3, 5), lambda x, p: ref.group_norm(x, 5, p["weight"], p["bias"], 1e-5)
    ),
    "GroupNorm, of features": Case(
        lambda: GroupNorm(2), (6,), lambda x, p: ref.group_norm(x, 2, p["weight"], p["bias"], 1e-5)
    ),
    "Flatten": Case(Flatten, (3, 2, 2), lambda x, p: ref.flatten(x)),
    "ReLU": Case(ReLU, (3, 2, 2), lambda x, p: ref.relu(x)),
    "LeakyReLU": Case(lambda: LeakyReLU(0.1), (6,), lambda x, p: ref.leaky_relu(x, 0.1)),
    "ReLU6": Case(  # behind sums of 40 products, which go beyond 6
        lambda: Sequential(Linear(4), ReLU6()), (40,), lambda x, p: ref.relu6(_linear("0.")(x, p))
    ),
    "SiLU": Case(SiLU, (3, 2, 2), lambda x, p: ref.silu(x)),
    "GELU": Case(GELU, (3, 2, 2), lambda x, p: ref.gelu(x)),
    "GELU, tanh": Case(lambda: GELU("tanh"), (6,), lambda x, p: ref.gelu_tanh(x)),
    "Sigmoid": Case(Sigmoid, (6,), lambda x, p: ref.sigmoid(x)),
    "Tanh": Case(Tanh, (6,), lambda x, p: np.tanh(x)),
    "Softmax": Case(Softmax, (6,), lambda x, p: ref.softmax(x)),
    "Softmax, of sequences": Case(Softmax, (4, 3), lambda x, p: ref.softmax(x)),
    "Dropout": Case(lambda: Dropout(0.4), (3, 2, 3), lambda x, p: ref.dropout(x, int(context_key("")), IDS, 0.4)),
    "Dropout, of nothing": Case(lambda: Dropout(0.0), (6,), lambda x, p: x),
    "Dropout2d": Case(
        lambda: Dropout2d(0.4),
        (2, 3, 6),
        lambda x, p: ref.dropout_channels(x, int(context_key("")), IDS, 0.4),
    ),
    "Dropout2d, of features": Case(
        lambda: Dropout2d(0.4), (6,), lambda x, p: ref.dropout(x, int(context_key("")), IDS, 0.4)
    ),
    "StochasticDepth": Case(
        lambda: StochasticDepth(0.6), (2, 3), lambda x, p: ref.stochastic_depth(x, int(context_key("")), IDS, 0.6)
    ),
    "StochasticDepth, of nothing": Case(lambda: StochasticDepth(0.0), (6,), lambda x, p: x),
    "StochasticDepth, in a Residual": Case(
        lambda: Residual(Sequential(Tanh(), drop=StochasticDepth(0.6))),
        (4,),
        lambda x, p: x + ref.stochastic_depth(np.tanh(x), int(context_key("body.drop")), IDS, 0.6),
    ),
    "Sequential, empty": Case(Sequential, (6,), lambda x, p: x),
    "Sequential": Case(
        lambda: Sequential(Conv2d(4, 3, padding=1), ReLU(), MaxPool2d(2), Flatten(), Linear(6), ReLU(), out=Linear(3)),
        (5, 4, 2),
        _network,
    ),
    "Sequential, activations in place": Case(
        lambda: Sequential(
            Linear(6), ReLU(), Sigmoid(), ReLU6(), Residual(Sequential(ReLU(), Linear(6), ReLU6())), ReLU()
        ),
        (4,),
        lambda x, p: _clipped_block(ref.relu6(ref.sigmoid(ref.relu(_linear("0.")(x, p)))), p),
    ),
    "Sequential, nothing to learn in front": Case(
        lambda: Sequential(Tanh(), Flatten(), Linear(3)),
        (2, 3),
        lambda x, p: _linear("2.")(ref.flatten(np.tanh(x)), p),
    ),
    "Sequential, nothing to learn behind": Case(
        lambda: Sequential(Linear(3), Softmax()), (4,), lambda x, p: ref.softmax(_linear("0.")(x, p))
    ),
    "Sequential, nothing to learn": Case(
        lambda: Sequential(Tanh(), Sequential(Sigmoid())), (5,), lambda x, p: ref.sigmoid(np.tanh(x))
    ),
    "Residual, ReLU": Case(
        lambda: Residual(Linear(4), activation="relu", names=("", "short")),
        (4,),
        lambda x, p: ref.relu(ref.linear(x, p["weight"], p["bias"]) + x),
    ),
    "Residual, ReLU6": Case(
        lambda: Residual(Linear(40), activation="relu6"),
        (40,),
        lambda x, p: ref.relu6(_linear("body.")(x, p) + x),
    ),
    "Residual, shortcut, ReLU": Case(
        lambda: Residual(Linear(3), Linear(3, bias=False), activation="relu", names=("", "short")),
        (4,),
        lambda x, p: ref.relu(ref.linear(x, p["weight"], p["bias"]) + ref.linear(x, p["short.weight"])),
    ),
    "Residual, whose sum BatchNorm2d makes": Case(
        lambda: Residual(BatchNorm2d(), names=("", "short")), (4, 3, 5), lambda x, p: _batch_norm(x, p) + x, mixes=True
    ),
    "Residual, whose sum BatchNorm2d makes, ReLU": Case(
        lambda: Residual(Sequential(Tanh(), norm=BatchNorm2d()), Linear(5), activation="relu", names=("body", "short")),
        (4, 3, 5),
        lambda x, p: ref.relu(_batch_norm_of(path="body.norm.")(np.tanh(x), p) + _linear("short.")(x, p)),
        mixes=True,
    ),
    "Residual": Case(lambda: Residual(Linear(4)), (4,), lambda x, p: _linear("body.")(x, p) + x),
    "Residual, nothing to learn": Case(lambda: Residual(Tanh()), (4,), lambda x, p: np.tanh(x) + x),
    "Residual, of the identity": Case(lambda: Residual(Sequential()), (4,), lambda x, p: x + x),
    "Residual, with shortcut": Case(
        lambda: Residual(Sequential(Conv2d(4, 3, padding=1), Tanh()), Conv2d(4, 1)),
        (4, 3, 2),
        lambda x, p: np.tanh(_conv("body.0.", padding=(1, 1))(x, p)) + _conv("shortcut.")(x, p),
    ),
    "Residual, shortcut alone learns": Case(
        lambda: Residual(Tanh(), Linear(4)), (4,), lambda x, p: np.tanh(x) + _linear("shortcut.")(x, p)
    ),
    "Parallel": Case(
        lambda: Parallel(Linear(3), Linear(2, bias=False)),
        (4,),
        lambda x, p: np.concatenate([_linear("0.")(x, p), _linear("1.")(x, p)], -1),
    ),
    "Parallel, gradients handed on": Case(
        lambda: Sequential(Parallel(Bias(), Sequential(ReLU(), Bias()), Bias()), ReLU()),
        (4,),
        lambda x, p: ref.relu(
            np.concatenate([x + p["0.0.bias"], ref.relu(x) + p["0.1.1.bias"], x + p["0.2.bias"]], axis=-1)
        ),
    ),
    "Residual, gradients handed on": Case(
        lambda: Residual(Sequential(Bias(), ReLU6(), Bias()), Bias(), activation="relu"),
        (4,),
        lambda x, p: ref.relu(ref.relu6(x + p["body.0.bias"]) + p["body.2.bias"] + x + p["shortcut.bias"]),
    ),
    "Parallel, one branch": Case(lambda: Parallel(Linear(3)), (4,), _linear("0.")),
    "Parallel, one branch learns": Case(
        lambda: Parallel(Tanh(), Sequential(), last=Linear(2)),
        (2, 3),
        lambda x, p: np.concatenate([np.tanh(x), x, _linear("last.")(x, p)], -1),
    ),
    "RNN": Case(lambda: RNN(4), (3, 2), _recurrent("tanh")),
    "RNN, ReLU": Case(lambda: RNN(3, nonlinearity="relu", bias=False), (3, 2), _recurrent("relu")),
    "RNN, bidirectional": Case(
        lambda: RNN(17, bidirectional=True), (3, 2), _recurrent("tanh", num_layers=1, directions=2)
    ),
    "LSTM": Case(lambda: LSTM(3), (4, 2), _recurrent("lstm")),
    "LSTM, one to one": Case(lambda: LSTM(1, bias=False), (1, 1), _recurrent("lstm")),
    "LSTM, layers": Case(lambda: LSTM(3, 2), (3, 4), _recurrent("lstm", num_layers=2)),
    "LSTM, bidirectional layers": Case(
        lambda: LSTM(2, 2, bidirectional=True), (3, 2), _recurrent("lstm", num_layers=2, directions=2)
    ),
    "GRU": Case(lambda: GRU(3), (4, 2), _recurrent("gru")),
    "GRU, no bias": Case(lambda: GRU(5, bias=False), (2, 1), _recurrent("gru")),
    "GRU, bidirectional layers": Case(
        lambda: GRU(2, 2, bidirectional=True), (3, 2), _recurrent("gru", num_layers=2, directions=2)
    ),
    "Recompute, of a recurrent layer": Case(lambda: Recompute(LSTM(2, 2)), (3, 2), _recurrent("lstm", num_layers=2)),
    "Recompute": Case(lambda: Recompute(Linear(3)), (4,), _linear()),
    "Recompute, of blocks": Case(
        lambda: Sequential(
            Recompute(Residual(Sequential(Linear(4), Tanh()))), last=Recompute(Recompute(Sequential(Tanh(), Linear(2))))
        ),
        (4,),
        lambda x, p: _linear("last.1.")(np.tanh(np.tanh(_linear("0.body.0.")(x, p)) + x), p),
    ),
    "Recompute, nothing to learn": Case(lambda: Recompute(Tanh()), (4,), lambda x, p: np.tanh(x)),
    "tied": Case(
        lambda: Sequential(Linear(4), Tanh(), Residual(Linear(4, bias=False)), Linear(4)).tie(
            "3.weight", to="0.weight"
        ),
        (4,),
        lambda x, p: _tied(x, p),
    ),
    "nested": Case(
        lambda: Sequential(
            Sequential(Dropout(0.0)),
            Parallel(Sequential(Conv2d(2, 1)), ReLU(), last=Sequential(Conv2d(3, 1), Tanh())),
            Residual(Sequential(Linear(4), Sigmoid()), Linear(4)),
            Residual(Linear(4)),
        ),
        (3, 2, 2),
        _nested,
    ),
}

LAYERS |= SEQUENCES
