"""From a source in a known format to a dataset in ours: find, read, split, choose, write."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from hpdl_mpi.base.agree import Alone, Group, agree, alike
from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert import cifar, csv_table, idx, images, npz, pairs, text
from hpdl_mpi.data.convert.archive import is_archive, open_archive
from hpdl_mpi.data.convert.class_folders import Skipped, has_images
from hpdl_mpi.data.convert.decode import Form
from hpdl_mpi.data.convert.files import Files, list_files, list_folder
from hpdl_mpi.data.convert.options import TEXT, Options
from hpdl_mpi.data.convert.select import balanced, split_test
from hpdl_mpi.data.convert.text_files import recognises
from hpdl_mpi.data.pairs import SOURCE, TARGET
from hpdl_mpi.data.text import tokenizers_json
from hpdl_mpi.data.text.file import NAME as TOKENIZERS
from hpdl_mpi.data.text.learn import Kind, WantedTokenizer
from hpdl_mpi.data.windows import TOKENS
from hpdl_mpi.data.writer import Split, beside, check_target, write_dataset

PathLike = str | os.PathLike[str]

SKIPPED = "skipped.csv"
"""File in the folder of a dataset that lists what was left out of it: columns `file` and `reason`."""


@dataclass(frozen=True)
class Content:
    """What a source holds: splits, what was left out of them, and further files for the dataset, by name."""

    splits: dict[str, Split]
    skipped: Skipped = field(default_factory=list)
    notes: dict[str, bytes] = field(default_factory=dict)


def _read_csv(source: Path, options: Options) -> dict[str, Split]:
    if options.target is None:
        raise InputError("which column is the target?", where=source, remedy="name it with --target")
    return csv_table.read_splits(
        source,
        target=options.target,
        classes=options.classes,
        missing=options.missing,
        test_fraction=options.test_fraction,
        seed=options.seed,
    )


def _read_text(files: Files, options: Options, scratch: Path) -> Content:
    wanted = _wanted(TOKENS, options.tokens, options, text.specials(options.tokens, masked=options.mask_token))
    splits, tokenizer = text.read_splits(files, wanted, options.test_fraction, scratch)
    return Content(splits, notes={TOKENIZERS: tokenizers_json({TOKENS: tokenizer})})


def _read_pairs(files: Files, options: Options) -> Content:
    kinds = options.tokens, options.target_tokens or options.tokens
    source, target = (
        # Of two kinds the size of the vocabulary is that of the one that has a choice.
        _wanted(name, kind, options, pairs.specials(kind), sized=kind != "characters" or kinds[0] == kinds[1])
        for name, kind in zip((SOURCE, TARGET), kinds, strict=True)
    )
    splits, tokenizers, skipped = pairs.read_splits(
        files,
        source,
        target,
        test_fraction=options.test_fraction,
        seed=options.seed,
        skip_bad=options.skip_bad,
    )
    return Content(splits, skipped, {TOKENIZERS: tokenizers_json(tokenizers)})


def _wanted(
    name: str, kind: Kind | None, options: Options, specials: tuple[str, ...], *, sized: bool = True
) -> WantedTokenizer:
    file = None if options.tokenizer is None else Path(options.tokenizer)
    return WantedTokenizer(name, kind, options.vocab_size if sized else None, file, specials)


WHOLE: dict[str, Callable[[Path, Files, Options, Path], Content]] = {
    "IDX": lambda source, files, options, scratch: Content(idx.read_splits(source)),
    "NPZ": lambda source, files, options, scratch: Content(npz.read_splits(source)),
    "CSV": lambda source, files, options, scratch: Content(_read_csv(source, options)),
    "text": lambda source, files, options, scratch: _read_text(files, options, scratch),
    "pairs": lambda source, files, options, scratch: _read_pairs(files, options),
}
"""Readers of formats that one rank reads. A new one is one more entry and a line in `detect`."""

SPLITTING = ("CSV", "text", "pairs")
"""Formats whose readers divide the samples themselves."""


def detect(source: Path, files: Files, options: Options) -> str:
    """Return the format of a source; `files` are those of a folder or an archive, or the file itself."""
    if cifar.recognises(files.names):
        return "CIFAR"
    if options.pairs or recognises(files.names, ".tsv"):
        return "pairs"
    if recognises(files.names, ".txt"):
        return "text"
    if recognises(files.names, ".txt", ".tsv"):
        what, remedy = "running text and pairs at once", "convert each by itself, or all as --pairs: source TAB target"
        raise InputError(what, where=files.source, found=", ".join(files.names[:9]), remedy=remedy)
    if source.is_file() and not is_archive(source):
        if has_images([source.name]):
            raise InputError("one image alone", where=source, expected="a folder, with a folder of images per class")
        return {".npz": "NPZ", ".csv": "CSV"}.get(source.suffix.lower(), "IDX")
    names, folders = files.names, files.folders
    if source.is_dir() and (idx.recognises(names) or (names and not (folders or has_images(names)))):
        return "IDX"
    return "images"


def convert(
    source: PathLike | Sequence[PathLike],
    folder: PathLike,
    options: Options | None = None,
    ranks: Group | None = None,
    check: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Convert a source into ``folder/train`` and, where there are such splits, ``folder/test`` and ``folder/val``.

    Collective. Images and CIFAR are read shard by shard, by all ranks; IDX, NPZ, CSV and text by one. The result is
    the same bytes on any number of ranks. Beside the splits of text lies the file of its tokenizers.

    Parameters
    ----------
    source : path-like, or sequence of path-like
        A folder of class folders of images or an archive of one, the binary version of CIFAR as a folder, a file or an
        archive, a folder of IDX files or one of images, an NPZ or a CSV file; .txt or .tsv files, or a folder of such.
    folder : path-like
        Absent, or empty; all ranks see it.
    options : Options, optional
    ranks : Group, optional
        Who shares the work; by default this process does it alone.
    check : callable
        See `write_dataset`.

    Returns
    -------
    list of Path
        The folders of the splits, each a dataset.

    Raises
    ------
    InputError
        The source is not there or damaged, an option does not fit it, or `folder` holds something.
    StorageError
        The disk is full or cannot be written; nothing is left behind.
    """
    options, ranks = options or Options(), ranks or Alone()
    sources = [source] if isinstance(source, str | os.PathLike) else source
    paths, folder = [Path(path).expanduser() for path in sources], Path(folder).expanduser()
    source = paths[0]
    unpacked = beside(folder.resolve(), "unpacked")
    try:
        kind, files = agree(ranks, partial(_find, paths, folder, unpacked, options, ranks.size))
        content = _read(kind, source, files, options, ranks, unpacked)
        with alike():
            splits = _chosen(kind, content.splits, source, options)
        write_dataset(
            folder,
            splits,
            num_shards={name: options.shards if name == "train" else options.test_shards for name in splits},
            compression=options.compression,
            notes=content.notes | ({SKIPPED: _table(content.skipped)} if content.skipped else {}),
            ranks=ranks,
            check=check,
        )
    finally:
        if ranks.rank == 0:
            with contextlib.suppress(OSError):  # it may never have been there
                unpacked.unlink()
    return [folder / name for name in splits]


