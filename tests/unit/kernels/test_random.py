"""Counter-based random numbers."""

from __future__ import annotations

import numpy as np
import pytest

from hpdl_mpi.kernels.random import derive_key, dropout, philox, sample_keys
from tests import reference as ref

KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
"""Counter, key and result of philox4x32-10 in kat_vectors of Random123, by the authors of the paper."""


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word, 16) for word in text.split())


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_naive_twin_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    assert ref.philox4x32(numbers(counter), numbers(key)) == numbers(expected)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_kernel_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    words = np.array([*numbers(key), *numbers(counter)], np.uint32).view("<u8")
    key64, position, stream = words.astype(np.uint64)
    assert philox(key64, stream, position) == numbers(expected)


def test_sample_keys_are_those_of_the_naive_twin_and_follow_their_ids() -> None:
    ids, key = np.array([0, 3, 2**40 + 1, 3]), derive_key(1, "samples")
    out = np.zeros(4, np.uint64)
    sample_keys(key, ids, out)
    words = [ref.words(int(key), int(i), 2) for i in ids]
    assert out.tolist() == [first << 32 | second for first, second in words]


def test_keys_differ_wherever_their_parts_do() -> None:
    parts: list[tuple[int | str, ...]] = [
        (0,),
        (1,),
        (0, 0),
        ("0",),
        (0, "a"),
        ("a", 0),
        ("0a",),
        ("a",),
        (-1,),
        (),
        ("",),
    ]
    keys = {int(derive_key(*one)) for one in parts}
    assert len(keys) == len(parts)
    assert all(0 <= key < 2**64 for key in keys)


def test_key_of_a_number_does_not_depend_on_its_type() -> None:
    assert derive_key(np.int64(3), "a") == derive_key(3, "a")


def test_keys_are_the_same_in_every_process_and_release() -> None:
    """Runs that were begun go on only as long as keys do not change."""
    assert int(derive_key(0, "init", "0.weight")) == 16689827734146608983


@pytest.mark.parametrize("size", [0, 1, 3, 4, 63, 64, 1001])
def test_dropout_drops_by_the_published_numbers_and_may_do_so_in_place(size: int) -> None:
    rate, key, ids = 0.3, np.uint64(11), np.array([7, 2])
    x = np.random.default_rng(size).normal(size=(2, size))
    words = np.array(
        [[ref.philox4x32((j // 4, 0, int(sample), 0), (11, 0))[j % 4] for j in range(size)] for sample in ids],
        np.float64,
    ).reshape(x.shape)
    expected = np.where(words >= int(rate * 2**32), x * (1.0 / (1.0 - rate)), 0.0)
    y = np.full_like(x, np.nan)
    dropout(x, key, ids, rate, y)
    np.testing.assert_array_equal(y, expected)
    dropout(x, key, ids, rate, x)
    np.testing.assert_array_equal(x, expected)
