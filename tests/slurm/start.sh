#!/usr/bin/env bash
# start.sh STATE: a Slurm of one node on this machine, its files all in the folder STATE, for the user who calls it.
# Point clients at it with SLURM_CONF=STATE/slurm.conf; stop.sh ends it. Nothing outside of STATE is touched.
set -eu
export PATH=$PATH:/usr/sbin
mkdir -p "$1" && cd "$1" && state=$PWD
mkdir -p ctld d
host=$(hostname -s)
user=$(id -un)
free_ports() { python3 -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))'; }
read -r ctld_port d_port < <(free_ports)

chmod 711 . # munge's clients reach its socket through here
head -c 128 /dev/urandom > munge.key && chmod 600 munge.key
munged --force --key-file="$state/munge.key" --socket="$state/munge.socket" --pid-file="$state/munge.pid" \
  --seed-file="$state/munge.seed" --log-file="$state/munge.log"

cat > slurm.conf <<CONF
ClusterName=vtp-test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctld_port
SlurmdPort=$d_port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$state/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=2
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=1000 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=60 State=UP
CONF
export SLURM_CONF=$state/slurm.conf
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF"
for _ in $(seq 60); do
  if sinfo -h -o %T 2> sinfo.log | grep -q idle; then exit 0; fi
  sleep 0.5
done
echo "Slurm did not come up:" >&2
tail -n 5 sinfo.log slurmctld.log slurmd.log munge.log >&2
exit 1