def _find(paths: list[Path], folder: Path, unpacked: Path, options: Options, num_ranks: int) -> tuple[str, Files]:
    """Return the format of a source and its files."""
    check_target(folder)
    source = paths[0]
    if not source.exists():
        raise InputError("no such file or folder", where=source)
    if options.targets != Options().targets and options.per_class is None and options.test_per_class is None:
        raise InputError("--targets is for --per-class and --test-per-class", where=source)
    if len(paths) > 1:
        files = list_files(paths)
    elif source.is_dir():
        if folder.resolve().is_relative_to(source.resolve()):
            raise InputError("lies in the source", where=folder, remedy="name a folder outside of it")
        files = list_folder(source)
    elif is_archive(source):
        files = open_archive(source, unpacked)
    else:
        files = Files(source.parent, [source.name], [])
    kind = detect(source, files, options)
    options.require_suited(kind, source)
    if len(paths) > 1 and kind not in TEXT:
        raise InputError(f"{kind} has one source", where=paths[1], remedy="convert each by itself")
    if kind in WHOLE and num_ranks > 1:
        raise InputError(
            f"{kind} is read by one rank", where=source, found=f"{num_ranks} ranks", remedy="start without a launcher"
        )
    return kind, files


def _read(kind: str, source: Path, files: Files, options: Options, ranks: Group, scratch: Path) -> Content:
    """Return what a source holds. Collective."""
    if kind in WHOLE:
        return WHOLE[kind](source, files, options, scratch)
    if kind == "CIFAR":
        return Content(agree(ranks, partial(cifar.read_splits, files)))
    form = Form(options.size, options.grayscale)
    return Content(*images.read_splits(files, form, skip_bad=options.skip_bad, seed=options.seed, ranks=ranks))


def _chosen(kind: str, splits: dict[str, Split], source: Path, options: Options) -> dict[str, Split]:
    """Return what is to be written of the splits of a source."""
    if kind not in SPLITTING:
        splits = _with_test_split(splits, source, options)
    others = [name for name in splits if name != "train"]
    if not others and options.test_shards is not None:
        raise InputError("no test split to write", where=source, remedy="make one with --test-fraction")
    for names, per_class in ((["train"], options.per_class), (others or ["test"], options.test_per_class)):
        if per_class is not None:
            splits |= {name: _balanced_split(splits, name, per_class, source, options) for name in names}
    return splits


def _table(skipped: Skipped) -> bytes:
    """Return what was left out as a CSV file; names that are no text keep their bytes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("file", "reason"), *skipped])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _with_test_split(splits: dict[str, Split], source: Path, options: Options) -> dict[str, Split]:
    if options.test_fraction == 0:
        return splits
    if "test" in splits:
        raise InputError("has a test split of its own", where=source, remedy="leave out --test-fraction")
    train, test = split_test(splits["train"].num_samples, options.test_fraction, options.seed)
    return splits | {"train": splits["train"].take(train), "test": splits["train"].take(test)}


def _balanced_split(splits: dict[str, Split], name: str, per_class: int, source: Path, options: Options) -> Split:
    if name not in splits:
        raise InputError(f"no {name} split to choose from", where=source, found=", ".join(splits))
    labels = splits[name].arrays.get(options.targets)
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            "choosing per class needs one class number per sample",
            where=f"{source}: {options.targets!r}",
            found="no such array" if labels is None else f"{labels.dtype} of shape {labels.shape}",
            remedy="name the array of classes with --targets, or leave out --per-class",
        )
    names = splits[name].attributes.get(options.targets, {}).get("classes", ())
    return splits[name].take(balanced(labels, per_class, options.seed, names))
