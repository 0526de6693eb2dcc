"""The run folder: the resolved job, metrics, checkpoints and the summary of one run, and its tokenizers."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import math
import os
import socket
import tempfile
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hpdl_mpi.base.errors import InputError, StorageError, amended
from hpdl_mpi.train import checkpoint
from hpdl_mpi.train.job import Job
from hpdl_mpi.train.jobfile import load_job


class RunFolder:
    """Paths and files of a run. One rank writes; all may read.

    Parameters
    ----------
    path : path-like
        The folder; it need not exist.

    Raises
    ------
    InputError
        The path is empty.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not os.fspath(path):
            raise InputError("the run folder has no name", where="--run-dir", found="an empty path")
        self.path = Path(path)
        self.job = self.path / "job.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.summary = self.path / "summary.json"
        self.tokenizers = self.path / "tokenizer.json"
        self._lock_file = self.path / ".lock"
        self._lock: io.BufferedWriter | None = None
        self._made: list[Path] = []  # of `path` and its parents, by `claim`; inner ones first

    @property
    def holds_run(self) -> bool:
        """Whether a run began here: one that failed before its first step did not."""
        return self.job.exists() or self.holds_checkpoint

    @property
    def holds_checkpoint(self) -> bool:
        """Whether a run can go on from here, rather than begin."""
        return checkpoint.latest(self.checkpoints) is not None

    def give_up(self) -> None:
        """Let the folder hold no run, since the one that claimed it ends before its first step."""
        if not self.holds_checkpoint:
            self.job.unlink(missing_ok=True)
            self.metrics.unlink(missing_ok=True)
            self.tokenizers.unlink(missing_ok=True)

    def claim(self, *, resume: bool) -> None:
        """Make the folder, or accept the run that it holds.

        Raises
        ------
        InputError
            It holds a run and `resume` is not set, another run has it, or it cannot be written.
        """
        if self.holds_run and not resume:
            raise InputError(
                "the run folder holds a run already",
                where=self.path,
                remedy="continue it with --resume, choose another folder with --run-dir, or remove it",
            )
        self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            self._lock_out_others()
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        checkpoint.sweep(self.checkpoints)

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(
            "the run folder cannot be written",
            where=error.filename or self.path,
            found=error.strerror,
            remedy="choose a folder of your own with --run-dir",
        )

    def _lock_out_others(self) -> None:
        """Keep the folder until `release`, or the end of the process.

        Raises
        ------
        InputError
            Another run has it.
        """
        self._lock = open(self._lock_file, "ab")  # noqa: SIM115 - open as long as the folder is ours
        if not self._lock_is_ours():
            self._lock.close()
            self._lock = None
            raise InputError(
                "another run writes to this folder at present",
                where=self.path,
                found=self.owner(),
                remedy="wait for its end, or choose another folder with --run-dir",
            )
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now()}".encode())
        self._lock.flush()
        os.fsync(self._lock.fileno())

    def _lock_is_ours(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(self._lock.fileno()), self._lock_file.stat())
        except (BlockingIOError, FileNotFoundError):  # the other run has it, or removed it between our two calls
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # the file system has no locks
                raise
            return True

    def owner(self) -> str | None:
        """Return which process has claimed the folder, as this rank sees it; None if it sees no claim."""
        try:
            return self._lock_file.read_text()
        except OSError:
            return None

    def release(self) -> None:
        """Let others have the folder, and remove what `claim` made of it if no run began.

        Does nothing where it was not claimed.
        """
        if self._lock is not None:
            if not self.holds_run:
                with suppress(OSError):  # it was not made, or holds what is not ours
                    self.checkpoints.rmdir()
                self._lock_file.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None
        made, self._made = self._made, []
        for folder in made:
            with suppress(OSError):  # a run began there, or somebody else has put something there
                folder.rmdir()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_lock": None}  # the lock stays with the rank that holds it

    def read_job(self) -> Job:
        """Return the resolved job of the run.

        Raises
        ------
        InputError
            The folder holds no run, or one that a script made without a job, or its job is damaged.
        """
        if not self.job.exists():
            raise InputError(
                "the folder holds no run of a job", where=self.path, remedy="name a folder that hpdl train has written"
            )
        with amended(after=" Remove it and continue the run from its own job file, with --resume."):
            return load_job(self.job)


