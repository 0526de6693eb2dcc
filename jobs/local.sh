#!/usr/bin/env bash
# Train a job on this machine, on several ranks, from the root of the repository:
#   jobs/local.sh NUM_RANKS JOB.toml [options of `hpdl train`]
set -euo pipefail

if [[ $# -lt 2 ]]; then
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
fi
# The active environment's hpdl, or else that of `make install`.
root=$(realpath "$(dirname "$0")/..")
PATH=$PATH:$root/.venv-system/bin:$root/.venv/bin
hpdl=$(command -v hpdl) || { echo "hpdl not found: activate its environment, or run make install" >&2; exit 2; }
# The wheel's mpirun lies beside it; a system's own is on the path.
mpirun=$(dirname "$hpdl")/mpirun
[[ -x $mpirun ]] || mpirun=$(command -v mpirun) || { echo "mpirun not found: load the system's MPI" >&2; exit 2; }
exec "$mpirun" -n "$1" "$hpdl" train "${@:2}"
