"""CSV: one line per sample under a line of names. Text columns become one-hot columns, text targets classes.

Everything that is learnt from the data (categories, means to fill gaps) is learnt from the training split alone.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.convert.files import reading
from hpdl_mpi.data.convert.select import split_test
from hpdl_mpi.data.writer import Split

Missing = Literal["error", "drop", "mean", "median", "zero"]
MISSING_NUMBERS = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
"""What stands for no number in a column of numbers, in any case; in a column of text only the empty text does."""

MAX_CATEGORIES = 1000


@dataclass
class Table:
    """A CSV file in memory.

    Attributes
    ----------
    names : list of str
        Of the columns.
    categories : dict of int to list of str
        The texts of each column of text.
    values : float64 (num_columns, num_rows)
        Numbers, or indices into the column's categories; NaN where missing.
    lines : int64 (num_rows,)
        Where each row ends in the file.
    """

    path: Path
    names: list[str]
    categories: dict[int, list[str]]
    values: np.ndarray
    lines: np.ndarray

    def take(self, rows: np.ndarray) -> Table:
        """Return the table of some rows, int64 (n,), in that order."""
        return Table(self.path, self.names, self.categories, self.values[:, rows], self.lines[rows])

    def place(self, column: int, row: int) -> str:
        """Return where a value stands, for people."""
        return f"{self.path}: line {self.lines[row]}, column {self.names[column]!r}"


def read_splits(
    source: Path, *, target: str, classes: bool, missing: Missing, test_fraction: float, seed: int
) -> dict[str, Split]:
    """Read a CSV file with a line of column names.

    Parameters
    ----------
    target : str
        The column to predict. Text becomes class numbers in the order of the sorted texts; numbers become float32.
    classes : bool
        The target's numbers are names of classes.
    missing : {"error", "drop", "mean", "median", "zero"}
        What to do where a value is missing: refuse, leave out the row, or fill in the column's mean or median over
        the training split, or zero; a text that is missing then has no category, all its columns are 0. A missing
        target is never filled in.
    test_fraction, seed
        See `select.split_test`.

    Returns
    -------
    dict of str to Split
        "train", and "test" if `test_fraction` is above zero: ``x`` float32 (n, num_features), whose names are in
        the attribute ``features``, and ``y`` float32 (n,) or unsigned (n,) with the attribute ``classes``.

    Raises
    ------
    InputError
        Ragged rows, no such column, a missing value under "error", a value that float32 cannot hold, or a category
        that the training split does not have; names the line.
    """
    names, is_text, num_rows = _scan(source, target, classes)
    table = _read_table(source, names, is_text, num_rows)
    target_column = names.index(target)
    table = _without_gaps(table, target_column, missing)
    train_rows, test_rows = split_test(len(table.lines), test_fraction, seed)
    train = table.take(train_rows)
    fills = {} if missing in ("error", "drop") else _fills(train, target_column, missing)
    known = {column: _known_categories(train, column) for column in table.categories}
    splits = {"train": _encode(train, target_column, fills, known)}
    if test_rows.size:
        splits["test"] = _encode(table.take(test_rows), target_column, fills, known)
    return splits


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each line that is not empty; cells without surrounding blanks."""
    with reading(path), open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, [cell.strip() for cell in cells]
        except (csv.Error, UnicodeDecodeError) as error:
            where, remedy = f"{path}: line {reader.line_num}", "save it as UTF-8 with commas and quoted text"
            raise InputError("cannot be read as CSV", where=where, found=error, remedy=remedy) from error


def _scan(path: Path, target: str, classes: bool) -> tuple[list[str], list[bool], int]:
    """Return the names of the columns, which of them hold text, and the number of rows, from a first pass."""
    rows = _rows(path)
    _, names = next(rows, (0, []))
    if not names or all(_number(name) is not None for name in names):
        raise InputError("no line of column names", where=path, found=names or "an empty file")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InputError("column names are not unique", where=path, found=f"{', '.join(twice)} more than once")
    if target not in names:
        raise InputError(f"no column {target!r}", where=path, found=", ".join(names), remedy="choose one with --target")
    is_text = [classes and name == target for name in names]
    num_rows = 0
    for line, cells in rows:
        if len(cells) != len(names):
            raise InputError(
                "wrong number of cells",
                where=f"{path}: line {line}",
                found=f"{len(cells)} cells",
                expected=f"{len(names)}, as in the line of names",
            )
        for column, cell in enumerate(cells):
            is_text[column] = is_text[column] or _number(cell) is None
        num_rows += 1
    if not num_rows:
        raise InputError("no samples", where=path, found="a line of names alone")
    return names, is_text, num_rows


def _number(cell: str) -> float | None:
    """Return the number that a cell holds, NaN for a missing one, None for text."""
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return math.nan if cell.casefold() in MISSING_NUMBERS else None


