# What the templates share: the environment, the run folder, the launch, and what follows a stop. Sourced by them.
# shellcheck shell=bash

say() { printf '%(%F %T)T job %s: %s\n' -1 "$JOB" "$*"; } # a builtin: a trap may interrupt anything else

# An array's last task has the array's own id, so that requeueing SLURM_JOB_ID there would requeue all of its tasks.
JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB=${JOB:-$SLURM_JOB_ID}
STOPPING='' # whether the run was asked to stop
ENDING=''   # whether Slurm is ending the whole job
REQUEUE=''  # always, or after a preemption only
STEP=''     # srun's process
trap 'STOPPING=1; say "got USR1, so the run saves a checkpoint and stops"' USR1
trap 'ENDING=1; say "got TERM"' TERM # Slurm sends it to the run as well; this script sees how that ends

# shellcheck source=slurm/site.sh.example
if [ -f slurm/site.sh ]; then . slurm/site.sh; fi
set -uo pipefail
say "attempt $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST"

# Starts or continues a run on all of the job's nodes: train OPTIONS_OF_TRAIN.PY. Sets STATUS, and RUN for what follows.
train() {
  RUN=$(ask run "$@")
  launch train.py --output-dir "$RUN" "$@"
}

# Starts or continues one run of a sweep: sweep FILE OPTIONS, as of python -m cifar_dist sweep.
sweep() {
  RUN=$(ask sweep "$@")
  on_every_node python -m cifar_dist sweep "$@" --index "$SLURM_ARRAY_TASK_ID"
}

# Starts SCRIPT on all of the job's nodes, one process per GPU: launch SCRIPT OPTIONS. Sets STATUS.
launch() {
  local gpus=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}} kind=gpu options=()
  local processes=${PROCESSES_PER_NODE:-$((gpus > 0 ? gpus : 1))}
  local world_size=$((SLURM_NNODES * processes))
  if ((gpus == 0)); then
    kind=cpu
    export ACCELERATE_USE_CPU=true
  fi
  if ((world_size > 1)); then kind=multi_$kind; fi
  if ((SLURM_NNODES > 1)); then
    options+=(--rdzv_backend static --same_network --num_machines "$SLURM_NNODES")
    options+=(--main_process_ip "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)")
    options+=(--main_process_port "$(free_port)")
  fi
  say "processes: $world_size, nodes: $SLURM_NNODES, GPUs of a node: $gpus: $*"
  options+=(--num_cpu_threads_per_process 1) # train.py shares the cores out itself; this keeps a warning away
  on_every_node accelerate launch --config_file "launch/$kind.yaml" --num_processes "$world_size" "${options[@]}" "$@"
}

# Prints a port that is free on this node, the first of the job, where rank 0 will be. Jobs begin to look at different ones.
free_port() {
  local port=$((20000 + SLURM_JOB_ID % 10000))
  while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  echo "$port"
}

# Runs a command once on each node and waits for all of them, through signals. Sets STATUS.
on_every_node() {
  local gpus=()
  BEFORE=$(summary)
  SHARED_DATA=$(ask data "$@")
  export SHARED_DATA
  # A step gets one CPU and no GPU of an --exclusive job unless it asks for them.
  if [ "${SLURM_GPUS_ON_NODE:-0}" != 0 ]; then gpus=(--gpus-per-node="$SLURM_GPUS_ON_NODE"); fi
  (
    trap '' USR1 # which would end srun before it has its own trap
    exec srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 "${gpus[@]}" \
      --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" \
      --mpi=none --export=ALL --kill-on-bad-exit=1 bash slurm/node.sh "$@"
  ) &
  STEP=$!
  while kill -0 "$STEP" 2>/dev/null; do
    if [ "$STOPPING" ]; then
      # srun hands it to every process; again and again, as those still starting ignore it. Before it is srun, it would die.
      if grep -qsx srun "/proc/$STEP/comm"; then kill -s USR1 "$STEP"; fi
      sleep 1 &
      wait -n "$STEP" $!
    else
      wait "$STEP" # a signal ends this early
    fi
  done
  wait "$STEP"
  STATUS=$?
}

# Prints what the package knows of this job: ask QUESTION WORDS, as of cifar_dist/slurm/job.py
# shellcheck disable=SC2086 # CONTAINER is a command with its options
ask() { ${CONTAINER:-} python -m cifar_dist.slurm.job "$@"; }

summary() { cat "${RUN:-}/summary.json" 2>/dev/null; }

# Sets OUTCOME to finished, interrupted or failed, and AT to the step reached, of TOTAL, having begun at BEGAN; and SIGNAL.
read_outcome() {
  read -r OUTCOME AT TOTAL BEGAN SIGNAL < <(ask outcome "$RUN" 2>/dev/null)
  # A start that failed before its first step leaves the summary of the start before it.
  if [ "$(summary)" = "$BEFORE" ] && ((STATUS != 0)); then OUTCOME=failed; fi
}

# Ends the job as the run ended: 0 finished, 75 interrupted, anything else failed. After a preemption it is requeued instead.
finish() {
  read_outcome
  case $OUTCOME in
    finished) exit 0 ;;
    interrupted)
      # Before a preemption Slurm sends TERM to the run alone, and a job that ends by itself is not requeued.
      case $SIGNAL in
        *"stop button"*) ;; # somebody wants it to end
        *) if [ "$SIGNAL" = SIGTERM ] || [ "$REQUEUE" = always ]; then requeue; fi ;;
      esac
      say "interrupted after step $AT of $TOTAL, which is saved in $RUN; the same command with --output-dir goes on from it"
      exit 75
      ;;
    *)
      say "failed with status $STATUS; the reason is above. Not requeued"
      exit $((STATUS ? STATUS : 1))
      ;;
  esac
}

# Ends the job as finish does, but requeues it after any interruption.
requeue_or_finish() {
  REQUEUE=always
  finish
}

# Sends the job back to the queue, unless that leads nowhere.
requeue() {
  local requeues=${SLURM_RESTART_COUNT:-0} limit=${MAX_REQUEUE:-20}
  if [ "$ENDING" ]; then
    say "not requeued: Slurm is ending this job" # it was cancelled; or Slurm requeues it, and needs no help
  elif ((AT <= BEGAN)); then
    say "not requeued: it began at step $BEGAN and got no further; a longer --time may help"
  elif ((requeues >= limit)); then
    say "not requeued: it was already, $requeues times, and MAX_REQUEUE is $limit"
  else
    say "interrupted after step $AT of $TOTAL; requeue $((requeues + 1)) of at most $limit"
    if scontrol requeue "$JOB"; then
      sleep 60 # Slurm ends this script
      exit 0
    fi
    say "Slurm did not requeue it"
  fi
}
