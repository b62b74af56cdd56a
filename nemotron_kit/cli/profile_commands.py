"""`nemotron profiles`: lists the profiles of env.toml; checks, cleans and logs in to their targets."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nemotron_kit.cli.output import WARNING, clean, print_json, print_table, write_lines
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.envfile import check_reserved_tables, read_env_file
from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.executors.checks import check_profile
from nemotron_kit.masking import MASK, is_secret_name, mask, masked
from nemotron_kit.remote.ssh import LOGIN, ssh_command, ssh_from, transport_for
from nemotron_kit.runs.progress import short_span
from nemotron_kit.spec.profiles import (
    effective_profile,
    list_run_profiles,
    read_profile,
)
from nemotron_kit.spec.runconfig import DEFAULTS

_STYLES = {"ok": "green", "warning": WARNING, "wrong": "bold red", "unreachable": "magenta"}
_EXIT_CODES = {"ok": 0, "warning": 0, "wrong": 1, "unreachable": 3}


def check(argv: list[str]) -> int:
    """`nemotron profiles check ARGUMENTS`: returns 0 if all checks pass, 1 if one fails, 3 if the target does not
    answer."""
    options = ToolParser("profiles", "check").parse(argv)
    findings = list(check_profile(effective_profile(options.name).config, on_node=options.node))
    if options.json:
        print_json([vars(finding) for finding in findings])
    else:
        rows = [(f.what, f.state, f.detail) for f in findings]
        print_table(("WHAT", "STATE", "SEEN"), rows, styles=_STYLES)
    return max((_EXIT_CODES[finding.state] for finding in findings), default=0)


def clean_target(argv: list[str]) -> int:
    """`nemotron profiles clean ARGUMENTS`: the exit code. Raises Unreachable (3) when the target does not answer."""
    options = ToolParser("profiles", "clean").parse(argv)
    transport = transport_for(effective_profile(options.name).config)
    unused = options.unused.total_seconds()
    found, _ = transport.call("clean", root=transport.root, unused_seconds=unused, remove=not options.dry_run)
    kept = [entry for entry in found if "error" in entry]
    if options.json:
        print_json(found)
        return 1 if kept else 0
    found = [entry for entry in found if "error" not in entry]
    if found:
        print_table(("WHAT", "MB", "PATH"), [(f["what"], f"{f['bytes'] / 1e6:.1f}", f["path"]) for f in found])
    size, verb = sum(f["bytes"] for f in found) / 1e6, "would be removed" if options.dry_run else "removed"
    write_lines(
        [f"{len(found)} {verb}, {size:.1f} MB: unused for {short_span(unused)} and needed by no unfinished run"]
    )
    if kept:
        first, *more = (f"{entry['path']}: {entry['error']}." for entry in kept)
        raise NemotronError(f"{len(kept)} could not be removed: {first}", hint="\n".join(more) or None)
    return 0


HOURS = int(LOGIN["persist"]) // 3600


def login(argv: list[str]) -> int:
    """`nemotron profiles login ARGUMENTS`: the exit code. Raises Unreachable (3) when ssh can't log in; ssh prints the
    reason."""
    options = ToolParser("profiles", "login").parse(argv)
    config = read_profile(options.name).config
    if config.tunnel != "ssh":
        raise UserError(
            f"Profile {options.name} runs on this machine: there is nothing to log in to.",
            hint='A profile with tunnel = "ssh" has a host and a user.',
        )
    to = ssh_from(config)
    ssh = ssh_command(to.host, to.user, to.identity, login=True)
    if options.close and not _is_open(ssh):
        raise NemotronError(f"There is no open connection to {to.address}.")
    if options.close:
        _control(ssh, "exit")
        write_lines([f"The connection to {to.address} is closed."])
        return 0
    if _is_open(ssh):
        write_lines(
            [f"The connection to {to.address} is open already. End it: nemotron profiles login {options.name} --close"]
        )
        return 0
    # ssh asks for passwords on this terminal; `true` ends at once, and ssh's master process stays in the background.
    code = subprocess.run([*ssh, "true"], check=False).returncode
    if code != 0 or not _is_open(ssh):
        raise Unreachable(f"{to.address}: not logged in (ssh ended with {code}).", hint="See ssh's message above.")
    write_lines([f"The connection to {to.address} stays open until it has been unused for {HOURS} hours."])
    return 0


def _is_open(ssh: Sequence[str]) -> bool:
    return _control(ssh, "check") == 0


def _control(ssh: Sequence[str], argument: str) -> int:
    """The exit code of `ssh -O ARGUMENT`, a command to ssh's master process; not 0 when there is none."""
    command = [*ssh[:1], "-O", argument, *ssh[1:]]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode


