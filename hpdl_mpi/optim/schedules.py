"""Learning-rate schedules: pure functions of the step that multiply the optimizer's rate."""

from __future__ import annotations

import abc
import math

from hpdl_mpi.base.errors import InputError


class Schedule(abc.ABC):
    """Multiplies the learning rate at each step; all of them can begin with a linear warm-up.

    Parameters
    ----------
    warmup_steps : int
        Steps over which the factor rises from 1 / warmup_steps to 1 (Goyal et al., 2017).
    """

    def __init__(self, *, warmup_steps: int = 0) -> None:
        if warmup_steps < 0:
            raise _out_of_range("warmup_steps", warmup_steps, "at least 0")
        self.warmup_steps = warmup_steps

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

    def __init__(self, *, every: int, gamma: float = 0.1, warmup_steps: int = 0) -> None:
        super().__init__(warmup_steps=warmup_steps)
        if every < 1:
            raise _out_of_range("every", every, "at least 1")
        if not 0 < gamma < math.inf:
            raise _out_of_range("gamma", gamma, "a number above 0")
        self.every = every
        self.gamma = gamma

    def _after_warmup(self, step: int, num_steps: int) -> float:
        return self.gamma ** (step // self.every)


class Cosine(Schedule):
    """Half a cosine from 1 down to `final` (Loshchilov and Hutter, "SGDR", 2017)."""

    def __init__(self, *, final: float = 0.0, warmup_steps: int = 0) -> None:
        super().__init__(warmup_steps=warmup_steps)
        if not 0 <= final <= 1:
            raise _out_of_range("final", final, "0 to 1")
        self.final = final

    def _after_warmup(self, step: int, num_steps: int) -> float:
        progress = min(1.0, step / num_steps)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _out_of_range(key: str, found: object, expected: str) -> InputError:
    return InputError("out of range", where=f"lr_schedule.{key}", found=found, expected=expected)
