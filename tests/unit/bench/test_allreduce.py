"""``hpdl bench allreduce``: its result, what it makes of it, its table, what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench.allreduce import GLOO, bench_allreduce, best_rules, count_arrays, write_rules
from hpdl_mpi.bench.table import allreduce_table
from hpdl_mpi.comm import ALLREDUCES, SingleCommunicator
from hpdl_mpi.comm.choice import Rule, read_table
from tests.mpirun import needs_mpirun, run_python

KEYS = {"nbytes", "algorithm", "chosen", "memory", "seconds", "bus_bandwidth", "library_seconds", "ratio"}
SIZES = "64KiB,4KiB,16MiB"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A real run on two ranks, as short as can be."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    environ = {"HPDL_ALLREDUCE_TABLE": str(path.with_name("table.json"))}
    command = ("-m", "hpdl_mpi", "bench", "allreduce", "--sizes", SIZES, "--json", str(path), "--tune")
    done = run_python(2, *command, environ=environ)
    assert done.returncode == 0, done.stderr
    table = Path(environ["HPDL_ALLREDUCE_TABLE"])
    assert f"written: {table}" in done.stdout
    assert read_table(table).rules["1x2"] == best_rules(json.loads(path.read_text())["rows"])
    return json.loads(path.read_text())


@needs_mpirun
def test_the_result_has_a_row_for_each_size_algorithm_and_memory(result: dict) -> None:
    rows = result["rows"]
    assert all(set(row) >= KEYS for row in rows)
    expected = {("auto", "private"), ("auto", "shared")}
    names = [name for name in ALLREDUCES if not name.startswith("hierarchical")]  # which is `two_shot` on one machine
    expected |= {(name, "shared" if ALLREDUCES[name].in_window else "private") for name in names}
    assert list(dict.fromkeys(row["nbytes"] for row in rows)) == [1 << 16, 1 << 12, 1 << 24]
    for nbytes in (1 << 12, 1 << 16, 1 << 24):
        assert {(row["algorithm"], row["memory"]) for row in rows if row["nbytes"] == nbytes} == expected
    assert all(("copy_ratio" in row) == (row["memory"] == "shared") for row in rows)
    assert {row["chosen"] for row in rows if row["algorithm"] == "auto" and row["memory"] == "shared"} == {"window"}
    for row in rows:
        assert row["ratio"] == pytest.approx(row["library_seconds"] / row["seconds"])
        assert row["bus_bandwidth"] == pytest.approx(row["nbytes"] / row["seconds"])
    assert (result["num_ranks"], result["place"], result["rounds"]) == (2, "1x2", 10)
    assert result["versions"]["mpi"]


@needs_mpirun
def test_the_result_makes_a_table(result: dict) -> None:
    file = io.StringIO()
    Console(file=file, width=80).print(allreduce_table(result))
    assert "2 ranks" in file.getvalue()
    assert "auto (one_shot)" in file.getvalue()
    assert "…" not in file.getvalue()


def row(nbytes: int, algorithm: str, seconds: float, library: float = 9.0, memory: str = "private") -> dict:
    return {
        "nbytes": nbytes,
        "algorithm": algorithm,
        "chosen": algorithm,
        "memory": memory,
        "seconds": seconds,
        "library_seconds": library,
    }


def test_the_fastest_of_private_arrays_makes_the_rules() -> None:
    rows = [
        *(row(100, "ring", 2.0), row(100, "tree", 1.0)),
        *(row(400, "ring", 2.0), row(400, "tree", 1.0)),
        *(row(900, "ring", 1.0), row(900, "tree", 2.0)),
        *(row(9000, "ring", 1.0, library=0.5), row(9000, "tree", 2.0, library=0.5)),
        *(row(nbytes, "window", 0.1, library=0.1, memory="shared") for nbytes in (100, 400, 900, 9000, 90_000)),
    ]
    assert best_rules(rows) == [
        Rule(up_to=600, algorithm="tree"),
        Rule(up_to=2846, algorithm="ring"),
        Rule(algorithm="library"),
    ]


def test_rules_of_other_places_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings" / "table.json"
    monkeypatch.setenv("HPDL_ALLREDUCE_TABLE", str(path))
    for place, name in (("1x2", "ring"), ("4x1", "tree"), ("1x2", "one_shot")):
        read_table.cache_clear()
        assert write_rules({"place": place, "rows": [row(100, name, 1.0)]}) == path
    read_table.cache_clear()
    rules = read_table(path).rules
    assert rules == {"1x2": [Rule(algorithm="one_shot")], "4x1": [Rule(algorithm="tree")]}
    assert json.loads(path.read_text())["version"] == 2


@needs_mpirun
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--algorithm", "rings"), "--algorithm: cannot be used. Found 'rings'"),
        (("--vs", "nccl"), "--vs: unknown contender"),
        (("--sizes", "6"), "--sizes: out of range. Found 6"),
        (("--sizes", "some"), "--sizes: not a size"),
        (("--tune", "--algorithm", "auto,ring"), "--tune and --algorithm: the fastest is found among all"),
        (("--tune", "--sizes", "128KiB,16MiB"), "--tune and --sizes: rules for sizes that were not measured"),
        (
            ("--tune", "--sizes", "4KiB,...,8MiB"),
            "Found 4096 to 8388608 bytes; expected 65536 or less to 16777216 or more",
        ),
        (
            ("--sizes", "4KiB,1PiB"),
            "Error: not enough memory for all-reduces of 1,125,899,906,842,624 bytes, of 2 ranks. Found ",
        ),
        (("--sizes", "1PiB,4KiB"), "; expected 4,503,599,627,370,496 bytes. Give smaller --sizes"),
    ],
)
def test_what_cannot_be_measured_is_refused_once(options: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    command = ("-m", "hpdl_mpi", "bench", "allreduce", *options)
    done = run_python(2, *command, environ={"HPDL_ALLREDUCE_TABLE": str(table)})
    assert done.returncode == 2
    assert done.stderr.count(complaint) == 1
    assert len(done.stderr.splitlines()) == 1
    assert not table.exists()


def test_one_rank_is_refused() -> None:
    with pytest.raises(InputError, match="one rank has nothing to sum"):
        bench_allreduce(SingleCommunicator(), [4])


def test_no_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"--sizes: out of range\. Found \[\]; expected one or more"):
        bench_allreduce(SingleCommunicator(), [])


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from hpdl_mpi.cli.main import main
main()
"""


@needs_mpirun
def test_without_pytorch_gloo_is_refused() -> None:
    done = run_python(2, "-c", WITHOUT_TORCH, "bench", "allreduce", "--vs", GLOO)
    assert (done.returncode, done.stderr.count("PyTorch is not installed")) == (2, 1)


@pytest.mark.parametrize(
    ("names", "vs", "in_windows", "count"),
    [
        (["auto", "one_shot", "window"], None, True, 6),
        (["auto", "one_shot", "window"], GLOO, True, 7),
        (["ring"], None, True, 4),
        (["auto", "one_shot", "window"], None, False, 2),
        (["ring"], GLOO, False, 3),
    ],
)
def test_a_rank_has_arrays_of_its_own_and_in_windows(
    names: list[str], vs: str | None, in_windows: bool, count: int
) -> None:
    assert count_arrays(names, vs, in_windows=in_windows) == count
