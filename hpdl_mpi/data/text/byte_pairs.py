"""Byte-pair encoding: frequent sequences of bytes are tokens, so every text can be encoded.

Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units" (ACL 2016); on bytes, as
Radford et al., "Language models are unsupervised multitask learners" (2019). The work is done by the library
`tokenizers`, which is imported only here, and only when it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.text.tokenizer import MAX_IDS, UNKNOWN, Tokenizer, unknown

if TYPE_CHECKING:
    import tokenizers

BYTES = 256
"""Tokens that there are at least: one for each byte."""


class BytePairs(Tokenizer):
    """The tokens of a tokenizer of the library `tokenizers`, behind our specials.

    Parameters
    ----------
    model : dict
        The tokenizer as its file says, ``Tokenizer.save`` of the library.
    specials : sequence of str

    Raises
    ------
    InputError
        The library is not installed, or cannot read the model.
    """

    kind = "bpe"

    def __init__(self, model: dict[str, Any], specials: Sequence[str] = ()) -> None:
        self._model = model
        self._inner = _read(model)
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        super().__init__(specials, max(vocabulary.values(), default=-1) + 1)
        if self.unk is not None:
            raise InputError("bytes are all known", where="specials", found=self.specials, expected="no unk")
        self._added = [token.content for token in self._inner.get_added_tokens_decoder().values()]
        self._known: dict[str, bool] = {}
        self._knows_all = vocabulary.keys() >= set(_library().pre_tokenizers.ByteLevel.alphabet())

    @classmethod
    def learnt(cls, texts: Iterable[str], vocabulary_size: int, specials: Sequence[str] = ()) -> BytePairs:
        """Return the tokenizer that merges the most frequent pairs in some texts until it has so many ids.

        Parameters
        ----------
        texts : iterable of str
            Each begins at a blank, see `Tokenizer.cut`; not held.
        vocabulary_size : int
            Of all ids, specials included; there are fewer if the texts have no more pairs.
        specials : sequence of str

        Raises
        ------
        InputError
            The size has no room for all bytes, or the library is not installed.
        """
        least = BYTES + len(specials)
        if not least <= vocabulary_size <= MAX_IDS:
            raise InputError(
                "too small for all bytes" if vocabulary_size < least else "out of range",
                where="--vocab-size",
                found=vocabulary_size,
                expected=f"{least} to {MAX_IDS}",
            )
        library = _library()
        inner = library.Tokenizer(library.models.BPE())
        inner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocabulary_size - len(specials),
            initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(json.loads(inner.to_str()), specials)

    def behind(self, specials: Sequence[str]) -> BytePairs:
        """Return the same tokenizer behind other specials."""
        return BytePairs(self._model, specials)

    def _lookup(self, text: str) -> np.ndarray:
        if not self._knows_all and self._unknown(text):
            return np.array([UNKNOWN])
        return np.array(self._inner.encode(text, add_special_tokens=False).ids, np.int64)

    def _text(self, places: np.ndarray) -> str:
        return self._inner.decode(places.tolist(), skip_special_tokens=False)

    def _refuse(self, text: str, index: int, line: int) -> None:
        start = min(self._unknown(text))
        raise unknown("character", text, start, start + 1, line)

    def _unknown(self, text: str) -> list[int]:
        """Return where characters first stand that the library would pass over, because the vocabulary lacks them."""
        for token in self._added:
            text = text.replace(token, " " * len(token))
        for character in set(text) - self._known.keys():
            alone = self._inner.encode(character, add_special_tokens=False).ids
            self._known[character] = bool(alone) or character.isspace()
        return [text.index(character) for character in set(text) if not self._known[character]]

    @staticmethod
    def cut(text: str) -> int:
        # No token reaches over the begin of a word behind a single blank.
        ends = [match.start() for match in re.finditer(r"(?<=\S) (?=\S)", text[-_CUT_WITHIN:])]
        return max(0, len(text) - _CUT_WITHIN) + ends[-1] if ends else 0

    def content(self) -> dict[str, Any]:
        return {"model": self._model}


_CUT_WITHIN = 2**16
"""Characters at the end of a text among which a place to cut it is looked for."""


def _read(model: dict[str, Any]) -> tokenizers.Tokenizer:
    library = _library()
    try:
        inner = library.Tokenizer.from_str(json.dumps(model))
    except Exception as error:  # the library raises nothing more special
        raise InputError("the library tokenizers cannot read it", where="model", found=error) from error
    inner.no_truncation()
    inner.no_padding()
    return inner


def _library() -> Any:
    """Return the library `tokenizers`."""
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            "byte-pair encoding needs the library tokenizers",
            where="--tokens bpe",
            found=error,
            remedy='install it: pip install "hpdl_mpi[text]"',
        ) from error
    return tokenizers
