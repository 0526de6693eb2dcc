from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from hpdl_mpi.base.errors import InputError, StorageError
from hpdl_mpi.data.convert import Options, convert
from hpdl_mpi.data.convert import archive as archive_module
from hpdl_mpi.data.convert.archive import MAX_MEMBER_BYTES, open_archive
from tests.images import NOISE, contents, encoded, nothing_left, write_images

IMAGE = encoded(NOISE)
PACKERS = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.xz": lzma.compress, ".tar.bz2": bz2.compress}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_images(tmp_path / "source", {"train/cat": 4, "train/ant": 3, "test/ant": 2, "test/cat": 1})
    return tmp_path / "source"


def tar_of(*members: tuple[tarfile.TarInfo | str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a plain tar of files by name, or of other members as they are told."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if isinstance(member, str):
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(*members: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, data in members:
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def make_tar(mode: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, path: Path) -> None:
        with tarfile.open(path, f"w{mode}") as archive:
            archive.add(folder, "")

    return make


def make_nested_tar(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.add(folder, "./images/" + "long " * 40)


def make_zip(folder: Path, path: Path) -> None:
    shutil.make_archive(str(path.with_suffix("")), "zip", folder)


@pytest.mark.parametrize(
    ("ending", "make"),
    [
        (".tar", make_tar("")),
        (".tar.gz", make_tar(":gz")),
        (".tgz", make_tar(":gz")),
        (".tar.xz", make_tar(":xz")),
        (".tar.bz2", make_tar(":bz2")),
        (".tar.gz", make_tar("")),  # a browser has unpacked it already
        (".tar", make_tar(":xz")),
        (".TAR.GZ", make_nested_tar),
        (".zip", make_zip),
    ],
)
def test_an_archive_gives_what_its_folder_gives(source, tmp_path, ending, make) -> None:
    (tmp_path / "archive").mkdir()
    path = tmp_path / "archive" / f"a{ending}"
    make(source, path)
    before = path.read_bytes()
    options = Options(shards=2)
    convert(path, tmp_path / "packed", options)
    convert(source, tmp_path / "plain", options)
    assert contents(tmp_path / "packed") == contents(tmp_path / "plain")
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [tmp_path / name for name in ("archive", "packed", "plain", "source")]


@pytest.mark.parametrize("name", ["../out.png", "/tmp/out.png", "train/../../out.png", "a/b/../../../../out.png", ".."])
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_a_name_that_leads_out_of_the_archive_is_refused(tmp_path, name, make) -> None:
    path = tmp_path / "folder" / ("a.zip" if make is zip_of else "a.tar")
    path.parent.mkdir()
    path.write_bytes(make(("cat/1.png", IMAGE), (name, IMAGE)))
    with pytest.raises(InputError, match=r"a name that leads out of the archive\. Found '.*'; expected names below"):
        convert(path, tmp_path / "folder/out")
    assert list(tmp_path.rglob("*")) == [path.parent, path]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_archives_are_refused(tmp_path, kind) -> None:
    info = tarfile.TarInfo("cat/2.png")
    info.type, info.linkname = kind, "/etc/passwd"
    (tmp_path / "a.tar").write_bytes(tar_of(("cat/1.png", IMAGE), (info, b"")))
    with pytest.raises(InputError, match=r"a\.tar: cat/2\.png: neither a file nor a folder"):
        convert(tmp_path / "a.tar", tmp_path / "out")
    link = zipfile.ZipInfo("cat/2.png")
    link.external_attr = 0o120777 << 16
    (tmp_path / "a.zip").write_bytes(zip_of(("cat/1.png", IMAGE), (link, b"/etc/passwd")))
    with pytest.raises(InputError, match=r"a\.zip: cat/2\.png: neither a file nor a folder"):
        convert(tmp_path / "a.zip", tmp_path / "out")
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("ending", [*PACKERS, ".zip"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9])
def test_a_part_of_an_archive_is_never_taken_for_the_whole(tmp_path, ending, part) -> None:
    members = [(f"cat/{number}.png", IMAGE) for number in range(40)]
    whole = zip_of(*members) if ending == ".zip" else PACKERS[ending](tar_of(*members))
    # A plain tar is cut between two members, where nothing of a header is amiss.
    cut = int(part * 40) * 2 * 512 if ending == ".tar" else int(part * len(whole))
    (tmp_path / f"a{ending}").write_bytes(whole[:cut])
    with pytest.raises(InputError, match=r"cannot be read as an archive\. Found .*Get the archive again"):
        convert(tmp_path / f"a{ending}", tmp_path / "out")
    assert nothing_left(tmp_path / "out")


def test_damage_anywhere_in_a_packed_archive_is_noticed(tmp_path) -> None:
    members = [(f"cat/{number}.png", IMAGE) for number in range(10)]
    for ending, data in ((".tar.xz", lzma.compress(tar_of(*members))), (".zip", zip_of(*members))):
        for place in range(100, len(data) - 100, len(data) // 20):
            damaged = bytearray(data)
            damaged[place] ^= 0x10
            (tmp_path / f"a{ending}").write_bytes(damaged)
            try:
                files = open_archive(tmp_path / f"a{ending}", tmp_path / "unpacked")
            except InputError:
                continue
            # What zip says twice, or not at all: the name in front of the data, times.
            assert ending == ".zip"
            assert [files.open(index).read() for index in range(10)] == [IMAGE] * 10


def test_what_follows_the_end_of_an_archive_is_not_lost_in_silence(tmp_path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(("cat/1.png", IMAGE)) + tar_of(("cat/2.png", IMAGE)))
    with pytest.raises(InputError, match="it goes on after its end"):
        convert(tmp_path / "a.tar", tmp_path / "out")


def test_two_members_of_one_name_are_refused(tmp_path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(("cat/1.png", IMAGE), ("./cat//1.png", IMAGE)))
    with pytest.raises(InputError, match=r"a\.tar: cat/1\.png: two members of one name"):
        convert(tmp_path / "a.tar", tmp_path / "out")


def test_a_member_that_claims_too_much_is_not_unpacked(tmp_path) -> None:
    info = tarfile.TarInfo("cat/1.png")
    info.size = MAX_MEMBER_BYTES + 1
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(10**6)))
    with pytest.raises(InputError, match=r"cat/1\.png: too large\. Found 268435457 bytes; expected at most 268435456"):
        convert(tmp_path / "a.tar.gz", tmp_path / "out")
    info.size = -512
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10**6)))
    with pytest.raises(InputError, match=r"cannot be read as an archive\. Found cat/1\.png has -512 bytes"):
        convert(tmp_path / "a.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("length", [4090, 10**5])
def test_a_name_that_no_system_has_is_refused(tmp_path, length) -> None:
    member = f"cat/{'a' * length}.png"
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of((member, IMAGE), form=tarfile.GNU_FORMAT)))
    with pytest.raises(
        InputError, match=rf"cat/a+\.\.\.: too large\. Found {len(member)} bytes; expected at most 4096"
    ):
        convert(tmp_path / "a.tar.gz", tmp_path / "out")


