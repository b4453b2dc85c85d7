#!/usr/bin/env bash
# Install what start.sh starts, from Debian's packages, where it is not here yet; that needs root.
set -eu
export PATH=$PATH:/usr/sbin
missing=
for program in munged slurmctld slurmd sbatch; do command -v "$program" > /dev/null || missing+=" $program"; done
if [ -z "$missing" ]; then exit 0; fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "missing:$missing; install slurmctld, slurmd, slurm-client and munge, or run this as root on Debian" >&2
  exit 1
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurmctld slurmd slurm-client munge
