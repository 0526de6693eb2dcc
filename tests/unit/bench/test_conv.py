"""``hpdl bench conv``: its result and its table."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from hpdl_mpi.bench.conv import CONVOLUTIONS, PASSES, ConvWorkload, bench_conv
from hpdl_mpi.bench.table import conv_table
from hpdl_mpi.nn.conv_methods import METHODS, choose

SMALL = (ConvWorkload("plain", 2, 8, 16, 16), ConvWorkload("strided depthwise", 2, 7, 6, 6, stride=2, groups=6))


@pytest.fixture(scope="module")
def result():
    return bench_conv(SMALL, num_rounds=2)


def test_the_result_is_json_with_the_seconds_of_every_method_that_can(result):
    assert json.loads(json.dumps(result)) == result
    plain, depthwise = result["convolutions"]
    assert set(plain["seconds"]) == {"winograd", "unfolded"}
    assert set(depthwise["seconds"]) == {"depthwise", "grouped"}
    assert (plain["chosen"], depthwise["chosen"]) == ("winograd", "depthwise")
    assert plain["operations"] == 2 * 2 * 8 * 8 * 16 * 16 * 9
    for convolution in (plain, depthwise):
        assert all(set(seconds) == set(PASSES) for seconds in convolution["seconds"].values())
        assert all(value > 0 for seconds in convolution["seconds"].values() for value in seconds.values())
        totals = {name: sum(seconds.values()) for name, seconds in convolution["seconds"].items()}
        assert convolution["fastest"] == min(totals, key=totals.__getitem__)


def test_the_table_marks_the_method_that_is_chosen(result):
    text = io.StringIO()
    Console(file=text, width=120).print(conv_table(result))
    assert "winograd*" in text.getvalue()
    assert "unfolded" in text.getvalue()
    assert "unfolded*" not in text.getvalue()


def test_every_method_stands_in_the_standard_shapes():
    capable = {name for workload in CONVOLUTIONS for name, method in METHODS.items() if method.can(workload.shape)}
    assert capable == set(METHODS)
    assert {type(choose(workload.shape)) for workload in CONVOLUTIONS} == set(METHODS.values()) - {METHODS["grouped"]}
