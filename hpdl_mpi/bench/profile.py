"""``hpdl bench step --profile``: what each layer's passes take of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

from hpdl_mpi.bench.conv import PASSES
from hpdl_mpi.bench.machine import describe_command, describe_machine, describe_versions
from hpdl_mpi.bench.step import check_settings
from hpdl_mpi.bench.step_hpdl import load_parts
from hpdl_mpi.bench.workloads import WORKLOADS
from hpdl_mpi.nn import Layer, joined_members, members, walk
from hpdl_mpi.nn.conv import Conv2d

_METHODS = {name: name for name in PASSES} | {"backward": "backward_input"}
"""Methods of a layer that are timed, and the pass that each counts with; a fused backward is mostly dgrad."""

_WARM_UP = 2
"""Steps before those that count."""


@dataclass
class LayerProfile:
    """What a layer takes of a step; a container without what its layers take.

    Attributes
    ----------
    path, kind : str
    input_shape : tuple of int, or tuple of such
        Of a sample.
    operations : int
        Floating-point operations of the products of a forward pass over the batch, by definition.
    makes_dx : bool
        Whether it was asked for the gradient of its input: what lies at the front of a model is not.
    seconds : dict of str to list of float
        By pass, of each step.
    """

    path: str
    kind: str
    input_shape: tuple[Any, ...] = ()
    operations: int = 0
    makes_dx: bool = False
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PASSES})


class Stopwatch:
    """Times the passes of all layers of a model that has not run yet, each without those that it calls."""

    def __init__(self, model: Layer) -> None:
        self.layers = {layer: LayerProfile(layer.path, _kind(layer)) for layer in walk(model)}
        self._inside: list[float] = []
        for layer in self.layers:
            layer.replayable = False  # a replay would call none of its methods
            for method in _METHODS:
                setattr(layer, method, partial(self._timed, layer, method, getattr(layer, method)))

    def begin_step(self) -> None:
        """Start counting anew, beside what the steps before took."""
        for profile in self.layers.values():
            for taken in profile.seconds.values():
                taken.append(0.0)

    def _timed(self, layer: Layer, method: str, call: Callable[..., Any], *arguments: Any) -> Any:
        profile = self.layers[layer]
        if method == "forward" and not profile.input_shape:
            arrays = members(arguments[0])
            profile.input_shape = joined_members(tuple(array.shape[1:] for array in arrays))
            profile.operations = 0 if layer.children else len(arrays[0]) * layer.operations(profile.input_shape)
        self._inside.append(0.0)
        began = time.perf_counter()
        result = call(*arguments)
        taken = time.perf_counter() - began
        profile.seconds[_METHODS[method]][-1] += taken - self._inside.pop()
        profile.makes_dx |= _METHODS[method] == "backward_input" and result is not None
        if self._inside:
            self._inside[-1] += taken
        return result


def profile_step(model: str, batch: int, threads: int, *, num_steps: int = 10) -> dict[str, Any]:
    """Time the layers' passes in training steps like those of `bench_step`.

    Parameters
    ----------
    model : str
        One of `STEP_MODELS`.
    batch, threads, num_steps : int

    Returns
    -------
    dict
        Ready for JSON. ``step_seconds`` is the median over steps; ``layers`` has the medians of each layer's passes in
        the order of the model; ``other_seconds`` is what the step takes beside: loss, update, and the way between.

    Raises
    ------
    InputError
        An argument is out of range.
    """
    check_settings(model, batch, threads, num_steps)
    replica, step = load_parts(threads)(model, batch, False)
    watch = Stopwatch(replica.model)
    steps = []
    for _ in range(_WARM_UP + num_steps):
        watch.begin_step()
        began = time.perf_counter()
        step()
        steps.append(time.perf_counter() - began)
    taken = [each for profile in watch.layers.values() for each in profile.seconds.values()]
    for seconds in (steps, *taken):
        del seconds[:_WARM_UP]
    inside = map(sum, zip(*taken, strict=True))
    layers = [
        asdict(profile) | {"seconds": {name: median(taken) for name, taken in profile.seconds.items()}}
        for profile in watch.layers.values()
    ]
    return {
        "model": model,
        "input_shape": WORKLOADS[model].input_shape,
        "batch": batch,
        "threads": threads,
        "steps": num_steps,
        "step_seconds": median(steps),
        "layers": layers,
        # Not the difference of medians, which would count every interruption of a layer in half of the steps.
        "other_seconds": median(whole - part for whole, part in zip(steps, inside, strict=True)),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "command": describe_command(),
    }


def _kind(layer: Layer) -> str:
    """Return what a layer is called in the profile: alike ones are summed up."""
    name = type(layer).__name__
    if not isinstance(layer, Conv2d):
        return name
    size, stride = ("x".join(map(str, pair)) for pair in (layer.kernel_size, layer.stride))
    return f"{name} {size}" + (f"/{stride}" if layer.stride != (1, 1) else "") + f" {layer.method}"
