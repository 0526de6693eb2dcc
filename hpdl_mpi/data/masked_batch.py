"""One rank's share of a global batch of texts some of whose tokens are hidden, to be predicted."""

from __future__ import annotations

import numpy as np

from hpdl_mpi.base.errors import BadSample, amended
from hpdl_mpi.base.memory import aligned
from hpdl_mpi.data.augment import Augment
from hpdl_mpi.data.batch import Batch
from hpdl_mpi.data.masking import Masking
from hpdl_mpi.data.prepare_tokens import IGNORED, TOKEN, TokenPreparation
from hpdl_mpi.data.samples import Samples
from hpdl_mpi.data.transform import Transform
from hpdl_mpi.kernels.embedding import first_outside
from hpdl_mpi.kernels.masking import mask_tokens
from hpdl_mpi.kernels.random import derive_key

_EVALUATION = derive_key("masking", "evaluation")
"""With it every evaluation hides the same tokens, whatever the seed of the run."""


class MaskedBuffers:
    """Arrays for one batch, and the stored tokens that it is made from; empty if it has neither inputs nor targets."""

    def __init__(self, maker: MaskedMaker) -> None:
        shape = maker.max_share if maker.reads else 0, *maker.input_shape
        self.raw = aligned(shape, maker.dataset.input_dtype)
        self.inputs, self.targets = aligned(shape, TOKEN), aligned(shape, TOKEN)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(array.nbytes for array in vars(self).values())


class MaskedMaker:
    """Reads the texts of batches and hides some of their tokens, in one thread. Owns no batch; see `Loader`.

    Parameters
    ----------
    dataset : Samples
        Whose inputs are tokens, (T,); its own targets are not read.
    max_share : int
        Samples of a batch at most.
    masking : Masking
    reads_inputs, reads_targets : bool

    Attributes
    ----------
    reads : bool
        Whether texts are read at all: inputs are made with the targets, so one of both is enough.
    input_shape, target_shape : (int,)
    target_dtype : numpy dtype

    Raises
    ------
    InputError
        The inputs are no integers.
    """

    def __init__(
        self,
        dataset: Samples,
        max_share: int,
        masking: Masking,
        *,
        reads_inputs: bool,
        reads_targets: bool,
    ) -> None:
        self.dataset, self.max_share, self.masking = dataset, max_share, masking
        self.reads_inputs, self.reads_targets = reads_inputs, reads_targets
        self.reads = reads_inputs or reads_targets
        with amended(f"{dataset.path}: "):
            self._preparation = TokenPreparation(Transform(), Augment(), dataset.input_shape, dataset.input_dtype)
        self.input_shape = self.target_shape = dataset.input_shape
        self.target_dtype = TOKEN

    def _check(self, tokens: np.ndarray, ids: np.ndarray) -> None:
        """Raise a `BadSample` if a token is none of the vocabulary, from which those that replace others are drawn."""
        bad = first_outside(tokens.reshape(-1), self.masking.vocabulary)
        if bad >= 0:
            raise BadSample(
                "a token is outside the vocabulary",
                sample=int(ids[bad // tokens.shape[1]]),
                where="data.masking.vocabulary",
                found=int(tokens.reshape(-1)[bad]),
                expected=f"0 to {self.masking.vocabulary - 1}",
                remedy="give the size of the tokenizer's vocabulary",
            )

    def buffers(self) -> MaskedBuffers:
        """Return new arrays for one batch."""
        return MaskedBuffers(self)

    def fill(
        self, buffers: MaskedBuffers, global_ids: np.ndarray, first: int, last: int, offset: int, key: np.uint64 | None
    ) -> Batch:
        """Make a batch of the texts in slots `first` to `last` of a global batch; see `BatchMaker.fill`."""
        ids, masking = global_ids[first:last], self.masking
        if not self.reads:
            return Batch(None, None, ids, global_ids.size, offset)
        raw, inputs, targets = (array[: ids.size] for array in (buffers.raw, buffers.inputs, buffers.targets))
        self.dataset.read(ids, raw, None)
        self._preparation.apply(raw, inputs)
        self._check(inputs, ids)
        mask_tokens(
            inputs,
            _EVALUATION if key is None else key,
            ids,
            vocabulary=masking.vocabulary,
            specials=masking.num_specials,
            mask=masking.mask,
            inputs=inputs,
            targets=targets,
            rate=masking.rate,
            ignored=IGNORED,
        )
        return Batch(
            inputs if self.reads_inputs else None,
            targets if self.reads_targets else None,
            ids,
            global_ids.size,
            offset,
        )