def test_names_of_all_members_are_bounded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_NAMES_BYTES", 30)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of(*((f"cat/{i:08d}", IMAGE) for i in range(3)))))
    with pytest.raises(InputError, match=r"names: too large\. Found 36 bytes; expected at most 30 for all names"):
        convert(tmp_path / "a.tar.gz", tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_headers_are_damage(tmp_path, kind) -> None:
    header = tarfile.TarInfo("header")
    record = b"12 path=a/b\n"
    header.type, header.size = kind, len(record)
    nested = (header.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")) * 3000
    (tmp_path / "a.tar").write_bytes(nested + tar_of(("cat/1.png", IMAGE)))
    with pytest.raises(InputError, match="cannot be read as an archive"):
        convert(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_much_takes_no_memory(tmp_path, kind) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 2**30
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(info.tobuf() + bytes(2**26), preset=0))
    with pytest.raises(InputError, match=r"a header: too large\. Found 1073741824 bytes; expected at most 1048576"):
        convert(tmp_path / "a.tar.xz", tmp_path / "out")


def test_an_archive_that_needs_more_than_the_disk_has_is_refused(tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive_module.shutil, "disk_usage", lambda path: usage._replace(free=2 * len(IMAGE) - 1))
    for ending, make in ((".tar.gz", lambda *members: gzip.compress(tar_of(*members))), (".zip", zip_of)):
        (tmp_path / f"a{ending}").write_bytes(make(("cat/1.png", IMAGE), ("cat/2.png", IMAGE)))
        with pytest.raises(InputError, match=rf"unpacked: too large\. Found {2 * len(IMAGE)} bytes; expected at most"):
            convert(tmp_path / f"a{ending}", tmp_path / "out")
        assert nothing_left(tmp_path / "out")


def test_a_full_disk_is_no_damage_of_the_archive(tmp_path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_of(("cat/1.png", bytes(10**6)))))
    program = f"""
import resource, sys
from pathlib import Path
from hpdl_mpi.data.convert import convert
from hpdl_mpi.base.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    convert({str(tmp_path / "a.tar.gz")!r}, {str(tmp_path / "out")!r})
except StorageError as error:
    print(error)
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    assert "could not be written" in done.stdout
    assert nothing_left(tmp_path / "out")


@pytest.mark.parametrize("ending", [".tar.gz", ".zip"])
def test_an_archive_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch, ending) -> None:
    def refuse(source: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / f"a{ending}").write_bytes(b"never read")
    for name in ("_tar_members", "_zip_members"):
        monkeypatch.setattr(archive_module, name, refuse)
    with pytest.raises(InputError, match=rf"a\{ending}: cannot be read\. Found Permission denied\.$"):
        convert(tmp_path / f"a{ending}", tmp_path / "out")
    assert nothing_left(tmp_path / "out")


def test_an_offset_before_the_start_of_a_zip_is_damage(tmp_path) -> None:
    data = bytearray(zip_of(("cat/1.png", IMAGE)))
    place = data.index(b"PK\x05\x06") + 16  # where the end says that the directory begins, and so the members
    data[place : place + 4] = (int.from_bytes(data[place : place + 4], "little") + 1).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(
        InputError, match=r"cannot be read as an archive\. Found .*Invalid argument\. Get the archive again"
    ):
        convert(tmp_path / "a.zip", tmp_path / "out")


def test_an_encrypted_member_is_refused(tmp_path) -> None:
    data = bytearray(zip_of(("cat/1.png", IMAGE)))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.zip: cat/1\.png: encrypted"):
        convert(tmp_path / "a.zip", tmp_path / "out")


def test_a_bad_image_in_an_archive_is_named_and_can_be_left_out(tmp_path) -> None:
    members = [("cat/1.png", IMAGE), ("cat/2.png", IMAGE[:40]), ("ant/1.png", IMAGE)]
    (tmp_path / "a.tar.xz").write_bytes(lzma.compress(tar_of(*members)))
    with pytest.raises(InputError, match=r"a\.tar\.xz/cat/2\.png: .*--skip-bad"):
        convert(tmp_path / "a.tar.xz", tmp_path / "out")
    assert nothing_left(tmp_path / "out")
    convert(tmp_path / "a.tar.xz", tmp_path / "out", Options(skip_bad=True))
    assert "a.tar.xz/cat/2.png" in (tmp_path / "out/skipped.csv").read_text()


def test_storage_that_refuses_the_unpacked_file_is_said(tmp_path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of(("cat/1.png", IMAGE)))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="could not be written"):
        convert(tmp_path / "a.zip", tmp_path / "file/out")
