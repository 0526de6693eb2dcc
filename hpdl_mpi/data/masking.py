"""What a job says about masked tokens: how many a model is to predict, and what may stand in their place."""

from __future__ import annotations

from dataclasses import dataclass

from hpdl_mpi.base.errors import InputError, is_integer, is_number, require


@dataclass(frozen=True)
class Masking:
    """Which tokens of a text are hidden for a model to predict them, see `kernels.masking.mask_tokens`.

    Of the chosen ones 80 % become the mask, 10 % another token, and 10 % stay (Devlin et al., "BERT", 2018). Training
    draws for (seed, epoch, sample id), evaluation for the sample id alone. Immutable and hashable.

    Parameters
    ----------
    mask : int
        The token that hides others.
    vocabulary : int
        Tokens are 0 to below this.
    specials : int, optional
        Tokens below this are never chosen, and none of them replaces another: by default the mask and all below it.
    rate : float
        The part of ordinary tokens that is chosen; above 0, at most 1.

    Raises
    ------
    InputError
        A value is out of range, or the mask is none of the specials, or no token is ordinary.
    """

    mask: int
    vocabulary: int
    specials: int | None = None
    rate: float = 0.15

    def __post_init__(self) -> None:
        require("masking.mask", self.mask, is_integer(self.mask, 0), "an integer of at least 0")
        first = self.mask + 1 if self.specials is None else self.specials
        possible = is_integer(first, self.mask + 1)
        require("masking.specials", first, possible, f"an integer above the mask, {self.mask}, which is one of them")
        possible = is_integer(self.vocabulary, first + 1)
        require("masking.vocabulary", self.vocabulary, possible, f"an integer above {first}, the number of specials")
        possible = is_number(self.rate) and 0 < self.rate <= 1
        require("masking.rate", self.rate, possible, "a number above 0, at most 1")
        # NumPy's numbers become Python's, which JSON knows.
        for name, value in (("mask", self.mask), ("specials", first), ("vocabulary", self.vocabulary)):
            object.__setattr__(self, name, int(value))
        object.__setattr__(self, "rate", float(self.rate))

    @property
    def num_specials(self) -> int:
        """How many tokens are never chosen: `specials`, once its default is filled in."""
        assert self.specials is not None, "set when it was checked"
        return self.specials

    def require_outputs(self, classes: int) -> None:
        """Raise an `InputError` if a model of so many classes cannot predict all tokens."""
        if classes < self.vocabulary:
            raise InputError(
                "the model has too few outputs",
                where="data.masking.vocabulary",
                found=self.vocabulary,
                expected=f"at most {classes}, the classes that the model puts out for each token",
                remedy="give both the size of the tokenizer's vocabulary",
            )
