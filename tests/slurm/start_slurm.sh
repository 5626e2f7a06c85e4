#!/usr/bin/env bash
# Install (Debian or Ubuntu, as root), configure and start a Slurm of one machine on loopback, for the
# tests marked slurm. Run it again any time: daemons that are up stay, unless the configuration changed.
#   SLURM_CPUS (4)       CPUs advertised per node; may exceed the real ones
#   SLURM_NODES (1)      slurmd "nodes", all on this machine
#   SLURM_GPUS (0)       fake GPUs per node
#   SLURM_TEST_DIR       state and logs (/var/lib/slurm-test)
# It writes /etc/slurm/{slurm,gres}.conf: not for a machine that belongs to a cluster.
set -euo pipefail
CPUS=${SLURM_CPUS:-4}
NODES=${SLURM_NODES:-1}
GPUS=${SLURM_GPUS:-0}
D=${SLURM_TEST_DIR:-/var/lib/slurm-test}
HOST=$(hostname -s)
export DEBIAN_FRONTEND=noninteractive

if [ -s /etc/slurm/slurm.conf ] && ! grep -q '^ClusterName=loopback$' /etc/slurm/slurm.conf; then
  echo "/etc/slurm/slurm.conf is another cluster's: left alone, nothing started" >&2
  exit 1
fi

# 1. packages
want=(slurmctld slurmd slurm-client munge)
missing=()
for package in "${want[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  apt-get update -qq
  # keep the packages from starting services of their own (harmless where there is no init)
  made=
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    made=1
  fi
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  [ -z "$made" ] || rm -f /usr/sbin/policy-rc.d
fi

# 2. configuration
mkdir -p "$D"/{state,log,run} /etc/slurm
# MiB; a node must not claim more than slurmd sees
MEM=$((($(awk '/MemTotal/{print $2}' /proc/meminfo) / 1024 - 1024) / NODES))
new=$(mktemp -d)
cat >"$new/slurm.conf" <<CONF
ClusterName=loopback
SlurmctldHost=$HOST(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=26818
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/log/jobcomp.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=50000,sched_interval=1,batch_sched_delay=0
GresTypes=gpu
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool.%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd.%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info
MinJobAge=3600
KillWait=5
InactiveLimit=0
SlurmctldTimeout=60
SlurmdTimeout=60
Waittime=0
MaxArraySize=1001
MaxJobCount=10000
JobRequeue=1
CONF
for i in $(seq 1 "$NODES"); do
  node="NodeName=n$i NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((26820 + i)) CPUs=$CPUS RealMemory=$MEM"
  [ "$GPUS" = 0 ] || node="$node Gres=gpu:$GPUS"
  echo "$node State=UNKNOWN"
done >>"$new/slurm.conf"
echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=256 State=UP" \
  >>"$new/slurm.conf"
: >"$new/gres.conf"
for ((i = 0; i < GPUS; i++)); do
  # slurmd wants character devices, whose last digits are the GPU's number: twins of /dev/null
  [ -c "$D/run/gpu$i" ] || mknod -m 666 "$D/run/gpu$i" c 1 3
  echo "Name=gpu File=$D/run/gpu$i" >>"$new/gres.conf"
done

changed=
for f in slurm.conf gres.conf; do
  cmp -s "$new/$f" "/etc/slurm/$f" || {
    install -m 644 "$new/$f" "/etc/slurm/$f"
    changed=1
  }
done
rm -rf "$new"

# 3. daemons; a zombie is dead (there may be no init that reaps)
live() { [ -d "/proc/$1" ] && ! grep -qs '^State:.*Z' "/proc/$1/status"; }
alive() { [ -s "$1" ] && live "$(cat "$1")"; }
if [ -n "$changed" ]; then
  # a new configuration: stop what runs, jobs included, and start with an empty job list
  KEEP_MUNGE=1 SLURM_TEST_DIR="$D" bash "$(dirname "$0")/stop_slurm.sh"
fi
if ! { [ -S /run/munge/munge.socket.2 ] && munge -n >/dev/null 2>&1; }; then
  [ -s /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=128 count=1 status=none
  chown munge:munge /etc/munge/munge.key
  chmod 400 /etc/munge/munge.key
  install -d -o munge -g munge -m 755 /run/munge
  install -d -o munge -g munge -m 711 /var/lib/munge
  install -d -o munge -g munge -m 700 /var/log/munge
  setpriv --reuid=munge --regid=munge --clear-groups munged --force
  for _ in $(seq 50); do
    munge -n >/dev/null 2>&1 && break
    sleep .1
  done
fi
alive "$D/run/slurmctld.pid" || slurmctld
for i in $(seq 1 "$NODES"); do alive "$D/run/slurmd.n$i.pid" || slurmd -N "n$i"; done

# 4. wait until every node is usable
for _ in $(seq 150); do
  up=$(sinfo -h -N -o '%t' 2>/dev/null | grep -cE '^(idle|mix|alloc)$' || true)
  if [ "$up" = "$NODES" ]; then
    sinfo -N -o '%N %t %c %m %G'
    exit 0
  fi
  sleep .2
done
echo "slurm did not come up; last log lines:" >&2
tail -n 20 "$D"/log/*.log >&2
exit 1
