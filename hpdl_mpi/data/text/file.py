"""The file ``tokenizer.json`` beside a dataset: the tokenizer of each array of tokens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from hpdl_mpi.base.errors import InputError, amended
from hpdl_mpi.data.hdf5 import array_names, open_shard
from hpdl_mpi.data.shards import find_shards
from hpdl_mpi.data.text.byte_pairs import BytePairs
from hpdl_mpi.data.text.characters import Characters
from hpdl_mpi.data.text.tokenizer import Tokenizer
from hpdl_mpi.data.text.words import Words
from hpdl_mpi.data.windows import TOKENS

NAME = "tokenizer.json"
FORMAT = "hpdl_mpi tokenizers 1"
MAX_BYTES = 256 * 2**20
"""Of the file: beyond any vocabulary in use."""

_CONTENTS = {
    Characters.kind: ("symbols", "a text"),
    Words.kind: ("symbols", "a list of texts"),
    BytePairs.kind: ("model", "an object of JSON"),
}
"""What the entry of each kind of tokenizer must have, and as what."""

_AGAIN = "convert the text again, or copy the file that was written with the data"


def tokenizers_json(tokenizers: Mapping[str, Tokenizer]) -> bytes:
    """Return the content of a file that holds tokenizers by the names of their arrays."""
    entries = {
        name: {"kind": one.kind, "specials": list(one.specials), **one.content()} for name, one in tokenizers.items()
    }
    return (json.dumps({"format": FORMAT, "tokenizers": entries}, ensure_ascii=False, indent=1) + "\n").encode()


def read_tokenizers(path: str | os.PathLike[str]) -> dict[str, Tokenizer]:
    """Return the tokenizers in a file, by the names of their arrays.

    A file of the library `tokenizers`, such as GPT-2's ``tokenizer.json``, holds one, which has no name: "".

    Raises
    ------
    InputError
        The file cannot be read, is damaged, or of another format.
    """
    path = Path(path).expanduser()
    tree = _read_json(path)
    with amended(f"{path}: "):
        if "format" not in tree and isinstance(tree.get("model"), dict):
            return {"": BytePairs(tree)}
        if tree.get("format") != FORMAT:
            raise InputError("no file of tokenizers", found=tree.get("format", "no format"), expected=FORMAT)
        entries = tree.get("tokenizers")
        if not isinstance(entries, dict) or not entries:
            raise InputError("holds no tokenizers", remedy=_AGAIN)
        return {name: _tokenizer(name, entry) for name, entry in entries.items()}


def find_tokenizers(dataset: str | os.PathLike[str]) -> dict[str, Tokenizer]:
    """Return the tokenizers that lie beside the shards of a dataset or in the folder above; empty if there are none.

    Parameters
    ----------
    dataset : path-like
        A folder of shards, a glob, or one HDF5 file.

    Raises
    ------
    InputError
        There is no such dataset, or the file is damaged.
    """
    path = tokenizer_file(dataset)
    return named_tokenizers(path) if path else {}


def own_tokenizers(dataset: str | os.PathLike[str]) -> dict[str, Tokenizer]:
    """Return those of `find_tokenizers` whose arrays are there: the file above may belong to other data.

    Raises
    ------
    InputError
        What `find_tokenizers` raises, or the dataset's first file cannot be read.
    """
    tokenizers = find_tokenizers(dataset)
    if not tokenizers:
        return {}
    first = find_shards(dataset)[0]
    with open_shard(first) as file:
        names = array_names(file, first)
    return {name: one for name, one in tokenizers.items() if name in names}


def named_tokenizers(path: str | os.PathLike[str]) -> dict[str, Tokenizer]:
    """Return what `read_tokenizers` does, of a file that lies beside data, where each is of an array.

    A file of the library `tokenizers`, which names no array, is taken for that of running text.
    """
    return {name or TOKENS: one for name, one in read_tokenizers(path).items()}


def tokenizer_file(dataset: str | os.PathLike[str]) -> Path | None:
    """Return the file of the tokenizers of a dataset, beside its shards or in the folder above, if there is one.

    Raises
    ------
    InputError
        There is no such dataset.
    """
    folder = find_shards(dataset)[0].absolute().parent
    return next((place for place in (folder / NAME, folder.parent / NAME) if place.is_file()), None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError("too large for a tokenizer", where=path, found=f"{size} bytes", expected=f"{MAX_BYTES}")
        tree = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError("cannot be read", where=path, found=error.strerror or error) from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("cannot be read as JSON", where=path, found=error, remedy=_AGAIN) from error
    if not isinstance(tree, dict):
        raise InputError("no file of tokenizers", where=path, found=type(tree).__name__, expected="an object of JSON")
    return tree


def _tokenizer(name: str, entry: Any) -> Tokenizer:
    """Return a tokenizer from its entry, which somebody else may have written."""
    with amended(f"{name!r}: "):
        if not isinstance(entry, dict):
            raise InputError("no tokenizer", found=type(entry).__name__, expected="an object of JSON", remedy=_AGAIN)
        kind, specials = entry.get("kind"), entry.get("specials")
        if not _are_texts(specials):
            raise InputError("no list of texts", where="specials", found=repr(specials)[:80], remedy=_AGAIN)
        symbols, model = entry.get("symbols"), entry.get("model")
        if kind == Characters.kind and isinstance(symbols, str):
            return Characters(symbols, specials)
        if kind == Words.kind and _are_texts(symbols):
            return Words(symbols, specials)
        if kind == BytePairs.kind and isinstance(model, dict):
            return BytePairs(model, specials)
        key, wanted = _CONTENTS.get(str(kind), ("kind", " or ".join(_CONTENTS)))
        raise InputError(
            "no such tokenizer", where=key, found=repr(entry.get(key))[:80], expected=wanted, remedy=_AGAIN
        )


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
