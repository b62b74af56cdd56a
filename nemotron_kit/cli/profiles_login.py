"""`nemotron profiles login NAME`: opens the way to a cluster on the user's own terminal, for all that comes after."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from nemotron_kit.cli.grid import write_lines
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.execution.ssh import ssh_from
from nemotron_kit.execution.ssh_options import LOGIN, ssh_command
from nemotron_kit.plan.profiles import read_profile

HOURS = int(LOGIN["persist"]) // 3600


def main(argv: Sequence[str]) -> int:
    """The words after `nemotron profiles login`. Unreachable (3) when ssh, which has said why, does not get in."""
    parser = ToolParser("nemotron profiles login", "Open the ssh connection of a profile (passwords, second factors).")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--close", action="store_true", help="end the connection instead")
    options = parser.parse(argv)
    if options is None:
        return 0
    config = read_profile(options.name).config
    if config.tunnel != "ssh":
        raise UserError(
            f"Profile {options.name} runs on this machine: there is nothing to log in to.",
            hint='A profile with tunnel = "ssh" has a host and a user.',
        )
    to = ssh_from(vars(config))
    ssh = ssh_command(to.host, to.user, to.identity, login=True)
    if options.close:
        return _close(ssh, to.place)
    if _is_open(ssh):
        write_lines([f"The way to {to.place} is open already. End it: nemotron profiles login {options.name} --close"])
        return 0
    # ssh asks on the terminal that it shares with us; `true` ends at once and leaves the master behind.
    code = subprocess.run([*ssh, "true"], check=False).returncode
    if code != 0 or not _is_open(ssh):
        raise Unreachable(f"{to.place}: not logged in (ssh ended with {code}).", hint="What ssh said stands above.")
    write_lines([f"The way to {to.place} is open, until it has been unused for {HOURS} hours."])
    return 0


def _close(ssh: Sequence[str], place: str) -> int:
    if not _is_open(ssh):
        raise NemotronError(f"There is no open connection to {place}.")
    _control(ssh, "exit")
    write_lines([f"The connection to {place} is closed."])
    return 0


def _is_open(ssh: Sequence[str]) -> bool:
    return _control(ssh, "check") == 0


def _control(ssh: Sequence[str], word: str) -> int:
    """What ssh's master answers to one of its control commands; not 0 when there is none."""
    command = [*ssh[:1], "-O", word, *ssh[1:]]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode
