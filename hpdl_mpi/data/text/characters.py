"""Every character is a token; the vocabulary is sorted by code point, as that of nanoGPT's character models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.text.tokenizer import REPLACEMENT, UNKNOWN, Tokenizer, require_text, unknown


class Characters(Tokenizer):
    """A token for each character.

    Parameters
    ----------
    symbols : str
        The characters, in rising order of their code points.
    specials : sequence of str

    Raises
    ------
    InputError
        Symbols do not rise, or are no text.
    """

    kind = "characters"

    def __init__(self, symbols: str, specials: Sequence[str] = ()) -> None:
        super().__init__(specials, len(symbols))
        require_text(symbols)
        self.symbols = symbols
        self._codes = code_points(symbols)
        if np.any(self._codes[1:] <= self._codes[:-1]):
            raise InputError("characters are not sorted, or twice there", where="symbols", found=repr(symbols[:80]))
        self._texts = np.append(self._codes, np.uint32(ord(REPLACEMENT)))

    @classmethod
    def learnt(cls, texts: Iterable[str], specials: Sequence[str] = ()) -> Characters:
        """Return the tokenizer of all characters in some texts, which are not held."""
        found: set[str] = set()
        for text in texts:
            found.update(text)
        return cls("".join(sorted(found)), specials)

    def _lookup(self, text: str) -> np.ndarray:
        codes = code_points(text)
        places = np.searchsorted(self._codes, codes)
        places[self._codes[np.minimum(places, self._size - 1)] != codes] = UNKNOWN
        return places

    def _text(self, places: np.ndarray) -> str:
        return self._texts[places].astype("<u4").tobytes().decode("utf-32-le")

    def _refuse(self, text: str, index: int, line: int) -> None:
        raise unknown("character", text, index, index + 1, line)

    def content(self) -> dict[str, Any]:
        return {"symbols": self.symbols}


def code_points(text: str) -> np.ndarray:
    """Return the code points of a text, uint32 (n,); halves of surrogate pairs, which are no text, keep theirs."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32, copy=False)
