"""Errors say where, what was found, what was expected and what to do, and carry the exit code."""

from __future__ import annotations

import os

import numpy as np
import pytest

from hpdl_mpi.base.errors import (
    HpdlError,
    InputError,
    StorageError,
    TrainingError,
    amended,
    finite_numbers,
    is_one_of,
    require,
)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "too small."),
        ({"where": "training.epochs"}, "training.epochs: too small."),
        ({"found": 0}, "too small. Found 0."),
        ({"expected": "at least 1"}, "too small. Expected at least 1."),
        ({"found": 0, "expected": "at least 1"}, "too small. Found 0; expected at least 1."),
        (
            {"where": "training.epochs", "found": 0, "expected": "at least 1", "remedy": "raise it"},
            "training.epochs: too small. Found 0; expected at least 1. Raise it.",
        ),
        ({"where": "a\nb/x.png", "found": "a\tb"}, "a\\nb/x.png: too small. Found a\\tb."),
        (
            {"where": "a\x85\u2028\x9b2J", "found": "\u202etxt\u2066\u061c\u200f é"},
            r"a\x85\u2028\x9b2J: too small. Found \u202etxt\u2066\u061c\u200f é.",
        ),
        (
            {"where": os.fsdecode(b"\xfd.png"), "found": repr(os.fsdecode(b"\xe9"))},
            r"\xfd.png: too small. Found '\xe9'.",
        ),
    ],
)
def test_message_is_made_of_the_facts_given(facts: dict, message: str) -> None:
    assert str(HpdlError("too small", **facts)) == message


def test_what_is_added_to_a_message_stays_on_its_line_too() -> None:
    with pytest.raises(InputError) as caught, amended(os.fsdecode(b"a\nb\xfd.toml: "), " Mend it."):
        raise InputError("too small")
    assert str(caught.value) == r"a\nb\xfd.toml: too small. Mend it."


@pytest.mark.parametrize(
    ("kind", "code", "builtin"),
    [
        (HpdlError, 1, Exception),
        (InputError, 2, ValueError),
        (TrainingError, 1, RuntimeError),
        (StorageError, 1, RuntimeError),
    ],
)
def test_each_error_has_its_exit_code_and_a_builtin_kin(kind: type[HpdlError], code: int, builtin: type) -> None:
    error = kind("wrong")
    assert error.exit_code == code
    assert isinstance(error, builtin)
    assert isinstance(error, HpdlError)


@pytest.mark.parametrize("value", [np.array([3, 3]), [], None, 3, "c", np.array("a")])
def test_what_is_no_word_is_none_of_the_choices(value: object) -> None:
    assert not is_one_of(value, ("a", "b"))
    assert is_one_of(np.str_("a"), ("a", "b"))


@pytest.mark.parametrize("value", [3.0, "33", b"3", ["3"], [True], [np.nan], [10**400], [[1.0]], np.array(3.0), None])
def test_what_is_no_line_of_finite_numbers_is_none(value: object) -> None:
    assert finite_numbers(value) is None


def test_finite_numbers_become_pythons() -> None:
    for value in ([1, np.float32(2)], (1.0, 2.0), np.array([1, 2], np.uint8)):
        assert finite_numbers(value) == (1.0, 2.0)


def test_a_number_beyond_all_floats_is_refused() -> None:
    with pytest.raises(InputError, match=r"^lr: out of range\. Found 10*; expected a number"):
        require("lr", 10**400, possible=True, expected="a number")
