"""What the sums over data-parallel ranks cost a step, from recorded spans: what is hidden behind computing, what not.

A rank waits for a sum because others have not come so far yet, or because numbers are still on their way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from hpdl_mpi.base.trace import Span

_SUMS = ("totals", "gradients", "norm")
"""Names of waits for sums; others are a pipeline's."""


@dataclass(frozen=True)
class CommunicationTimes:
    """Seconds of a step: means over ranks and medians over steps.

    Attributes
    ----------
    under_way : float
        How long a sum of gradients was.
    exposed : float
        How long a rank waited for sums, gradients and totals.
    late : float
        How much of that before the last rank had begun its last sum: no network makes it shorter.
    lateness : tuple of float
        By rank: how long after the first rank it began its sums.
    """

    under_way: float
    exposed: float
    late: float
    lateness: tuple[float, ...]

    @property
    def hidden(self) -> float:
        """The share of the sums' time in which ranks had something else to do."""
        return max(0.0, 1.0 - self.exposed / self.under_way) if self.under_way else 0.0


def measure_communication(steps: Sequence[Sequence[Sequence[Span]]]) -> CommunicationTimes | None:
    """Return the times of recorded steps, or None if no gradients were summed in them.

    Parameters
    ----------
    steps : sequence
        The spans of data-parallel ranks on one clock: by rank and by step.
    """
    by_step = [
        [
            ([span for span in mine if span.kind == "reduce"], [span for span in mine if _is_wait(span)])
            for mine in ranks
        ]
        for ranks in zip(*steps, strict=True)
    ]
    by_step = [ranks for ranks in by_step if all(sums for sums, _ in ranks)]
    if not by_step:
        return None
    lateness = [_lateness([sums for sums, _ in ranks]) for ranks in by_step]
    return CommunicationTimes(
        under_way=median(fmean(_covered(sums) for sums, _ in ranks) for ranks in by_step),
        exposed=median(fmean(_covered(waits) for _, waits in ranks) for ranks in by_step),
        late=median(_late(ranks) for ranks in by_step),
        lateness=tuple(median(of_rank) for of_rank in zip(*lateness, strict=True)),
    )


def _is_wait(span: Span) -> bool:
    return span.kind == "wait" and span.name in _SUMS


def _late(ranks: Sequence[tuple[Sequence[Span], Sequence[Span]]]) -> float:
    last = max(span.start for sums, _ in ranks for span in sums)
    return fmean(_covered(span._replace(stop=min(span.stop, last)) for span in waits) for _, waits in ranks)


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
