"""What data-parallel ranks' communication costs a step, from recorded spans: what is hidden behind computing, what not.

A rank waits for others because they have not come so far yet, or because numbers are still on their way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from hpdl_mpi.base.trace import Span

_SUMS = ("totals", "gradients", "norm", "moments")
"""Names of waits for sums, and for the moments that batch normalisation takes over all ranks."""

_PARAMETERS = "parameters"
"""The name of waits for what other ranks have updated. Waits of further names are a pipeline's."""


@dataclass(frozen=True)
class CommunicationTimes:
    """Seconds of a step: means over ranks and medians over steps.

    Attributes
    ----------
    under_way : float
        How long a rank had communication under way: sums of gradients, gathers of parameters, and all it waited for.
    exposed : float
        How long it waited: for gradients, totals, the norm, moments of batch normalisation, and parameters.
    late : float
        How much of that before the last rank had begun its last sum of gradients or, of waits for parameters, its last
        gather: no network makes it shorter.
    lateness : tuple of float
        By rank: how long after the first rank it began its sums of gradients.
    """

    under_way: float
    exposed: float
    late: float
    lateness: tuple[float, ...]

    @property
    def hidden(self) -> float:
        """The share of the communication's time in which a rank does not wait for it."""
        return max(0.0, 1.0 - self.exposed / self.under_way) if self.under_way else 0.0


def measure_communication(steps: Sequence[Sequence[Sequence[Span]]]) -> CommunicationTimes | None:
    """Return the times of recorded steps, or None if no gradients were summed in them.

    Parameters
    ----------
    steps : sequence
        The spans of data-parallel ranks on one clock: by rank and by step.
    """
    by_step = [[_Communication.of(mine) for mine in ranks] for ranks in zip(*steps, strict=True)]
    by_step = [ranks for ranks in by_step if all(one.sums for one in ranks)]
    if not by_step:
        return None
    lateness = [_lateness([one.sums for one in ranks]) for ranks in by_step]
    return CommunicationTimes(
        under_way=median(fmean(_covered(one.all) for one in ranks) for ranks in by_step),
        exposed=median(fmean(_covered(one.waits) for one in ranks) for ranks in by_step),
        late=median(_late(ranks) for ranks in by_step),
        lateness=tuple(median(of_rank) for of_rank in zip(*lateness, strict=True)),
    )


@dataclass(frozen=True)
class _Communication:
    """The communication of a rank's step: sums of gradients, gathers of parameters, waits."""

    sums: list[Span]
    gathers: list[Span]
    waits: list[Span]

    @classmethod
    def of(cls, spans: Sequence[Span]) -> _Communication:
        """Return that of all spans of a step."""
        waits = [span for span in spans if span.kind == "wait" and span.name in (*_SUMS, _PARAMETERS)]
        sums, gathers = ([span for span in spans if span.kind == kind] for kind in ("reduce", "gather"))
        return cls(sums, gathers, waits)

    @property
    def all(self) -> list[Span]:
        """All of it."""
        return [*self.sums, *self.gathers, *self.waits]

    def before(self, last_sum: float, last_gather: float) -> list[Span]:
        """Return the waits as far as they are before the last rank has begun what they are for."""
        return [
            span._replace(stop=min(span.stop, last_gather if span.name == _PARAMETERS else last_sum))
            for span in self.waits
        ]


def _late(ranks: Sequence[_Communication]) -> float:
    last_sum = max(span.start for one in ranks for span in one.sums)
    last_gather = max((span.start for one in ranks for span in one.gathers), default=last_sum)
    return fmean(_covered(one.before(last_sum, last_gather)) for one in ranks)


def _lateness(ranks: Sequence[Sequence[Span]]) -> list[float]:
    """Return for each rank how long after the first one it began its sums, the mean over all of a step."""
    first: dict[str, float] = {}
    for span in (span for sums in ranks for span in sums):
        first[span.name] = min(span.start, first.get(span.name, span.start))
    return [fmean(span.start - first[span.name] for span in sums) for sums in ranks]


def _covered(spans: Iterable[Span]) -> float:
    """Return how long at least one of some spans lasted."""
    seconds, end = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        seconds += max(0.0, span.stop - max(span.start, end))
        end = max(end, span.stop)
    return seconds
