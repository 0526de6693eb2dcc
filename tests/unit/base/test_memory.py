"""Arrays that the package keeps are aligned and zero; what does not fit into memory is refused before it is tried."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.memory import ALIGNMENT, aligned, available, check_memory, forget, heap, spare
from hpdl_mpi.bench import memory


@pytest.mark.parametrize("nbytes", [1, 63, 64, 65, 4096])
def test_heap_gives_zeroed_aligned_bytes(nbytes: int) -> None:
    array = heap(nbytes)
    assert array.shape == (nbytes,)
    assert array.dtype == np.uint8
    assert array.ctypes.data % ALIGNMENT == 0
    assert not array.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("shape", [7, (3, 5), (0, 4), ()])
def test_array_has_the_shape_and_dtype_asked_for(shape: int | tuple[int, ...], dtype: type) -> None:
    array = aligned(shape, dtype)
    assert array.shape == ((shape,) if isinstance(shape, int) else shape)
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert not array.size or array.ctypes.data % ALIGNMENT == 0
    assert not array.any()


def test_memory_may_come_from_elsewhere() -> None:
    arena = heap(256)
    array = aligned((2, 3), np.float32, lambda nbytes: arena[:nbytes])
    array[...] = 1
    assert np.shares_memory(array, arena)
    assert arena[:24].any()
    assert not arena[24:].any()


def test_memory_that_the_system_does_not_give_is_an_error_for_people() -> None:
    # 2^60 bytes: more than a process of any 64-bit system can address
    with pytest.raises(InputError, match=r"not enough memory for an array\. Expected 1,152,921,504,606,846,976 bytes"):
        heap(2**60)


LIMITS = "Max cpu time  unlimited  unlimited  seconds\nMax address space         {}            unlimited  bytes\n"
STATUS = "Name:\tpython\nVmPeak:\t       9 kB\nVmSize:\t       4 kB\n"
MEMINFO = "MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:  8000 kB\n"
UNLIMITED = str(2**63 - 4096)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, sys.maxsize),
        ({"proc/meminfo": MEMINFO}, 8000 * 1024),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n"}, 8000 * 1024),
        ({"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "5000\n"}, 5000),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
                "sys/fs/cgroup/slurm/job_7/step_0/memory.max": "max\n",
                "sys/fs/cgroup/slurm/job_7/memory.max": "6000\n",
            },
            6000,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/1a\n4:memory:/docker/1a\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "7000\n",
            },
            7000,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "4:memory:/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": UNLIMITED,
            },
            8000 * 1024,
        ),
    ],
    ids=[
        "unknown",
        "machine",
        "no limit",
        "container",
        "job above its step",
        "cgroup 1",
        "unlimited cgroup 1",
    ],
)
def test_the_least_bound_of_machine_and_cgroups_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    write_files(tmp_path, files)
    assert available(tmp_path) == expected


def write_files(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("limit", "expected"), [("unlimited", 2000 * 1024), (9_000_000, 2000 * 1024), (10_000, 10_000 - 4096), (1000, 0)]
)
def test_each_process_has_its_part_of_memory_and_its_own_addresses(
    tmp_path: Path, limit: object, expected: int
) -> None:
    files = {"proc/meminfo": MEMINFO, "proc/self/limits": LIMITS.format(limit), "proc/self/status": STATUS}
    write_files(tmp_path, files)
    assert spare(4, tmp_path) == expected


@pytest.mark.parametrize(
    ("used", "expected"), [({"slurm/job_7/memory.current": "2000\n"}, 4000), ({"memory.current": "9900\n"}, 100)]
)
def test_what_a_job_has_used_is_not_spare(tmp_path: Path, used: dict[str, str], expected: int) -> None:
    limits = {"slurm/job_7/memory.max": "6000\n", "slurm/job_7/step_0/memory.max": "max\n", "memory.max": "10000\n"}
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "0::/slurm/job_7/step_0\n"}
    write_files(tmp_path, files | {f"sys/fs/cgroup/{name}": text for name, text in (limits | used).items()})
    assert spare(1, tmp_path) == expected
    assert spare(3, tmp_path) == expected // 3


def test_all_that_can_be_addressed_is_spare_where_the_system_tells_nothing(tmp_path: Path) -> None:
    assert spare(1, tmp_path) == sys.maxsize


def test_what_is_required_is_compared_with_this_machine() -> None:
    check_memory(1, "a byte")
    with pytest.raises(InputError, match=r"not enough memory for everything\. Found .* bytes; expected 1,152,9"):
        check_memory(2**60, "everything")


@pytest.mark.parametrize("size", [0, 1, 5000, 3 * 2**20])
@pytest.mark.parametrize("start", [0, 3])
def test_what_is_forgotten_is_zero(size: int, start: int) -> None:
    array = aligned(size + 8, np.float32)
    array[:] = 7
    forget(array[start : start + size])
    assert not array[start : start + size].any()
    assert (array[:start] == 7).all()
    assert (array[start + size :] == 7).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system keeps it")
def test_what_is_forgotten_takes_no_memory() -> None:
    array = aligned(64 * 2**20, np.uint8)
    array[:] = 7
    before = memory.resident()
    forget(array)
    assert before - memory.resident() > 60 * 2**20
    array[:] = 8
    assert before - memory.resident() < 4 * 2**20
