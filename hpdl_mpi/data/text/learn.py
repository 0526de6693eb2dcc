"""Which tokenizer a conversion takes: one from a file, or one that is learnt on the text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from hpdl_mpi.base.errors import InputError, amended, require
from hpdl_mpi.data.text.byte_pairs import BytePairs
from hpdl_mpi.data.text.characters import Characters
from hpdl_mpi.data.text.file import read_tokenizers
from hpdl_mpi.data.text.tokenizer import Tokenizer
from hpdl_mpi.data.text.words import Words

Kind = Literal["characters", "words", "bpe"]
KINDS: dict[str, type[Tokenizer]] = {one.kind: one for one in (Characters, Words, BytePairs)}
assert tuple(KINDS) == get_args(Kind)


@dataclass(frozen=True)
class WantedTokenizer:
    """What is asked of a tokenizer.

    Attributes
    ----------
    name : str
        The array that holds its tokens.
    kind : {"characters", "words", "bpe"}, optional
        That of the file, if there is one, unless given.
    vocabulary_size : int, optional
        Of all ids: for "bpe", and for "words" a bound.
    file : Path, optional
        That holds it ready-made.
    specials : tuple of str
        That it must have.
    """

    name: str
    kind: Kind | None
    vocabulary_size: int | None = None
    file: Path | None = None
    specials: tuple[str, ...] = ()

    def make(self, texts: Callable[[Callable[[str], int]], Iterable[str]]) -> Tokenizer:
        """Return the tokenizer.

        Parameters
        ----------
        texts : callable
            Takes a function like `Tokenizer.cut_to_learn` and returns the texts to learn it on, cut so.

        Raises
        ------
        InputError
            The file has no such tokenizer, the kind or the size of the vocabulary is missing, or does not fit.
        """
        if self.file is not None:
            return self._given(self.file)
        if self.kind is None:
            expected, remedy = "characters, words or bpe", "give it, or a --tokenizer that is ready"
            raise InputError("not said what a token is", where="--tokens", expected=expected, remedy=remedy)
        learn = texts(KINDS[self.kind].cut_to_learn)
        if self.kind == "characters":
            if self.vocabulary_size is not None:
                raise InputError("characters are as many as the text has", where="--vocab-size", remedy="leave it out")
            return Characters.learnt(learn, self.specials)
        if self.kind == "words":
            taken = len(self.specials)
            room = self.vocabulary_size is None or self.vocabulary_size > taken
            require("--vocab-size", self.vocabulary_size, room, f"more than {taken}: room for a word")
            return Words.learnt(learn, self.specials, self.vocabulary_size)
        if self.vocabulary_size is None:
            remedy = "give it, or a --tokenizer that is ready"
            raise InputError("not said how many tokens there are", where="--vocab-size", remedy=remedy)
        return BytePairs.learnt(learn, self.vocabulary_size, self.specials)

    def _given(self, file: Path) -> Tokenizer:
        if self.vocabulary_size is not None:
            raise InputError("that of the file is taken", where="--vocab-size", remedy="leave it or --tokenizer out")
        found = read_tokenizers(file)
        with amended(f"{file}: ", f" {_OTHERWISE}"):
            tokenizer = found.get(self.name, found.get(""))
            if tokenizer is None:
                raise InputError(f"no tokenizer of {self.name!r}", found=", ".join(found), expected=self.name)
            if self.kind not in (None, tokenizer.kind):
                raise InputError("a tokenizer of another kind", found=tokenizer.kind, expected=self.kind)
            if self.name not in found and isinstance(tokenizer, BytePairs):  # one of the library, which names no array
                tokenizer = tokenizer.behind(self.specials)
            missing = [name for name in self.specials if name != "unk" and name not in tokenizer.specials]
            if missing:
                has = ", ".join(tokenizer.specials) or "none"
                raise InputError("lacks ids that are needed", found=has, expected=", ".join(missing))
        return tokenizer


_OTHERWISE = (
    "Name the tokenizer.json of a dataset that was made with the same options, or one of the library tokenizers for "
    "pairs of bytes; or leave --tokenizer out."
)
"""What to do where a file has no tokenizer that fits."""
