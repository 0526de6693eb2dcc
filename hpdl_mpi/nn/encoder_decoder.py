"""A model of pairs as its two halves: what makes a memory of sources, and what makes targets with it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.nn.branches import Each
from hpdl_mpi.nn.containers import Sequential
from hpdl_mpi.nn.context import Context, MicroBatch
from hpdl_mpi.nn.decoding import Decoder
from hpdl_mpi.nn.layer import Layer, Shape
from hpdl_mpi.nn.members import member_shapes, members
from hpdl_mpi.nn.pool import Pool
from hpdl_mpi.nn.shape import Members


class Halves(NamedTuple):
    """The layers of a model in two models, and the shapes of their samples."""

    encoder: Layer
    source_shape: Shape
    decoder: Layer
    target_shape: Shape


def halves(model: Layer, input_shape: Any) -> Halves:
    """Cut a model of pairs in two; its layers stay what they are.

    Parameters
    ----------
    model : Sequential
        Built, with parameters. It begins with an `Each` of two layers, which embed sources and targets, and has a
        `Members` that puts the target, the last array until then, first; such as `models.seq2seq`.
    input_shape : ((int,), (int,))
        That it was built for.

    Raises
    ------
    InputError
        The model is another one.
    """
    layers = list(model.children.items())
    firsts = [place for place, (_, layer) in enumerate(layers) if isinstance(layer, Members)]
    embeddings = list(layers[0][1].children.values()) if layers and isinstance(layers[0][1], Each) else []
    if not (isinstance(model, Sequential) and firsts and len(embeddings) == 2):
        raise InputError(
            "the model is no encoder-decoder",
            where="model",
            found=type(model).__name__,
            expected="a Sequential that embeds two texts and later puts the second one first, such as seq2seq",
        )
    source, target = embeddings
    encoder = Sequential(**{source.path: source, **dict(layers[1 : firsts[0]])})
    decoder = Sequential(**{target.path: target, **dict(layers[firsts[0] + 1 :])})
    source_shape, target_tokens = member_shapes(input_shape)
    for half in (encoder, decoder):
        half.path = model.path
    encoder.build(source_shape)
    target_shape: Any = (target_tokens, *member_shapes(encoder.output_shape(source_shape)))
    decoder.build(target_shape)
    model.join_tied()
    return Halves(encoder, source_shape, decoder, target_shape)


def encode(encoder: Layer, sources: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the arrays that an encoder makes of sources, int64 (n, steps), memory and mask; the caller owns them."""
    batch = MicroBatch(Pool())
    batch.begin(np.arange(len(sources)), training=False)
    return members(encoder.forward(sources, Context(batch, needs_backward=False)))


def decoder_of(parts: Halves, sources: np.ndarray, capacity: int) -> Decoder:
    """Return what makes targets of sources, int64 (n, steps), padded; each at most `capacity` steps long."""
    return Decoder(parts.decoder, parts.target_shape, capacity, given=encode(parts.encoder, sources))
