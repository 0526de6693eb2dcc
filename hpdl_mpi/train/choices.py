"""From what a job says to objects: models, losses, optimizers, transforms. A signature says which keys there are."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import pydantic

from hpdl_mpi.base.errors import InputError, amended
from hpdl_mpi.data import Augment, Jitter, Masking, Transform
from hpdl_mpi.models import MODELS
from hpdl_mpi.nn import CrossEntropy, Huber, Layer, Loss, MeanSquaredError, make_exact
from hpdl_mpi.optim import OPTIMIZERS, SCHEDULES, Optimizer, Schedule
from hpdl_mpi.train.job import Job, Named
from hpdl_mpi.train.jobfile import load_job
from hpdl_mpi.train.problems import problems

LOSSES: dict[str, type[Loss]] = {"cross_entropy": CrossEntropy, "huber": Huber, "mse": MeanSquaredError}

T = TypeVar("T")


def read_job(path: str | Path, overrides: Sequence[str] = ()) -> Job:
    """Return the job of a file as `load_job` does, once all that it names can be made.

    Raises
    ------
    InputError
        What `load_job` raises, or a name or a keyword is unknown, or a keyword's value impossible.
    """
    job = load_job(path, overrides)
    with amended(f"{path}: "):
        make_transforms(job)
        make_augment(job)
        make_masking(job)
        for make in (make_loss, make_optimizer, make_schedule, make_model):
            make(job)
    return job


def make_transforms(job: Job) -> tuple[Transform, Transform]:
    """Return the transforms of inputs and of targets that a job describes."""
    with amended("data."):
        inputs = Transform(**job.data.transform.model_dump())
    with amended("data.target_"):  # a transform says "transform.", whatever it is for
        targets = Transform(**job.data.target_transform.model_dump())
    return inputs, targets


def make_augment(job: Job) -> Augment:
    """Return the augmentation that a job describes."""
    settings = job.data.augment.model_dump()
    with amended("data."):
        return Augment(**settings | {"jitter": Jitter(**settings["jitter"])})


def make_masking(job: Job) -> Masking | None:
    """Return what a job says of masked tokens, or None."""
    settings = job.data.masking
    with amended("data."):
        return None if settings is None else Masking(**settings.model_dump())


def make_loss(job: Job) -> Loss:
    """Return the loss that a job names."""
    return _make(LOSSES, job.training.loss, "training.loss", "training.loss.")


def make_optimizer(job: Job) -> Optimizer:
    """Return the optimizer that a job names."""
    return _make(OPTIMIZERS, job.optimizer, "optimizer")


def make_schedule(job: Job) -> Schedule:
    """Return the learning-rate schedule that a job names."""
    return _make(SCHEDULES, job.lr_schedule, "lr_schedule")


def make_model(job: Job) -> Layer:
    """Return the model, not built yet, that a job names or whose factory it gives."""
    layer = _make_layer(job)
    return make_exact(layer) if job.training.exact else layer


def _make_layer(job: Job) -> Layer:
    model = job.model
    if model.name is not None:
        known: Callable[..., Layer] = _look_up(MODELS, model.name, "model")
        return _call(known, model.keywords, "model", "model: ")
    assert model.factory is not None
    with _importable(model.folder):
        layer = _call(_factory(model.factory, model.folder), model.keywords, "model", "model: ")
    if not isinstance(layer, Layer):
        raise InputError(
            "the factory returned no Layer",
            where="model.factory",
            found=type(layer).__name__,
            expected="hpdl_mpi.nn.Layer",
        )
    return layer


def _make(registry: Mapping[str, type[T]], named: Named, where: str, before: str = "") -> T:
    return _call(_look_up(registry, named.name, where), named.keywords, where, before)


def _look_up(registry: Mapping[str, T], name: str, where: str) -> T:
    if name not in registry:
        raise InputError(
            "unknown name", where=f"{where}.name", found=repr(name), expected=" or ".join(sorted(registry))
        )
    return registry[name]


def _call(function: Callable[..., T], keywords: dict[str, Any], where: str, before: str = "") -> T:
    """Call a function with keywords checked against its signature: names, types, and what may not be missing.

    Its own errors get `before` in front: what knows nothing of jobs names no more than its argument.
    """
    names = getattr(inspect.unwrap(function.__init__ if inspect.isclass(function) else function), "__globals__", {})
    fields: dict[str, Any] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = "allow"
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[name] = (_type(parameter, names), default)
    config = pydantic.ConfigDict(extra=extra, strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    arguments = pydantic.create_model("Arguments", __config__=config, **fields)
    try:
        checked = arguments.model_validate_json(json.dumps(keywords))  # JSON: strict, yet a list makes a tuple
    except pydantic.ValidationError as error:
        raise InputError("; ".join(problems(error, keywords, where, list(fields)))) from None
    with amended(before):
        return function(**{name: value for name, value in checked if name in checked.model_fields_set})


def _type(parameter: inspect.Parameter, names: dict[str, Any]) -> Any:
    """Return the type of a parameter; anything will do if it has none, or one that exists for type checkers alone."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    try:
        return typing.get_type_hints(SimpleNamespace(__annotations__={"it": parameter.annotation}), names)["it"]
    except (AttributeError, NameError, SyntaxError, TypeError):
        return Any


@contextmanager
def _importable(folder: str | None) -> Iterator[None]:
    """Let modules be found in a folder first; not for longer, lest its files stand in for what is imported later."""
    if folder is None:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the job's own code may have changed the path
            sys.path.remove(folder)


def _factory(name: str, folder: str | None) -> Callable[..., Any]:
    """Return the function ``module:function``; `folder` is where its module is looked up first."""
    module_name, function_name = name.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0]:
            raise  # the module was found, and lacks one of its own
        raise InputError(
            "no such module",
            where="model.factory",
            found=module_name,
            expected=f"a module in {folder} or on Python's path",
        ) from None
    function = getattr(module, function_name, None)
    # A job may come from somebody else: it may call what its module defines, not whatever Python can import.
    if not callable(function) or function.__module__ != module_name:
        raise InputError(
            "no such function", where="model.factory", found=function_name, expected=f"a function in {module_name}"
        )
    return function
