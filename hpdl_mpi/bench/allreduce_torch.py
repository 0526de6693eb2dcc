"""PyTorch's all-reduce over Gloo."""

from __future__ import annotations

from collections.abc import Callable

from hpdl_mpi.bench.subject import Subject


def load(max_bytes: int, rank: int, world_size: int, address: str, threads: int) -> Callable[[], Subject]:
    """Import, set the threads and meet the other ranks; return what builds the sum of so many bytes of float32."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=world_size)

    def build() -> Subject:
        array = torch.zeros(max_bytes // 4)

        def step(nbytes: int = 4096) -> None:
            dist.all_reduce(array[: nbytes // 4])

        return Subject(step, 0)

    return build
