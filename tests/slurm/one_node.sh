#!/usr/bin/env bash
# A Slurm of one node on this machine, for as long as a command runs:  one_node.sh COMMAND...
#
# Needs root, and Debian's packages: apt-get install slurm-wlm munge.  munge, slurmctld and slurmd listen on loopback, on
# ports of their own; keys, state and logs are in a folder that goes away with them.  No other daemon is touched.
set -euo pipefail

for program in munged slurmctld slurmd sinfo; do
    command -v "$program" >/dev/null || { echo "$0: no $program here; apt-get install slurm-wlm munge" >&2; exit 3; }
done
[ "$(id -u)" = 0 ] || { echo "$0: needs root, to start slurmd" >&2; exit 3; }

folder=$(mktemp -d /tmp/dali-slurm.XXXXXX)
chmod 755 "$folder"
mkdir "$folder/munge" "$folder/state" "$folder/spool"
started=()

finish() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap finish EXIT

# Its own munge, with its own key and socket.
head -c 1024 /dev/urandom >"$folder/munge/key"
chmod 700 "$folder/munge"
chmod 400 "$folder/munge/key"
mkdir -m 755 "$folder/socket"
munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/socket/munge" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" >"$folder/munge/out" 2>&1 &
started+=($!)

host=$(hostname -s)
cores=$(nproc)
cat >"$folder/slurm.conf" <<CONF
ClusterName=dali
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$folder/socket/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
InactiveLimit=0
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

# submitit asks sacct how a job ended, which needs a database; slurmctld knows it of recent jobs.
mkdir "$folder/bin"
cat >"$folder/bin/sacct" <<'SACCT'
#!/usr/bin/env bash
echo 'JobID|State|NodeList'
while [ $# -gt 0 ]; do
    if [ "$1" = -j ]; then
        scontrol --oneliner show job "${2%%_*}" | sed -nE \
            -e 's/.*ArrayJobId=([0-9]+) ArrayTaskId=([0-9]+) .*JobState=([A-Z_]+).* NodeList=([^ ]*).*/\1_\2|\3|\4/p;t' \
            -e 's/^JobId=([0-9]+) .*JobState=([A-Z_]+).* NodeList=([^ ]*).*/\1|\2|\3/p'
    fi
    shift
done
SACCT
chmod +x "$folder/bin/sacct"
export PATH=$folder/bin:$PATH

for _ in $(seq 50); do [ -S "$folder/socket/munge" ] && break; sleep 0.2; done
slurmctld -D -f "$SLURM_CONF" >"$folder/slurmctld.out" 2>&1 &
started+=($!)
slurmd -D -f "$SLURM_CONF" -N "$host" >"$folder/slurmd.out" 2>&1 &
started+=($!)

for _ in $(seq 100); do
    sinfo --noheader --format=%t 2>/dev/null | grep -q idle && break
    sleep 0.3
done
if ! sinfo --noheader --format=%t | grep -q idle; then
    echo "$0: no idle node after 30 s" >&2
    tail -n 20 "$folder"/*.log "$folder"/*.out >&2
    exit 3
fi
"$@"
