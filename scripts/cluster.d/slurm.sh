# shellcheck shell=bash
# Slurm with accounting: one controller, nodes n1 and n2 on this root filesystem, r1 and r2 on the second machine's.

slurm_folder=$root/slurm
slurm_daemons=(munged mariadbd slurmdbd slurmctld n1 n2)
remote_nodes=(r1 r2)

# faketime is for the tests: an hour of silence in a minute.
slurm_packages() { echo mount hostname munge mariadb-server-core slurmdbd slurmctld slurmd slurm-client faketime; }

slurm_start() {
  mkdir -p "$slurm_folder"/{munge,ctld,db,dev} "$slurm_folder"/spool-{n1,n2,r1,r2}
  local gpu # Slurm counts a GPU only where there is a device file; these are /dev/null by another name
  for gpu in "$slurm_folder"/dev/gpu{0..7}; do [ -c "$gpu" ] || mknod "$gpu" c 1 3; done
  if [ ! -s "$slurm_folder/munge/key" ]; then
    (umask 077; head -c 128 /dev/urandom >"$slurm_folder/munge/key")
  fi
  slurm_configure
  daemon munged head / munged --foreground --key-file="$slurm_folder/munge/key" \
    --socket="$slurm_folder/munge/socket" --pid-file="$slurm_folder/munge/pid" --seed-file="$slurm_folder/munge/seed"
  slurm_start_database
  daemon slurmdbd head / \
    env SLURM_CONF="$slurm_folder/daemon.conf" MYSQL_UNIX_PORT="$slurm_folder/db/socket" slurmdbd -D
  until_true 20 sacctmgr_here -n show cluster || fail "slurmdbd does not answer: see $root/log/slurmdbd.log"
  slurm_accounts
  daemon slurmctld head / env SLURM_CONF="$slurm_folder/daemon.conf" slurmctld -D
  start_node n1
  start_node n2
}