class MetricsLog:
    """Appends lines of JSON to ``metrics.jsonl``.

    Parameters
    ----------
    path : Path
    start : int
        Bytes to keep of the file.
    step : int
        What follows is kept too as far as it was written up to this step: a resumed run drops what came after its
        checkpoint, but not the evaluation of what the checkpoint holds.
    """

    def __init__(self, path: Path, start: int = 0, step: int = 0) -> None:
        self._path = path
        try:
            self._file: io.BufferedRandom = open(path, "a+b")  # noqa: SIM115 - lives as long as the run
            self._file.seek(min(start, os.fstat(self._file.fileno()).st_size))
            keep = self._file.tell()
            for line in self._file:
                if not _is_of(line, step):
                    break
                keep += len(line)
            self._file.truncate(keep)
        except OSError as error:
            raise StorageError("metrics cannot be written", where=path, found=error.strerror) from error

    def write(self, **values: Any) -> None:
        """Add a line; `flush` brings it to the disk. JSON knows no NaN: such numbers are null."""
        plain = {key: value if _is_plain(value) else None for key, value in values.items()}
        self._do(lambda: self._file.write((json.dumps(plain) + "\n").encode()))

    def flush(self) -> int:
        """Bring what is pending to the disk and return the length of the file in bytes."""
        self._do(self._file.flush)
        self._do(lambda: os.fsync(self._file.fileno()))
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Write what is pending and close the file."""
        self._do(self._file.close)

    def _do(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            raise StorageError(
                "metrics cannot be written", where=self._path, found=error.strerror, remedy="make room on the disk"
            ) from error


def _is_plain(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _is_of(line: bytes, step: int) -> bool:
    """Return whether this is a whole line of metrics up to a step."""
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, TypeError, KeyError):
        return False


FIXED = ("model", "training.loss", "training.exact", "optimizer.name", "init")
"""What a job cannot change when its run goes on, besides the `Recipe`; lengths, rates, grids and places may."""


_PIPELINE = ("pp", "schedule", "num_chunks", "recompute", "memory_limit")
"""What cuts and micro-batches were chosen for."""


def resumed_job(job: Job, saved: Job, num_ranks: int) -> Job:
    """Return the job of a resumed run: the new one, with what was chosen automatically at the start of the run.

    Parameters
    ----------
    job, saved : Job
        As it shall be, and as the run folder has it.
    num_ranks : int
        On which it goes on; on another number, or with another pipeline, threads and cuts are chosen anew.

    Raises
    ------
    InputError
        The new job differs in something that a run cannot change.
    """
    old, new = saved.model_dump(), job.model_dump()
    for section in ("transform", "target_transform"):
        if new["data"][section]["standardize"]:
            new["data"][section] |= {key: old["data"][section][key] for key in ("standardize", "mean", "std")}
    new["model"]["folder"] = old["model"]["folder"] = new["model"]["folder"]
    before, after = old["parallel"], new["parallel"]
    if num_ranks == before["dp"] * before["pp"]:
        same = all(before[key] == after[key] for key in _PIPELINE)
        for key in ("threads", "cuts", "num_microbatches") if same else ("threads",):
            if after[key] is None:
                after[key] = before[key]
    new["init"] = new["init"] or old["init"]
    for key in FIXED:
        found, expected = _get(new, key), _get(old, key)
        if found != expected:
            raise InputError(
                "a run cannot change this when it goes on",
                where=key,
                found=found,
                expected=expected,
                remedy="start a new run with --run-dir",
            )
    return Job.model_validate(new)


def _get(tree: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree
