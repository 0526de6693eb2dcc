#!/bin/sh
# Times pipelines of two ranks and writes benchmarks/results/pipeline_<machine>_<date>.md.
# Usage: benchmarks/pipeline.sh [options of hpdl bench pipeline, such as --rounds 30]; MPIRUN names another mpirun.
set -eu

cd "$(dirname "$0")"
mkdir -p results
result=results/pipeline_$(uname -n)_$(date +%Y-%m-%d).md
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

{
    echo "# A training step on a pipeline of two ranks"
    while read -r schedule vs; do
        COLUMNS=120 ${MPIRUN:-mpirun} -n 2 hpdl bench pipeline --model mlp_deep --microbatches 8 \
            --schedule "$schedule" --vs "$vs" --json "$scratch/result.json" "$@" </dev/null >"$scratch/table.txt"
        printf '\n## %s against %s\n\n```\n' "$schedule" "$vs"
        cat "$scratch/table.txt"
        printf '```\n\n<details><summary>Every turn, machine, versions and command</summary>\n\n```json\n'
        cat "$scratch/result.json"
        printf '```\n</details>\n'
    done <<ROWS
1f1b torch-pipelining
interleaved torch-pipelining
zb-h1 1f1b
interleaved 1f1b
ROWS
} >"$scratch/result.md"
mv "$scratch/result.md" "$result"
echo "$result"