# No accounts and no passwords: the folder is root's alone, and there is no port. Slurm's stored procedures need the
# system tables all the same.
slurm_start_database() {
  local db=$slurm_folder/db
  local options=(--no-defaults --user=root --datadir="$db" --skip-grant-tables)
  chmod 700 "$db"
  if [ ! -e "$db/made" ]; then
    rm -rf "${db:?}"/*
    database_contents | mariadbd "${options[@]}" --bootstrap >"$root/log/mariadbd.log" 2>&1
    touch "$db/made"
  fi
  daemon mariadbd head / mariadbd "${options[@]}" --socket="$db/socket" --pid-file="$db/pid" --skip-networking \
    --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0
  until_true 20 test -S "$db/socket" || fail "the accounting database does not start: see $root/log/mariadbd.log"
}

database_contents() {
  printf '%s\n' "create database mysql;" "use mysql;"
  cat /usr/share/mysql/mysql_system_tables.sql
  printf '\n%s\n' "create database slurm_acct_db;"
}

sacctmgr_here() { timeout 10 env SLURM_CONF="$slurm_folder/slurm.conf" sacctmgr "$@"; }

slurm_accounts() {
  if sacctmgr_here -n show assoc account=research format=user | grep -q root; then return; fi
  # Adding what an interrupted `up` has added already counts as a failure; the last word is what then stands there.
  sacctmgr_here -i add cluster nk >/dev/null || true
  sacctmgr_here -i add account research cluster=nk >/dev/null || true
  sacctmgr_here -i add user root account=research cluster=nk >/dev/null || true
  sacctmgr_here -i modify user root where cluster=nk set defaultaccount=research >/dev/null
}

start_node() {
  local rootfs=/
  if [[ $1 == r* ]]; then rootfs=$root/rootfs; fi
  daemon "$1" "$1" "$rootfs" env SLURM_CONF="$slurm_folder/daemon.conf" slurmd -D -N "$1"
}

# Clients read slurm.conf. Daemons, and the jobs they start, read daemon.conf, which binds them to what their machine's
# name stands for, 127.0.0.1; a client on this machine must not be bound so: its name may stand for an outer address.
# And clients wait a shorter time for a controller that does not answer: tests stop it, and this is what they wait for.
slurm_configure() {
  local before
  before=$(cat "$slurm_folder/common.conf" 2>/dev/null || true)
  slurm_conf >"$slurm_folder/common.conf"
  printf '%s\n' "include $slurm_folder/common.conf" "MessageTimeout=4" >"$slurm_folder/slurm.conf"
  printf '%s\n' "include $slurm_folder/common.conf" "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny" \
    >"$slurm_folder/daemon.conf"
  echo "Name=gpu File=$slurm_folder/dev/gpu[0-7]" >"$slurm_folder/gres.conf"
  (umask 077; slurmdbd_conf >"$slurm_folder/slurmdbd.conf")
  if [ -n "$before" ] && [ "$before" != "$(cat "$slurm_folder/common.conf")" ]; then
    stop slurmctld # it starts again below, with its jobs, under the new settings
    reread=yes
  fi
}

slurmdbd_conf() {
  cat <<CONF
AuthType=auth/munge
AuthInfo=socket=$slurm_folder/munge/socket
DbdHost=head
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
CommunicationParameters=NoInAddrAny
SlurmUser=root
PidFile=$slurm_folder/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
CONF
}

slurm_conf() {
  cat <<CONF
ClusterName=nk
SlurmctldHost=head(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
# How long a requeued job waits before it starts again is the life of a credential: 120 s where nobody shortens it.
AuthInfo=socket=$slurm_folder/munge/socket,cred_expire=$requeue_wait
StateSaveLocation=$slurm_folder/ctld
SlurmdSpoolDir=$slurm_folder/spool-%n
SlurmctldPidFile=$slurm_folder/slurmctld.pid
SlurmdPidFile=$slurm_folder/slurmd-%n.pid
# Two views of one configuration: see daemon.conf.
DebugFlags=NO_CONF_HASH
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=5
MaxArraySize=$max_array
MaxJobCount=$max_jobs
MinJobAge=$job_age
JobRequeue=1
KillWait=5
SlurmdTimeout=$node_timeout
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MailProg=/bin/true
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 1))
AccountingStoragePass=$slurm_folder/munge/socket
AccountingStorageEnforce=associations
EnforcePartLimits=ALL
GresTypes=gpu
NodeName=DEFAULT CPUs=16 RealMemory=8000 Gres=gpu:8 State=UNKNOWN
NodeName=n1 NodeHostname=n1 NodeAddr=127.0.0.1 Port=$((port + 2))
NodeName=n2 NodeHostname=n2 NodeAddr=127.0.0.1 Port=$((port + 3))
NodeName=r1 NodeHostname=r1 NodeAddr=127.0.0.1 Port=$((port + 4))
NodeName=r2 NodeHostname=r2 NodeAddr=127.0.0.1 Port=$((port + 5))
PartitionName=DEFAULT Nodes=n1,n2 State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=batch Default=YES MaxTime=INFINITE
PartitionName=interactive MaxTime=01:00:00 PriorityTier=20
PartitionName=short MaxTime=$short DefaultTime=$short
PartitionName=preempt MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=remote Nodes=r1,r2 MaxTime=INFINITE
CONF
}

slurm_up() {
  running "${slurm_daemons[@]}" || return 1
  [ "$(idle_nodes n1,n2)" = 2 ]
}

# How many of these nodes take jobs. A controller that a test has stopped does not answer; that is "none".
idle_nodes() {
  timeout 5 env SLURM_CONF="$slurm_folder/slurm.conf" sinfo -hN -n "$1" -t idle,alloc,mix,comp -o %N 2>/dev/null |
    sort -u | wc -l
}

slurm_finish() {
  until_true 30 slurm_up || fail "Slurm's nodes do not come up: see $root/log/{slurmctld,n1,n2}.log"
  if [ -n "${reread:-}" ]; then timeout 10 env SLURM_CONF="$slurm_folder/slurm.conf" scontrol reconfigure; fi
}

# kill: every process on the node at once, as when it loses power; its jobs are requeued after SlurmdTimeout.
slurm_node() {
  local action=${1:-} node=${2:-}
  [[ $action =~ ^(kill|start)$ && $node =~ ^[nr][12]$ ]] || fail "usage: scripts/cluster node kill|start n1|n2|r1|r2"
  [ -e "$slurm_folder/slurm.conf" ] || fail "Slurm is not up: scripts/cluster up slurm"
  lock
  if [ "$action" = start ]; then start_node "$node"; return; fi
  clear_machines "$node"
}

slurm_stop() {
  clear_machines "${slurm_daemons[@]}" "${remote_nodes[@]}"
  rm -rf "$slurm_folder"
}

slurm_env() { echo "SLURM_CONF=$slurm_folder/slurm.conf"; }

slurm_json() {
  local name pids=""
  for name in "${slurm_daemons[@]}" "${remote_nodes[@]}"; do
    pids+="${pids:+, }\"$name\": $(pid "$name" || echo null)"
  done
  printf '{"up": %s, "env": {"SLURM_CONF": "%s"}, "account": "research", "user": "root", "nodes": ["n1", "n2"], ' \
    "$(truth slurm_up)" "$slurm_folder/slurm.conf"
  printf '"partitions": ["batch", "interactive", "short", "preempt", "remote"], "logs": "%s", "pids": {%s}}' \
    "$root/log" "$pids"
}

truth() { if "$@"; then echo true; else echo false; fi; }
