"""``hpdl bench conv``: its result and its table."""

from __future__ import annotations

import io
import json
import re

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench.conv import CONVOLUTIONS, PASSES, ConvWorkload, bench_conv, described, named
from hpdl_mpi.bench.table import conv_rules_table, conv_table
from hpdl_mpi.cli import bench
from hpdl_mpi.nn.conv_rules import RULES, choose

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


def test_short_times_and_low_rates_keep_their_digits(result):
    plain = result["convolutions"][0] | {"operations": 1e5}
    times = {"winograd": dict.fromkeys(PASSES, 1.234e-5), "unfolded": dict.fromkeys(PASSES, 1.234e-3)}
    text = shown(conv_table(result | {"convolutions": [plain | {"seconds": times, "fastest": "winograd"}]}))
    assert re.search(r"winograd\* +0\.0123 +0\.0123 +0\.0123 +8\.1 ", text)
    assert re.search(r"unfolded +1\.2 +1\.2 +1\.2 +0\.081 ", text)


def test_the_table_marks_the_method_that_is_chosen(result):
    text = shown(conv_table(result))
    assert "winograd*" in text
    assert "unfolded" in text
    assert "unfolded*" not in text


@pytest.mark.parametrize(("seconds", "mark"), [(1.04, ""), (1.06, "!")])
def test_the_table_marks_a_choice_that_is_slower_beyond_the_spread(result, seconds, mark):
    plain = result["convolutions"][0]
    times = {"winograd": dict.fromkeys(PASSES, seconds), "unfolded": dict.fromkeys(PASSES, 1.0)}
    text = shown(conv_table(result | {"convolutions": [plain | {"seconds": times, "fastest": "unfolded"}]}))
    assert re.search(rf"winograd\* .* {mark}{seconds} ", text)
    assert re.search(r"unfolded .* 1\.00 ", text)


def test_the_rules_are_shown_in_their_order(result):
    assert [rule["method"] for rule in result["rules"]] == [rule.method.name for rule in RULES]
    text = shown(conv_rules_table(result))
    places = [text.index(f"\n  {rule.method.name} ") for rule in RULES]
    assert places == sorted(places)
    assert "8 channels or more" in text


def test_every_rule_decides_for_one_of_the_standard_shapes():
    chosen = [type(choose(workload.shape)) for workload in CONVOLUTIONS]
    assert set(chosen) == {rule.method for rule in RULES}
    assert all(method.can(workload.shape) for method, workload in zip(chosen, CONVOLUTIONS, strict=True))


def test_what_goes_on_is_said_of_every_shape():
    said = []
    bench_conv(SMALL, num_rounds=1, say=said.append)
    assert said == [
        f"{number} of 2, {name}: {what}"
        for number, name in ((1, "plain"), (2, "strided depthwise"))
        for what in ("warming up", "1 round")
    ]


def test_shapes_are_chosen_by_a_part_of_their_name():
    assert [workload.name for workload in named("ResNeXt50")] == ["resnext50, 32 groups"]
    assert named("") == list(CONVOLUTIONS)
    with pytest.raises(InputError, match=r"--only: no convolution of such a name\. Found 'vgg'; expected part of: "):
        named("vgg")


def test_a_shape_is_described_by_its_numbers():
    workload = described("batch=2,size=9,in_channels=8,out_channels=12,kernel_size=5,stride=2,padding=1,groups=4")
    assert workload.shape.weight == (12, 5, 5, 2)
    assert workload.shape.output == (4, 4)
    assert described("batch=2,size=9,in_channels=8,out_channels=12").shape.output == (9, 9)
    assert set(bench_conv([workload], num_rounds=1)["convolutions"][0]["seconds"]) == {"grouped"}
    assert workload.name == "2 of 9 x 9 x 8 to 12, 5 x 5, stride 2, padding 1, 4 groups"
    assert described("batch=2, size=9, in_channels=8, out_channels=12").name == "2 of 9 x 9 x 8 to 12, 3 x 3, padding 1"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("size=9", "expected batch=NUMBER,size=NUMBER,.*of which the first four must be there"),
        ("depth=3", "no description"),
        ("stride=a", "no description"),
        ("batch=0", "numbers of at least 1"),
        ("in_channels=0", "numbers of at least 1"),
        ("stride=-1", "numbers of at least 1"),
        ("padding=-1", "a padding of at least 0"),
        ("groups=3", "groups that divide the channels"),
        ("kernel_size=20,padding=0", "a kernel_size within the image"),
        ("stride=99999999999999999999", "windows of at most 32,768"),
        ("padding=40000", "windows of at most 32,768"),
        ("batch=1000000000", "arrays of at most 268,435,456 numbers"),
        ("size=99999999999999999999999", "arrays of at most"),
    ],
)
def test_what_describes_no_convolution_is_refused(changed, message):
    whole = {"batch": "2", "size": "9", "in_channels": "8", "out_channels": "12"}
    given = dict(part.split("=") for part in changed.split(","))
    text = changed if changed == "size=9" else ",".join(f"{key}={value}" for key, value in (whole | given).items())
    with pytest.raises(InputError, match=message):
        described(text)


def test_a_number_that_is_given_twice_is_refused():
    with pytest.raises(InputError, match=r"--shape: out of range\. Found '[^\"]*'; expected each number once"):
        described("batch=2,batch=3,size=9,in_channels=8,out_channels=12")


def test_the_command_takes_some_shapes_and_as_few_rounds_as_the_function(monkeypatch, result):
    asked = {}

    def fake(workloads, threads, *, num_rounds, say):
        asked.update(names=[workload.name for workload in workloads], num_rounds=num_rounds)
        return result

    monkeypatch.setattr("hpdl_mpi.bench.conv.bench_conv", fake)
    app = typer.Typer()
    app.add_typer(bench.app, name="bench")
    printed = CliRunner().invoke(app, ["bench", "conv", "--only", "grey", "--rounds", "1"])
    assert printed.exit_code == 0, printed.output
    assert asked == {"names": ["grey, 5 x 5, first"], "num_rounds": 1}
    shape = ["--shape", "batch=2,size=9,in_channels=8,out_channels=12"]
    printed = CliRunner().invoke(app, ["bench", "conv", *shape])
    assert printed.exit_code == 0, printed.output
    assert asked == {"names": ["2 of 9 x 9 x 8 to 12, 3 x 3, padding 1"], "num_rounds": 10}
    error = CliRunner().invoke(app, ["bench", "conv", *shape, "--only", "grey"]).exception
    assert isinstance(error, InputError)
    assert "one of both" in str(error)
    with pytest.raises(InputError, match=r"--rounds: out of range\. Found 0; expected at least 1"):
        bench_conv(SMALL, num_rounds=0)


def shown(table):
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    return text.getvalue()
