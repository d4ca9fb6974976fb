#!/bin/bash
# cluster.sh start|stop|status|env|kill-node N   - a real, disposable Slurm cluster on one machine.
#   LAB=dir (state, default ${TMPDIR:-/tmp}/slurmlab)  NODES=7  CPUS=4 (fake, per node)  GPUS=2 (fake, per node)
#   partitions: `debug`; `lossy`, three nodes that may lose power; `low` and `high`, one node where the one preempts the other
#   OWNER=pid (stop by itself when that process is gone)  PREFIX=node (NS=1 node names; unique per parallel cluster)
#   DB=1 (slurmdbd+mariadb => real sacct; 0 => no sacct)   NS=auto|1|0 (own pid/uts/mount namespace per node)
set -u
LAB=${LAB:-${TMPDIR:-/tmp}/slurmlab} NODES=${NODES:-7} CPUS=${CPUS:-4} GPUS=${GPUS:-2} DB=${DB:-1} NS=${NS:-auto}
PATH=$PATH:/usr/sbin:/sbin
export LAB SLURM_CONF=$LAB/slurm.conf
for v in $(compgen -e | grep -E '^(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SUBMITIT)_' | grep -vx SLURM_CONF); do unset "$v"; done
die() { echo "cluster.sh: $*" >&2; exit 1; }
# a process is alive iff it exists, is not a zombie (pid 1 may not reap), and is still the one we started (starttime)
stat_of() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f1,20; }     # "STATE STARTTIME"
alive() { local p t s; read -r p t 2>/dev/null < "$LAB/pids/$1" || return 1; s=$(stat_of "$p"); [ -n "$s" ] && [ "${s%% *}" != Z ] && [ "${s##* }" = "$t" ]; }
sig() { local p t; alive "$2" && read -r p t < "$LAB/pids/$2" && kill "-$1" "$p" 2>/dev/null; }
spawn() { # name cmd...   own session, stdio to log, pid recorded by us (slurmd deletes its own pid file too early)
  local name=$1; shift
  setsid "$@" </dev/null >>"$LAB/log/$name.out" 2>&1 & local p=$!
  echo "$p $(stat_of $p | cut -d' ' -f2)" > "$LAB/pids/$name"; disown; }
wait_for() { # seconds what cmd...
  local end=$(( $(date +%s) + $1 )) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ "$(date +%s)" -ge $end ] && { echo "timeout: $what" >&2; return 1; }; sleep 0.05; done; }
