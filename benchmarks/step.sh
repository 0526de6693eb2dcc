#!/bin/sh
# Times a training step of each reference model against PyTorch and writes benchmarks/results/step_<machine>_<date>.md.
# Usage: benchmarks/step.sh [options of hpdl bench step, such as --threads 2]
set -eu

cd "$(dirname "$0")"
mkdir -p results
result=results/step_$(uname -n)_$(date +%Y-%m-%d).md
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

{
    echo "# A training step against PyTorch"
    while read -r model batch; do
        hpdl bench step --model "$model" --batch "$batch" --vs torch --json "$scratch/result.json" "$@" </dev/null \
            >"$scratch/table.txt"
        printf '\n## %s, batch %s\n\n```\n' "$model" "$batch"
        cat "$scratch/table.txt"
        printf '```\n\n<details><summary>Every turn, machine, versions and command</summary>\n\n```json\n'
        cat "$scratch/result.json"
        printf '```\n</details>\n'
    done <<ROWS
mlp 256
lenet 128
resnet20 128
resnet18_cifar 64
vgg16_cifar 64
alexnet 32
mobilenet_v2 16
resnet50 8
ROWS
} >"$scratch/result.md"
mv "$scratch/result.md" "$result"
echo "$result"
