"""Byte-pair encoding: frequent sequences of bytes are tokens, so every text can be encoded.

Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units" (ACL 2016); on bytes, as
Radford et al., "Language models are unsupervised multitask learners" (2019). The work is done by the library
`tokenizers`, which is imported only here, and only when it is used.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.data.text.tokenizer import MAX_IDS, UNKNOWN, Tokenizer, unknown

if TYPE_CHECKING:
    import tokenizers

BYTES = 256
"""Tokens that there are at least: one for each byte."""

_PLACES = tuple(map(re.compile, (r"(?<=\S)(?= \S)", r"(?<=\S)(?=\s)", r"(?<=[^\W_])(?=\W)")))
"""Where a text may be cut: in front of a single blank, of any other, and where letters end; the more tokenizers begin a
word there, the earlier. What is learnt here does so at each of them."""

_ENDS = "<|endoftext|>", "</s>", "<|end_of_text|>"
"""Tokens that end a text, as files of the library for GPT-2, LLaMA and its third version have them."""

_TRIES = 64
"""Places of each kind that are tried, the last ones of a text."""

_NEAR = 256
"""Characters on either side of a place that tell whether a word begins there: far more than rules of words look at."""


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
            Each begins and ends between words, see `Tokenizer.cut_to_learn`; not held.
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

    @property
    def eos(self) -> int | None:
        """The id that ends a text: ours, or else that of a token of the file that usually does."""
        own = super().eos
        if own is not None:
            return own
        ends = (self._inner.token_to_id(token) for token in _ENDS)
        return next((len(self.specials) + end for end in ends if end is not None), None)

    def behind(self, specials: Sequence[str]) -> BytePairs:
        """Return the same tokenizer behind other specials."""
        return BytePairs(self._model, specials)

    def _lookup(self, text: str) -> np.ndarray:
        ids = np.array(self._encoding(text).ids, np.int64)
        if not self._knows_all and self._unknown(text):
            return np.array([UNKNOWN])
        return ids

    def _text(self, places: np.ndarray) -> str:
        with _guarded("cannot decode these ids"):
            return self._inner.decode(places.tolist(), skip_special_tokens=False)

    def _encoding(self, text: str) -> tokenizers.Encoding:
        with _guarded("cannot encode the text"):
            return self._inner.encode(text, add_special_tokens=False)

    def _refuse(self, text: str, index: int, line: int) -> None:
        start = min(self._unknown(text))
        raise unknown("character", text, start, start + 1, line)

    def _unknown(self, text: str) -> list[int]:
        """Return where characters first stand that the library would pass over, because the vocabulary lacks them."""
        for token in self._added:
            text = text.replace(token, " " * len(token))
        for character in set(text) - self._known.keys():
            self._known[character] = character.isspace() or not self._passes_over(character)
        return [text.index(character) for character in set(text) if not self._known[character]]

    def _passes_over(self, character: str) -> bool:
        try:
            return not self._encoding(character).ids
        except InputError:  # one that says so, and may know the words that the character is in
            return False

    def cut(self, text: str) -> int:
        return _last_place(text, len(text) - _NEAR, self._begins_word)

    def _begins_word(self, text: str, place: int) -> bool:
        """Tell whether a word of the tokenizer begins at a place, whose ids are the same without what is in front.

        Words get their ids each by itself, so what is farther away does not matter. Tokenizers of others may have no
        words, or change what stands at the ends of a text.
        """
        left, right = text[max(0, place - _NEAR) : place], text[place : place + _NEAR]
        whole, begin, rest = map(self._encoding, (left + right, left, right))
        count = len(begin.ids)
        apart = 0 < count < len(whole.ids) and whole.word_ids[count - 1] != whole.word_ids[count]
        return apart and whole.ids == begin.ids + rest.ids

    @staticmethod
    def cut_to_learn(text: str) -> int:
        return _last_place(text, len(text), lambda text, place: True)

    def content(self) -> dict[str, Any]:
        return {"model": self._model}


def _last_place(text: str, end: int, fits: Callable[[str, int], bool]) -> int:
    """Return the last of `_PLACES` in front of `end` that fits, of the first kind that has one; 0 if none does."""
    for kind in _PLACES:
        places = deque((match.start() for match in kind.finditer(text, 0, max(0, end))), maxlen=_TRIES)
        for place in reversed(places):
            if fits(text, place):
                return place
    return 0


def _read(model: dict[str, Any]) -> tokenizers.Tokenizer:
    library = _library()
    with _guarded("cannot read it"):
        inner = library.Tokenizer.from_str(json.dumps(model))
    inner.no_truncation()
    inner.no_padding()
    if hasattr(inner.model, "dropout"):
        inner.model.dropout = None  # for training: ids would be drawn anew each time
    return inner


@contextmanager
def _guarded(what: str) -> Iterator[None]:
    """Turn what the library raises into an InputError: nothing more special than Exception, and panics of Rust."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        remedy = "take another tokenizer, or mend its file with the library"
        raise InputError(f"the library tokenizers {what}", where="model", found=error, remedy=remedy) from error


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
