"""Which files are images, of which class and split: by the names of the folders that they lie in."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from hpdl_mpi.base.errors import InputError, in_line
from hpdl_mpi.data.convert.files import Files

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".ppm", ".pgm", ".pbm", ".webp"}
    # These cannot be read, but to pass over them in silence would lose part of the images.
    | {".gif", ".tif", ".tiff", ".jp2", ".avif", ".heic", ".heif"}
)
SPLITS = ("train", "test", "val")

Skipped = list[tuple[str, str]]
"""Names of files or folders that are left out, and why."""


@dataclass(frozen=True)
class Classes:
    """Images by split.

    Attributes
    ----------
    names : list of str
        Of the classes, sorted.
    members : dict of str to (int64 (n,), unsigned (n,))
        Per split: numbers of files, by their names, and the class of each.
    skipped : list of (str, str)
        Folders that are left out, and why.
    places : dict of str to str
        Per split: the folder that its classes lie in.
    """

    names: list[str]
    members: dict[str, tuple[np.ndarray, np.ndarray]]
    skipped: Skipped
    places: Mapping[str, str]

    def without(self, bad: Container[int]) -> Classes:
        """Return what is left without some files, whose classes may vanish with them."""
        tables: _Tables = {}
        for split, (indices, labels) in self.members.items():
            table = tables.setdefault(split, {name: [] for name in self.names})
            for index, label in zip(indices.tolist(), labels.tolist(), strict=True):
                if index not in bad:
                    table[self.names[label]].append(index)
        rest = _checked(tables, self.places, True)
        return replace(rest, skipped=list(dict.fromkeys(self.skipped + rest.skipped)))


_Tables = dict[str, dict[str, list[int]]]
"""Numbers of files, by split and class."""


def has_images(names: Iterable[str]) -> bool:
    """Tell whether any file is an image, by its suffix."""
    return any(_is_image(name) for name in names)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def classify(files: Files, skip_empty: bool) -> Classes:
    """Find images in ``<class>/**``, or in ``train/<class>/**`` and ``test/<class>/**`` or ``val/<class>/**``.

    Folders around all of these do not matter, nor do files whose suffix is not that of an image.

    Parameters
    ----------
    files : Files
    skip_empty : bool
        Leave out folders of classes without images; by default they are an error, because part of a copy may be
        missing.

    Raises
    ------
    InputError
        Images lie elsewhere, a split or a class has none, or a class of another split is not in "train".
    """
    images = [(index, name.split("/")) for index, name in enumerate(files.names) if _is_image(name)]
    if not images:
        raise InputError(
            "no images in it",
            where=files.source,
            found=", ".join(files.names[:3]) or "no files",
            expected="<class>/*.jpg and the like, or train/<class>/*.jpg",
        )
    folders = [name.split("/") for name in files.folders]
    depth = _shared_depth([parts for _, parts in images], folders)
    inner = [parts[depth:] for _, parts in images]
    in_splits = _lie_in_splits(inner, [parts[depth:] for parts in folders])
    head = 1 if in_splits else 0
    tables: _Tables = {"train": {}}
    for (index, whole), parts in zip(images, inner, strict=True):
        if len(parts) < head + 2 or (in_splits and parts[0] not in SPLITS):
            raise InputError(
                "an image that lies in no folder of a class",
                where=files.place(index),
                expected="/".join([*whole[:depth], *(["train, test or val"] if in_splits else []), "<class>", "file"]),
                remedy="move it, or remove it",
            )
        tables.setdefault(parts[0] if in_splits else "train", {}).setdefault(parts[head], []).append(index)
    for parts in (whole[depth:] for whole in folders):
        if len(parts) >= head and (not in_splits or parts[0] in SPLITS):
            table = tables.setdefault(parts[0] if in_splits else "train", {})
            if len(parts) == head + 1:
                table.setdefault(parts[head], [])
    outer = "/".join([str(files.source), *images[0][1][:depth]])
    return _checked(tables, {split: f"{outer}/{split}" if in_splits else outer for split in tables}, skip_empty)


def _shared_depth(images: Sequence[Sequence[str]], folders: Sequence[Sequence[str]]) -> int:
    """Return how many folders lie around all others and are no classes, such as that of an archive's own name."""
    depth = 0
    while min(map(len, images)) > depth + 2 and images[0][depth] not in SPLITS:
        if len({parts[depth] for parts in [*images, *folders] if len(parts) > depth}) > 1:
            break
        depth += 1
    return depth


def _lie_in_splits(images: Sequence[Sequence[str]], folders: Sequence[Sequence[str]]) -> bool:
    """Tell whether a folder "train" is a split; it is a class if images lie in it, or others are beside it."""
    if ["train"] in [list(parts[:-1]) for parts in images]:
        return False
    tops = {parts[0] for parts in images}
    return "train" in tops or (["train"] in folders and tops <= set(SPLITS))


def _checked(tables: _Tables, places: Mapping[str, str], skip_empty: bool) -> Classes:
    """Return the classes once they have been found complete."""
    skipped: Skipped = []
    for split, table in tables.items():
        absent = [name for name in tables["train"] if name not in table]
        for name in sorted([name for name, indices in table.items() if not indices] + absent):
            if not skip_empty:
                raise InputError(
                    "a class without images",
                    where=f"{places[split]}/{name}",
                    remedy="copy them there, remove the class everywhere, or leave it out with --skip-bad",
                )
            skipped.append((f"{places[split]}/{name}", "a class without images"))
            table.pop(name, None)
        if not table:
            raise InputError(
                "no images in it",
                where=places[split],
                expected="<class>/*.jpg and the like",
                remedy="copy them there, or remove the folder",
            )
    names = sorted(tables["train"])
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):  # bytes that are no text
            raise InputError("a name that is not UTF-8", where=places["train"], found=name, remedy="rename the folder")
    numbers = {name: number for number, name in enumerate(names)}
    members = {}
    for split, table in tables.items():
        strange = sorted(set(table) - set(names))
        if strange:
            raise InputError(
                f"classes that are not in {in_line(places['train'])}",
                where=places[split],
                found=", ".join(strange[:3]),
                expected=", ".join(names[:3]) + (", ..." if len(names) > 3 else ""),
            )
        pairs = sorted((index, numbers[name]) for name, row in table.items() for index in row)
        indices, labels = np.array(pairs, np.int64).T
        members[split] = (indices, labels.astype(np.min_scalar_type(len(names) - 1)))
    return Classes(names, members, skipped, places)