def _read_table(path: Path, names: list[str], is_text: list[bool], num_rows: int) -> Table:
    """Read the values in a second pass, now that the kind of each column is known."""
    values = np.empty((num_rows, len(names)))
    lines = np.empty(num_rows, np.int64)
    codes: dict[int, dict[str, int]] = {column: {} for column, text in enumerate(is_text) if text}
    rows = _rows(path)
    next(rows)
    for row, (line, cells) in enumerate(rows):
        lines[row] = line
        values[row] = [
            _number(cell) if c not in codes else codes[c].setdefault(cell, len(codes[c])) if cell else math.nan
            for c, cell in enumerate(cells)
        ]
    table = Table(path, names, {column: list(texts) for column, texts in codes.items()}, values.T, lines)
    if np.isinf(values).any():
        row, column = np.argwhere(np.isinf(values))[0]
        raise InputError("infinite", where=table.place(column, row), remedy="mend the value, or leave it empty")
    return table


def _without_gaps(table: Table, target_column: int, missing: Missing) -> Table:
    """Return the table without rows that the policy drops; raise where it does not allow a gap."""
    gaps = np.isnan(table.values)
    if missing == "drop":
        whole = np.flatnonzero(~gaps.any(axis=0))
        if not whole.size:
            raise InputError(
                "every row has a gap, none would be left", where=table.path, remedy="fill in with --missing"
            )
        return table.take(whole)
    refused = gaps if missing == "error" else gaps[target_column : target_column + 1]
    if refused.any():
        column, row = np.argwhere(refused)[0] + (0 if missing == "error" else [target_column, 0])
        raise InputError(
            "no value",
            where=table.place(column, row),
            found=f"{np.count_nonzero(refused)} missing values in all",
            remedy="choose with --missing: drop the rows" + (", mean, median or zero" if missing == "error" else ""),
        )
    return table


def _fills(train: Table, target_column: int, missing: Missing) -> dict[int, float]:
    """Return the value that fills gaps in each column of numbers, learnt from the training rows."""
    numbers = [c for c in range(len(train.names)) if c not in train.categories and c != target_column]
    empty = [train.names[c] for c in numbers if np.isnan(train.values[c]).all()]
    if empty:
        raise InputError("no values at all", where=f"{train.path}: column {empty[0]!r}", remedy="remove the column")
    if missing == "zero":
        return dict.fromkeys(numbers, 0.0)
    average = np.nanmean if missing == "mean" else np.nanmedian
    return {c: float(average(train.values[c])) for c in numbers}


def _known_categories(train: Table, column: int) -> list[int]:
    """Return the codes of a column that occur in the training rows, sorted by their texts, numbers by value."""
    texts = train.categories[column]
    codes = [int(code) for code in np.unique(train.values[column]) if not math.isnan(code)]
    if len(codes) > MAX_CATEGORIES:
        raise InputError(
            "too many different texts for one-hot columns",
            where=f"{train.path}: column {train.names[column]!r}",
            found=f"{len(codes)}, such as {texts[0]!r} and {texts[1]!r}",
            expected=f"at most {MAX_CATEGORIES}",
            remedy="remove the column, or mend the cells that should be numbers",
        )
    return sorted(codes, key=lambda code: (_number(texts[code]) or 0.0, texts[code]))


def _encode(table: Table, target_column: int, fills: dict[int, float], known: dict[int, list[int]]) -> Split:
    """Return features and targets of some rows."""
    features: list[np.ndarray] = []
    names: list[str] = []
    for column, name in enumerate(table.names):
        if column == target_column:
            continue
        if column in known:
            _check_known(table, column, known[column])
            features += [table.values[column] == code for code in known[column]]
            names += [f"{name}={table.categories[column][code]}" for code in known[column]]
        else:
            values = table.values[column]
            features.append(np.where(np.isnan(values), fills.get(column, math.nan), values))
            names.append(name)
    if not features:
        raise InputError("no column but the target", where=table.path)
    x = _to_float32(np.stack(features, axis=1), table, "a feature")
    attributes: dict[str, dict[str, list[str] | str]] = {"x": {"features": names}}
    if target_column in known:
        codes = known[target_column]
        _check_known(table, target_column, codes)
        class_of_code = np.zeros(len(table.categories[target_column]), np.min_scalar_type(len(codes) - 1))
        class_of_code[codes] = np.arange(len(codes))
        y = class_of_code[table.values[target_column].astype(np.int64)]
        attributes["y"] = {"classes": [table.categories[target_column][code] for code in codes]}
    else:
        y = _to_float32(table.values[target_column], table, "the target")
    attributes.setdefault("y", {})["target"] = table.names[target_column]
    return Split({"x": x, "y": y}, attributes)


def _check_known(table: Table, column: int, codes: list[int]) -> None:
    values = table.values[column]
    strange = ~np.isnan(values) & ~np.isin(values, codes)
    if strange.any():
        row = int(np.argmax(strange))
        raise InputError(
            f"{table.categories[column][int(values[row])]!r} does not occur in the training split",
            where=table.place(column, row),
            remedy="choose another --seed or --test-fraction, or remove the rows",
        )


def _to_float32(values: np.ndarray, table: Table, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        row = int(np.argwhere(~np.isfinite(single))[0][0])
        raise InputError(f"{what} is too large for float32", where=f"{table.path}: line {table.lines[row]}")
    return single
