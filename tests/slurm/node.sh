#!/bin/bash
# node.sh start NODE: boots a node. node.sh crash NODE: pulls its plug. node.sh exec NODE COMMAND: runs something on it.
# A node is a process with a network, host name, process table and /dev/shm of its own; all that runs on it dies with it.
set -euo pipefail
# shellcheck source=tests/slurm/env.sh
. "$(dirname "$0")/env.sh"
action=$1 node=$2
shift 2
number=${node#node}
netns=$bridge-$node link=lab$SLURM_LAB_ID-$number # names of links are 15 characters at most
init=$SLURM_LAB/run/init.$node.pid

case $action in
  start)
    ip netns add "$netns"
    ip link add "$link" type veth peer name eth0 netns "$netns"
    ip link set "$link" master "$bridge" up
    ip -n "$netns" link set lo up
    ip -n "$netns" addr add "$subnet.$((10 + number))/24" dev eth0
    ip -n "$netns" link set eth0 up
    # shellcheck disable=SC2016 # expanded on the node
    setsid ip netns exec "$netns" unshare --uts --mount --pid --ipc --fork --kill-child --mount-proc bash -c '
      hostname "$1"
      mount --bind "$SLURM_LAB/etc/hosts" /etc/hosts
      mount -t tmpfs tmpfs /dev/shm
      slurmd -N "$1"
      while :; do sleep 3600 & wait $!; done # bash as process 1 buries the orphans
    ' node "$node" </dev/null >>"$SLURM_LAB/log/init.$node.log" 2>&1 &
    outer=$!
    until pgrep --parent "$outer" >"$init"; do
      [ -e "/proc/$outer" ] || { cat "$SLURM_LAB/log/init.$node.log" >&2; exit 1; }
      sleep 0.02
    done
    ;;
  crash)
    kill -KILL "$(cat "$init")"
    rm "$init"
    ip link del "$link"
    ip netns del "$netns"
    ;;
  exec)
    nsenter --target "$(cat "$init")" --net --uts --mount --pid --ipc "$@"
    ;;
esac
