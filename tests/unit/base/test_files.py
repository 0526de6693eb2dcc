"""A file is the old one or the new one, whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpdl_mpi.base.errors import InputError, StorageError
from hpdl_mpi.base.files import check_destination, write_file, write_whole


def test_content_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, b"old")
    write_whole(path, b"new, and longer")
    assert path.read_bytes() == b"new, and longer"
    assert os.listdir(tmp_path) == ["summary.json"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_failure_leaves_the_old_content_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, full)
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "absent" / "summary.json", b"new")


def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "metrics.json"
    with pytest.raises(StorageError, match=rf"{path}: the file could not be written\. Found No such file or directory"):
        write_file(path, b"{}")


def test_what_is_no_file_is_no_destination(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", Path("/dev/null"), tmp_path / "absent" / "file"):
        with pytest.raises(InputError, match="cannot be written"):
            check_destination(path)
    reading, writing = os.pipe()
    with pytest.raises(InputError, match="cannot be written"):
        check_destination(Path(f"/proc/self/fd/{writing}"))
    os.close(reading)
    os.close(writing)
    check_destination(tmp_path / "new")


def test_a_link_leads_to_the_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(Path("folder", "file"))
    for content in (b"old", b"new"):
        check_destination(tmp_path / "link")
        write_file(tmp_path / "link", content)
        assert (tmp_path / "folder" / "file").read_bytes() == content
    assert (tmp_path / "link").is_symlink()
