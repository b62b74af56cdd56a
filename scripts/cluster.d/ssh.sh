# shellcheck shell=bash
# sshd on loopback, with throw-away keys. Three doors: nk-plain into this machine, nk-cluster into the second machine
# (login node of the nodes r1 and r2), nk-password into the second machine with password and one-time code.

ssh_folder=$root/ssh
plain_port=$((port + 10)) cluster_port=$((port + 11)) password_port=$((port + 12))

ssh_packages() { echo openssh-server openssh-client; }

ssh_start() {
  mkdir -p "$ssh_folder"
  chmod 700 "$ssh_folder"
  local key
  for key in id host_plain host_cluster; do
    [ -e "$ssh_folder/$key" ] || ssh-keygen -q -t ed25519 -N "" -C "nemotron-kit test" -f "$ssh_folder/$key"
  done
  ssh_client_files
  borrow /run/sshd
  plain_conf >"$ssh_folder/sshd_plain"
  daemon sshd "$(cat /proc/sys/kernel/hostname)" / /usr/sbin/sshd -D -e -f "$ssh_folder/sshd_plain"
}

# What needs the second machine's root filesystem.
ssh_finish() {
  running login || cluster_files
  daemon login login "$rootfs" /usr/sbin/sshd -D -e -f /etc/ssh/sshd_config
  start_node r1
  start_node r2
  until_true 20 ssh_up || fail "the ssh servers do not come up: see $root/log/{sshd,login,r1,r2}.log"
}

ssh_client_files() {
  known_hosts >"$ssh_folder/known_hosts"
  client_config >"$ssh_folder/config"
  printf '#!/bin/sh\nexec /usr/bin/ssh -F %s "$@"\n' "$ssh_folder/config" >"$root/bin/ssh"
  chmod 755 "$root/bin/ssh"
  cp "$ssh_folder/id.pub" "$ssh_folder/authorized_keys"
  if [ ! -s "$ssh_folder/password" ]; then
    (umask 077; random a-zA-Z0-9 16 >"$ssh_folder/password"; random A-Z2-7 32 >"$ssh_folder/totp")
  fi
}

known_hosts() {
  local to
  for to in "$plain_port plain" "$cluster_port cluster" "$password_port cluster"; do
    echo "[127.0.0.1]:${to% *} $(cut -d' ' -f1,2 "$ssh_folder/host_${to#* }.pub")"
  done
}

client_config() {
  cat <<CONF
Host nk-plain
  Port $plain_port
Host nk-cluster
  Port $cluster_port
Host nk-password
  Port $password_port
  PubkeyAuthentication no
Host nk-*
  HostName 127.0.0.1
  User root
Host *
  IdentityFile $ssh_folder/id
  IdentitiesOnly yes
  UserKnownHostsFile $ssh_folder/known_hosts
  GlobalKnownHostsFile /dev/null
CONF
}

plain_conf() {
  cat <<CONF
ListenAddress 127.0.0.1:$plain_port
HostKey $ssh_folder/host_plain
AuthorizedKeysFile $ssh_folder/authorized_keys
PidFile none
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
MaxSessions 100
SetEnv SLURM_CONF=$slurm_folder/slurm.conf
Subsystem sftp internal-sftp
CONF
}

# Everything the second machine knows about its visitors: host key, their key, password and one-time code.
cluster_files() {
  local etc=$rootfs/etc
  install -m 600 "$ssh_folder/host_cluster" "$etc/ssh/host_key"
  install -m 644 "$ssh_folder/authorized_keys" "$etc/ssh/authorized_keys"
  cluster_conf >"$etc/ssh/sshd_config"
  { cat "$ssh_folder/totp"; printf '\n" TOTP_AUTH\n'; } | install -m 400 /dev/stdin "$etc/ssh/totp"
  printf '%s\n' "auth required pam_unix.so" "auth required pam_google_authenticator.so secret=/etc/ssh/totp user=root" \
    "account required pam_unix.so" "session required pam_permit.so" >"$etc/pam.d/sshd"
  local hash
  hash=$(chroot "$rootfs" python3 -W ignore -c 'import crypt, sys; print(crypt.crypt(sys.stdin.read().strip()))' \
    <"$ssh_folder/password")
  sed -i "s|^root:[^:]*|root:$hash|" "$etc/shadow"
}

cluster_conf() {
  cat <<CONF
ListenAddress 127.0.0.1:$cluster_port
ListenAddress 127.0.0.1:$password_port
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PidFile none
UsePAM yes
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
Match LocalPort $password_port
  PubkeyAuthentication no
  KbdInteractiveAuthentication yes
  AuthenticationMethods keyboard-interactive
CONF
}

ssh_up() {
  running sshd login r1 r2 || return 1
  [ "$(idle_nodes r1,r2)" = 2 ] && listens "$plain_port" && listens "$cluster_port" && listens "$password_port"
}

listens() { grep -q "^ *[0-9]*: 0100007F:$(printf %04X "$1") 00000000:0000 0A" /proc/net/tcp; }

ssh_stop() {
  clear_machines "${remote_nodes[@]}" login sshd
  give_back /run/sshd
  rm -rf "$ssh_folder" "$root/bin/ssh"
}

# The ssh first on this PATH reads our config and no other, so nobody's ~/.ssh is touched.
ssh_env() { echo "PATH=$root/bin:\$PATH"; }

ssh_json() {
  printf '{"up": %s, "ssh": "%s", "config": "%s", "known_hosts": "%s", "identity": "%s", "user": "root", ' \
    "$(truth ssh_up)" "$root/bin/ssh" "$ssh_folder/config" "$ssh_folder/known_hosts" "$ssh_folder/id"
  printf '"hosts": {"plain": %s, "cluster": %s, "password": %s}, ' "$(door plain "$plain_port")" \
    "$(door cluster "$cluster_port")" "$(door password "$password_port")"
  printf '"rootfs": "%s", "home": "/home/lab", "python": "/usr/bin/python3", ' "$rootfs"
  printf '"partition": "remote", "nodes": ["r1", "r2"], "password_file": "%s", "totp_file": "%s", ' \
    "$ssh_folder/password" "$ssh_folder/totp"
  printf '"pids": {"sshd": %s, "login": %s}}' "$(pid sshd || echo null)" "$(pid login || echo null)"
}

door() { printf '{"host": "nk-%s", "address": "127.0.0.1", "port": %s}' "$1" "$2"; }
