"""Our text: what ``hpdl generate --greedy`` does with the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable

from hpdl_mpi.bench.subject import Subject


def load(model: str, threads: int, prompt_tokens: int, new_tokens: int) -> Callable[[], Subject]:
    """Import, set the threads, wake Numba; return what builds the model and its text."""
    import numpy as np

    from hpdl_mpi.bench.generate import SHAPES, random_prompt
    from hpdl_mpi.kernels.elementwise import add
    from hpdl_mpi.kernels.threads import set_threads
    from hpdl_mpi.models import MODELS
    from hpdl_mpi.nn import Layout
    from hpdl_mpi.nn.decoding import Decoder
    from hpdl_mpi.nn.search import generate, greedy

    set_threads(threads)
    add(np.zeros(1), np.zeros(1), np.zeros(1))

    def build() -> Subject:
        network, shape = MODELS[model](), (SHAPES[model]["n_positions"],)
        network.build(shape)
        layout = Layout(network)
        params = layout.allocate("float32")
        layout.initialize(params, 0)
        layout.bind(network, params, params)  # nobody asks for gradients
        decoder = Decoder(network, shape, shape[0], slides=True)
        prompt = random_prompt(model, prompt_tokens)

        def write() -> None:
            decoder.forget()
            for _ in generate(decoder, [prompt], greedy, max_tokens=new_tokens):
                pass

        return Subject(write, sum(segment.stop - segment.start for segment in layout.segments))

    return build
