#!/bin/sh
# Times sums over ranks and data-parallel steps and writes benchmarks/results/comm_<machine>_<date>.md.
# Usage: benchmarks/comm.sh; MPIRUN names another mpirun. Figures of four machines on a 1 Gbit/s network need root, and
# iproute2; elsewhere the result says why they are missing.
set -eu

. "$(dirname "$0")/result.sh"
failed=0

{
    echo "# Sums over ranks, and steps with them"
    while IFS='|' read -r title launcher command; do
        printf '\n## %s\n\n' "$title"
        # shellcheck disable=SC2086 # both are words
        if COLUMNS=120 $launcher $command --json "$scratch/result.json" </dev/null >"$scratch/table.txt" 2>"$scratch/errors.txt"; then
            measured
        else
            failed=1
            printf '```\n'
            tail -n 5 "$scratch/errors.txt"
            printf '```\n'
        fi
    done <<ROWS
Two ranks|${MPIRUN:-mpirun} -n 2|hpdl bench allreduce --algorithm auto --vs gloo
Four ranks on the same cores|${MPIRUN:-mpirun} -n 4|hpdl bench allreduce --algorithm auto --vs gloo
A step on two ranks|${MPIRUN:-mpirun} -n 2|hpdl bench step --model resnet18_cifar --batch 64 --vs torch-ddp
The same in memory that the ranks share|${MPIRUN:-mpirun} -n 2|hpdl bench step --model resnet18_cifar --batch 64 --vs shared-memory
What watching costs|${MPIRUN:-mpirun} -n 2|hpdl bench step --model lenet --batch 128 --vs watched --rounds 30
Two machines, whose sums take about half as long as they compute|python -m tests.cluster.hosts -n 2 --rate 850mbit --|hpdl bench step --model resnet18_cifar --batch 64
Four machines on 1 Gbit/s, whose sums take half as long as a stand-in sleeps|python -m tests.cluster.hosts -n 4 --|hpdl bench step --model resnet18_cifar --batch 8 --sleep 1.1
Four machines on 1 Gbit/s|python -m tests.cluster.hosts -n 4 --|hpdl bench allreduce --algorithm auto --sizes 4KiB,16KiB,64KiB,256KiB,1MiB,4MiB,16MiB,64MiB,128MiB
ROWS
} >"$scratch/result.md"
keep
exit $failed