def list_all(argv: list[str]) -> int:
    """`nemotron profiles`: list the profiles of env.toml, one line each."""
    options = ToolParser("profiles").parse(argv)
    env = read_env_file()
    check_reserved_tables(env)
    found = [_summary(name) for name in list_run_profiles()]
    if options.json:
        print_json(found)
    elif found:
        rows = [(p["name"], p["executor"], p["nodes"], p["extends"], p["error"]) for p in found]
        print_table(
            ("PROFILE", "EXECUTOR", "NODES", "EXTENDS", "ERROR"),
            rows,
            keep="ERROR" if any(p["error"] for p in found) else "EXECUTOR",
        )
    else:
        where = f"{env.path} has none" if env.path else "there is no env.toml"
        write_lines(
            [
                f"No profiles: {where}. A profile is a table in it: [NAME], then executor = …",
                "nemotron init --profile NAME writes one.",
            ]
        )
    return 0


def _summary(name: str) -> dict[str, Any]:
    """One line of the list; an invalid profile is listed with its error."""
    try:
        profile = read_profile(name)
    except NemotronError as error:
        return {"name": name, "executor": None, "nodes": None, "extends": None, "error": str(error)}
    parent = profile.chain[1] if len(profile.chain) > 1 else None
    config = profile.config
    return {"name": name, "executor": config.executor, "nodes": config.nodes, "extends": parent, "error": None}


def show(argv: list[str]) -> int:
    """`nemotron profiles show ARGUMENTS`: print one profile, and where each value comes from."""
    options = ToolParser("profiles", "show").parse(argv)
    profile = read_profile(options.name)
    values = {name: value for name, value in asdict(profile.config).items() if name != "extends"}
    rows = []
    for name in sorted(values, key=lambda name: name not in profile.origins):  # those that are set come first
        origin = profile.origins.get(name) or ("default" if DEFAULTS[name] is not None else "not set")
        rows.append({"field": name, "value": _masked(name, values[name]), "from": origin})
    rows += [
        {"field": f"resources.{each}.{name}", "value": _masked(name, value), "from": origin}
        for each, fields in profile.classes.items()
        for name, (value, origin) in fields.items()
    ]
    rows = [row for row in rows if options.all or row["value"] is not None]
    if options.json:
        print_json({"name": profile.name, "file": str(profile.path), "chain": list(profile.chain), "fields": rows})
        return 0
    write_lines([clean(f"{' → '.join(profile.chain)}  ({profile.path})")])
    print_table(("FIELD", "VALUE", "FROM"), [(row["field"], _text(row["value"]), row["from"]) for row in rows])
    return 0


def _masked(name: str, value: Any) -> Any:
    """The value, masked if its name marks it as a secret; a reference to a secret (`${…}`) is not masked."""
    if name == "env_vars" and value:
        pairs = [entry.partition("=") for entry in value]
        return [f"{key}={_hidden(text) if is_secret_name(key) else mask(text)}" for key, _, text in pairs]
    return _hidden(value) if value and is_secret_name(name) else masked(value)


def _hidden(text: str) -> str:
    return text if text.startswith("${") else MASK


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
