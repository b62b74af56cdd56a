# shellcheck shell=bash
# The state folder: whose it is, its settings, its lock.

root=${NEMOTRON_CLUSTER_ROOT:-/var/lib/nemotron-kit-cluster}
marker=.made-by-scripts-cluster

fail() {
  echo "scripts/cluster: $*" >&2
  exit 1
}

# The folder is removed whole on `down` and its name stands in config files and socket paths: keep it plain and short.
[[ $root =~ ^(/[A-Za-z0-9_-][A-Za-z0-9._-]*){2,}$ && ${#root} -le 70 ]] ||
  fail "NEMOTRON_CLUSTER_ROOT='$root' should be an absolute path of at most 70 letters, digits and . _ - /, two folders deep"

need_root() {
  [ "$(id -u)" = 0 ] || fail "this needs root: it starts daemons and mount namespaces"
  command -v apt-get >/dev/null || fail "this needs Debian's apt-get; there is none on this machine"
  unshare --mount --uts true 2>/dev/null || fail "this needs mount namespaces (CAP_SYS_ADMIN); this machine refuses them"
}

# setting NAME DEFAULT: the environment's value, else the one saved by the first `up`, else the default.
setting() {
  local variable=NEMOTRON_CLUSTER_$1 saved=""
  if [ -e "$root/settings" ]; then saved=$(sed -n "s/^$1=//p" "$root/settings"); fi
  local value=${!variable:-${saved:-$2}}
  [[ $value =~ ^[0-9]{1,7}$ ]] || fail "$variable='$value' should be a whole number"
  echo "$value"
}

port=$(setting PORT 17700) || exit 2
max_array=$(setting MAX_ARRAY 1001) || exit 2
max_jobs=$(setting MAX_JOBS 5000) || exit 2
short=$(setting SHORT 1) || exit 2
requeue_wait=$(setting REQUEUE_WAIT 10) || exit 2
node_timeout=$(setting NODE_TIMEOUT 12) || exit 2
job_age=$(setting JOB_AGE 10) || exit 2

save_settings() {
  printf '%s\n' "PORT=$port" "MAX_ARRAY=$max_array" "MAX_JOBS=$max_jobs" "SHORT=$short" \
    "REQUEUE_WAIT=$requeue_wait" "NODE_TIMEOUT=$node_timeout" "JOB_AGE=$job_age" >"$root/settings"
}

# Take the folder for ourselves, or refuse one that something else made.
claim_root() {
  if [ ! -e "$root/$marker" ] && [ -n "$(ls -A "$root")" ]; then
    fail "$root exists and was not made by this script; set NEMOTRON_CLUSTER_ROOT to a folder of its own"
  fi
  # The word in it tells this cluster's machines from another's.
  [ -s "$root/$marker" ] || random a-z0-9 12 >"$root/$marker"
  mkdir -p "$root"/{bin,log,run,machines}
  chmod 755 "$root"
}

# random CHARACTERS COUNT: a word of that many.
random() { head -c 4096 /dev/urandom | tr -dc "$1" | cut -c "1-$2"; }

remove_root() {
  if grep -qF " $root/" /proc/self/mountinfo; then fail "something is still mounted under $root; see /proc/self/mountinfo"; fi
  rm -rf "$root"
}

# One caller at a time, on descriptor 9. The folder itself is the lock, so that no lock file stays behind; a `down`
# may have removed it while we waited, hence the loop.
lock() {
  while true; do
    mkdir -p "$root"
    exec 9<"$root"
    flock 9
    if [ "$root" -ef /proc/self/fd/9 ]; then return; fi
  done
}

# until_true SECONDS COMMAND…: ask ten times a second until it says yes.
until_true() {
  local tries=$(($1 * 10))
  shift
  while ! "$@" >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.1
  done
}

# borrow FOLDER…: folders elsewhere that a daemon insists on. What was missing is made and says so in a file inside, as
# does each cluster that uses it; the last of them takes it away again.
borrow() {
  local folder
  for folder; do
    [ -d "$folder" ] || { mkdir -m 755 "$folder"; touch "$folder/$marker"; }
    if [ -e "$folder/$marker" ]; then touch "$folder/.used-by-$(cat "$root/$marker")"; fi
  done
}

give_back() {
  local folder
  for folder; do
    [ -e "$folder/$marker" ] || continue
    rm -f "$folder/.used-by-$(cat "$root/$marker")"
    if ! compgen -G "$folder/.used-by-*" >/dev/null; then rm -f "$folder/$marker"; rmdir "$folder"; fi
  done
}
