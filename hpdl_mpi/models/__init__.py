"""Reference models: functions that return a Layer. The registry gives a job its model by name."""

from collections.abc import Callable

from hpdl_mpi.models.alexnet import alexnet
from hpdl_mpi.models.gpt import gpt, gpt2_124m, gpt_nano, gpt_small
from hpdl_mpi.models.lenet import lenet
from hpdl_mpi.models.mlp import mlp, mlp_deep
from hpdl_mpi.models.mobilenet import mobilenet_v2
from hpdl_mpi.models.recurrent_lm import lstm_lm, rnn_lm
from hpdl_mpi.models.resnet import resnet18, resnet18_cifar, resnet20, resnet34, resnet50, resnet56
from hpdl_mpi.models.seq2seq import seq2seq
from hpdl_mpi.models.vgg import vgg11_bn, vgg16_bn, vgg16_cifar
from hpdl_mpi.nn import Layer

MODELS: dict[str, Callable[..., Layer]] = {
    "alexnet": alexnet,
    "gpt": gpt,
    "gpt2_124m": gpt2_124m,
    "gpt_nano": gpt_nano,
    "gpt_small": gpt_small,
    "lenet": lenet,
    "lstm_lm": lstm_lm,
    "mlp": mlp,
    "mlp_deep": mlp_deep,
    "mobilenet_v2": mobilenet_v2,
    "resnet18": resnet18,
    "resnet18_cifar": resnet18_cifar,
    "resnet20": resnet20,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet56": resnet56,
    "rnn_lm": rnn_lm,
    "seq2seq": seq2seq,
    "vgg11_bn": vgg11_bn,
    "vgg16_bn": vgg16_bn,
    "vgg16_cifar": vgg16_cifar,
}

__all__ = [
    "MODELS",
    "alexnet",
    "gpt",
    "gpt2_124m",
    "gpt_nano",
    "gpt_small",
    "lenet",
    "lstm_lm",
    "mlp",
    "mlp_deep",
    "mobilenet_v2",
    "resnet18",
    "resnet18_cifar",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "rnn_lm",
    "seq2seq",
    "vgg11_bn",
    "vgg16_bn",
    "vgg16_cifar",
]