port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start() {
  local t0=$(date +%s%N) me=$(id -un) host=$(hostname -s) i P addr flags=NoInAddrAny,NoCtldInAddrAny
  [ -e "$LAB/pids/slurmctld" ] && alive slurmctld && die "already running in $LAB"
  stop; rm -rf "$LAB"; mkdir -p "$LAB"/{state,spool,log,pids,dev,munge,db}; chmod 755 "$LAB" "$LAB/munge"; chmod 700 "$LAB/db"
  if [ "$NS" = auto ]; then NS=0; [ "$(id -u)" = 0 ] && unshare -m -u -p -f --mount-proc --kill-child true 2>/dev/null && NS=1; fi
  P=($(python3 - $((NODES+2)) <<'PY'
import random, socket, sys
n, out = int(sys.argv[1]), []
while len(out) < n:                       # below the ports of the jobs (12000 on) and those of clients (32768 on)
    p = random.randint(6000, 11999)
    with socket.socket() as s:
        try: s.bind(("0.0.0.0", p)); out.append(p) if p not in out else None
        except OSError: pass
print(*out)
PY
  )); local ctl=${P[0]} dbd=${P[1]}
  addr=127.0.0.1
  if [ $NS = 0 ]; then  # slurmd/srun bind to what the hostname resolves to under NoInAddrAny
    addr=$(getent ahostsv4 "$host" | awk 'NR==1{print $1}'); case "$addr" in 127.*) ;; *) addr=127.0.0.1 flags=NoCtldInAddrAny ;; esac
  fi
  local prefix=${PREFIX:-node}; [ $NS = 0 ] && prefix=127.0.1.      # NS=0: names that are addresses need no /etc/hosts entry
  local cg=/sys/fs/cgroup/freezer track=proctrack/linuxproc   # linuxproc loses daemonized/reparented children; cgroup does not
  if [ "$(id -u)" = 0 ] && mkdir "$cg/lab$$" 2>/dev/null; then rmdir "$cg/lab$$"; track=proctrack/cgroup; fi; track=${TRACK:-$track}
  local ram=no task=none                                      # memory limits: a job that needs more meets the OOM killer
  if [ $track = proctrack/cgroup ] && mkdir "/sys/fs/cgroup/memory/lab$$" 2>/dev/null; then rmdir "/sys/fs/cgroup/memory/lab$$"; ram=yes task=cgroup; fi
  # --- munge: a private daemon, key and socket; nothing in /etc/munge or /run/munge is touched
  head -c 128 /dev/urandom > "$LAB/munge/key"; chmod 400 "$LAB/munge/key"
  local M=$LAB/munge
  spawn munged munged -F --key-file="$M/key" --socket="$M/sock" --pid-file="$M/pid" --seed-file="$M/seed" --log-file="$LAB/log/munged.log" --num-threads=10
  # --- config
  : > "$LAB/plugstack.conf"; : > "$LAB/gres.conf"
  printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainRAMSpace=%s\nConstrainSwapSpace=%s\nAllowedSwapSpace=0\n' $ram $ram > "$LAB/cgroup.conf"
  cat > "$LAB/slurm.conf" <<C
ClusterName=lab
FirstJobId=$((RANDOM * 25 + 1000))
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctl
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$M/sock,cred_expire=5
CommunicationParameters=$flags
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/slurmctld.pid
SlurmdPidFile=$LAB/slurmd-%n.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd-%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
PlugStackConfig=$LAB/plugstack.conf
MailProg=/bin/true
ProctrackType=$track
TaskPlugin=task/$task
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
ReturnToService=2
EnforcePartLimits=ALL
JobRequeue=1
SlurmctldTimeout=10
SlurmdTimeout=${SLURMD_TIMEOUT:-10}
KillWait=5
UnkillableStepTimeout=10
MinJobAge=600
JobCompType=jobcomp/none
C
  if [ "$DB" = 1 ]; then cat >> "$LAB/slurm.conf" <<C
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$dbd
AccountingStoragePass=$M/sock
C
    (umask 077; cat > "$LAB/slurmdbd.conf" <<C
AuthType=auth/munge
AuthInfo=socket=$M/sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$dbd
CommunicationParameters=NoInAddrAny
SlurmUser=$me
PidFile=$LAB/slurmdbd.pid
LogFile=$LAB/log/slurmdbd.log
DebugLevel=verbose
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
C
    )
  else echo "AccountingStorageType=accounting_storage/none" >> "$LAB/slurm.conf"; fi
  if [ "$GPUS" -gt 0 ]; then
    echo GresTypes=gpu >> "$LAB/slurm.conf"
    local chardev=(/dev/null /dev/zero /dev/full /dev/random /dev/urandom) ok=1
    for ((i=0;i<GPUS;i++)); do mknod "$LAB/dev/gpu$i" c 1 3 2>/dev/null || ok=0; done
    if [ $ok = 1 ]; then echo "Name=gpu File=$LAB/dev/gpu[0-$((GPUS-1))]" > "$LAB/gres.conf"
    else for ((i=0;i<GPUS;i++)); do echo "Name=gpu File=${chardev[i]}"; done > "$LAB/gres.conf"; fi
  fi
  cp /etc/hosts "$LAB/hosts"; echo >> "$LAB/hosts"
  for ((i=1;i<=NODES;i++)); do
    local n=$prefix$i nh=$host; [ $NS = 1 ] && nh=$n
    [ $NS = 1 ] && echo "127.0.0.1 $n" >> "$LAB/hosts"
    echo "NodeName=$n NodeHostname=$nh NodeAddr=$addr Port=${P[i+1]} CPUs=$CPUS RealMemory=16000 State=UNKNOWN$([ $GPUS -gt 0 ] && echo " Gres=gpu:$GPUS")"
  done >> "$LAB/slurm.conf"
  cat >> "$LAB/slurm.conf" <<C
