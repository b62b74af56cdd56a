# shellcheck shell=bash
# Daemons: each on a "machine" of its own (see the file beside), started once, ended with all that it started.

# When a process was started, in clock ticks since boot: an id that was reused has another.
birth() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  # shellcheck disable=SC2086
  set -- $stat
  [ "$1" != Z ] && echo "${20}"
}

# pid NAME: the daemon's process id; nothing, and 1, when it does not run.
pid() {
  local id born
  [ -e "$root/run/$1.pid" ] && read -r id born <"$root/run/$1.pid" || return 1
  [ "$(birth "$id")" = "$born" ] && echo "$id"
}

running() {
  local name
  for name; do pid "$name" >/dev/null || return 1; done
}

gone() { ! running "$1"; }

# daemon NAME HOSTNAME ROOTFS COMMAND…: start it unless it runs, in a clean environment (nothing of the caller's reaches
# a job).
daemon() {
  local name=$1 hostname=$2 rootfs=$3
  shift 3
  if running "$name"; then return; fi
  clear_machines "$name" # what a daemon that died has left running
  { cat /etc/hosts; echo "127.0.0.1 head n1 n2 login r1 r2"; } >"$root/machines/$(badge "$name")"
  setsid env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
    unshare --mount --uts --propagation slave \
    "$here/machine" "$hostname" "$root" "$(badge "$name")" "$rootfs" "$@" \
    >>"$root/log/$name.log" 2>&1 </dev/null 9<&- &
  echo "$! $(birth "$!")" >"$root/run/$name.pid"
  disown
}

# The name of the /etc/hosts that is mounted in a daemon's machine and nowhere else.
badge() { echo "$1.$(cat "$root/$marker")"; }

# All processes on a daemon's machine, however far they got away from it.
family() { grep -lsF "/$(badge "$1") " /proc/[0-9]*/mountinfo | cut -d/ -f3; }

# stop NAME: the daemon is asked to end, then its machine is cleared.
stop() {
  local id
  if id=$(pid "$1"); then
    kill -s TERM "$id" 2>/dev/null || true
    until_true 15 gone "$1" || true
  fi
  clear_machines "$1"
}

# clear_machines NAME…: everything that runs there is killed, as when a machine loses power.
clear_machines() {
  local name
  until_true 20 machines_empty "$@" || fail "some processes of $* do not end"
  for name; do rm -f "$root/run/$name.pid" "$root/machines/$(badge "$name")"; done
}

machines_empty() {
  local name left=""
  for name; do left+=$(family "$name")$'\n'; done
  [[ $left == *[0-9]* ]] || return 0
  # shellcheck disable=SC2086
  kill -s KILL $left 2>/dev/null || true
  return 1
}
