#!/usr/bin/env bash
# stop.sh STATE: end the Slurm that start.sh started in the folder STATE, its jobs first, and wait until it has.
set -u
export PATH=$PATH:/usr/sbin SLURM_CONF=$1/slurm.conf
scancel --signal=KILL --full --user="$(id -un)" 2> /dev/null
scancel --user="$(id -un)" 2> /dev/null
for _ in $(seq 20); do # a task's keeper that loses its daemons stays
  if [ -z "$(squeue --noheader 2> /dev/null)" ]; then break; fi
  sleep 0.5
done
for daemon in slurmd slurmctld munge; do
  pid=$(cat "$1/$daemon.pid" 2> /dev/null) || continue
  kill "$pid"
  for _ in $(seq 40); do
    if ! kill -0 "$pid" 2> /dev/null; then break; fi
    sleep 0.25
  done
done
