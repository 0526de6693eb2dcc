"""Folders of images, a folder per class. Pixels are read when they are written; all files are looked at before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median_low
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from hpdl_mpi.base.agree import Group, agree, agree_all
from hpdl_mpi.base.errors import InputError, amend, require
from hpdl_mpi.base.shares import share
from hpdl_mpi.data.convert.class_folders import Classes, Skipped, classify
from hpdl_mpi.data.convert.decode import BadImage, Form, decode, measure
from hpdl_mpi.data.convert.files import Files, reading
from hpdl_mpi.data.sampler import shuffled
from hpdl_mpi.data.writer import Rows, Split
from hpdl_mpi.kernels.random import derive_key
from hpdl_mpi.kernels.threads import available_cores

Result = TypeVar("Result")
Look = tuple[int, int] | str
"""What a look at a file shows: height and width of the image, or why it cannot be used."""

MAX_SIZE = 8192
_SURVEY = 4096
"""Files that a rank looks at before it hears of the others."""

_REMEDY = " Mend or remove it, or leave out all such files with --skip-bad."


def read_splits(
    files: Files, form: Form, *, skip_bad: bool, seed: int, ranks: Group
) -> tuple[dict[str, Split], Skipped]:
    """Return the images of `class_folders.classify`, in a seeded order that mixes the classes. Collective.

    Parameters
    ----------
    files : Files
    form : Form
        What every image is made into.
    skip_bad : bool
        Leave out images that cannot be used, and classes without images, in place of an error. All images are then
        decoded once more than else.
    seed : int
        Of the order.
    ranks : Group
        Who shares the work.

    Returns
    -------
    splits : dict of str to Split
        ``x`` uint8 (n, height, width, channels) and ``y`` unsigned (n,), whose attribute ``classes`` has the names of
        the classes, sorted.
    skipped : list of (str, str)
        What was left out, and why.

    Raises
    ------
    InputError
        What `classify` finds, images that cannot be used or differ in size, or a split of which nothing is left.
    """
    require("--size", form.size, form.size is None or 1 <= form.size <= MAX_SIZE, f"1 to {MAX_SIZE}")
    classes = agree(ranks, partial(classify, files, skip_bad))
    looks = _survey(files, classes, form, skip_bad, ranks)
    bad = {index: look for index, look in looks.items() if isinstance(look, str)}
    height, width = agree(ranks, partial(_check, files, classes, looks))
    if bad:
        classes = agree(ranks, partial(classes.without, bad))
    shape = (height, width, 1 if form.grayscale else 3)
    read = partial(_read, files, form, shape, _num_threads(ranks))
    splits = {}
    for split, (indices, labels) in classes.members.items():
        order = shuffled(np.arange(indices.size), derive_key("images", split, seed))
        x = Rows(indices[order], shape, np.dtype(np.uint8), read)
        splits[split] = Split({"x": x, "y": labels[order]}, {"y": {"classes": classes.names}})
    return splits, classes.skipped + [(files.place(index), reason) for index, reason in bad.items()]


def _survey(files: Files, classes: Classes, form: Form, skip_bad: bool, ranks: Group) -> dict[int, Look]:
    """Look at all images. Collective."""
    Image.init()  # before threads do
    ids = np.concatenate([indices for indices, _ in classes.members.values()]).tolist()
    look = partial(_look, files, form, skip_bad)
    looks: list[Look] = []
    while len(looks) < len(ids):
        ahead = ids[len(looks) : len(looks) + _SURVEY * ranks.size]
        mine = ahead[slice(*share(len(ahead), ranks.rank, ranks.size))]
        for part in agree_all(ranks, partial(_on_threads, look, mine, _num_threads(ranks))):
            looks += part
    return dict(zip(ids, looks, strict=True))


def _look(files: Files, form: Form, skip_bad: bool, index: int) -> Look:
    with _naming(files, index):
        try:
            if not skip_bad:
                return _apply(measure, files, form, index)
            height, width, _ = _apply(decode, files, form, index).shape
            return height, width
        except BadImage as error:
            if not skip_bad:
                raise
            return str(error)


def _check(files: Files, classes: Classes, looks: dict[int, Look]) -> tuple[int, int]:
    """Return the height and width of all images that can be used."""
    for split, (indices, _) in classes.members.items():
        ids = indices.tolist()
        if all(isinstance(looks[index], str) for index in ids):
            reason = str(looks[ids[0]]).removesuffix(".")
            count = "1 bad image, " if len(ids) == 1 else f"{len(ids)} bad images, the first of which is "
            raise InputError(
                "no image in it can be used",
                where=classes.places[split],
                found=f"{count}{files.place(ids[0])}: {reason}",
                remedy="mend them, or remove the folder",
            )
    first: dict[tuple[int, int], int] = {}
    for index, look in looks.items():
        if not isinstance(look, str):
            first.setdefault(look, index)
    if len(first) > 1:
        (sides, one), (other_sides, other) = list(first.items())[:2]
        usual = median_low(min(look) for look in looks.values() if not isinstance(look, str))
        raise InputError(
            "images differ in size",
            where=files.source,
            found=f"{_text(sides)} in {files.names[one]} and {_text(other_sides)} in {files.names[other]} "
            "(height x width)",
            expected="one size, because shards hold arrays of one shape",
            remedy=f"resize and crop all of them with --size, such as --size {usual}",
        )
    return next(iter(first))


def _text(sides: tuple[int, int]) -> str:
    height, width = sides
    return f"{height} x {width}"


def _read(files: Files, form: Form, shape: tuple[int, ...], threads: int, ids: np.ndarray) -> np.ndarray:
    """Return images, uint8 (n, *shape)."""
    out = np.empty((ids.size, *shape), np.uint8)

    def fill(row: int) -> None:
        index = int(ids[row])
        with _naming(files, index):
            pixels = _apply(decode, files, form, index)
            if pixels.shape != shape:
                raise InputError("has changed while it was converted", found=pixels.shape, expected=shape)
            out[row] = pixels

    _on_threads(fill, range(ids.size), threads)
    return out


def _apply(function: Callable[[BinaryIO, Form], Result], files: Files, form: Form, index: int) -> Result:
    """Call `measure` or `decode` on a file."""
    with reading(None):
        stream = files.open(index)
    with stream:
        return function(stream, form)


@contextmanager
def _naming(files: Files, index: int) -> Iterator[None]:
    """Name the file in an error from within, and what to do about a bad image."""
    try:
        yield
    except InputError as error:
        amend(error, f"{files.place(index)}: ", _REMEDY if isinstance(error, BadImage) else "")
        raise


def _on_threads(function: Callable[[int], Result], numbers: Sequence[int], threads: int) -> list[Result]:
    """Return what a function returns for each number; if it raises for some, raise the error of the first."""
    parts = [numbers[slice(*share(len(numbers), thread, threads))] for thread in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda part: [function(number) for number in part], parts)
        return [result for part in results for result in part]


def _num_threads(ranks: Group) -> int:
    """Return on how many threads this rank decodes: on its cores if it is alone; ranks take the place of threads."""
    return len(available_cores()) if ranks.size == 1 else 1
