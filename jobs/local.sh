#!/usr/bin/env bash
# Train a job on this machine, on several ranks, with the environment that `make install` made:
#   jobs/local.sh NUM_RANKS JOB.toml [options of `hpdl train`]
set -euo pipefail
bin=$(realpath "$(dirname "$0")/..")/.venv/bin

if [[ $# -lt 2 ]]; then
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
elif [[ ! -x $bin/mpirun ]]; then
    echo "$bin/mpirun is missing: run make install first" >&2
    exit 2
fi
exec "$bin/mpirun" -n "$1" "$bin/hpdl" train "${@:2}"
