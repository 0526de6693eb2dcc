"""Results for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from hpdl_mpi.base.output import counted
from hpdl_mpi.bench.conv import PASSES
from hpdl_mpi.bench.step import OURS

_CONV_SPREAD = 0.05
"""Of the time of a convolution: what medians of two runs may differ by."""


def step_table(result: dict[str, Any]) -> Table:
    """Return the result of `bench_step` as a table, a row for each contender; ratios are its step over ours."""
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    ranks = f" on each of {result['num_ranks']} ranks" if "num_ranks" in result else ""
    title = f"Training step: {result['model']}, batch {result['batch']}, {result['precision']}, {threads}{ranks}"
    caption = f"{_rounds(result)}; memory above the level after imports"
    numbers = ("step, ms", "quartiles", "samples/s", "peak, MiB", "ratio")
    table = _table(title, "\n".join([caption, *result["notes"]]), ("contender",), numbers)
    for name, spread in result["spread"].items():
        figures = result if name == OURS else result["vs"][name]
        seconds = figures["step_seconds"]
        rate = figures.get("samples_per_second", result["batch"] / seconds)
        table.add_row(
            name,
            _milliseconds(seconds),
            "-".join(_milliseconds(spread[key]) for key in ("lower_quartile", "upper_quartile")),
            f"{rate:.0f}" if rate else "",
            f"{figures['peak_bytes'] / 2**20:.0f}",
            f"{seconds / result['step_seconds']:.2f}",
        )
    return table


def generate_table(result: dict[str, Any]) -> Table:
    """Return the result of `bench_generate` as a table, a row for each contender; ratios are its time over ours."""
    threads = counted(result["threads"], "thread")
    title = (
        f"Text: {result['model']}, {result['new_tokens']} tokens after {result['prompt_tokens']}, float32, {threads}"
    )
    caption = f"{_rounds(result)}; memory above the level after imports"
    numbers = ("text, ms", "quartiles", "tokens/s", "peak, MiB", "ratio")
    table = _table(title, caption, ("contender",), numbers)
    for name, spread in result["spread"].items():
        seconds = spread["median"]
        table.add_row(
            name,
            _milliseconds(seconds),
            "-".join(_milliseconds(spread[key]) for key in ("lower_quartile", "upper_quartile")),
            f"{result['new_tokens'] / seconds:.1f}",
            f"{(result if name == OURS else result['vs'][name])['peak_bytes'] / 2**20:.0f}",
            f"{seconds / result['step_seconds']:.2f}",
        )
    return table


def pipeline_table(result: dict[str, Any]) -> Table:
    """Return the result of `bench_pipeline` as a table, a row for each contender; ratios are its step over ours."""
    title = (
        f"Training step: {result['model']} on a pipeline of {result['num_ranks']} ranks, {result['num_microbatches']} "
        f"micro-batches of {result['microbatch_size']}, float32, 1 thread each"
    )
    caption = (
        f"{_rounds(result, 'ms, ')}; stages from {result['cuts']}; bubble: "
        "measured, simulated with measured costs, published formula; peak memory above the level after imports"
    )
    numbers = ("step", "simulated", "bubble, %", "overhead", "MiB", "ratio")
    table = _table(title, caption, ("contender",), numbers, narrow=True)
    for name, figures in ({result["schedule"]: result} | result["vs"]).items():
        bubbles = [figures.get(f"bubble_{key}") for key in ("measured", "predicted", "formula")]
        ours = "predicted_seconds" in figures
        table.add_row(
            name,
            _milliseconds(figures["step_seconds"]),
            _milliseconds(figures["predicted_seconds"]) if ours else "",
            " / ".join(f"{100 * bubble:.1f}" for bubble in bubbles if bubble is not None),
            f"{100 * figures['executor_overhead']:.1f} %" if ours else "",
            f"{figures['peak_bytes'] / 2**20:.0f}",
            f"{figures['step_seconds'] / result['step_seconds']:.2f}",
        )
    return table


def allreduce_table(result: dict[str, Any]) -> Table:
    """Return the result of `bench_allreduce` as a table, a row for each of its rows."""
    machines = f" on {result['num_nodes']} machines" if result["num_nodes"] > 1 else ""
    caption = (
        f"{_rounds(result, 'microseconds, ')}, {result['versions']['mpi']}; "
        "GB/s of a ring's traffic; * arrays in shared windows; ratios: the library's time to ours, Gloo's, and that of "
        "copying as many bytes"
    )
    title = f"All-reduce of float32: {result['num_ranks']} ranks{machines}"
    numbers = ("us", "GB/s", "library", "ratio", "Gloo", "copy")
    table = _table(title, caption, ("bytes", "algorithm"), numbers, narrow=True)
    before = None
    for row in result["rows"]:
        chosen = f" ({row['chosen']})" if row["chosen"] != row["algorithm"] else ""
        table.add_row(
            _bytes(row["nbytes"]) if row["nbytes"] != before else "",
            f"{row['algorithm']}{chosen}{'*' if row['memory'] == 'shared' else ''}",
            _microseconds(row["seconds"]),
            f"{row['bus_bandwidth'] / 1e9:.2f}",
            _microseconds(row["library_seconds"]),
            *(f"{row[key]:.2f}" if key in row else "" for key in ("ratio", "gloo_ratio", "copy_ratio")),
        )
        before = row["nbytes"]
    return table


def conv_table(result: dict[str, Any]) -> Table:
    """Return the result of `bench_conv` as a table, a row for each method of each convolution.

    A star marks the method that is chosen, and an exclamation mark one that is chosen though it is slower.
    """
    title = f"Convolutions, float32, {result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    caption = (
        f"{_rounds(result, 'ms, ')}; * is chosen; GFLOP/s count "
        "the operations of the definition, in all three passes; ratio: their time to that of the fastest, with ! where "
        f"the chosen one takes over {_CONV_SPREAD:.0%} longer"
    )
    numbers = ("forward", "dgrad", "wgrad", "GFLOP/s", "ratio")
    table = _table(title, caption, ("convolution", "method"), numbers)
    for convolution in result["convolutions"]:
        label, totals = convolution["name"], {name: sum(of.values()) for name, of in convolution["seconds"].items()}
        for name, seconds in convolution["seconds"].items():
            rate = 3 * convolution["operations"] / totals[name] / 1e9
            speed = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
            ratio = totals[name] / totals[convolution["fastest"]]
            chosen = name == convolution["chosen"]
            mark = "!" if chosen and ratio > 1 + _CONV_SPREAD else ""
            times = map(_milliseconds, seconds.values())
            table.add_row(label, name + "*" * chosen, *times, speed, f"{mark}{ratio:.2f}")
            label = ""
    return table


def conv_rules_table(result: dict[str, Any]) -> Table:
    """Return the rules in the result of `bench_conv` as a table, a row for each."""
    table = Table(box=box.SIMPLE, title="The method of a convolution: the first of these that holds")
    table.add_column("method", no_wrap=True)
    table.add_column("is taken when")
    for rule in result["rules"]:
        table.add_row(rule["method"], rule["condition"])
    return table


def profile_table(result: dict[str, Any]) -> Table:
    """Return the result of `profile_step` as a table, a row for all layers of a kind, those that take longest first."""
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    title = (
        f"Where a step's {_milliseconds(result['step_seconds'])} ms go: {result['model']}, batch {result['batch']}, "
        f"float32, {threads}"
    )
    caption = (
        f"{result['machine']['cpu']}; ms, medians of {counted(result['steps'], 'step')}; GFLOP/s count the operations "
        "of the definition, in all passes that there were"
    )
    table = _table(title, caption, ("layers",), ("n", "forward", "dgrad", "wgrad", "%", "GFLOP/s"))
    kinds: dict[str, list[dict[str, Any]]] = {}
    for layer in result["layers"]:
        kinds.setdefault(layer["kind"], []).append(layer)
    rows = []
    for kind, layers in kinds.items():
        seconds = [sum(layer["seconds"][name] for layer in layers) for name in PASSES]
        operations = sum(layer["operations"] * (2 + layer["makes_dx"]) for layer in layers)
        rows.append((sum(seconds), kind, len(layers), seconds, operations))
    for total, kind, number, seconds, operations in sorted(rows, reverse=True):
        share = f"{100 * total / result['step_seconds']:.1f}"
        rate = f"{operations / total / 1e9:.0f}" if operations else ""
        table.add_row(kind, str(number), *map(_milliseconds, seconds), share, rate)
    other = result["other_seconds"]
    table.add_row("loss, update, rest", "", "", "", "", f"{100 * other / result['step_seconds']:.1f}", "")
    return table


def loader_table(result: dict[str, Any]) -> Table:
    """Return the result of `bench_loader` as a table, a row for each contender; ratios are its rate over the step's."""
    threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    title = f"Loader and training step: {result['path']}, batch {result['batch']}, {threads}"
    caption = [f"{_rounds(result)}; memory above the level after imports"]
    rates, slower = result["samples_per_second"], result["bottleneck"]
    if slower:
        factor = max(result["ratio"], 1 / result["ratio"])
        caption.append(f"the {slower} is the bottleneck: alone, the other is {factor:.1f} times as fast")
    numbers = ("batch, ms", "quartiles", "samples/s", "peak, MiB", "ratio")
    table = _table(title, "\n".join(caption), ("contender",), numbers)
    for name, spread in result["spread"].items():
        table.add_row(
            name,
            _milliseconds(spread["median"]),
            "-".join(_milliseconds(spread[key]) for key in ("lower_quartile", "upper_quartile")),
            f"{rates[name]:.0f}",
            f"{result['peak_bytes'][name] / 2**20:.0f}",
            f"{rates[name] / rates['step']:.2f}" if slower else "",
        )
    return table


def _table(title: str, caption: str, names: Sequence[str], numbers: Sequence[str], *, narrow: bool = False) -> Table:
    """Return a table without rows; where it is too wide, names go on in another line, and numbers are whole."""
    table = Table(box=box.SIMPLE, title=title, caption=caption)
    if narrow:
        table.padding, table.pad_edge = (0, 0, 0, 1), False
    for heading in names:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _rounds(result: dict[str, Any], unit: str = "") -> str:
    return f"{result['machine']['cpu']}; {unit}median of {counted(result['rounds'], 'round')}"


def _milliseconds(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e3 * seconds:.3g}"
    return f"{1e3 * seconds:.{1 if seconds < 1 else 0}f}"


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.{1 if seconds < 1e-4 else 0}f}"


def _bytes(size: int) -> str:
    """Return a number of bytes in the largest unit that it has a whole number of."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} B"
