#!/bin/bash
# A shell on a node, in this terminal: slurm/interactive.sh, with options of srun such as --gpus-per-node=2 --time=4:00:00
cd "$(dirname "$0")/.." || exit
# shellcheck source=slurm/site.sh.example
if [ -f slurm/site.sh ]; then . slurm/site.sh; fi
# What sbatch reads from its environment, srun doesn't.
exec srun --job-name=interactive ${SBATCH_PARTITION:+--partition="$SBATCH_PARTITION"} \
  ${SBATCH_ACCOUNT:+--account="$SBATCH_ACCOUNT"} --nodes=1 --ntasks=1 --gpus-per-node="${SBATCH_GPUS_PER_NODE:-1}" \
  --cpus-per-task=4 --mem=16G --time=01:00:00 --mpi=none "$@" --pty bash -i
