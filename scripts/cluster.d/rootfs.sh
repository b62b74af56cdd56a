# shellcheck shell=bash
# The second machine's root filesystem, also the Docker image's: Debian with its own Python, sshd and Slurm.

rootfs=$root/rootfs
rootfs_packages=$rootfs/usr/local/lib/python3.11/dist-packages
rootfs_contents=base-files,base-passwd,bash,dash,coreutils,findutils,grep,sed,mawk,tar,gzip,hostname,util-linux,mount,
rootfs_contents+=procps,netbase,libc-bin,
rootfs_contents+=login,passwd,libpam-modules,libpam-google-authenticator,openssh-server,openssh-client,rsync,
rootfs_contents+=slurmd,slurm-client,python3,python3-yaml

# Made beside its place and renamed, so that a half-made one is never used. Descriptor 3 is the person's terminal.
rootfs_make() {
  if [ ! -d "$rootfs" ]; then
    rm -rf "$rootfs.new"
    rootfs_extract
    rootfs_settle "$rootfs.new"
    mv "$rootfs.new" "$rootfs"
  fi
  rootfs_python_packages
}

# Extracted only: running the packages' set-up scripts takes four times as long, and what we need of it is written below.
rootfs_extract() {
  debian_sources | mmdebstrap --quiet --mode=root --variant=extract --include="$rootfs_contents" --format=directory \
    --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Check-Date "false"' \
    "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$rootfs.new" -
}

# This machine's own Debian mirrors, as sources.list lines: the second machine gets the same versions.
debian_sources() {
  apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' | sort -u
}

# What the packages' set-up scripts would have done, as far as a login and a job need it.
rootfs_settle() {
  local at=$1
  rm -rf "$at"/usr/share/{doc,info,locale,man}
  cp "$at/usr/share/base-passwd/passwd.master" "$at/etc/passwd"
  cp "$at/usr/share/base-passwd/group.master" "$at/etc/group"
  # The same user as here, living elsewhere; the password is set with the rest of ssh.
  sed -i 's|^root:.*|root:x:0:0:root:/home/lab:/bin/bash|' "$at/etc/passwd"
  echo "sshd:x:101:65534::/run/sshd:/usr/sbin/nologin" >>"$at/etc/passwd"
  echo "root:*:19000:0:99999:7:::" >"$at/etc/shadow"
  chmod 600 "$at/etc/shadow"
  # Every PAM service that ssh.sh does not describe says no.
  printf '%s required pam_deny.so\n' auth account password session >"$at/etc/pam.d/other"
  printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files\n' >"$at/etc/nsswitch.conf"
  mkdir -p "$at"/home/lab "$at"/run/sshd "$at"/etc/slurm "$at$root"
  chmod 700 "$at/home/lab"
  touch "$at/etc/hosts"
  ln -sf mawk "$at/usr/bin/awk"
  ln -sf slurmd-wlm "$at/usr/sbin/slurmd"
  ln -sf slurmstepd-wlm "$at/usr/sbin/slurmstepd"
  echo "include $root/slurm/slurm.conf" >"$at/etc/slurm/slurm.conf"
  chroot "$at" ldconfig
}

# The kit's worker needs OmegaConf, newer than Debian's: a copy from an environment on this machine, pure Python.
rootfs_python_packages() {
  local target=$rootfs_packages python folder
  [ ! -d "$target/omegaconf" ] || return 0
  python=$(python_with_omegaconf) || {
    echo "scripts/cluster: no Python with omegaconf found, so the second machine and the image have none;" \
      "set NEMOTRON_CLUSTER_PYTHON and run 'up' again" >&3
    return 0
  }
  mkdir -p "$target"
  "$python" -c 'import antlr4, omegaconf; print(antlr4.__path__[0], omegaconf.__path__[0], sep="\n")' |
    while read -r folder; do
      tar -C "$(dirname "$folder")" --exclude=__pycache__ -c "$(basename "$folder")" | tar -C "$target" -x
    done
}

python_with_omegaconf() {
  local python
  for python in "${NEMOTRON_CLUSTER_PYTHON:-}" "${VIRTUAL_ENV:-}/bin/python" "$here/../../.venv/bin/python" python3; do
    if "$python" -c 'import antlr4, omegaconf' 2>/dev/null; then echo "$python"; return; fi
  done
  return 1
}
