#!/bin/sh
# Trains jobs/resnet20_cifar10.toml on a whole CIFAR-10 on two ranks, with hpdl and with PyTorch, and writes
# benchmarks/results/accuracy_<machine>_<date>.md: what both reach after each epoch. It takes half an hour.
# Usage: benchmarks/accuracy.sh FOLDER, into which `hpdl data convert` has written train and test.
set -eu

data=$(cd "$1" && pwd)
. "$(dirname "$0")/result.sh"

job=jobs/resnet20_cifar10.toml
set -- --set "data.train=$data/train" --set "data.test=$data/test"
${MPIRUN:-mpirun} -n 2 hpdl train "$job" "$@" --run-dir "$scratch/run" >"$scratch/output.txt"
torchrun --nproc-per-node 2 benchmarks/train_torch.py "$job" "$@" >"$scratch/torch.jsonl"

{
    printf '# What %s reaches on two ranks\n\n' "$job"
    printf 'Ours: `mpirun -n 2 hpdl train %s`; PyTorch: `torchrun --nproc-per-node 2 benchmarks/train_torch.py %s`, with\n' "$job" "$job"
    printf 'the same samples in the same order, initial weights and recipe; both with `--set data.train=... --set data.test=...`.\n'
    printf '\n## Ours\n\n```\n'
    cat "$scratch/output.txt"
    printf '```\n\n```json\n'
    cat "$scratch/run/summary.json"
    printf '```\n\n## PyTorch\n\n```json\n'
    cat "$scratch/torch.jsonl"
    printf '```\n\n## The job, machine and versions\n\n```toml\n'
    cat "$job"
    printf '```\n\n```json\n'
    python -c 'import json; from hpdl_mpi.bench.machine import describe_machine, describe_versions
print(json.dumps({"machine": describe_machine(), "versions": describe_versions("torch", "mpi4py")}, indent=2))'
    printf '```\n'
} >"$scratch/result.md"
keep
