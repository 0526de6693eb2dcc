"""PyTorch's training step, written as its own documentation advises.

Gradients are dropped rather than zeroed (``set_to_none``, its default), the loss is not read back, and SGD takes its
fused form, which reads and writes each array once; on a CPU the default is a loop over tensors and operations.
``torch.compile`` sees model and loss as one function, in its default mode, and builds the backward from it.
"""

from __future__ import annotations

from collections.abc import Callable

from hpdl_mpi.bench.subject import Subject


def load(
    model: str,
    batch: int,
    threads: int,
    *,
    channels_last: bool = False,
    compiled: bool = False,
    bf16: bool = False,
    rank: int = 0,
    world_size: int = 1,
    address: str | None = None,
) -> Callable[[], Subject]:
    """Import, set the threads, wake the compiler if it is to be used; return what builds the step.

    With an address, ranks meet there, over Gloo, and train together.
    """
    import torch
    import torch._dynamo  # the first optimizer would import it
    import torch.distributed as dist
    from torch.nn.functional import cross_entropy

    from hpdl_mpi.bench.torch_models import TORCH_MODELS
    from hpdl_mpi.bench.workloads import LEARNING_RATE, MOMENTUM, WORKLOADS

    torch.set_num_threads(threads)
    if address is not None:
        dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=world_size)
    if compiled:
        torch.compile(torch.square)(torch.ones(1, requires_grad=True)).backward()

    def build() -> Subject:
        torch.manual_seed(0)
        network = TORCH_MODELS[model]()
        arrays, classes = WORKLOADS[model].batch(batch)
        several = isinstance(arrays, tuple)
        inputs = [torch.from_numpy(array) for array in (arrays if several else (arrays,))]
        targets = torch.from_numpy(classes)
        if WORKLOADS[model].images:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            inputs = [images.permute(0, 3, 1, 2).contiguous(memory_format=layout) for images in inputs]
            network.to(memory_format=layout)
        if address is not None:
            network = torch.nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)
        optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=MOMENTUM, fused=True)

        def evaluate(inputs: list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
            return cross_entropy(network(*inputs).flatten(0, -2), targets.flatten())

        loss_of = torch.compile(evaluate) if compiled else evaluate

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = loss_of(inputs, targets)
            loss.backward()
            optimizer.step()

        return Subject(step, sum(parameter.numel() for parameter in network.parameters()))

    return build
