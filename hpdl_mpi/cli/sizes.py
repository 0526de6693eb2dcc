"""Sizes and lists of numbers as people write them."""

from __future__ import annotations

from hpdl_mpi.base.errors import InputError


def parse_numbers(text: str, option: str, expected: str) -> list[int]:
    """Return the numbers of a text such as ``8,16``, none below 1."""
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise InputError("no list of numbers above 0", where=option, found=repr(text), expected=expected)
    return numbers


def parse_sizes(text: str, option: str) -> list[int]:
    """Return the bytes of sizes with commas between, each once; ``4KiB,...,1MiB`` means all doublings from 4 KiB on."""
    sizes: list[int] = []
    words = text.split(",")
    for index, word in enumerate(words):
        if word.strip() != "...":
            sizes.append(parse_size(word, option))
            continue
        last = parse_size(words[index + 1], option) if 0 < index < len(words) - 1 else 0
        if not sizes or not 0 < sizes[-1] <= last:
            raise InputError("stands for nothing", where=option, found=repr(text), expected="such as 4KiB,...,1MiB")
        while 2 * sizes[-1] < last:
            sizes.append(2 * sizes[-1])
    return [*dict.fromkeys(sizes)]


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
