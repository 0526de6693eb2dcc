"""What every tokenizer does: text becomes ids, ids become text again."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from hpdl_mpi.base.errors import InputError

SPECIALS = ("pad", "bos", "eos", "unk", "mask")
"""What ids can stand for beside text: padding, the begin and the end of a text, what is not in the vocabulary, and a
token that a model is to predict."""

UNKNOWN = -1
"""What `Tokenizer._lookup` gives for text that is not in the vocabulary."""

MAX_IDS = 2**24
"""Of a vocabulary: beyond any in use, and far from what int32 holds."""


class Tokenizer(abc.ABC):
    """Turns text into ids and back. Ids are numbered from 0: specials first, then the vocabulary proper.

    Parameters
    ----------
    specials : sequence of str
        Which of `SPECIALS` there are, in the order of their ids.
    size : int
        Of the vocabulary proper.

    Attributes
    ----------
    kind : str
        By which a file and an option name it.
    specials : tuple of str

    Raises
    ------
    InputError
        Specials are unknown or there twice, or there are no ids, or too many.
    """

    kind: ClassVar[str]

    def __init__(self, specials: Sequence[str], size: int) -> None:
        self.specials = tuple(specials)
        known = [name for name in SPECIALS if name in self.specials]
        if len(known) != len(self.specials) or (known and "pad" in known and self.specials[0] != "pad"):
            expected = f"some of {', '.join(SPECIALS)}, each once, pad first"
            raise InputError("unknown specials", where="specials", found=self.specials, expected=expected)
        if not 1 <= size <= MAX_IDS:
            raise InputError("no vocabulary", where="symbols", found=f"{size} of them", expected=f"1 to {MAX_IDS}")
        self._size = size

    @property
    def vocabulary_size(self) -> int:
        """Number of ids: what a model has outputs for."""
        return len(self.specials) + self._size

    @property
    def pad(self) -> int | None:
        """The id of padding, which is 0, if there is one."""
        return self._special("pad")

    @property
    def bos(self) -> int | None:
        """The id that begins a text, if there is one."""
        return self._special("bos")

    @property
    def eos(self) -> int | None:
        """The id that ends a text, if there is one."""
        return self._special("eos")

    @property
    def unk(self) -> int | None:
        """The id of all that is not in the vocabulary, if there is one."""
        return self._special("unk")

    @property
    def mask(self) -> int | None:
        """The id that hides a token from a model that is to predict it, if there is one."""
        return self._special("mask")

    def _special(self, name: str) -> int | None:
        return self.specials.index(name) if name in self.specials else None

    @property
    def dtype(self) -> np.dtype:
        """The smallest of uint8, uint16 and int32 that holds all ids."""
        last = self.vocabulary_size - 1
        return np.dtype(np.uint8 if last < 2**8 else np.uint16 if last < 2**16 else np.int32)

    def encode(self, text: str, line: int = 1) -> np.ndarray:
        """Return the ids of a text, int64 (n,), without bos and eos; the caller owns them.

        Parameters
        ----------
        text : str
        line : int
            At which the text begins in its file, for messages.

        Raises
        ------
        InputError
            Something is not in the vocabulary, which has no `unk`; names it and its line.
        """
        ids = self._lookup(text)
        unknown = ids == UNKNOWN
        if unknown.any():
            if self.unk is None:
                self._refuse(text, int(np.argmax(unknown)), line)
            ids[unknown] = self.unk
            ids[~unknown] += len(self.specials)
        else:
            ids += len(self.specials)
        return ids

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """Return the text of ids, (n,); specials are left out, but for `unk`, which is a replacement character.

        Raises
        ------
        InputError
            An id is outside the vocabulary.
        """
        numbers = np.asarray(ids, np.int64).reshape(-1)
        outside = (numbers < 0) | (numbers >= self.vocabulary_size)
        if outside.any():
            raise InputError(
                "an id is outside the vocabulary",
                where=f"token {int(np.argmax(outside))}",
                found=int(numbers[outside][0]),
                expected=f"0 to {self.vocabulary_size - 1}",
                remedy="use the tokenizer.json that was written with the data",
            )
        numbers = numbers - len(self.specials)
        if self.unk is not None:
            numbers[numbers == self.unk - len(self.specials)] = self._size  # where `_text` has what replaces it
        return self._text(numbers[numbers >= 0])

    @abc.abstractmethod
    def _lookup(self, text: str) -> np.ndarray:
        """Return places in the vocabulary proper, int64 (n,), that the caller may change; `UNKNOWN` for what is not."""

    @abc.abstractmethod
    def _text(self, places: np.ndarray) -> str:
        """Return the text of places in the vocabulary proper, int64 (n,); its size stands for what is not there."""

    @abc.abstractmethod
    def _refuse(self, text: str, index: int, line: int) -> None:
        """Raise for piece `index` of a text, the first that is not in the vocabulary."""

    def cut(self, text: str) -> int:
        """Return the last place where a text can be cut so that the ids of both parts are those of the whole, or 0."""
        return self.cut_to_learn(text)

    @staticmethod
    def cut_to_learn(text: str) -> int:
        """Return the last place where a text can be cut so that both parts teach what the whole does, or 0."""
        return len(text)

    @abc.abstractmethod
    def content(self) -> dict[str, Any]:
        """Return what the file says beside kind and specials, as JSON has it."""


REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What stands in decoded text for `unk`."""


def unknown(what: str, text: str, start: int, end: int, line: int) -> InputError:
    """Return the error of ``text[start:end]``, which is not in a vocabulary; `line` is that of the text's begin."""
    return InputError(
        f"a {what} is not in the vocabulary",
        where=f"line {line + text.count(chr(10), 0, start)}",
        found=repr(text[start:end]),
        remedy="learn a vocabulary on this text too, or take the text out",
    )


def require_text(symbols: str) -> None:
    """Raise an `InputError` if a vocabulary has halves of surrogate pairs, which no file of text can hold."""
    try:
        symbols.encode()
    except UnicodeEncodeError as error:
        raise InputError("no text", where="symbols", found=error, expected="characters of Unicode") from error
