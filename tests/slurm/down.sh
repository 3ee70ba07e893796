#!/bin/bash
# Ends the cluster that up.sh brought up, or what there is of it, with all of its jobs. Keeps its logs and configuration.
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/slurm/env.sh
. "$here/env.sh"
for init in "$SLURM_LAB"/run/init.node*.pid; do
  [ -e "$init" ] || continue
  node=${init##*/init.}
  "$here/node.sh" crash "${node%.pid}"
done
for daemon in slurmctld munged; do
  [ -s "$SLURM_LAB/run/$daemon.pid" ] || continue
  pid=$(cat "$SLURM_LAB/run/$daemon.pid")
  kill "$pid"
  # kill -0 would go on succeeding for a zombie that nobody buries.
  for ((tenth = 0; tenth < 50; tenth++)); do
    grep -qs '^State:.[^ZX]' "/proc/$pid/status" || continue 2
    sleep 0.1
  done
  kill -KILL "$pid"
done
ip link del "$bridge" 2>/dev/null
rm -rf "${SLURM_LAB:?}"/{run,state,spool}
