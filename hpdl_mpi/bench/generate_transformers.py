"""The text of transformers: ``generate`` with its cache of keys and values, as its documentation advises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpdl_mpi.bench.subject import Subject


def load(model: str, threads: int, prompt_tokens: int, new_tokens: int) -> Callable[[], Subject]:
    """Import, set the threads; return what builds the model and its text."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hpdl_mpi.bench.generate import SHAPES, random_prompt

    torch.set_num_threads(threads)

    def build() -> Subject:
        torch.manual_seed(0)
        sizes: dict[str, Any] = dict(SHAPES[model])
        network = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
        network.generation_config.eos_token_id = None  # as many tokens as were asked for
        prompt = torch.from_numpy(random_prompt(model, prompt_tokens)[None])
        seen = torch.ones_like(prompt)

        def write() -> None:
            with torch.inference_mode():
                tokens = network.generate(
                    prompt,
                    attention_mask=seen,
                    do_sample=False,
                    use_cache=True,
                    min_new_tokens=new_tokens,
                    max_new_tokens=new_tokens,
                    pad_token_id=0,
                )
            assert tokens.shape[1] == prompt_tokens + new_tokens, "all tokens were written"

        return Subject(write, sum(parameter.numel() for parameter in network.parameters()))

    return build
