#!/bin/sh
# Times pipelines of two ranks and writes benchmarks/results/pipeline_<machine>_<date>.md.
# Usage: benchmarks/pipeline.sh [options of hpdl bench pipeline, such as --rounds 30]; MPIRUN names another mpirun, MODELS
# those that are timed, all unless set.
set -eu

. "$(dirname "$0")/result.sh"

{
    echo "# A training step on a pipeline of two ranks"
    while read -r model size schedule vs; do
        case " ${MODELS:-$model} " in *" $model "*) ;; *) continue ;; esac
        COLUMNS=120 ${MPIRUN:-mpirun} -n 2 hpdl bench pipeline --model "$model" --microbatches 8 \
            --microbatch-size "$size" --schedule "$schedule" --vs "$vs" --json "$scratch/result.json" "$@" </dev/null >"$scratch/table.txt"
        printf '\n## %s, micro-batches of %s: %s against %s\n\n' "$model" "$size" "$schedule" "$vs"
        measured
    done <<ROWS
mlp_deep 64 1f1b torch-pipelining
mlp_deep 64 interleaved torch-pipelining
mlp_deep 64 zb-h1 1f1b
mlp_deep 64 interleaved 1f1b
gpt_small 2 1f1b torch-pipelining
gpt_small 2 interleaved torch-pipelining
gpt_small 2 zb-h1 1f1b
gpt_small 2 interleaved 1f1b
ROWS
} >"$scratch/result.md"
keep
