"""How sequences are made of logits: greedily, by draws, or by beam search. Of models it knows a `Stepper` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from hpdl_mpi.base.errors import InputError, is_integer, is_number, require
from hpdl_mpi.kernels.random import derive_key
from hpdl_mpi.kernels.sampling import UNCLEAR, best_continuations, draw, likeliest

NOTHING = -1
"""In place of a token, where a sequence gets none."""

_MOST_BEAMS, _MOST_PENALTY = 1024, 10
"""More would fill the memory with what is never looked at, or leave the range of numbers."""


class Stepper(Protocol):
    """What says how sequences may go on, such as a `Decoder`."""

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        """Return logits, (n, vocabulary), borrowed until the next call, for the next piece of each sequence, int64."""

    def reorder(self, parents: np.ndarray) -> None:
        """Let sequence i go on as sequence ``parents[i]`` did so far; int64 (m,)."""


Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes logits, (n, v), and how many tokens each sequence has got so far, int64 (n,); returns tokens, int64 (n,)."""


def greedy(logits: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Return the likeliest token of each sequence."""
    tokens = np.empty(len(logits), np.int64)
    likeliest(logits, tokens)
    return _clear(tokens)


@dataclass
class Sampling:
    """Draws tokens by their probabilities.

    The draw for a token depends on the seed, the sequence and how many tokens it has got, so a sequence is the same in
    whatever company, as long as none is longer than the context.

    Attributes
    ----------
    temperature : float
        Logits are divided by it: below 1 what is likely becomes likelier.
    top_k : int
        Only so many of the likeliest tokens are drawn from; 0 for all.
    top_p : float
        Only so many of these as have this probability together; 1 for all.
    seed : int
    streams : int64 array, shape (n,), optional
        The numbers of the sequences; by default 0, 1, ...
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    streams: np.ndarray | None = None
    _heap: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), init=False, repr=False)

    def __post_init__(self) -> None:
        warm = is_number(self.temperature) and self.temperature > 0
        require("temperature", self.temperature, warm, "a number above 0; the likeliest token is what greedy takes")
        require("top_k", self.top_k, is_integer(self.top_k, 0), "an integer, or 0 for all tokens")
        require("top_p", self.top_p, is_number(self.top_p) and 0 < self.top_p <= 1, "a number above 0, up to 1")
        require("seed", self.seed, is_integer(self.seed, 0), "an integer of at least 0")
        self._key = derive_key("sampling", self.seed)

    def __call__(self, logits: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Return a token of each sequence; see `Choose`."""
        n, vocabulary = logits.shape
        if self._heap.size != vocabulary:
            self._heap = np.empty(vocabulary, np.int64)
        streams = np.arange(n) if self.streams is None else self.streams
        if streams.shape != (n,) or streams.dtype != np.int64:
            found = f"shape {streams.shape}, {streams.dtype}"
            raise InputError("no numbers of the sequences", where="streams", found=found, expected=f"int64 ({n},)")
        tokens = np.empty(n, np.int64)
        draw(logits, self.temperature, self.top_k, self.top_p, self._key, streams, numbers, self._heap, tokens)
        return _clear(tokens)


def generate(
    step: Stepper, prompts: Sequence[np.ndarray], choose: Choose, *, max_tokens: int, end: int | None = None
) -> Iterator[np.ndarray]:
    """Yield what follows some prompts, token by token.

    Prompts of different lengths go in step: all are read up to the end of the shortest, and from there on each gets
    what stands in its prompt, and then what is chosen. So there is no padding, and nothing has to be hidden.

    Parameters
    ----------
    step : Stepper
        At the begin of its sequences.
    prompts : sequence of int64 array, shape (length,)
        One for each sequence, none empty.
    choose : callable
        Such as `greedy` or a `Sampling`.
    max_tokens : int
        That a sequence gets.
    end : int, optional
        The token after which a sequence gets no more.

    Yields
    ------
    int64 array, shape (n,)
        The next token of each sequence, the last one being `end` if it was chosen, or `NOTHING`. The caller owns it.

    Raises
    ------
    InputError
        There is no prompt, one is empty or of no integers, or logits are not finite numbers.
    """
    require("max_tokens", max_tokens, is_integer(max_tokens, 0), "an integer of at least 0")
    require("prompts", len(prompts), len(prompts) > 0, "at least one")
    for prompt in prompts:
        _require_prompt(prompt)
    lengths = np.array([len(prompt) for prompt in prompts])
    table = np.zeros((len(prompts), lengths.max()), np.int64)
    for row, prompt in zip(table, prompts, strict=True):
        row[: len(prompt)] = prompt
    numbers, going = np.zeros(len(prompts), np.int64), np.full(len(prompts), max_tokens > 0)
    place = lengths.min()
    tokens = np.ascontiguousarray(table[:, :place])
    while going.any():
        chosen = choose(step(tokens), numbers)
        if place < table.shape[1]:
            given = place < lengths
            chosen[given] = table[given, place]
            reached = ~given & going
        else:
            reached = going
        place += 1
        tokens = np.maximum(chosen, 0)[:, None]
        numbers[reached] += 1
        result = np.where(reached, chosen, NOTHING)
        going = going & ~(reached & (chosen == end)) & (numbers < max_tokens)
        if reached.any():
            yield result


class Beam(NamedTuple):
    """A sequence that beam search has found: its tokens, int64 (length,), and the score that it is ranked by."""

    tokens: np.ndarray
    score: float


def beam_search(
    step: Stepper,
    prompt: np.ndarray,
    *,
    beams: int,
    max_tokens: int,
    end: int | None = None,
    length_penalty: float = 1.0,
) -> list[Beam]:
    """Return the best sequences that follow a prompt, best first, without the prompt.

    It goes by the rules of `transformers` (``early_stopping=False``): a sequence of t tokens, `end` included, is ranked
    by the logarithm of its probability over t ** `length_penalty`. Of the 2 `beams` likeliest continuations those among
    the first `beams` that end are done, and the likeliest `beams` that do not end go on. It stops when as many are done
    and the likeliest that goes on is, at its present length, ranked behind them all, or at `max_tokens`.

    Parameters
    ----------
    step : Stepper
        At the begin of its sequences.
    prompt : int64 array, shape (length,)
        Not empty.
    beams : int
        Sequences that are followed at a time.
    max_tokens : int
        Of a sequence, at least 1.
    end : int, optional
        The token that ends one.
    length_penalty : float
        0 favours short sequences, more than 1 long ones.

    Raises
    ------
    InputError
        The prompt is empty, a number is out of range, or logits are not finite numbers.
    """
    require_beams(beams, length_penalty)
    require("max_tokens", max_tokens, is_integer(max_tokens, 1), "an integer of at least 1")
    _require_prompt(prompt)
    best, rows, tokens = np.empty(2 * beams), *np.empty((2, 2 * beams), np.int64)
    running, scores = np.zeros((1, 0), np.int64), np.zeros(1)
    done: list[Beam] = []
    pieces = np.array(prompt, np.int64)[None]
    for length in range(1, max_tokens + 1):
        best_continuations(step(pieces), scores, best, rows, tokens)
        _clear(tokens[:1])
        ends = (tokens == end) if length < max_tokens else np.ones(2 * beams, bool)
        for place in np.flatnonzero(ends[:beams] & (rows[:beams] >= 0)):
            sequence = np.append(running[rows[place]], tokens[place])
            done.append(Beam(sequence, float(best[place]) / length**length_penalty))
        done = sorted(done, key=lambda beam: -beam.score)[:beams]
        onward = np.flatnonzero(~ends & (rows >= 0))[:beams]
        if not onward.size:
            break
        scores = best[onward]
        if len(done) == beams and scores[0] / length**length_penalty <= done[-1].score:
            break
        running = np.concatenate([running[rows[onward]], tokens[onward, None]], axis=1)
        step.reorder(rows[onward])
        pieces = tokens[onward, None]
    return done


def require_beams(beams: int, length_penalty: float) -> None:
    """Raise an `InputError` if `beam_search` cannot work with these."""
    possible = is_integer(beams, 1) and beams <= _MOST_BEAMS
    require("beams", beams, possible, f"an integer of at least 1, at most {_MOST_BEAMS:,}")
    possible = is_number(length_penalty) and abs(length_penalty) <= _MOST_PENALTY
    require("length_penalty", length_penalty, possible, f"a number from -{_MOST_PENALTY} to {_MOST_PENALTY}")


def _require_prompt(prompt: np.ndarray) -> None:
    """Raise an `InputError` if a sequence cannot begin so."""
    if len(prompt) == 0:
        raise InputError("a prompt is empty", remedy="begin with a token")
    array = np.asarray(prompt)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        found = f"shape {array.shape}, {array.dtype}"
        raise InputError("a prompt is not of tokens", found=found, expected="integers, (length,)")


def _clear(tokens: np.ndarray) -> np.ndarray:
    """Return tokens, or raise if one is missing: logits were not finite numbers."""
    if (tokens == UNCLEAR).any():
        raise InputError(
            "the outputs of the model are not finite numbers",
            where="logits",
            remedy="look at the run's losses; take an earlier checkpoint",
        )
    return tokens
