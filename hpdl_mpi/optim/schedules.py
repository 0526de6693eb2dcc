"""Learning-rate schedules: pure functions of the step that multiply the optimizer's rate."""

from __future__ import annotations

import abc
import math

from hpdl_mpi.base.errors import is_integer, is_number, require


class Schedule(abc.ABC):
    """Multiplies the learning rate at each step; all of them can begin with a linear warm-up.

    Parameters
    ----------
    warmup_steps : int
        Steps over which the factor rises from 1 / warmup_steps to 1 (Goyal et al., 2017).
    base_batch_size : int, optional
        The global batch size that the rate is meant for; with others it grows in proportion (the same).
    """

    def __init__(self, *, warmup_steps: int = 0, base_batch_size: int | None = None) -> None:
        require("lr_schedule.warmup_steps", warmup_steps, is_integer(warmup_steps, 0), "an integer of at least 0")
        possible = base_batch_size is None or is_integer(base_batch_size, 1)
        require("lr_schedule.base_batch_size", base_batch_size, possible, "an integer of at least 1")
        self.warmup_steps, self.base_batch_size = warmup_steps, base_batch_size

    def scale(self, global_batch_size: int) -> float:
        """Return what multiplies the rate of all steps for batches of this size."""
        return global_batch_size / self.base_batch_size if self.base_batch_size else 1.0

    def factor(self, step: int, num_steps: int) -> float:
        """Return the factor of step 0, 1, ... of `num_steps`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self._after_warmup(step - self.warmup_steps, max(1, num_steps - self.warmup_steps))

    @abc.abstractmethod
    def _after_warmup(self, step: int, num_steps: int) -> float:
        """Return the factor, counting from the end of the warm-up."""


class Constant(Schedule):
    """1 throughout."""

    def _after_warmup(self, step: int, num_steps: int) -> float:
        return 1.0


class Step(Schedule):
    """Multiplied by `gamma` after every `every` steps."""

    def __init__(
        self, *, every: int, gamma: float = 0.1, warmup_steps: int = 0, base_batch_size: int | None = None
    ) -> None:
        super().__init__(warmup_steps=warmup_steps, base_batch_size=base_batch_size)
        require("lr_schedule.every", every, is_integer(every, 1), "an integer of at least 1")
        require("lr_schedule.gamma", gamma, is_number(gamma) and gamma > 0, "a number above 0")
        self.every = every
        self.gamma = gamma

    def _after_warmup(self, step: int, num_steps: int) -> float:
        return self.gamma ** (step // self.every)


class Cosine(Schedule):
    """Half a cosine from 1 down to `final` (Loshchilov and Hutter, "SGDR", 2017)."""

    def __init__(self, *, final: float = 0.0, warmup_steps: int = 0, base_batch_size: int | None = None) -> None:
        super().__init__(warmup_steps=warmup_steps, base_batch_size=base_batch_size)
        require("lr_schedule.final", final, is_number(final) and 0 <= final <= 1, "0 to 1")
        self.final = final

    def _after_warmup(self, step: int, num_steps: int) -> float:
        progress = min(1.0, step / num_steps)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


class InverseSquareRoot(Schedule):
    """Falls with the square root of the step, as it begins to when the warm-up ends (Vaswani et al., 2017; "Noam").

    With ``optimizer.lr = (width * warmup_steps) ** -0.5`` it is the rate of "Attention is all you need".
    """

    def _after_warmup(self, step: int, num_steps: int) -> float:
        begun = max(1, self.warmup_steps)
        return math.sqrt(begun / (self.warmup_steps + step + 1))
