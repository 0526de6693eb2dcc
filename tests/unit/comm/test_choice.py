"""Which all-reduce is taken: by a table of this user's, or by default."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import ALLREDUCES, Communicator, choose_allreduce, make_allreduce, run_threads
from hpdl_mpi.comm.choice import default_rules, place_of, read_table, table_path


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "table.json"
    monkeypatch.setenv("HPDL_ALLREDUCE_TABLE", str(path))
    read_table.cache_clear()
    return path


def choices(sizes: list[int], nodes: list[int], memory: str = "private") -> list[str]:
    def run(comm: Communicator) -> list[str]:
        return [choose_allreduce(comm, size, memory) for size in sizes]

    found = run_threads(len(nodes), run, nodes=nodes)
    assert found == [found[0]] * len(nodes)
    return found[0]


def test_defaults_suit_the_place_of_the_ranks(table: Path) -> None:
    assert choices([4, 1 << 15, (1 << 15) + 1], [0, 0]) == ["one_shot", "one_shot", "two_shot"]
    assert choices([4, 1 << 30], [0, 0], "shared") == ["window", "window"]
    assert choices([4, 1 << 30], [0, 1, 2]) == ["recursive_doubling", "ring"]
    assert choices([1 << 30], [0, 0, 1]) == ["hierarchical"]


def test_defaults_are_algorithms_that_these_ranks_can_use(table: Path) -> None:
    def run(comm: Communicator) -> None:
        for memory in ("private", "shared"):
            for rule in default_rules(comm, memory):
                kind = ALLREDUCES[rule.algorithm]
                assert not (kind.one_machine and comm.num_nodes > 1)
                assert not (kind.in_window and memory == "private")

    for nodes in ([0, 0], [0, 1], [0, 0, 1, 1]):
        run_threads(len(nodes), run, nodes=nodes)


def test_table_decides_for_the_place_that_it_names(table: Path) -> None:
    rules = [{"up_to": 100, "algorithm": "tree"}, {"algorithm": "ring"}]
    table.write_text(json.dumps({"version": 1, "rules": {"1x2": {"private": rules}}}))
    assert choices([100, 101], [0, 0]) == ["tree", "ring"]
    assert choices([100], [0, 0, 0]) == ["one_shot"]
    assert choices([100], [0, 0], "shared") == ["window"]


def test_auto_takes_what_the_table_says(table: Path) -> None:
    def run(comm: Communicator) -> float:
        assert place_of(comm) == "1x2"
        array = np.ones(8)
        make_allreduce(comm, array)()
        return array.sum()

    assert run_threads(2, run) == [16.0, 16.0]
    read_table.cache_clear()
    table.write_text(json.dumps({"rules": {"1x2": {"private": [{"algorithm": "library"}]}}}))
    with pytest.raises(InputError, match="no all-reduce of an MPI library"):
        run_threads(2, run)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"rules": {"1x2": {"private": []}}}',
        '{"rules": {"1x2": {"private": [{"algorithm": "os.system"}]}}}',
        '{"rules": {"1x2": {"private": [{"up_to": -1, "algorithm": "ring"}]}}}',
        '{"version": 2}',
        '{"more": 1}',
        "[" * 100_000,
    ],
)
def test_damaged_table_is_refused_by_its_name(table: Path, text: str) -> None:
    table.write_text(text)
    with pytest.raises(InputError, match=r"table\.json: not a table of all-reduces"):
        choices([4], [0, 0])


def test_table_lies_among_the_user_s_settings() -> None:
    assert table_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/hpdl_mpi/allreduce.json")
    assert table_path({"HPDL_ALLREDUCE_TABLE": "/y.json"}) == Path("/y.json")
