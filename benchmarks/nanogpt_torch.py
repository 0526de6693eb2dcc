"""nanoGPT's recipe for a CPU, in PyTorch: what jobs/gpt_shakespeare.toml is held against.

python benchmarks/nanogpt_torch.py data/shakespeare [--seed 0]

Four layers, four heads, 128 wide, contexts of 64 at random places of the text, batches of 12, 2000 steps of AdamW
(betas 0.9 and 0.99, decay of matrices), a warm-up of 100 steps and half a cosine from 1e-3 to 1e-4, gradients clipped
to a norm of 1, no dropout, no biases, all cores. Every 250 steps the loss of 20 batches of either split is estimated,
and at the end that of the whole test split in windows side by side. The clock begins with this program.
"""

from __future__ import annotations

import time

_BEGAN = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402

import h5py  # noqa: E402
import torch  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402

from hpdl_mpi.bench.torch_gpt import GPT  # noqa: E402
from hpdl_mpi.data.shards import find_shards  # noqa: E402

CONTEXT, BATCH, STEPS, WARMUP, EVERY, ESTIMATED = 64, 12, 2000, 100, 250, 20
PEAK, LEAST = 1e-3, 1e-4


def read(folder: str) -> torch.Tensor:
    """Return all tokens of a split."""
    parts = []
    for path in find_shards(folder):
        with h5py.File(path) as file:
            parts.append(torch.from_numpy(file["tokens"][:].astype("int64")))
    return torch.cat(parts)


def draw(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a batch of contexts at random places, and what follows each of their tokens."""
    starts = torch.randint(len(tokens) - CONTEXT, (BATCH,)).tolist()
    return tuple(torch.stack([tokens[start + by : start + by + CONTEXT] for start in starts]) for by in (0, 1))


def rate(step: int) -> float:
    """Return the learning rate of a step."""
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return LEAST + 0.5 * (1 + math.cos(math.pi * progress)) * (PEAK - LEAST)


def loss_of(model: GPT, inputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the loss of some contexts."""
    return cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction=reduction)


@torch.no_grad()
def test_loss(model: GPT, tokens: torch.Tensor) -> float:
    """Return the loss of a whole split, in windows side by side."""
    count = (len(tokens) - 1) // CONTEXT
    inputs, targets = (tokens[by : by + count * CONTEXT].view(count, CONTEXT) for by in (0, 1))
    total = sum(loss_of(model, *pair, "sum").item() for pair in zip(inputs.split(64), targets.split(64), strict=True))
    return total / targets.numel()


def main() -> None:
    """Train, and print a line of JSON at each estimate and at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with train and test, as `hpdl data convert` writes them")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    splits = {name: read(f"{arguments.folder}/{name}") for name in ("train", "test")}
    model = GPT(65, CONTEXT, layers=4, heads=4, width=128, bias=False)
    for name, parameter in model.named_parameters():
        if name.endswith(("attention.out.weight", "mlp.2.weight")):
            torch.nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * 4))
    learning = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in learning if parameter.dim() >= 2], "weight_decay": 0.1},
        {"params": [parameter for parameter in learning if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        if step % EVERY == 0:
            with torch.no_grad():
                means = {
                    name: sum(loss_of(model, *draw(tokens)).item() for _ in range(ESTIMATED)) / ESTIMATED
                    for name, tokens in splits.items()
                }
            print(json.dumps({"step": step} | means), flush=True)
        loss = loss_of(model, *draw(splits["train"]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    found = test_loss(model, splits["test"])
    print(json.dumps({"step": STEPS, "test_loss": found, "seconds": time.perf_counter() - _BEGAN}), flush=True)


if __name__ == "__main__":
    main()
