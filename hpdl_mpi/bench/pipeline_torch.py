"""PyTorch's pipeline over Gloo, as its documentation of ``torch.distributed.pipelining`` builds one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from hpdl_mpi.bench.subject import Subject

TORCH_SCHEDULES = {
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "interleaved": "ScheduleInterleaved1F1B",
    "zb-v": "ScheduleZBVZeroBubble",
}
"""Which of PyTorch's schedules is which of ours; it has no others of one stage on each rank."""


def load(
    model: str,
    microbatch_size: int,
    num_microbatches: int,
    schedule: str,
    cuts: Sequence[int],
    stage_ranks: Sequence[int],
    rank: int,
    world_size: int,
    address: str,
    threads: int,
) -> Callable[[], Subject]:
    """Import, set the threads and meet the other ranks; return what builds this rank's part of the step.

    A parameter that stages of several ranks have is one of each: PyTorch leaves it to its user to sum their gradients.
    """
    import torch
    import torch._dynamo  # the first optimizer would import it
    import torch.distributed as dist
    from torch.distributed import pipelining

    from hpdl_mpi.bench.torch_models import TORCH_MODELS
    from hpdl_mpi.bench.workloads import LEARNING_RATE, MOMENTUM, WORKLOADS

    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=world_size)

    def build() -> Subject:
        torch.manual_seed(0)
        layers = list(TORCH_MODELS[model]())
        bounds = [0, *cuts, len(layers)]
        own = [stage for stage, owner in enumerate(stage_ranks) if owner == rank]
        parts = {
            stage: torch.nn.Sequential(*layers[start:stop])
            for stage, (start, stop) in enumerate(pairwise(bounds))
            if stage in own
        }
        del layers
        device = torch.device("cpu")
        stages = [pipelining.PipelineStage(parts[stage], stage, len(stage_ranks), device) for stage in own]
        kind = getattr(pipelining, TORCH_SCHEDULES[schedule])
        several = schedule in ("interleaved", "zb-v")

        def loss_of(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())

        pipeline: Any = kind(stages if several else stages[0], num_microbatches, loss_fn=loss_of)
        inputs, targets = (
            torch.from_numpy(array) for array in WORKLOADS[model].batch(microbatch_size * num_microbatches)
        )
        parameters = [parameter for part in parts.values() for parameter in part.parameters()]
        optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=MOMENTUM, fused=True)
        arguments = (inputs,) if 0 in own else ()
        keywords = {"target": targets} if len(stage_ranks) - 1 in own else {}

        def step() -> None:
            optimizer.zero_grad()
            pipeline.step(*arguments, **keywords)
            optimizer.step()

        return Subject(step, sum(parameter.numel() for parameter in parameters))

    return build