PartitionName=debug Nodes=$(nodes 1 $((NODES-4))) Default=YES MaxTime=INFINITE State=UP
PartitionName=lossy Nodes=$(nodes $((NODES-3)) $((NODES-1))) MaxTime=INFINITE State=UP
PartitionName=low Nodes=$prefix$NODES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=$prefix$NODES MaxTime=INFINITE State=UP PriorityTier=10
C
  # --- daemons
  wait_for 5 munge munge -S "$M/sock" -n || die "munged, see $LAB/log/munged*"
  if [ "$DB" = 1 ]; then
    # empty data dir + skip-grant-tables: no mariadb-install-db, no client needed; the socket is in a 0700 directory
    [ -w /dev/shm ] && rmdir "$LAB/db" && ln -s "$(mktemp -d /dev/shm/slurmdb.XXXXXX)" "$LAB/db"   # CREATE TABLE is slow on a busy disk
    mkdir -p "$LAB/db/data"
    spawn mariadbd mariadbd --no-defaults --user="$me" --datadir="$LAB/db/data" --socket="$LAB/db/sock" --pid-file="$LAB/db/pid" \
      --skip-networking --skip-grant-tables --innodb-buffer-pool-size=64M --innodb-log-file-size=16M \
      --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync --innodb-lock-wait-timeout=900 --log-error="$LAB/log/mariadbd.log"
    wait_for 20 mariadbd test -S "$LAB/db/sock" || die "mariadbd, see $LAB/log/mariadbd.log"
    MYSQL_UNIX_PORT=$LAB/db/sock spawn slurmdbd slurmdbd -D
    wait_for 20 slurmdbd port_open "$dbd" || die "slurmdbd, see $LAB/log/slurmdbd.log"
  fi
  spawn slurmctld slurmctld -D -f "$SLURM_CONF"
  wait_for 20 slurmctld port_open "$ctl" || die "slurmctld, see $LAB/log/slurmctld.log"
  for ((i=1;i<=NODES;i++)); do start_node $prefix$i; done
  wait_for 60 "idle nodes" idle || { timeout 10 sinfo -N -o '%N %T %E'; die "nodes, see $LAB/log"; }
  [ -n "${OWNER:-}" ] && spawn watchdog bash -c 'while read -r l < "/proc/$1/stat" && l=${l##*) } && [ "${l%% *}" != Z ]; do sleep 2; done 2>/dev/null; exec "$2" stop' bash "$OWNER" "$(readlink -f "$0")"
  echo "up in $(( ($(date +%s%N) - t0) / 1000000 )) ms: export SLURM_CONF=$SLURM_CONF (NS=$NS DB=$DB)"
}
start_node() {
  mkdir -p "$LAB/spool/$1"
  if grep -q "^NodeName=$1 NodeHostname=$1 " "$LAB/slurm.conf"; then   # NS=1: own pid, uts and mount namespace; bash is the reaping pid 1
    spawn "slurmd-$1" unshare -m -u -p -f --mount-proc --propagation private --kill-child bash -c '
      hostname "$1"; mount --bind "$2/hosts" /etc/hosts; slurmd -D -f "$2/slurm.conf" -N "$1" & wait' bash "$1" "$LAB"
  else spawn "slurmd-$1" slurmd -D -f "$LAB/slurm.conf" -N "$1"; fi
}
nodes() { local i; for ((i=$1;i<$2;i++)); do echo -n "$prefix$i,"; done; echo "$prefix$2"; }
idle() { [ "$(timeout 5 sinfo -h -N -t idle -o %N | sort -u | wc -l)" = "$NODES" ]; }
stop() {
  [ -d "$LAB/pids" ] || return 0
  local n f
  alive watchdog && [ "$(cut -d' ' -f1 "$LAB/pids/watchdog")" != $$ ] && sig TERM watchdog; rm -f "$LAB/pids/watchdog"
  if alive slurmctld; then timeout 5 scancel -u "$(id -un)" 2>/dev/null; wait_for 8 "jobs to end" sh -c '[ -z "$(timeout 5 squeue -h)" ]'; fi
  for f in "$LAB"/pids/slurmd-*; do [ -e "$f" ] && sig TERM "$(basename "$f")"; done
  for n in $(cd "$LAB/pids" && echo slurmd-*) slurmctld slurmdbd mariadbd munged; do    # in this order: slurmctld needs slurmdbd to stop quickly
    [ -e "$LAB/pids/$n" ] || continue
    case $n in slurmd-*) [ "$(grep -c "NodeHostname=${n#slurmd-} " "$LAB/slurm.conf")" = 1 ] && sig KILL $n ;; mariadbd) sig KILL $n ;; *) sig TERM $n ;; esac
    wait_for 3 "$n to stop" sh -c '! kill -0 '"$(cut -d' ' -f1 "$LAB/pids/$n")"' 2>/dev/null || grep -q "^State:.*Z" /proc/'"$(cut -d' ' -f1 "$LAB/pids/$n")"'/status' || sig KILL $n
    rm -f "$LAB/pids/$n"
  done
  local ours=()
  for f in /sys/fs/cgroup/{freezer,memory}/slurm_*; do   # slurm never removes its top directories; ours only
    [ -d "$f" ] && grep -q "^NodeName=${f##*/slurm_} " "$LAB/slurm.conf" && ours+=("$f")
  done
  if [ ${#ours[@]} -gt 0 ]; then
    find "${ours[@]}" -name freezer.state -exec sh -c 'echo THAWED > "$1"' _ {} \;   # a frozen process (scancel --signal=STOP) does not even die
    for n in $(find "${ours[@]}" -name cgroup.procs -exec cat {} +); do kill -KILL "$n" 2>/dev/null; done; sleep 0.2
    find "${ours[@]}" -depth -type d -exec rmdir {} \; 2>/dev/null
  fi
  [ -L "$LAB/db" ] && case "$(readlink "$LAB/db")" in /dev/shm/slurmdb.*) rm -rf "$(readlink "$LAB/db")" ;; esac
  # leftovers of jobs (a slurmd that dies leaves slurmstepd and the tasks behind unless NS=1): ours have both variables
  for f in /proc/[0-9]*/environ; do
    tr '\0' '\n' < "$f" 2>/dev/null | grep -qx "SLURM_CONF=$SLURM_CONF" && tr '\0' '\n' < "$f" 2>/dev/null | grep -q '^SLURM_JOB_ID=' \
      && { n=${f#/proc/}; n=${n%/environ}; echo "leftover $n: $(tr '\0' ' ' < /proc/$n/cmdline)"; kill -KILL "$n"; }
  done 2>/dev/null
  return 0
}
case ${1:-} in
  start) start ;;
  stop) stop ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  status) for f in "$LAB"/pids/*; do n=$(basename "$f"); alive "$n" && echo "$n up $(cat $f)" || echo "$n down"; done; timeout 10 sinfo -N -o '%N %T %G %E' ;;
  kill-node) sig KILL "slurmd-$2" ;;      # NS=1: like pulling the plug (tasks die too); NS=0: only slurmd dies
  start-node) start_node "$2" ;;
  *) die "usage: $0 start|stop|status|env|kill-node N|start-node N" ;;
esac
