"""``hpdl schedule show`` as a user types it."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpdl_mpi.base.errors import BAD_INPUT, InputError
from hpdl_mpi.cli import schedule
from hpdl_mpi.cli.main import app
from hpdl_mpi.comm.predict import Costs
from hpdl_mpi.parallel.pipeline import make_schedule, read_schedule


def show(*arguments: str, columns: int = 200) -> str:
    result = CliRunner().invoke(app, ["schedule", "show", *arguments], env={"COLUMNS": str(columns)})
    if result.exception:
        raise result.exception
    return result.output


def test_a_schedule_is_drawn_with_what_it_costs() -> None:
    lines = show("1f1b", "-p", "2", "-m", "3").splitlines()
    assert lines[:3] == [
        "1f1b: 2 ranks, 2 stages, 3 micro-batches",
        "0 F0F1....B0  F2B1  ..B2  ",
        "1 ..F0B0  F1B1  F2B2  ....",
    ]
    text = "\n".join(lines)
    assert "time of a batch       12, bubble 25.0%" in text
    assert "with early messages   11, bubble 18.2%" in text
    assert "published bubble      1/4 = 25.0%" in text
    assert "most activations kept 2 1 on ranks" in text


def test_zero_bubble_schedules_say_what_clipping_costs() -> None:
    text = show("zb-h2", "-p", "2", "-m", "3")
    assert "time of a batch       10, bubble 10.0%" in text
    assert "from step to step     9, bubble 0.0%" in text


def test_a_second_stage_has_small_letters() -> None:
    assert "0 F0f0i0w0I0W0\n" in show("zb-v", "-p", "1", "-m", "1")


def test_what_is_wider_than_the_terminal_is_folded() -> None:
    lines = show("gpipe", "-p", "2", "-m", "3", columns=14).splitlines()
    assert lines[1:6] == ["0 F0F1F2......", "1 ..F0F1F2B0  ", "", "0 B0  B1  B2  ", "1 B1  B2  ...."]


def test_costs_change_the_picture() -> None:
    lines = show("gpipe", "-p", "1", "-m", "2", "--forward", "2", "--dgrad", "1", "--wgrad", "3").splitlines()
    assert lines[1] == "0 F0F1B0  B1  "


def test_files_hold_the_schedule_and_its_picture(tmp_path: Path) -> None:
    table, picture = tmp_path / "s.csv", tmp_path / "s.png"
    show("interleaved", "-p", "2", "-m", "4", "--chunks", "3", "--csv", str(table), "--png", str(picture))
    assert read_schedule(table) == make_schedule("interleaved", 2, 4, 3)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "2 ranks, 6 stages, 4 micro-batches" in show(str(table), "-p", "2", "-m", "4")


def test_uneven_costs_keep_the_columns(tmp_path: Path) -> None:
    costs = ("--forward", "1", "--dgrad", "1.5", "--wgrad", "1.25", "--message", "0.5")
    lines = show("zb-h1", "-p", "3", "-m", "4", *costs).splitlines()
    assert len({len(line) for line in lines[1:4]}) == 1


def test_what_is_too_long_for_a_terminal_goes_to_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "[red]s.png"
    assert "too short, to be drawn here" in show("gpipe", "--forward", "0", "--png", str(picture))
    assert picture.exists()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        show("gpipe", "--png", str(tmp_path / "none" / "s.png"))
    with pytest.raises(InputError, match="overwrite each other"):
        show("gpipe", "--png", str(tmp_path / "s"), "--csv", str(tmp_path / "s"))
    for seconds in ("inf", "1e308"):
        with pytest.raises(InputError, match="--message: out of range"):
            show("gpipe", "--message", seconds)
    with pytest.raises(InputError, match="ranks x micro-batches x chunks"):
        show("gpipe", "-p", "9999999999999999999999")
    with pytest.raises(InputError, match="no such schedule") as refused:
        show("nope")
    for name in ("1f1b", "allreduce", "reduce-scatter", "all-gather", ".csv"):
        assert name in str(refused.value)


def test_an_allreduce_is_shown_proved_and_timed() -> None:
    lines = show("allreduce", "--algorithm", "ring", "-n", "5", "--size", "4KB", "--latency", "1").splitlines()
    assert lines[0] == "allreduce, ring: 5 ranks, 1000 elements of float32"
    assert lines[2] == "    0  send [800, 1000) to rank 1; recv_reduce [600, 800) from rank 4"
    assert sum(line.startswith("rank ") for line in lines) == 5
    assert lines[-3].startswith("proved ")
    assert lines[-2].endswith("sends 1.6 times its array (the least that a sum needs is 1.6)")
    assert lines[-1].startswith("time         8 s")


@pytest.mark.parametrize(
    ("name", "first", "ends"),
    [
        ("reduce-scatter", "send [2, 3) to rank 1; recv_reduce [1, 2) from rank 2", "every contribution to its own"),
        ("all-gather", "send [0, 1) to rank 1; recv [2, 3) from rank 2", "the chunk of every rank"),
    ],
)
def test_halves_of_a_ring_are_shown_proved_and_timed(name: str, first: str, ends: str) -> None:
    lines = show(name, "-n", "3", "--size", "12 B", "--latency", "1").splitlines()
    assert lines[0] == f"{name}, ring: 3 ranks, 3 elements of float32"
    assert lines[2] == f"    0  {first}"
    assert sum(line.startswith("rank ") for line in lines) == 3
    assert lines[-3].startswith(f"proved       every rank ends with {ends}")
    assert lines[-2].endswith("sends 0.667 times its array (the least that it needs is 0.667)")
    assert lines[-1].startswith("time         2 s")
    assert f"{name}, ring: 4 ranks on 2 machines" in show(name, "-n", "4", "--machines", "2")
    for algorithm in ("tree", "library", "auto"):
        with pytest.raises(InputError, match=f"--algorithm: no such algorithm. Found '{algorithm}'; expected ring"):
            show(name, "--algorithm", algorithm)


@pytest.mark.parametrize("name", ["allreduce", "reduce-scatter", "all-gather"])
def test_one_rank_has_nothing_to_say(name: str) -> None:
    assert "traffic      none" in show(name, "-n", "1")


@pytest.mark.parametrize("algorithm", ["two_shot", "window"])
def test_an_allreduce_through_shared_memory_is_shown(algorithm: str) -> None:
    text = show("allreduce", "--algorithm", algorithm, "-n", "3", "--size", "12 B")
    assert "wait for rank 2" in text
    assert "through shared memory" in text


def test_an_allreduce_of_many_ranks_is_shown_in_part() -> None:
    text = show("allreduce", "--algorithm", "hierarchical", "-n", "12", "--machines", "3", "--size", "1MiB")
    assert "12 ranks on 3 machines" in text
    assert "more rounds" in text
    assert "a rank sends 0.333 times its array; it moves" in text, "what shared memory does need not be sent"
    assert "and 3 more ranks" in text


def test_impossible_allreduces_are_refused() -> None:
    for arguments, complaint in (
        (("--algorithm", "nope"), "--algorithm: no such algorithm. Found 'nope'"),
        (("--algorithm", "library"), "--algorithm library: the MPI library's own schedule is not known here"),
        (("--algorithm", "two_shot", "--machines", "2"), "its ranks share memory"),
        (("--machines", "9", "-n", "2"), "--machines: out of range"),
        (("--size", "large"), "--size: not a size"),
        (("--size", "1TiB"), "--size: out of range"),
        (("-n", "100000"), "--ranks: out of range"),
    ):
        with pytest.raises(InputError, match=complaint):
            show("allreduce", *arguments)


def test_costs_of_shared_memory_change_the_time() -> None:
    through_memory = ("allreduce", "--algorithm", "one_shot", "-n", "2", "--size", "8 B")
    costs = ("--reduction", "0.25", "--copy", "1", "--signal", "4")
    # Each shows its array, waits for the signal, copies one array and adds the other.
    assert show(*through_memory, *costs).splitlines()[-1].startswith(f"time         {8 + 4 + 8 + 2} s")


def test_costs_of_collectives_are_by_default_those_of_predictions() -> None:
    given = inspect.signature(schedule.show).parameters
    assert {field.name: given[field.name].default for field in dataclasses.fields(Costs)} == dataclasses.asdict(Costs())


PIPELINES = ("--microbatches", "--chunks", "--forward", "--dgrad", "--wgrad", "--message", "--png", "--csv")
COLLECTIVES = ("--algorithm", "--size", "--machines", "--latency", "--bandwidth", "--reduction", "--copy", "--signal")


@pytest.mark.parametrize(
    ("name", "foreign", "family"),
    [
        *((name, PIPELINES, "pipelines") for name in ("allreduce", "reduce-scatter", "all-gather")),
        *((name, COLLECTIVES, "collectives") for name in ("1f1b", "mine.csv")),
    ],
)
def test_options_of_the_other_family_are_refused(name: str, foreign: tuple[str, ...], family: str) -> None:
    complaint = f"hpdl schedule show {name}: takes no options of {family}. Found "
    for option in foreign:
        with pytest.raises(InputError) as refused:
            show(name, "-n", "2", option, "1")
        assert str(refused.value).startswith(f"{complaint}{option}. ")
        assert refused.value.exit_code == BAD_INPUT
    with pytest.raises(InputError) as refused:
        show(name, *(word for option in foreign for word in (option, "1")))
    assert f"{complaint}{' and '.join(foreign)}. " in str(refused.value)


def test_options_of_the_other_family_are_refused_though_they_are_the_defaults() -> None:
    with pytest.raises(InputError, match="Found --microbatches"):
        show("allreduce", "-m", "8")
    with pytest.raises(InputError, match="no such schedule"):
        show("al-reduce", "--algorithm", "ring")


def test_every_option_but_the_ranks_is_of_one_family() -> None:
    own = {f"--{name}" for name in inspect.signature(schedule.show).parameters} - {"--ctx", "--schedule", "--ranks"}
    assert own == {*PIPELINES, *COLLECTIVES}
