# Where the test cluster is. Source it to point sbatch, squeue and the others at the cluster: . tests/slurm/env.sh
# shellcheck shell=bash disable=SC2034 # up.sh and the others read subnet and bridge
export SLURM_LAB_ID=${SLURM_LAB_ID:-0} # another number, 0 to 200, for another cluster on the same machine
export SLURM_LAB=${SLURM_LAB:-/tmp/slurm-lab-$SLURM_LAB_ID}
export SLURM_CONF=$SLURM_LAB/etc/slurm.conf
export PATH=$PATH:/usr/sbin:/sbin
subnet=10.77.$SLURM_LAB_ID # the controller is .1, node1 is .11
bridge=slurmlab$SLURM_LAB_ID
