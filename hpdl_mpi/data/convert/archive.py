"""Archives as sources: tar, packed or not, and zip. Members never become files by their names.

A plain tar is read where it lies. Others are unpacked in one pass into a single temporary file, because packed streams
can only be read from the start; ranks then read their members from it in any order.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from hpdl_mpi.base.errors import HpdlError, InputError
from hpdl_mpi.data.convert.files import Files, is_hidden
from hpdl_mpi.data.writer import writing

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")
MAX_MEMBER_BYTES = 256 * 2**20
"""No image needs more, nor does a file of CIFAR."""

MAX_NAME_BYTES = 4096
"""No system has longer paths."""

MAX_NAMES_BYTES = 2**28
"""Of all names together, which are kept: ten million of the usual length."""

_OPENERS = ((rb"\x1f\x8b\x08", gzip.open), (rb"\xfd7zXZ\0", lzma.open), (rb"BZh[1-9]1AY&SY", bz2.open))
"""First bytes of packed files, and what unpacks them."""

_PIECE = 2**20
_BLOCK = 512
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, struct.error),
    *(EOFError, IndexError, NotImplementedError, OSError, OverflowError, RecursionError, ValueError),
)
"""What the libraries raise on damaged archives."""


@dataclass(frozen=True)
class _Member:
    """A file or folder in an archive; `pieces` are a file's bytes, to be read before the next member or not at all."""

    name: str
    is_folder: bool
    size: int
    start: int
    pieces: Iterable[bytes]


def is_archive(source: Path) -> bool:
    """Tell by its name whether a file is an archive."""
    return source.name.lower().endswith(SUFFIXES)


def open_archive(source: Path, unpacked: Path) -> Files:
    """List the files of an archive.

    Parameters
    ----------
    source : Path
    unpacked : Path
        Where to write the bytes of its files, one after another, if they are packed. The caller removes it.

    Raises
    ------
    InputError
        Damaged or incomplete, a link, a name that leads elsewhere or stands twice, or more than there is room for.
    StorageError
        `unpacked` cannot be written.
    """
    files: dict[str, tuple[int, int]] = {}
    folders: set[str] = set()
    with writing(unpacked):
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(unpacked.parent).free
        sink = open(unpacked, "wb")  # noqa: SIM115  (closed below)
    with _naming_damage(source), sink:
        is_zip = source.suffix.lower() == ".zip"
        plain = not is_zip and _opener(source) is open
        members = _zip_members(source) if is_zip else _tar_members(source)
        for member in _with_bounded_names(members, source):
            parts = _parts(member.name, source)
            name = "/".join(parts)
            where = f"{source}: {name}"
            if member.is_folder or is_hidden(parts):
                folders |= {name} if member.is_folder and parts and not is_hidden(parts) else set()
                continue
            if name in files:
                raise InputError("two members of one name", where=where, remedy="pack the folder again")
            if member.size > MAX_MEMBER_BYTES:
                _refuse_size(where, member.size, MAX_MEMBER_BYTES, "for one file of an archive")
            start = member.start if plain else sink.tell()
            if not plain:
                if start + member.size > room:
                    _refuse_size(f"{source}: unpacked", start + member.size, room, f"free beside {unpacked.parent}")
                for piece in member.pieces:
                    with writing(unpacked):
                        sink.write(piece)
                if sink.tell() != start + member.size:
                    raise EOFError(f"{name} ends after {sink.tell() - start} of {member.size} bytes")
            files[name] = (start, member.size)
        with writing(unpacked):
            sink.flush()
    names = sorted(files)
    extents = np.array([files[name] for name in names], np.int64).reshape(-1, 2)
    return Files(source, names, sorted(folders), source if plain else unpacked, extents)


