"""What this process holds in memory, as Linux counts it (proc(5), /proc/pid/status and /proc/pid/clear_refs)."""

from __future__ import annotations

from pathlib import Path

_PROCESS = Path("/proc/self")


def resident() -> int:
    """Return the bytes of this process that are in memory now."""
    return _status("VmRSS")


def peak() -> int:
    """Return the most bytes of this process that were in memory since `reset_peak`, or since it began."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Let `peak` begin anew."""
    Path(_PROCESS, "clear_refs").write_text("5")


def _status(key: str) -> int:
    for line in Path(_PROCESS, "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: not a Linux kernel's")
