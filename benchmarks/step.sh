#!/bin/sh
# Times training steps of the reference models and writes benchmarks/results/step_<machine>_<date>.md.
# Usage: benchmarks/step.sh [options of hpdl bench step, such as --rounds 20]; MODELS names those that are timed, all unless set.
# A row that fails is said so in the result; the others are measured all the same.
set -eu

. "$(dirname "$0")/result.sh"
failed=0

{
    echo "# Training steps"
    while read -r model batch options; do
        case " ${MODELS:-$model} " in *" $model "*) ;; *) continue ;; esac
        printf '\n## %s, batch %s, %s\n\n' "$model" "$batch" "$options"
        # shellcheck disable=SC2086 # the options are words
        if hpdl bench step --model "$model" --batch "$batch" $options --json "$scratch/result.json" "$@" </dev/null \
            >"$scratch/table.txt"; then
            measured
        else
            failed=1
            echo "It failed."
        fi
    done <<ROWS
mlp 256 --vs torch
lenet 128 --vs torch
resnet20 128 --vs torch
resnet18_cifar 64 --vs torch
resnet18_cifar 64 --threads 2 --vs one-thread --rounds 30
vgg16_cifar 64 --vs torch
alexnet 32 --vs torch
mobilenet_v2 16 --vs torch
resnet50 8 --vs torch
gpt_small 8 --vs torch
gpt_nano 12 --vs torch
gpt2_124m 2 --vs torch
lstm_lm 32 --vs torch
seq2seq 64 --vs torch
vit_tiny 8 --vs torch
resnet18_cifar 64 --vs torch-bf16
resnet18_cifar 64 --vs exact
ROWS
} >"$scratch/result.md"
keep
exit $failed