def _with_bounded_names(members: Iterable[_Member], source: Path) -> Iterator[_Member]:
    """Pass on members as long as their names are no longer than names can be, one by one and together."""
    total = 0
    for member in members:
        size = len(member.name)
        total += size
        if size > MAX_NAME_BYTES:
            _refuse_size(f"{source}: {member.name[:40]}...", size, MAX_NAME_BYTES, "for one name")
        if total > MAX_NAMES_BYTES:
            _refuse_size(f"{source}: names", total, MAX_NAMES_BYTES, "for all names of an archive")
        yield member


def _refuse_size(where: str, found: int, limit: int, what: str) -> None:
    raise InputError(
        "too large",
        where=where,
        found=f"{found} bytes",
        expected=f"at most {limit} {what}",
        remedy="unpack the archive yourself and name its folder as the source, if you trust it",
    )


@contextmanager
def _naming_damage(source: Path) -> Iterator[None]:
    """Turn what the libraries raise on a damaged archive into an InputError, and what the system does into another."""
    try:
        yield
    except HpdlError:
        raise
    except _DAMAGE as error:
        # A damaged offset makes the libraries seek to before the start, for which the system has EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise InputError("cannot be read", where=source, found=error.strerror) from error
        remedy = "get the archive again: it is incomplete or damaged"
        raise InputError("cannot be read as an archive", where=source, found=error, remedy=remedy) from error


def _parts(name: str, source: Path) -> list[str]:
    """Return a member's name cut at "/", without parts that say nothing; raise if it leads out of the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise InputError(
            "a name that leads out of the archive",
            where=source,
            found=repr(name),
            expected="names below the archive's own folder",
            remedy="do not trust this archive",
        )
    return parts


def _opener(source: Path) -> Callable:
    """Return what opens a file that may be packed, by its first bytes."""
    with open(source, "rb") as file:
        head = file.read(10)
    return next((opener for pattern, opener in _OPENERS if re.match(pattern, head)), open)


def _tar_members(source: Path) -> Iterator[_Member]:
    with _opener(source)(source, "rb") as raw:
        stream = _Bounded(raw, source)
        archive = tarfile.open(fileobj=cast(BinaryIO, stream), mode="r:")  # noqa: SIM115  (`raw` is what is closed)
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep all
            is_file = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
            if not (is_file or member.isdir()):
                _refuse_kind(source, member.name)
            if member.size < 0:
                raise ValueError(f"{member.name} has {member.size} bytes")
            yield _Member(member.name, member.isdir(), member.size, member.offset_data, _exactly(raw, member.size))
        # tarfile takes any block that is no header for the end.
        if stream.last != bytes(_BLOCK):
            raise EOFError("it has no end")
        while piece := raw.read(_PIECE):  # to where the checksums are
            if piece.strip(b"\0"):
                raise ValueError("it goes on after its end")


class _Bounded:
    """A stream for tarfile, which would read headers of any size into memory; `last` is what was read last."""

    def __init__(self, stream: BinaryIO, source: Path) -> None:
        self._stream, self._source = stream, source
        self.last = b""
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        """Read as much as a header may have."""
        if not 0 <= size <= _PIECE:
            _refuse_size(f"{self._source}: a header", size, _PIECE, "for one header")
        self.last = self._stream.read(size)
        return self.last


def _exactly(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (piece := stream.read(min(size, _PIECE))):
        size -= len(piece)
        yield piece


def _zip_members(source: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                _refuse_kind(source, member.filename)
            if member.flag_bits & 1:
                raise InputError("encrypted", where=f"{source}: {member.filename}", remedy="unpack it yourself")
            yield _Member(member.filename, member.is_dir(), member.file_size, 0, _unzipped(archive, member))


def _unzipped(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(member) as stream:
        while piece := stream.read(_PIECE):
            yield piece


def _refuse_kind(source: Path, name: str) -> None:
    raise InputError(
        "neither a file nor a folder",
        where=f"{source}: {name}",
        found="a link, a device or the like",
        remedy="unpack the archive yourself and name its folder as the source, if you trust it",
    )
