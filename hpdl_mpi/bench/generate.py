"""``hpdl bench generate``: text from a language model, token by token, by ours and by transformers' of that shape.

Both take the likeliest token each time, remember keys and values, and have one text at a time.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from hpdl_mpi.base.errors import InputError
from hpdl_mpi.bench.contender import Contender, pool_sizes, worker_command
from hpdl_mpi.bench.machine import describe_command, describe_machine, describe_versions
from hpdl_mpi.bench.rounds import play
from hpdl_mpi.bench.step import OURS, check_settings, check_twins, report

SHAPES: dict[str, dict[str, int]] = {
    "gpt2_124m": {"vocab_size": 50257, "n_positions": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt_small": {"vocab_size": 256, "n_positions": 256, "n_layer": 6, "n_head": 6, "n_embd": 384},
    "gpt_nano": {"vocab_size": 65, "n_positions": 64, "n_layer": 4, "n_head": 4, "n_embd": 128},
}
"""The models that can be timed, with the sizes that transformers has to be told."""

CONTENDERS = {"transformers": "hpdl_mpi.bench.generate_transformers:load"}

_REMEDY = "Install PyTorch and transformers with pip install 'hpdl_mpi[bench]'"


def bench_generate(
    model: str,
    threads: int,
    vs: str | None = None,
    *,
    prompt_tokens: int = 32,
    new_tokens: int = 64,
    num_rounds: int = 10,
    turn_seconds: float = 1.0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time how a model in float32 reads a prompt and writes what follows; weights are those that training begins with.

    Parameters
    ----------
    model : str
        A key of `SHAPES`.
    threads : int
        Of each contender.
    vs : str, optional
        A key of `CONTENDERS`.
    prompt_tokens, new_tokens : int
    num_rounds : int
    turn_seconds : float
        About how long each contender writes in each round; one text at least.
    say : callable
        Shown what goes on.

    Returns
    -------
    dict
        Ready for JSON, as `bench_step` returns it: a step is a whole text, and ``tokens_per_second`` counts the new
        tokens in all of its time, the reading of the prompt included.

    Raises
    ------
    InputError
        An argument is out of range, or a contender cannot run.
    ContenderError
        A contender crashed or hung.
    """
    _check(model, threads, vs, prompt_tokens, new_tokens, num_rounds)
    settings = {"model": model, "threads": threads, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    loaders = {OURS: "hpdl_mpi.bench.generate_hpdl:load"} | ({vs: CONTENDERS[vs]} if vs else {})
    machine = describe_machine()
    with ExitStack() as stack:
        contenders = []
        for name, loader in loaders.items():
            say(f"warming up {name}")
            command, environ = worker_command(loader, settings), pool_sizes(threads)
            contenders.append(stack.enter_context(Contender(name, command, environ=environ, remedy=_REMEDY)))
        check_twins(contenders)
        turns = play(contenders, num_rounds, turn_seconds, say)
    result = report(turns, new_tokens)
    rate = result.pop("samples_per_second")
    return {
        **settings,
        "batch": 1,
        "precision": "float32",
        "tokens_per_second": rate,
        **result,
        "rounds": num_rounds,
        "notes": [],
        "machine": machine,
        "versions": describe_versions(*(["torch", "transformers"] if vs else [])),
        "command": describe_command(),
    }


def random_prompt(model: str, tokens: int) -> np.ndarray:
    """Return tokens of a model's vocabulary, int64 (tokens,); always the same."""
    return np.random.default_rng(0).integers(SHAPES[model]["vocab_size"], size=tokens)


def _check(model: str, threads: int, vs: str | None, prompt_tokens: int, new_tokens: int, num_rounds: int) -> None:
    if model not in SHAPES:
        raise InputError("unknown model", where="--model", found=repr(model), expected=" or ".join(SHAPES))
    check_settings(model, 1, threads, num_rounds)
    if vs is not None and vs not in CONTENDERS:
        raise InputError("unknown contender", where="--vs", found=repr(vs), expected=" or ".join(CONTENDERS))
    longest = SHAPES[model]["n_positions"]
    for option, value in (("--prompt-tokens", prompt_tokens), ("--new-tokens", new_tokens)):
        if value < 1 or prompt_tokens + new_tokens > longest:
            expected = f"at least 1, and with the others at most {longest}, the model's context"
            raise InputError("out of range", where=option, found=value, expected=expected)
    if vs is not None and any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        raise InputError("transformers is not installed", where=f"--vs {vs}", remedy=_REMEDY)
