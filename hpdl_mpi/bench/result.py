"""Results as files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.base.files import write_whole


def check_destination(path: Path) -> None:
    """Raise an `InputError` if no file can be written there: found out before the minutes of a benchmark, not after."""
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError("cannot be written", where=path, expected="a file in a folder that exists and can be written")


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON."""
    write_whole(path, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
