"""Sizes as people write them."""

from __future__ import annotations

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.cli.sizes import parse_numbers, parse_size, parse_sizes


def test_sizes_have_units() -> None:
    assert [parse_size(text, "--size") for text in ("0", "12", "4KiB", " 4 KB ", "1MiB")] == [
        0,
        12,
        4096,
        4000,
        1 << 20,
    ]


def test_dots_stand_for_doublings() -> None:
    assert parse_sizes("4KiB,...,16KiB", "--sizes") == [4096, 8192, 16384]
    assert parse_sizes("1,3,...,20,100", "--sizes") == [1, 3, 6, 12, 20, 100]
    assert parse_sizes("8,...,8,4,8", "--sizes") == [8, 4]


@pytest.mark.parametrize("text", ["", "-1", "x", "1,,2", "nan", "inf"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--sizes: not a size"):
        parse_sizes(text, "--sizes")


@pytest.mark.parametrize("text", ["...", "...,8", "8,...", "8,...,...,16", "16,...,8", "0,...,8"])
def test_dots_between_nothing_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--sizes: "):
        parse_sizes(text, "--sizes")


def test_numbers_have_commas_between() -> None:
    assert parse_numbers("224, 224,3", "--shape", "such as 8,16") == [224, 224, 3]


@pytest.mark.parametrize("text", ["", "8,", "8x8", "8,0", "-1", "1.5"])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--shape: no list of numbers above 0.*expected such as 8,16\."):
        parse_numbers(text, "--shape", "such as 8,16")
