"""Sizes as people write them."""

from __future__ import annotations

from hpdl_mpi.base.errors import InputError


def parse_size(text: str, option: str) -> int:
    """Return the bytes of a text such as ``64KiB`` or ``4 MB``."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text.strip()))
    except ValidationError:
        size = -1
    if size < 0:
        raise InputError("not a size", where=option, found=repr(text), expected="such as 64KiB")
    return size
