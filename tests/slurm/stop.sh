#!/usr/bin/env bash
# stop.sh STATE: end the Slurm that start.sh started in the folder STATE, its jobs first.
set -u
export PATH=$PATH:/usr/sbin SLURM_CONF=$1/slurm.conf
scancel --signal=KILL --full --user="$(id -un)" 2> /dev/null
for daemon in slurmd slurmctld munge; do
  if [ -s "$1/$daemon.pid" ]; then kill "$(cat "$1/$daemon.pid")"; fi
done
