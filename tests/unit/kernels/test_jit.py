"""How kernels are compiled, kept and counted."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import numba
import numpy as np
import pytest

from hpdl_mpi.kernels import jit
from hpdl_mpi.kernels.elementwise import add


@pytest.fixture
def fresh() -> Iterator[None]:
    """Let `cache_folder` look again, in the test and after it."""
    jit.cache_folder.cache_clear()
    yield
    jit.cache_folder.cache_clear()


def sample(x):
    """Return its argument; a function for decorators."""
    return x


pytestmark = pytest.mark.usefixtures("fresh")


def test_cache_lies_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path / "chosen"))
    folder = jit.cache_folder()
    assert folder.parent == tmp_path / "chosen"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_cache_lies_in_the_users_cache_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPDL_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jit.cache_folder().parent == tmp_path / "hpdl_mpi"


def test_change_of_any_kernel_gets_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path))
    before = jit.cache_folder()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "gemm.py"))
    jit.cache_folder.cache_clear()
    assert jit.cache_folder() != before


def test_cache_that_cannot_be_made_is_put_in_a_private_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "in the way"
    file.touch()
    monkeypatch.setenv("HPDL_CACHE_DIR", str(file))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = jit.cache_folder()
    assert folder.parent == tmp_path / f"hpdl_mpi-{os.getuid()}"
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_temporary_folder_that_others_can_write_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in the way").touch()
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path / "in the way"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    trap = tmp_path / f"hpdl_mpi-{os.getuid()}"
    trap.mkdir()
    trap.chmod(0o777)
    folder = jit.cache_folder()
    assert trap not in (folder, *folder.parents)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_chosen_folder_that_others_can_write_is_not_used(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path / "chosen"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    chosen = jit.cache_folder()
    chosen.chmod(mode)
    jit.cache_folder.cache_clear()
    assert jit.cache_folder() == tmp_path / f"hpdl_mpi-{os.getuid()}" / chosen.name
    chosen.chmod(0o755)
    jit.cache_folder.cache_clear()
    assert jit.cache_folder() == chosen


def test_chosen_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path / "chosen"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    chosen = jit.cache_folder()
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    jit.cache_folder.cache_clear()
    folder = jit.cache_folder()
    assert chosen not in (folder, *folder.parents)


def test_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path / "chosen"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    chosen = jit.cache_folder()
    chosen.rename(tmp_path / "elsewhere")
    chosen.symlink_to(tmp_path / "elsewhere")
    jit.cache_folder.cache_clear()
    assert jit.cache_folder() != chosen


def test_only_our_functions_are_kept_in_our_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path / "theirs"))
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path / "ours"))
    ours = jit.parallel_kernel(sample)
    theirs = numba.njit(cache=True)(sample)
    for form in (ours.serial, ours.parallel):
        assert Path(form.stats.cache_path).is_relative_to(jit.cache_folder())
    assert Path(theirs.stats.cache_path).is_relative_to(tmp_path / "theirs")


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_damaged_cache_is_compiled_anew(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path))
    assert jit.kernel(sample)(1) == 1
    (damaged,) = jit.cache_folder().rglob(f"*{suffix}")
    damaged.write_bytes(damaged.read_bytes()[:-40] if suffix == ".nbc" else b"rubbish")
    said = []
    jit.before_compiling(lambda: said.append("compiling"))
    with pytest.warns(RuntimeWarning, match="compiled kernels cannot be read, so they are compiled anew"):
        assert jit.kernel(sample)(1) == 1
    assert said == ["compiling"]
    again = jit.kernel(sample)
    assert again(1) == 1
    assert sum(again.stats.cache_hits.values()) == 1


def test_damaged_cache_that_cannot_be_deleted_costs_a_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path))
    assert jit.kernel(sample)(1) == 1
    (damaged,) = jit.cache_folder().rglob("*.nbi")
    damaged.write_bytes(b"rubbish")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    # A root user may delete everywhere.
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(RuntimeWarning, match="compiled kernels cannot be read, so they are compiled anew"):
        assert jit.kernel(sample)(1) == 1
    assert damaged.read_bytes() == b"rubbish"


def test_cache_that_cannot_be_written_costs_a_compilation_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path))
    twice = jit.kernel(sample)
    # A root user may write everywhere, so a limit stands in for a full disk.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.warns(RuntimeWarning, match="compiled kernels cannot be kept, so each process compiles them"):
            assert twice(1) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not [file for file in jit.cache_folder().rglob("*") if file.is_file()]


def test_file_of_another_signature_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path))
    both = jit.kernel(sample)
    assert (both(1), both(2.5)) == (1, 2.5)
    first, second = sorted(jit.cache_folder().rglob("*.nbc"))
    first.write_bytes(second.read_bytes())
    assert jit.kernel(sample)(3) == 3


def test_a_compilation_is_announced_once_and_what_the_cache_holds_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPDL_CACHE_DIR", str(tmp_path))
    said = []
    jit.before_compiling(lambda: said.append("compiling"))
    first = jit.kernel(sample)
    assert said == []
    assert (first(1), first(2.5)) == (1, 2.5)
    assert said == ["compiling"]
    jit.before_compiling(lambda: said.append("again"))
    assert jit.kernel(sample)(1) == 1
    assert said == ["compiling"]
    jit._announcements.clear()


def test_allocations_are_one_block_for_each_array_argument() -> None:
    a, out = np.ones(5), np.empty(5)
    add(a, a, out)
    with jit.counted_allocations() as count:
        add(a, a, out)
        add(a, a, out)
        assert count() == 6
