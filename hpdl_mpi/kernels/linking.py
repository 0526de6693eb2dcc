"""Compiled code calls its own copies of the functions that it calls.

Numba links what a function calls into its module and optimizes all of that together, so each module has a copy of its
own of, say, a product's inner loop, compiled from the same source but not to the same instructions: under fast-math
flags the copies may round otherwise. In the object file their symbols are weak, and of several copies in a process the
one loaded first serves all. Which that is depends on what was compiled in this process and what came from the cache,
so without this module the bits of a run would, too.

What the cache keeps for callers is read when one is compiled: it takes ten times the memory of the code itself.
"""

from __future__ import annotations

from typing import Any, Self

from llvmlite import binding
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target


class OwnCopies(JITCodeLibrary):
    """The code of one function, in whose object file all functions that others may have too are local."""

    _shared_module: binding.ModuleRef | None
    _kept_for_callers: bytes | None = None
    """The linkable module, if it came from the cache and nobody has linked it yet."""

    @classmethod
    def _unserialize(cls, codegen: Any, state: tuple[str, str, Any]) -> Self:
        library: Self = super()._unserialize(codegen, state)
        _, kind, data = state
        if kind == "object":
            library._shared_module, library._kept_for_callers = None, data[1]
        return library

    def _get_module_for_linking(self) -> binding.ModuleRef:
        if self._kept_for_callers is not None:
            self._shared_module, self._kept_for_callers = binding.parse_bitcode(self._kept_for_callers), None
        return super()._get_module_for_linking()

    def _finalize_final_module(self) -> None:
        if self._shared_module is None:  # else it came from the cache, and its object file with it
            self._shared_module = self._linkable()
            for function in self._final_module.functions:
                if function.linkage == binding.Linkage.linkonce_odr:
                    function.linkage = binding.Linkage.internal
        super()._finalize_final_module()

    def _linkable(self) -> binding.ModuleRef:
        """Return the module that callers link: there each function is kept once, and only where it is called."""
        module = self._final_module.clone()
        for function in module.functions:
            if not function.is_declaration and function.linkage == binding.Linkage.external:
                function.linkage = binding.Linkage.linkonce_odr
        return module


def keep_own_copies() -> None:
    """Link so all that this process compiles from now on; kernels that are in the cache were linked so."""
    cpu_target.target_context.codegen()._library_class = OwnCopies
