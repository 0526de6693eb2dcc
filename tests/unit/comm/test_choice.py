"""Which all-reduce is taken: by a table of this user's, or by default."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import ALLREDUCES, LIBRARY, Arena, Communicator, choose_allreduce, make_allreduce, run_threads
from hpdl_mpi.comm.choice import Rule, default_rules, place_of, read_table, table_path
from hpdl_mpi.comm.threads import ThreadCommunicator


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "table.json"
    monkeypatch.setenv("HPDL_ALLREDUCE_TABLE", str(path))
    read_table.cache_clear()
    return path


def choices(sizes: list[int], nodes: list[int]) -> list[str]:
    def run(comm: Communicator) -> list[str]:
        return [choose_allreduce(comm, size) for size in sizes]

    found = run_threads(len(nodes), run, nodes=nodes)
    assert found == [found[0]] * len(nodes)
    return found[0]


def test_defaults_suit_the_place_of_the_ranks(table: Path) -> None:
    assert choices([4, 1 << 15, (1 << 15) + 1], [0, 0]) == ["one_shot", "one_shot", "two_shot"]
    assert choices([4, 1 << 30], [0, 1, 2]) == ["recursive_doubling", "ring"]
    assert choices([1 << 30], [0, 0, 1]) == ["hierarchical"]


def test_one_rank_needs_no_table(table: Path) -> None:
    table.write_text("{")
    assert choices([4], [0]) == ["one_shot"]
    with pytest.raises(InputError, match="not a table of all-reduces"):
        choices([4], [0, 0])


def test_defaults_are_algorithms_that_these_ranks_can_use(table: Path) -> None:
    def run(comm: Communicator) -> None:
        for rule in default_rules(comm):
            kind = ALLREDUCES[rule.algorithm]
            assert not (kind.one_machine and comm.num_nodes > 1)
            assert not kind.in_window

    for nodes in ([0, 0], [0, 1], [0, 0, 1, 1]):
        run_threads(len(nodes), run, nodes=nodes)


def test_table_decides_for_the_place_that_it_names(table: Path) -> None:
    rules = [{"up_to": 100, "algorithm": "tree"}, {"algorithm": "ring"}]
    table.write_text(json.dumps({"version": 2, "rules": {"1x2": rules}}))
    assert choices([100, 101], [0, 0]) == ["tree", "ring"]
    assert choices([100], [0, 0, 0]) == ["one_shot"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([{"up_to": 100, "algorithm": LIBRARY}, {"up_to": 200, "algorithm": "tree"}, {"algorithm": "ring"}], "tree"),
        ([{"algorithm": LIBRARY}], "ring"),
    ],
)
def test_sums_that_do_not_start_in_one_order_are_not_the_library_s(table: Path, rules: list, expected: str) -> None:
    table.write_text(json.dumps({"version": 2, "rules": {"1x2": rules}}))
    found = run_threads(2, lambda comm: [choose_allreduce(comm, 50, joint=joint) for joint in (True, False)])
    assert found == [[LIBRARY, expected]] * 2


def test_the_library_sums_short_arrays_between_machines_where_there_is_one(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThreadCommunicator, "library_name", lambda self: "a library")
    assert choices([4, 24 << 10, (24 << 10) + 1], [0, 1]) == [LIBRARY, LIBRARY, "halving_doubling"]
    assert choices([4], [0, 0, 1]) == ["recursive_doubling"]
    found = run_threads(2, lambda comm: choose_allreduce(comm, 4, joint=False), nodes=[0, 1])
    assert found == ["recursive_doubling"] * 2


def test_rules_are_for_all_algorithms_that_need_no_window() -> None:
    for name in (LIBRARY, *(name for name, kind in ALLREDUCES.items() if not kind.in_window)):
        assert Rule(algorithm=name).algorithm == name


@pytest.mark.parametrize(
    ("nodes", "expected"), [([0, 0], "window"), ([0, 1], "tree"), ([0, 0, 1, 1], "hierarchical")], ids=str
)
def test_arrays_in_windows_of_one_machine_are_summed_there_whatever_the_table_says(
    table: Path, nodes: list[int], expected: str
) -> None:
    table.write_text(json.dumps({"rules": {"1x2": [{"algorithm": "tree"}], "2x1": [{"algorithm": "tree"}]}}))
    size = 4096  # longer than what `default_rules` leaves to messages, where there are several machines

    def run(comm: Communicator) -> tuple[str, list[float]]:
        arena = Arena(comm)
        arena.reserve(8 * size)
        array = arena.parts[comm.rank].view(np.float64)
        allreduce = make_allreduce(comm, array, window=arena.window)
        for _ in range(3):
            comm.barrier()
            array[:] = comm.rank + 1
            allreduce()
            comm.barrier()
        sums = sorted({*array.tolist()})
        del array
        allreduce.free()
        arena.free()
        return allreduce.algorithm, sums

    num_ranks = len(nodes)
    total = num_ranks * (num_ranks + 1) / 2
    assert run_threads(num_ranks, run, nodes=nodes) == [(expected, [total])] * num_ranks


def test_auto_takes_what_the_table_says(table: Path) -> None:
    def run(comm: Communicator) -> float:
        assert place_of(comm) == "1x2"
        array = np.ones(8)
        make_allreduce(comm, array)()
        return array.sum()

    assert run_threads(2, run) == [16.0, 16.0]
    read_table.cache_clear()
    table.write_text(json.dumps({"rules": {"1x2": [{"algorithm": "library"}]}}))
    with pytest.raises(InputError, match="no all-reduce of an MPI library"):
        run_threads(2, run)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"rules": {"1x2": []}}',
        '{"rules": {"1x2": [{"algorithm": "os.system"}]}}',
        '{"rules": {"1x2": [{"algorithm": "window"}]}}',
        '{"rules": {"1x2": [{"up_to": -1, "algorithm": "ring"}]}}',
        '{"rules": {"1x2": {"private": [{"algorithm": "ring"}]}}}',
        '{"version": 3}',
        '{"more": 1}',
        "[" * 100_000,
    ],
)
def test_damaged_table_is_refused_by_its_name(table: Path, text: str) -> None:
    table.write_text(text)
    with pytest.raises(InputError, match=r"table\.json: not a table of all-reduces"):
        choices([4], [0, 0])


def test_table_of_the_first_version_is_to_be_made_anew(table: Path) -> None:
    rules = {"1x2": {"private": [{"up_to": None, "algorithm": "ring"}], "shared": [{"algorithm": "window"}]}}
    for written in (rules, {}):
        table.write_text(json.dumps({"version": 1, "rules": written}))
        with pytest.raises(
            InputError, match=r"not a table .* version: .* 2\. Delete it, then make it anew with .*--tune"
        ):
            choices([4], [0, 0])


def test_table_lies_among_the_user_s_settings() -> None:
    assert table_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/hpdl_mpi/allreduce.json")
    assert table_path({"HPDL_ALLREDUCE_TABLE": "/y.json"}) == Path("/y.json")
    assert table_path({"HPDL_ALLREDUCE_TABLE": "", "XDG_CONFIG_HOME": "/x"}) == Path("/x/hpdl_mpi/allreduce.json")


def test_table_that_cannot_be_read_is_not_to_be_deleted(table: Path) -> None:
    table.mkdir()
    with pytest.raises(
        InputError, match=r"table\.json: the table of all-reduces cannot be read.*Let it be read"
    ) as found:
        choices([4], [0, 0])
    assert "elete" not in str(found.value)
