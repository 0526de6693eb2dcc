"""Layers, containers, losses and the flat layout of parameters. Knows kernels, never MPI."""

from hpdl_mpi.nn import init
from hpdl_mpi.nn.activations import GELU, LeakyReLU, ReLU, ReLU6, Sigmoid, SiLU, Softmax, SwiGLU, Tanh
from hpdl_mpi.nn.attention import CrossAttention, SelfAttention
from hpdl_mpi.nn.branches import Each, Parallel, Residual
from hpdl_mpi.nn.class_token import ClassToken, FirstStep
from hpdl_mpi.nn.containers import Recompute, Sequential, leaves
from hpdl_mpi.nn.context import Context, MicroBatch, Ranks
from hpdl_mpi.nn.conv import Conv2d, make_exact
from hpdl_mpi.nn.dropout import Dropout, Dropout2d, StochasticDepth
from hpdl_mpi.nn.embedding import Embedding, LearnedPositions, Rotary, SegmentEmbedding, SinusoidalPositions
from hpdl_mpi.nn.flat import images_in
from hpdl_mpi.nn.layer import Layer, Parameter, Shape, has_parameters, is_replayable, walk
from hpdl_mpi.nn.layout import Layout, Segment, make_statistics
from hpdl_mpi.nn.linear import CrossLinear, JoinedLinear, Linear
from hpdl_mpi.nn.losses import CrossEntropy, Huber, Loss, LossSums, MeanSquaredError
from hpdl_mpi.nn.members import joined_members, member_shapes, members, read_shape, shape_after
from hpdl_mpi.nn.normalization import BatchNorm2d, GroupNorm, LayerNorm, RMSNorm
from hpdl_mpi.nn.pool import Pool
from hpdl_mpi.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool2d, MaxPool2d
from hpdl_mpi.nn.recurrent import GRU, LSTM, RNN
from hpdl_mpi.nn.shape import Flatten, Members

__all__ = [
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm2d",
    "ClassToken",
    "Context",
    "Conv2d",
    "CrossAttention",
    "CrossEntropy",
    "CrossLinear",
    "Dropout",
    "Dropout2d",
    "Each",
    "Embedding",
    "FirstStep",
    "Flatten",
    "GlobalAvgPool2d",
    "GroupNorm",
    "Huber",
    "JoinedLinear",
    "Layer",
    "LayerNorm",
    "Layout",
    "LeakyReLU",
    "LearnedPositions",
    "Linear",
    "Loss",
    "LossSums",
    "MaxPool2d",
    "MeanSquaredError",
    "Members",
    "MicroBatch",
    "Parallel",
    "Parameter",
    "Pool",
    "RMSNorm",
    "Ranks",
    "ReLU",
    "ReLU6",
    "Recompute",
    "Residual",
    "Rotary",
    "Segment",
    "SegmentEmbedding",
    "SelfAttention",
    "Sequential",
    "Shape",
    "SiLU",
    "Sigmoid",
    "SinusoidalPositions",
    "Softmax",
    "StochasticDepth",
    "SwiGLU",
    "Tanh",
    "has_parameters",
    "images_in",
    "init",
    "is_replayable",
    "joined_members",
    "leaves",
    "make_exact",
    "make_statistics",
    "member_shapes",
    "members",
    "read_shape",
    "shape_after",
    "walk",
]
