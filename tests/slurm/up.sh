#!/bin/bash
# Brings up a real Slurm cluster on this machine: munged, slurmctld, and a slurmd on each of NODES nodes.
# As root. No systemd, no cgroups, no accounting; everything it writes is in $SLURM_LAB. down.sh ends it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/slurm/env.sh
. "$here/env.sh"
nodes=${NODES:-2} cpus=8 gpus=2

if ip link show "$bridge" >/dev/null 2>&1; then
  echo "cluster $SLURM_LAB_ID is up already; $here/down.sh ends it, SLURM_LAB_ID=1 makes another" >&2
  exit 1
fi
rm -rf "${SLURM_LAB:?}"/{etc,run,log,state,spool}
mkdir -p "$SLURM_LAB"/{etc,run,log,state,spool}
cd "$SLURM_LAB"
(umask 077 && head -c 1024 /dev/urandom >etc/munge.key)
: >etc/plugstack.conf
echo 'CgroupPlugin=cgroup/v1' >etc/cgroup.conf # looks for nothing; by default slurmd dies in a namespace

# Slurm knows GPUs by their device files only, so that copies of /dev/null will do.
for ((gpu = 0; gpu < gpus; gpu++)); do mknod "etc/nvidia$gpu" c 1 3; done
echo "AutoDetect=off" >etc/gres.conf
echo "NodeName=node[1-$nodes] Name=gpu File=$SLURM_LAB/etc/nvidia[0-$((gpus - 1))]" >>etc/gres.conf

{
  echo "127.0.0.1 localhost"
  echo "$subnet.1 $(hostname -s)"
  for ((i = 1; i <= nodes; i++)); do echo "$subnet.$((10 + i)) node$i"; done
} >etc/hosts

{
  cat <<CONF
ClusterName=lab
SlurmctldHost=$(hostname -s)($subnet.1)
SlurmctldPort=$((16817 + SLURM_LAB_ID))
SlurmUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired: 120 s by default.
AuthInfo=socket=$SLURM_LAB/run/munge.sock,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PlugStackConfig=$SLURM_LAB/etc/plugstack.conf
SlurmdParameters=config_overrides
SlurmctldPidFile=$SLURM_LAB/run/slurmctld.pid
SlurmdPidFile=$SLURM_LAB/run/slurmd.%n.pid
SlurmctldLogFile=$SLURM_LAB/log/slurmctld.log
SlurmdLogFile=$SLURM_LAB/log/slurmd.%n.log
StateSaveLocation=$SLURM_LAB/state
SlurmdSpoolDir=$SLURM_LAB/spool/%n
ReturnToService=2
SlurmdTimeout=10
MessageTimeout=5
TCPTimeout=2
BatchStartTimeout=10
KillWait=10
MinJobAge=7200
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=1,batch_sched_delay=0
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
CONF
  for ((i = 1; i <= nodes; i++)); do
    mkdir -p "spool/node$i"
    echo "NodeName=node$i NodeAddr=$subnet.$((10 + i)) NodeHostname=node$i CPUs=$cpus RealMemory=64000 Gres=gpu:$gpus"
  done
  echo "PartitionName=low Nodes=ALL Default=YES PriorityTier=10 PreemptMode=REQUEUE GraceTime=15"
  echo "PartitionName=high Nodes=ALL PriorityTier=100 PreemptMode=OFF"
} >etc/slurm.conf

munged --force --socket="$SLURM_LAB/run/munge.sock" --key-file="$SLURM_LAB/etc/munge.key" \
  --log-file="$SLURM_LAB/log/munged.log" --pid-file="$SLURM_LAB/run/munged.pid" \
  --seed-file="$SLURM_LAB/run/munge.seed" 2>>log/munged.log
ip link add "$bridge" type bridge
ip addr add "$subnet.1/24" dev "$bridge"
ip link set "$bridge" up
slurmctld
for ((i = 1; i <= nodes; i++)); do "$here/node.sh" start "node$i"; done

for ((tenth = 0; tenth < 300; tenth++)); do
  idle=$(sinfo --noheader --partition=low --states=idle --format=%D 2>/dev/null) || true
  [ "${idle:-0}" = "$nodes" ] && exec sinfo --partition=low --Node --format='%N %t %c CPUs %G'
  sleep 0.1
done
echo "the nodes are not idle after 30 s; see $SLURM_LAB/log" >&2
sinfo --Node --long >&2
exit 1
