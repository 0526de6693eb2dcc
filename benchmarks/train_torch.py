"""Train a job with PyTorch, DistributedDataParallel over Gloo: the same samples, initial weights and recipe as ours.

torchrun --nproc-per-node 2 benchmarks/train_torch.py jobs/resnet20_cifar10.toml [--set KEY=VALUE]

Samples are read and augmented by our loader, so both packages see the same numbers in the same order; model, loss,
gradients, reduction and update are PyTorch's.
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

from hpdl_mpi.base.errors import require
from hpdl_mpi.bench.torch_models import TORCH_MODELS
from hpdl_mpi.data import Batch, Loader
from hpdl_mpi.optim import Optimizer
from hpdl_mpi.parallel import Replica
from hpdl_mpi.train.choices import make_augment, make_loss, make_model, make_optimizer, make_schedule, read_job
from hpdl_mpi.train.job import Job
from hpdl_mpi.train.run import make_source
from hpdl_mpi.train.source import Source
from hpdl_mpi.weights import counters, tensors


def main() -> None:
    """Train, and print what each evaluation finds, a line of JSON for each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    job = read_job(arguments.job, arguments.overrides)
    check(job)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", timeout=timedelta(minutes=5))
    began = time.perf_counter()
    for line in train(job):
        if distributed.get_rank() == 0:
            print(json.dumps(line | {"seconds": round(time.perf_counter() - began, 1)}), flush=True)
    distributed.destroy_process_group()


def check(job: Job) -> None:
    """Raise an `InputError` if the job asks for what is not translated here."""
    training = job.training
    for key, found, expected in (
        ("model.name", job.model.name, TORCH_MODELS),
        ("data.test", job.data.test is not None, (True,)),
        ("data.augment.mixup", make_augment(job).mixup, (None,)),
        ("training.loss", training.loss.name, ("cross_entropy",)),
        ("training.dtype", training.dtype, ("float32",)),
        ("training.accumulate", training.accumulate, (1,)),
        ("training.clip_norm", training.clip_norm, (None,)),
        ("training.ema", training.ema, (None,)),
        ("training.early_stopping", training.early_stopping, (None,)),
        ("optimizer.name", job.optimizer.name, ("sgd",)),
        ("optimizer.l1", getattr(make_optimizer(job), "l1", 0.0), (0.0,)),
        ("parallel.pp", job.parallel.pp, (1,)),
        ("init", job.init, (None,)),
    ):
        require(key, found, found in expected, " or ".join(map(str, expected)))


def train(job: Job) -> Iterator[dict[str, float]]:
    """Yield what the evaluation after each epoch finds."""
    source = make_source(job).measured()
    learning, evaluating = open_loader(job, source), open_loader(job, source.at(job.data.test), training=False)
    batch_size = job.training.global_batch_size
    module = TORCH_MODELS[job.model.name](**job.model.keywords)
    smoothing = make_loss(job).label_smoothing
    ours = make_optimizer(job)
    replica = Replica(make_model(job), learning.input_shape, ours, dtype=np.float32, seed=job.seed)
    fill(module, replica)
    network = DistributedDataParallel(module.to(memory_format=torch.channels_last))
    optimizer = make_torch_optimizer(module, replica, ours)
    schedule = make_schedule(job)
    steps_of_epoch = -(-learning.dataset.num_samples // batch_size)
    num_steps = job.training.steps or job.training.epochs * steps_of_epoch
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, num_steps))
    step = 0
    for epoch in range(-(-num_steps // steps_of_epoch)):
        module.train()
        for batch in learning.epoch(epoch, limit=(num_steps - step) * batch_size):
            optimizer.zero_grad()
            inputs, targets = on_torch(batch)
            total = cross_entropy(network(inputs), targets, label_smoothing=smoothing, reduction="sum")
            (total * learning.dp_size / batch.global_size).backward()  # its reducer takes the mean over ranks
            optimizer.step()
            rates.step()
            step += 1
        yield {"epoch": epoch + 1, "step": step} | evaluate(module, evaluating)


def open_loader(job: Job, source: Source, *, training: bool = True) -> Loader:
    """Return this rank's share of the batches of a source."""
    return Loader(
        source.open(),
        global_batch_size=job.training.global_batch_size,
        seed=job.seed,
        shuffle=job.data.shuffle if training else "none",
        dp_rank=distributed.get_rank(),
        dp_size=distributed.get_world_size(),
        transform=source.transform,
        augment=source.augment,
        training=training,
    )


def fill(module: nn.Module, replica: Replica) -> None:
    """Give a module our initial weights and statistics."""
    arrays = replica.arrays()
    weights = {name: torch.tensor(tensor.outward(arrays[name])) for name, tensor in tensors(replica.model).items()}
    module.load_state_dict(weights | {name: torch.tensor(0) for name in counters(replica.model)})


def make_torch_optimizer(module: nn.Module, replica: Replica, ours: Optimizer) -> torch.optim.Optimizer:
    """Return SGD with our settings; the same weights decay."""
    decays = {segment.name: segment.parameter.decay for segment in replica.layout.segments}
    named = list(module.named_parameters())
    groups = [
        {"params": [values for name, values in named if decays[name]]},
        {"params": [values for name, values in named if not decays[name]], "weight_decay": 0.0},
    ]
    settings = {name: getattr(ours, name) for name in ("lr", "momentum", "nesterov", "weight_decay")}
    return torch.optim.SGD(groups, **settings, fused=True)


def on_torch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return views of a batch's inputs, channels first in shape and last in memory, and of its targets."""
    inputs = torch.from_numpy(batch.inputs)
    return inputs.permute(0, 3, 1, 2) if inputs.ndim == 4 else inputs, torch.from_numpy(batch.targets)


@torch.no_grad()
def evaluate(module: nn.Module, loader: Loader) -> dict[str, float]:
    """Return loss and accuracy over all ranks, with the mean of their running statistics, as ours has it."""
    module.eval()
    for statistics in (buffer for buffer in module.buffers() if buffer.is_floating_point()):
        distributed.all_reduce(statistics)
        statistics /= loader.dp_size
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
    for variable, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        os.environ.setdefault(variable, value)
    main()
