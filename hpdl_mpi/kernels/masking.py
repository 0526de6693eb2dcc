"""Which tokens of a text a model is to predict, and what it sees in their place (Devlin et al., "BERT", 2018)."""

from __future__ import annotations

import numpy as np
from numba import prange

from hpdl_mpi.kernels.jit import parallel_kernel
from hpdl_mpi.kernels.random import philox

_WORDS = 4294967296.0
"""Random words that there are."""

_HIDDEN, _REPLACED = np.uint64(0.8 * _WORDS), np.uint64(0.9 * _WORDS)
"""Words below the first hide a token that is to be predicted; those up to the second replace it; the others keep it."""

_32 = np.uint64(32)


@parallel_kernel
def _mask_tokens(tokens, key, sample_ids, chosen, specials, vocabulary, mask, ignored, inputs, targets):
    ordinary = np.uint64(vocabulary - specials)
    for i in prange(tokens.shape[0]):
        stream = np.uint64(sample_ids[i])
        for t in range(tokens.shape[1]):
            token = tokens[i, t]
            choice, fate, other, _ = philox(key, stream, np.uint64(t))
            wanted = token >= specials and choice < chosen
            targets[i, t] = token if wanted else ignored
            if wanted and fate < _HIDDEN:
                inputs[i, t] = mask
            elif wanted and fate < _REPLACED:
                inputs[i, t] = specials + np.int64((other * ordinary) >> _32)
            else:
                inputs[i, t] = token


def mask_tokens(
    tokens: np.ndarray,
    key: np.uint64,
    sample_ids: np.ndarray,
    *,
    vocabulary: int,
    specials: int,
    mask: int,
    inputs: np.ndarray,
    targets: np.ndarray,
    rate: float = 0.15,
    ignored: int = -1,
) -> None:
    """Choose tokens that a model is to predict, and hide 80 % of them, replace 10 % and keep 10 %.

    What becomes of a token depends on (key, sample id, step) alone, so it is the same on every grid of ranks; with a
    key of each epoch (``derive_key("augment", seed, epoch)``) a text is masked anew every time it is read, as in
    RoBERTa (Liu et al., 2019).

    Parameters
    ----------
    tokens : int64 array, shape (n, steps)
    key : uint64
    sample_ids : int64 array, shape (n,)
    vocabulary : int
        Tokens are 0 to below this.
    specials : int
        Tokens below this, such as padding, are never chosen, and none of them replaces another; less than `vocabulary`.
    mask : int
        The token that hides others, one of the specials.
    inputs : int64 array, shape (n, steps)
        Written: what the model reads. May be `tokens` itself.
    targets : int64 array, shape (n, steps)
        Written: the tokens that are to be predicted, and `ignored` everywhere else.
    rate : float
        The part of ordinary tokens that is chosen, 0 to 1.
    ignored : int
    """
    assert 0 <= mask < specials < vocabulary, "the mask is a special token, and others are not"
    assert tokens.shape == inputs.shape == targets.shape, "each token has an input and a target"
    chosen = np.uint64(rate * _WORDS)
    _mask_tokens(tokens, key, sample_ids, chosen, specials, vocabulary, mask, ignored, inputs, targets)
