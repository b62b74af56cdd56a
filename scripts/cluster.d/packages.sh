# shellcheck shell=bash
# Debian packages: only what is missing, and no service of theirs is started.

installed() {
  local wanted=$#
  [ "$(dpkg-query -W -f '${db:Status-Status}\n' "$@" 2>/dev/null | grep -cx installed)" = "$wanted" ]
}

need() {
  local package missing=()
  if installed "$@"; then return; fi
  for package; do installed "$package" || missing+=("$package"); done
  without_services install_packages "${missing[@]}" ||
    fail "apt-get could not install ${missing[*]}: see $root/log/apt.log"
}

# The package lists are fetched only when they do not know, or no longer serve, what is asked for.
install_packages() {
  if apt-cache show "$@" >/dev/null 2>&1 && apt_get install --no-install-recommends "$@"; then return; fi
  apt_get update && apt_get install --no-install-recommends "$@"
}

# Root filesystems are made from this machine's package lists; an image may come with packages and without lists.
need_lists() { [ -n "$(debian_sources)" ] || apt_get update || fail "apt-get update failed: see $root/log/apt.log"; }

apt_get() {
  DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 \
    -o Dpkg::Options::=--force-confold -o Dpkg::Options::=--force-unsafe-io "$@" >>"$root/log/apt.log" 2>&1 </dev/null 9<&-
}

# Debian starts a service when its package is installed, on every address; policy-rc.d is the documented way to say no.
without_services() {
  local policy=/usr/sbin/policy-rc.d
  if [ -e "$policy" ]; then "$@"; return; fi
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  local code=0
  "$@" || code=$?
  rm -f "$policy"
  trap - EXIT
  return "$code"
}
