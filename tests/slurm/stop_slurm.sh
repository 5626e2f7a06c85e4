#!/usr/bin/env bash
# Stop what start_slurm.sh started, by process id; jobs first, so that no step is left behind.
#   KEEP_MUNGE=1   leave munged running
set -u
D=${SLURM_TEST_DIR:-/var/lib/slurm-test}
# never touch the daemons and jobs of a machine that belongs to a real cluster
grep -qs '^ClusterName=loopback$' /etc/slurm/slurm.conf && [ -d "$D" ] || exit 0

live() { [ -d "/proc/$1" ] && ! grep -qs '^State:.*Z' "/proc/$1/status"; }

stop() { # pidfile; the name is checked, since ids are used again
  [ -s "$1" ] || return 0
  local p
  p=$(cat "$1")
  if live "$p" && tr '\0' '\n' <"/proc/$p/cmdline" | head -n 1 | grep -qE '(^|/)(slurmctld|slurmd|munged)$'; then
    kill "$p"
    for _ in $(seq 100); do
      live "$p" || break
      sleep .1
    done
    live "$p" && kill -9 "$p"
  fi
  rm -f "$1"
}

if timeout 5 squeue -h >/dev/null 2>&1; then
  timeout 10 scancel --full -u "$(id -un)" 2>/dev/null
  for _ in $(seq 100); do
    [ -z "$(timeout 5 squeue -h -t R,CG,S 2>/dev/null)" ] && break
    sleep .1
  done
fi
stop "$D/run/slurmctld.pid"
for f in "$D"/run/slurmd.*.pid; do stop "$f"; done
[ -n "${KEEP_MUNGE:-}" ] || stop /run/munge/munged.pid
rm -rf "$D"/state/* "$D"/spool.*
exit 0
