"""The tables of results: no number is cut off where output is no terminal, which has 80 columns then."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from hpdl_mpi.bench.step import OURS, TORCH
from hpdl_mpi.bench.table import loader_table, pipeline_table, step_table

MACHINE = {"rounds": 10, "machine": {"cpu": "Xeon"}}
CONTENDERS = (OURS, "one-rank", "torch-ddp-compile", *TORCH)
FIGURES = {"samples_per_second": 98765.4, "peak_bytes": 23456 * 2**20}


def shown(table: Table, width: int = 80) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    return text.getvalue()


def row(text: str, name: str) -> list[str]:
    """Return what stands behind a name."""
    return next(line.split()[1:] for line in text.splitlines() if line.split()[:1] == [name])


def steps(seconds: float) -> dict[str, Any]:
    """Return a result of `bench_step` in which a step takes so long, and its quartiles lie a hundredth off."""
    spread = {"median": seconds, "lower_quartile": 0.99 * seconds, "upper_quartile": 1.01 * seconds}
    figures = FIGURES | {"step_seconds": seconds}
    others = dict.fromkeys(CONTENDERS[1:], figures)
    job = {"model": "resnet50", "batch": 32, "threads": 2, "precision": "float32", "notes": []}
    return MACHINE | job | figures | {"vs": others, "spread": dict.fromkeys(CONTENDERS, spread)}


@pytest.mark.parametrize(
    ("seconds", "step", "quartiles"),
    [
        (0.01234, "12.3", "12.2-12.5"),
        (0.9, "900.0", "891.0-909.0"),
        (2.29998, "2300", "2277-2323"),
        (54.321, "54321", "53778-54864"),
    ],
)
def test_steps_of_any_length_are_shown_whole(seconds: float, step: str, quartiles: str) -> None:
    text = shown(step_table(steps(seconds)))
    assert "…" not in text
    for name in CONTENDERS:
        assert row(text, name) == [step, quartiles, "98765", "23456", "1.00"]


def test_steps_beside_a_loader_are_shown_whole() -> None:
    spread = {"median": 54.321, "lower_quartile": 53.9, "upper_quartile": 55.0}
    names = ("loader", "step", "together")
    result = MACHINE | {
        "path": "jobs/resnet18_cifar10.toml",
        "batch": 128,
        "threads": 1,
        "bottleneck": "step",
        "ratio": 1.0,
        "samples_per_second": dict.fromkeys(names, 98765.4),
        "peak_bytes": dict.fromkeys(names, 23456 * 2**20),
        "spread": dict.fromkeys(names, spread),
    }
    text = shown(loader_table(result))
    for name in names:
        assert row(text, name) == ["54321", "53900-55000", "98765", "23456", "1.00"]


def pipelines(schedule: str) -> dict[str, Any]:
    """Return a result of `bench_pipeline` with long steps and large bubbles."""
    sizes = {"model": "mlp_deep", "num_ranks": 4, "num_microbatches": 8, "microbatch_size": 64, "cuts": [4, 8, 12]}
    bubbles = {f"bubble_{key}": 0.27272 for key in ("measured", "predicted", "formula")}
    other = {"step_seconds": 54.321, "peak_bytes": 2**34}
    ours = other | bubbles | {"predicted_seconds": 54.321, "executor_overhead": 0.1234}
    return MACHINE | sizes | ours | {"schedule": schedule, "vs": {"torch-pipelining": other}}


def test_a_pipeline_beside_another_is_shown_whole() -> None:
    text = shown(pipeline_table(pipelines("interleaved")))
    figures = ["54321", "54321", "27.3", "/", "27.3", "/", "27.3", "12.3", "%", "16384", "1.00"]
    assert row(text, "interleaved") == figures
    assert row(text, "torch-pipelining") == ["54321", "16384", "1.00"]


def test_a_name_that_is_too_long_goes_on_below() -> None:
    name = "schedules/my_own/zero_bubble.csv"
    text = shown(pipeline_table(pipelines(name)))
    words = [line.split() for line in text.splitlines()]
    first = next(number for number, line in enumerate(words) if line[1:2] == ["54321"])
    assert words[first][0] + words[first + 1][0] == name
    assert "27.3 / 27.3 / 27.3" in text
