"""Text that a trained language model makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpdl_mpi.base.errors import InputError, amended, is_integer, require
from hpdl_mpi.data.text import Tokenizer
from hpdl_mpi.data.text.tokenizer import REPLACEMENT
from hpdl_mpi.nn.decoding import Decoder
from hpdl_mpi.nn.search import NOTHING, Choose, Sampling, Stepper, beam_search, generate, greedy
from hpdl_mpi.train.trainer import Trainer
from hpdl_mpi.train.vocabulary import within


@dataclass(frozen=True)
class Wanted:
    """How text is made.

    Attributes
    ----------
    max_tokens : int
        That are added to a prompt.
    temperature, top_k, top_p, seed
        Of draws, see `nn.search.Sampling`.
    greedy : bool
        Take the likeliest token each time, and draw none.
    beams : int, optional
        Of a beam search in place of both.
    length_penalty : float
        Of that, see `nn.search.beam_search`.
    end : str, optional
        The text of the token after which there are no more, in place of the tokenizer's `eos`.
    """

    max_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    seed: int = 0
    greedy: bool = False
    beams: int | None = None
    length_penalty: float = 0.6
    end: str | None = None


class TextStream:
    """Turns tokens that come one by one into text: what is shown of it does not change any more.

    Parameters
    ----------
    tokenizer : Tokenizer
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._line: list[int] = []
        self._shown = 0

    def add(self, tokens: np.ndarray) -> str:
        """Return the text that some more tokens, int64 (n,), settle: a character may be the work of several."""
        self._line += tokens.tolist()
        text = self._tokenizer.decode(self._line)
        settled = text[self._shown :] if not text.endswith(REPLACEMENT) else ""
        self._shown += len(settled)
        if settled.endswith("\n"):  # of what is before it the last token alone says how those behind are written
            self._line = self._line[-1:]
            self._shown = len(self._tokenizer.decode(self._line))
        return settled

    def end(self) -> str:
        """Return what is left when no more tokens come."""
        return self._tokenizer.decode(self._line)[self._shown :]


def generate_text(
    trainer: Trainer, tokenizer: Tokenizer, prompt: str = "", wanted: Wanted = Wanted(), *, sample: int = 0
) -> Iterator[str]:
    """Yield a prompt and what the model makes of it, piece by piece; local, on a rank that holds the whole model.

    It stops at the token of ``wanted.end``, or at the tokenizer's `eos`, if that has one. The model sees as many tokens
    as a window of its training had; when these are full it goes on from the later half of them. An empty prompt is
    `bos` or, where there is none, the end of a line.

    Parameters
    ----------
    trainer : Trainer
        Holds a model that was trained on running text.
    tokenizer : Tokenizer
        Of that text.
    prompt : str
    wanted : Wanted
    sample : int
        The number of the text, where several are drawn: each is a text of its own, whichever others are made.

    Raises
    ------
    InputError
        The prompt has something that is not in the vocabulary, or no token at all, the tokenizer is none of this
        model, or a setting is out of range.
    """
    require("max_tokens", wanted.max_tokens, is_integer(wanted.max_tokens, 1), "an integer of at least 1")
    draws = Sampling(wanted.temperature, wanted.top_k, wanted.top_p, wanted.seed, np.array([sample]))
    step, ids, end = _stepper(trainer, tokenizer), encoded_prompt(tokenizer, prompt), _end(tokenizer, wanted.end)
    stream, following = TextStream(tokenizer), _following(step, ids, wanted, greedy if wanted.greedy else draws, end)

    def next_tokens() -> np.ndarray | None:
        with trainer.replica.averaged():  # not while the caller has the text, who may train on
            return next(following, None)

    tokens = next_tokens()  # what cannot be made is refused before the prompt is shown
    yield stream.add(ids)
    while tokens is not None:
        yield stream.add(tokens if wanted.end is not None or end is None else tokens[tokens != end])
        tokens = next_tokens()
    yield stream.end()


def _following(step: Stepper, ids: np.ndarray, wanted: Wanted, choose: Choose, end: int | None) -> Iterator[np.ndarray]:
    """Yield the tokens that follow a prompt, as many as there are at a time."""
    if wanted.beams is not None:
        yield beam_search(
            step,
            ids,
            beams=wanted.beams,
            max_tokens=wanted.max_tokens,
            end=end,
            length_penalty=wanted.length_penalty,
        )[0].tokens
        return
    for tokens in generate(step, [ids], choose, max_tokens=wanted.max_tokens, end=end):
        yield tokens[tokens != NOTHING]


def _stepper(trainer: Trainer, tokenizer: Tokenizer) -> Stepper:
    """Return what makes logits of the tokens of a vocabulary."""
    shape = trainer.replica.input_shape
    return within(Decoder(trainer.model, shape, shape[0], slides=True), trainer.replica.output_shape[-1], tokenizer)


def _end(tokenizer: Tokenizer, text: str | None) -> int | None:
    """Return the token that ends a text: `eos` if there is one, or that of another text if asked."""
    if text is None:
        return tokenizer.eos
    with amended("--end: "):
        ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise InputError("no single token", where="--end", found=f"{len(ids)} tokens", expected="the text of one")
    if ids[0] == tokenizer.unk:
        raise InputError("is not in the vocabulary", where="--end", found=repr(text), expected="the text of a token")
    return int(ids[0])


def encoded_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Return the tokens that a text begins with, int64 (n,), n at least 1; see `generate_text`.

    Raises
    ------
    InputError
        The prompt is no text, something is not in the vocabulary, or there is nothing to begin with.
    """
    if any("\ud800" <= character <= "\udfff" for character in prompt):  # what Python makes of other bytes
        raise InputError("is no text of UTF-8", where="--prompt", found=repr(prompt))
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    if not prompt and not begin and not _has_lines(tokenizer):
        raise InputError(
            "no text to begin with", where="--prompt", expected="a text: the vocabulary has no end of a line"
        )
    with amended("--prompt: "):
        ids = tokenizer.encode(prompt if prompt or begin else "\n")
    if not begin and not len(ids):
        raise InputError("nothing of it is a token", where="--prompt", found=repr(prompt), expected="a text")
    return np.array([*begin, *ids.tolist()], np.int64)


def _has_lines(tokenizer: Tokenizer) -> bool:
    """Return whether the end of a line is a token."""
    try:
        return len(tokenizer.encode("\n")) > 0
    except InputError:
        return False
