"""The benchmarks behind ``hpdl bench``, with the contenders that they run against.

Each contender is a process of its own (`contender`, `worker`) that sleeps between its turns; `rounds` gives turns,
`statistics` sums them up and `machine` says where they were taken. A benchmark (`step`) chooses contenders and makes
a result of it all.
"""

from hpdl_mpi.bench.step import STEP_MODELS, TORCH, bench_step

__all__ = ["STEP_MODELS", "TORCH", "bench_step"]
