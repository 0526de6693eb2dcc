"""Train a job with PyTorch, DistributedDataParallel over Gloo: the same samples, initial weights and recipe as ours.

torchrun --nproc-per-node 2 benchmarks/train_torch.py jobs/resnet20_cifar10.toml [--set KEY=VALUE]

Samples are read and augmented by our loader, so both packages see the same numbers in the same order; model, loss,
gradients, reduction and update are PyTorch's. For jobs of a reference model with SGD, cross-entropy and no clipping.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from hpdl_mpi.bench.torch_models import TORCH_MODELS
from hpdl_mpi.data import Batch, Loader
from hpdl_mpi.optim import SGD
from hpdl_mpi.parallel import Replica
from hpdl_mpi.train.choices import make_augment, make_loss, make_model, make_optimizer, make_schedule, read_job
from hpdl_mpi.train.job import Job
from hpdl_mpi.train.run import make_source
from hpdl_mpi.weights import tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    job = read_job(arguments.job, arguments.overrides)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(minutes=5))
    began = time.perf_counter()
    for line in train(job):
        if distributed.get_rank() == 0:
            print(json.dumps(line | {"seconds": round(time.perf_counter() - began, 1)}), flush=True)
    distributed.destroy_process_group()


def train(job: Job) -> Iterator[dict[str, float]]:
    """Yield what the evaluation after each epoch finds."""
    learning, evaluating = (open_loader(job, path) for path in (job.data.train, job.data.test))
    ours = make_optimizer(job)
    smoothing = getattr(make_loss(job), "label_smoothing", None)
    assert isinstance(ours, SGD), "the job has another optimizer"
    assert smoothing is not None, "the job has another loss"
    module = TORCH_MODELS[job.model.name](**job.model.model_extra)
    replica = Replica(make_model(job), learning.input_shape, ours, dtype=np.float32, seed=job.seed)
    module.load_state_dict(weights_of(replica), strict=False)
    network = DistributedDataParallel(module.to(memory_format=torch.channels_last))
    decays = {segment.name: segment.parameter.decay for segment in replica.layout.segments}
    named = list(module.named_parameters())
    optimizer = torch.optim.SGD(
        [
            {"params": [values for name, values in named if decays[name]]},
            {"params": [values for name, values in named if not decays[name]], "weight_decay": 0.0},
        ],
        **{name: getattr(ours, name) for name in ("lr", "momentum", "nesterov", "weight_decay")},
        fused=True,
    )
    schedule = make_schedule(job)
    steps_of_epoch = -(-learning.dataset.num_samples // job.training.global_batch_size)
    num_steps = job.training.steps or job.training.epochs * steps_of_epoch
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, num_steps))
    step = 0
    for epoch in range(-(-num_steps // steps_of_epoch)):
        module.train()
        for batch in learning.epoch(epoch, limit=(num_steps - step) * job.training.global_batch_size):
            optimizer.zero_grad()
            inputs, targets = on_torch(batch)
            # DistributedDataParallel takes the mean over ranks of means over their shares; the last batch may be uneven
            share = len(inputs) * learning.dp_size / batch.global_size
            (share * cross_entropy(network(inputs), targets, label_smoothing=smoothing)).backward()
            optimizer.step()
            rates.step()
            step += 1
        yield {"epoch": epoch + 1, "step": step} | evaluate(module, evaluating)


def open_loader(job: Job, path: str) -> Loader:
    source = make_source(job).at(path).measured()
    return Loader(
        source.open(),
        global_batch_size=job.training.global_batch_size,
        seed=job.seed,
        shuffle=job.data.shuffle if path == job.data.train else "none",
        dp_rank=distributed.get_rank(),
        dp_size=distributed.get_world_size(),
        transform=source.transform,
        augment=make_augment(job),
        training=path == job.data.train,
    )


def weights_of(replica: Replica) -> dict[str, torch.Tensor]:
    arrays = replica.arrays()
    return {name: torch.tensor(tensor.outward(arrays[name])) for name, tensor in tensors(replica.model).items()}


def on_torch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    assert batch.inputs is not None
    assert batch.targets is not None
    inputs = torch.from_numpy(batch.inputs)
    return inputs.permute(0, 3, 1, 2) if inputs.ndim == 4 else inputs, torch.from_numpy(batch.targets)


@torch.no_grad()
def evaluate(module: nn.Module, loader: Loader) -> dict[str, float]:
    module.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in loader.epoch(0):
        inputs, targets = on_torch(batch)
        outputs = module(inputs)
        loss, right = cross_entropy(outputs, targets, reduction="sum"), (outputs.argmax(1) == targets).sum()
        sums += torch.tensor([loss.item(), right.item(), len(targets)])
    distributed.all_reduce(sums)
    loss, right, count = sums.tolist()
    return {"loss": loss / count, "accuracy": right / count}


if __name__ == "__main__":
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "29500")
    main()
