"""Ranks that convert a dataset together."""

from __future__ import annotations

import gzip
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.comm import Communicator
from hpdl_mpi.data.convert import Options, convert
from tests.images import contents, write_images

OPTIONS = Options(shards=5, size=4, skip_bad=True)


@pytest.fixture
def folder(world: Communicator) -> Iterator[Path]:
    """Return an empty folder that all ranks see."""
    with tempfile.TemporaryDirectory() as mine:
        yield Path(world.bcast_obj(mine))
        world.barrier()


@pytest.mark.parametrize("packed", [False, True])
def test_many_ranks_write_what_one_writes(world: Communicator, folder: Path, packed: bool) -> None:
    source = folder / "source"
    if world.rank == 0:
        write_images(source, {"train/cat": 9, "train/ant": 8, "test/ant": 2, "test/cat": 3})
        (source / "train/cat/0004.png").write_bytes(b"")
        convert(source, folder / "alone", OPTIONS)
        if packed:
            with tarfile.open(folder / "source.tar", "w") as archive:
                archive.add(source, source)
            (folder / "source.tar.gz").write_bytes(gzip.compress((folder / "source.tar").read_bytes()))
    world.barrier()
    convert(folder / "source.tar.gz" if packed else source, folder / "together", OPTIONS, world)
    assert contents(folder / "together/train") == contents(folder / "alone/train")
    assert contents(folder / "together/test") == contents(folder / "alone/test")
    assert not list(folder.glob(".*"))


def test_an_error_of_one_rank_is_that_of_all_and_leaves_nothing(world: Communicator, folder: Path) -> None:
    if world.rank == 0:
        write_images(folder / "source", {"cat": 9, "ant": 8})
        image = folder / "source/cat/0007.png"
        image.write_bytes(image.read_bytes()[:-30])
    world.barrier()
    with pytest.raises(InputError, match=r"cat/0007\.png: a damaged image") as caught:
        convert(folder / "source", folder / "out", Options(shards=5), world)
    assert caught.value.shared
    assert set(world.allgather_obj(str(caught.value))) == {str(caught.value)}
    assert not (folder / "out").exists()
    assert not list(folder.glob(".*"))
