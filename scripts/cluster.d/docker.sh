# shellcheck shell=bash
# A Docker engine of our own, without a bridge or firewall rules, and an image made of the second machine's files.

docker_folder=$root/docker
docker_image=nemotron-kit-test
docker_cgroup=nemotron-kit-cluster-$port

# Where the engine writes whatever it is told; on its machine these lie in our folder.
docker_places=(/etc/docker /opt/containerd /run/docker)

docker_packages() { echo docker.io; }

docker_start() {
  mkdir -p "$docker_folder"
  chmod 700 "$docker_folder"
  echo '{}' >"$docker_folder/daemon.json"
  borrow "${docker_places[@]}"
  daemon dockerd "$(cat /proc/sys/kernel/hostname)" / "$here/covered" "$docker_folder/places" "${docker_places[@]}" -- \
    dockerd --host="unix://$docker_folder/socket" \
    --config-file="$docker_folder/daemon.json" --data-root="$docker_folder/data" --exec-root="$docker_folder/run" \
    --pidfile="$docker_folder/pid" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent="/$docker_cgroup" \
    --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --userland-proxy=false --bridge=none
}

docker_here() { timeout 60 docker --config "$docker_folder/client" --host "unix://$docker_folder/socket" "$@"; }

docker_finish() {
  until_true 30 docker_here version || fail "dockerd does not answer: see $root/log/dockerd.log"
  if docker_up && [ "$docker_folder/imported" -nt "$rootfs_packages" ]; then return; fi
  # Not what the second machine's sshd and its visitors have put there.
  tar -C "$rootfs" --exclude="./etc/ssh" --exclude="./etc/shadow" --exclude="./home/lab/*" --exclude="./tmp/*" -c . |
    docker_here import --change 'CMD ["/bin/bash"]' - "$docker_image" >/dev/null
  touch "$docker_folder/imported"
}

docker_up() { running dockerd && docker_here image inspect "$docker_image" >/dev/null 2>&1; }

docker_stop() {
  clear_machines dockerd
  until_true 10 containers_ended || fail "some containers do not end"
  find /sys/fs/cgroup -depth -type d -path "*/$docker_cgroup*" -exec rmdir {} + 2>/dev/null || true
  give_back "${docker_places[@]}"
  rm -rf "$docker_folder"
}

# Containers have mount namespaces of their own; their control group tells whose they are.
containers_ended() {
  local left
  left=$(grep -lsF "/$docker_cgroup/" /proc/[0-9]*/cgroup | cut -d/ -f3)
  [ -n "$left" ] || return 0
  # shellcheck disable=SC2086
  kill -s KILL $left 2>/dev/null || true
  return 1
}

docker_env() { echo "DOCKER_HOST=unix://$docker_folder/socket"; }

docker_json() {
  printf '{"up": %s, "env": {"DOCKER_HOST": "unix://%s/socket"}, "image": "%s", ' \
    "$(truth docker_up)" "$docker_folder" "$docker_image"
  printf '"python": "/usr/bin/python3", "pids": {"dockerd": %s}}' "$(pid dockerd || echo null)"
}
