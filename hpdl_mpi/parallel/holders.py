"""Who holds a layer: one replica at a time, since a layer has one set of arrays."""

from __future__ import annotations

import weakref

from hpdl_mpi.nn import Layer
from hpdl_mpi.nn.layer import walk

_holders: weakref.WeakKeyDictionary[Layer, weakref.ref[object]] = weakref.WeakKeyDictionary()
"""Who has last given a layer its parameters, and may be gone."""


def _holder(layer: Layer) -> object | None:
    """Return who holds a layer, and lives."""
    found = _holders.get(layer)
    return found() if found else None


def refuse_held(model: Layer) -> None:
    """Raise an InputError if somebody holds a part of the model, and would be left without it."""
    for layer in walk(model):
        if _holder(layer) is not None:
            raise layer.refuse(
                "another trainer holds it already",
                found=None,
                expected=None,
                remedy="make the model anew for each trainer",
            )


def hold(model: Layer, holder: object) -> None:
    """Note who has given the layers of a model their parameters."""
    _holders.update({layer: weakref.ref(holder) for layer in walk(model) if layer.declared})


def let_go(model: Layer, holder: object) -> None:
    """Note that somebody holds no layer of a model any more."""
    for layer in walk(model):
        if _holder(layer) is holder:
            del _holders[layer]
