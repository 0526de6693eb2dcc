#!/bin/sh
# Holds jobs/gpt_shakespeare.toml on two ranks against nanoGPT's recipe in PyTorch on the same cores, whole programs by
# turns, with three seeds, and text of gpt2_124m against transformers; writes results/text_<machine>_<date>.md.
# Usage: benchmarks/text.sh [options of hpdl bench generate]; MPIRUN names another mpirun.
set -eu

. "$(dirname "$0")/result.sh"

ours() { # seed, file for what it prints; other options
    seed=$1 log=$2
    shift 2
    ${MPIRUN:-mpirun} -n 2 hpdl train jobs/gpt_shakespeare.toml --set seed="$seed" --run-dir "$scratch/run" "$@" \
        </dev/null >"$log" 2>&1 &&
        python -c 'import json, sys; print(json.load(open(sys.argv[1]))["test_loss"])' "$scratch/run/summary.json" &&
        rm -r "$scratch/run"
}

theirs() { # seed, file for what it prints
    python benchmarks/nanogpt_torch.py data/shakespeare --seed "$1" >"$2" &&
        tail -n 1 "$2" | python -c 'import json; print(json.loads(input())["test_loss"])'
}

row() { # whose, seed
    begin=$(date +%s.%N)
    loss=$("$1" "$2" "$scratch/log") || {
        cat "$scratch/log" >&2
        exit 1
    }
    end=$(date +%s.%N)
    python -c 'import sys; seed, whose, loss, begin, end = sys.argv[1:]
print(f"| {seed} | {whose} | {float(loss):.4f} | {float(end) - float(begin):.1f} |")' "$2" "$1" "$loss" "$begin" "$end"
}

ours 0 "$scratch/log" --set training.steps=20 >"$scratch/loss" # kernels are compiled before the clock runs
{
    printf '# Text\n\n`jobs/gpt_shakespeare.toml` on two ranks and `nanogpt_torch.py`: loss of the whole test split, '
    printf 'seconds of the whole program.\n\n| seed | whose | test loss | seconds |\n|---|---|---|---|\n'
    for seed in 0 1 2; do
        row ours $seed
        row theirs $seed
    done
    hpdl bench generate --vs transformers --json "$scratch/result.json" "$@" </dev/null >"$scratch/table.txt"
    printf '\nText of `gpt2_124m`, token by token:\n\n'
    measured
} >"$scratch/result.md"
keep
