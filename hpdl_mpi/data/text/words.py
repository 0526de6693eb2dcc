"""Every word is a token: what stands between blanks, and the end of a line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.text.tokenizer import REPLACEMENT, UNKNOWN, Tokenizer, require_text, unknown

_WORD = re.compile(r"\n|\S+")


class Words(Tokenizer):
    """A token for each word and for each end of a line. Of blanks it keeps only that they were there.

    So text comes back as it was if single blanks stand between words, and none at the begin and the end of lines.

    Parameters
    ----------
    symbols : sequence of str
        The words, each once.
    specials : sequence of str

    Raises
    ------
    InputError
        A symbol is no word, or there twice.
    """

    kind = "words"

    def __init__(self, symbols: Sequence[str], specials: Sequence[str] = ()) -> None:
        super().__init__(specials, len(symbols))
        require_text("".join(symbols))
        self.symbols = tuple(symbols)
        for symbol in self.symbols:
            if not _WORD.fullmatch(symbol):
                raise InputError("no word", where="symbols", found=repr(symbol), expected="text without blanks")
        self._places = {symbol: place for place, symbol in enumerate(self.symbols)}
        if len(self._places) < len(self.symbols):
            raise InputError("words are there twice", where="symbols", found=f"{len(self.symbols)} of them")
        self._texts = (*self.symbols, REPLACEMENT)

    @classmethod
    def learnt(cls, texts: Iterable[str], specials: Sequence[str] = (), vocabulary_size: int | None = None) -> Words:
        """Return the tokenizer of the words in some texts: all, or the most frequent that a size leaves room for.

        Words are sorted, so that the vocabulary depends on what occurs, not on where; among equally frequent ones the
        first in that order stay.

        Parameters
        ----------
        texts : iterable of str
            Each begins and ends between words; not held.
        specials : sequence of str
        vocabulary_size : int, optional
            Of all ids, specials included.

        Raises
        ------
        InputError
            There are no words.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(match[0] for match in _WORD.finditer(text))
        found = sorted(counts)
        if not found:
            raise InputError("no words to learn", where="the training text", expected="one that is no blank, at least")
        if vocabulary_size is not None and vocabulary_size - len(specials) < len(found):
            frequent = sorted(found, key=lambda word: -counts[word])
            found = sorted(islice(frequent, max(0, vocabulary_size - len(specials))))
        return cls(found, specials)

    def _lookup(self, text: str) -> np.ndarray:
        return np.array([self._places.get(word, UNKNOWN) for word in _WORD.findall(text)], np.int64)

    def _text(self, places: np.ndarray) -> str:
        words = " ".join(self._texts[place] for place in places.tolist())
        return re.sub(" ?\n ?", "\n", words)

    def _refuse(self, text: str, index: int, line: int) -> None:
        match = next(islice(_WORD.finditer(text), index, None))
        raise unknown("word", text, match.start(), match.end(), line)

    @staticmethod
    def cut_to_learn(text: str) -> int:
        match = re.search(r"\s\S*\Z", text)
        return match.start() + 1 if match else 0

    def content(self) -> dict[str, Any]:
        return {"symbols": list(self.symbols)}
