#!/bin/bash
# Runs a command on a node, as the one task that job.sh starts there: node.sh COMMAND OPTIONS

# A stop signal goes to every process. The launcher would die of it and orphan its processes, and these would too while they
# import torch. Ignored signals are inherited: the launcher goes on, and train.py installs its own handlers.
trap '' USR1 USR2 TERM
export PET_SIGNALS_TO_HANDLE=SIGINT # the launcher's own handler of SIGTERM would undo this

if [ "${LOCAL_DATA:-}" ]; then
  # shellcheck disable=SC2086 # CONTAINER is a command with its options
  if ${CONTAINER:-} python -m cifar_dist.slurm.job copy-data "$SHARED_DATA" "$LOCAL_DATA"; then
    words=()
    while (($#)); do # all but --data-dir, which can be given once only
      case $1 in
        --data[-_]dir) shift ;;
        --data[-_]dir=*) ;;
        *) words+=("$1") ;;
      esac
      shift
    done
    set -- "${words[@]}" --data-dir "$LOCAL_DATA"
  fi
fi
if [ "$1" = accelerate ]; then set -- accelerate launch --machine_rank "$SLURM_NODEID" "${@:3}"; fi
# shellcheck disable=SC2086 # CONTAINER is a command with its options
exec ${CONTAINER:-} "$@"
