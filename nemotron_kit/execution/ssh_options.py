"""What the system's ssh is told: a config of ours in front of the user's, so that jump hosts obey it too."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path

from nemotron_kit import files
from nemotron_kit.errors import UserError
from nemotron_kit.home import nemotron_home

# A socket's path has 108 bytes at most; ssh adds a slash, 40 hex digits and a suffix of 17 while it makes it.
_LONGEST = 108 - 1 - 40 - 17 - 1
# ssh pastes the config's path into a jump host's command as it is.
_PLAIN = re.compile(r"[A-Za-z0-9/._-]+\Z")

# The first value that ssh meets for an option wins. Nothing of the caller's (agent, display, ports) is lent.
_OURS = """\
Host *
  StrictHostKeyChecking {strict}
  BatchMode {batch}
  UpdateHostKeys no
  NoHostAuthenticationForLocalhost no
  ForwardAgent no
  ForwardX11 no
  ForwardX11Trusted no
  GSSAPIDelegateCredentials no
  ClearAllForwardings yes
  PermitLocalCommand no
  RemoteCommand none
  RequestTTY no
  ConnectTimeout {connect}
  ConnectionAttempts 1
  ServerAliveInterval 5
  ServerAliveCountMax 3
  LogLevel INFO
  ControlMaster auto
  ControlPersist {persist}
  ControlPath {folder}/%C
Include {user_config}
Include /etc/ssh/ssh_config
"""
CONNECT_SECONDS = 4
QUIET = {"strict": "yes", "batch": "yes", "connect": str(CONNECT_SECONDS), "persist": "600"}
# A person is there: an unknown key may be looked at and accepted, a changed one never.
LOGIN = {"strict": "ask", "batch": "no", "connect": "20", "persist": "43200"}


def ssh_config(values: dict[str, str]) -> Path:
    """Our config file with `values` (QUIET or LOGIN), written if it isn't there or says something else."""
    folder = ssh_folder()
    theirs = os.environ.get("NEMOTRON_SSH_CONFIG") or "~/.ssh/config"
    text = _OURS.format(folder=folder, user_config=f'"{theirs}"', **values)
    path = folder / ("login" if values is LOGIN else "config")
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        files.write_text(path, text)
    return path


def ssh_folder() -> Path:
    """Where config and sockets lie: $NEMOTRON_HOME/ssh, else, where that can't hold a socket, a private folder of the
    temporary one. UserError for a folder that somebody else can enter."""
    home = nemotron_home() / "ssh"
    folder = home
    if len(str(home)) > _LONGEST or not _PLAIN.match(str(home)):
        name = f"nemotron-{os.getuid()}-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"
        folder = Path(tempfile.gettempdir()) / name
        if len(str(folder)) > _LONGEST or not _PLAIN.match(str(folder)):
            folder = Path("/tmp") / name  # noqa: S108 — checked below
    folder.mkdir(mode=0o700, parents=folder == home, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UserError(
            f"{folder} must be a folder of yours that nobody else can enter: connections lie in it.",
            hint=f"chmod 700 {folder}, or remove it.",
        )
    return folder


def ssh_command(host: str, user: str | None, identity: str | None, *options: str, login: bool = False) -> list[str]:
    """`ssh … HOST`, ready for a remote command. UserError for an identity that isn't there."""
    words = ["ssh", "-F", str(ssh_config(LOGIN if login else QUIET)), "-T", *options]
    if identity:
        path = Path(identity).expanduser()
        if not path.is_file():
            raise UserError(f"identity: {identity} is no file.", hint="Name your private key, as in ~/.ssh/id_ed25519.")
        words += ["-i", str(path), "-o", "IdentitiesOnly=yes"]
    if user:
        words += ["-l", user]
    return [*words, "--", host]
