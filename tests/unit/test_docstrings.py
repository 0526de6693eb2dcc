"""Every public name explains itself, or stands under a contract that does."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import hpdl_mpi

NEED_TORCH = {
    f"hpdl_mpi.bench.torch_{name}" for name in ("gpt", "recurrent", "resnet", "seq2seq", "transformer", "vision", "vit")
}
"""Modules that import PyTorch, which this suite does without: `tests/parity` looks at them."""

NAMES = {info.name for info in pkgutil.walk_packages(hpdl_mpi.__path__, "hpdl_mpi.") if "__main__" not in info.name}


def public_objects(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield the module itself, its public functions and classes, and the public methods of these classes."""
    yield module.__name__, module
    for name, value in vars(module).items():
        if name.startswith("_") or not callable(value) or getattr(value, "__module__", None) != module.__name__:
            continue
        yield f"{module.__name__}.{name}", value
        if inspect.isclass(value):
            methods = (method for method in vars(value) if not method.startswith("_"))
            yield from (
                (f"{module.__name__}.{name}.{method}", getattr(value, method))
                for method in methods
                if callable(getattr(value, method)) or isinstance(vars(value)[method], property)
            )


def undocumented(name: str) -> list[str]:
    """Return the public names of a module that do not explain themselves."""
    return [path for path, value in public_objects(importlib.import_module(name)) if not inspect.getdoc(value)]


@pytest.mark.parametrize("name", sorted(NAMES - NEED_TORCH))
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert not undocumented(name)
