"""`nemotron profiles`: the profiles of env.toml, and where each value of one comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nemotron_kit.cli.grid import clean, print_json, print_table, write_lines
from nemotron_kit.cli.suggest import near
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.masking import is_secret_name
from nemotron_kit.plan.profiles import Profile, list_run_profiles, read_profile
from nemotron_kit.plan.runconfig import DEFAULTS
from nemotron_kit.plan.tables import check_reserved_tables

COMMANDS = ("list", "show", "check", "login", "clean")
SUMMARY = "list the profiles of env.toml"
HELP = """\
usage: nemotron profiles [--json]
       nemotron profiles show NAME [--all] [--json]
       nemotron profiles check NAME [--json]
       nemotron profiles login NAME [--close]
       nemotron profiles clean NAME [--unused 30d] [--dry-run] [--json]

The profiles of env.toml: where and how `--run NAME` and `--batch NAME` start a job.

commands
  show NAME    one profile as it is resolved, and where each value comes from
  check NAME   connect to its target and report whether a launch would work there
  login NAME   open its ssh connection on this terminal (passwords, second factors)
  clean NAME   remove from its target what launches left there and no run needs

options
  --all        also the fields that nobody set
  --json       for programs
"""


def main(argv: Sequence[str]) -> int:
    """The words after `nemotron profiles`. Returns the exit code; raises UserError for wrong ones."""
    words = list(argv)
    if words[:1] in (["-h"], ["--help"], ["help"]) or (words[:1] == ["show"] and {"-h", "--help"} & set(words)):
        write_lines(HELP.splitlines())
        return 0
    if words[:1] == ["show"]:
        return _show(words[1:])
    if words[:1] in (["check"], ["login"], ["clean"]):
        from importlib import import_module

        return int(import_module(f"nemotron_kit.cli.profiles_{words[0]}").main(words[1:]))
    if words and not words[0].startswith("-") and words[0] != "list":
        raise UserError(
            f"nemotron profiles has no command {words[0]!r}.",
            hint=f"{near(words[0], COMMANDS)} Of one profile: nemotron profiles show {words[0]}",
        )
    return _list(words[1:] if words[:1] == ["list"] else words)


def _list(argv: list[str]) -> int:
    parser = ToolParser("nemotron profiles", SUMMARY)
    parser.add_argument("--json", action="store_true")
    options = parser.parse(argv)
    if options is None:
        return 0
    env = read_env_file()
    check_reserved_tables(env)
    found = [_summary(name) for name in list_run_profiles()]
    if options.json:
        print_json(found)
    elif found:
        rows = [(p["name"], p["executor"], p["nodes"], p["extends"], p["error"]) for p in found]
        print_table(("PROFILE", "EXECUTOR", "NODES", "EXTENDS", "WHY NOT"), rows)
    else:
        where = f"{env.path} has none" if env.path else "there is no env.toml"
        write_lines([f"No profiles: {where}. A profile is a table in it: [NAME], then executor = …"])
    return 0


def _summary(name: str) -> dict[str, Any]:
    """One line of the list; a profile that is wrong hides no other."""
    try:
        profile = read_profile(name)
    except NemotronError as error:
        return {"name": name, "executor": None, "nodes": None, "extends": None, "error": str(error)}
    parent = profile.chain[1] if len(profile.chain) > 1 else None
    config = profile.config
    return {"name": name, "executor": config.executor, "nodes": config.nodes, "extends": parent, "error": None}


def _show(argv: list[str]) -> int:
    parser = ToolParser("nemotron profiles show", "One profile, and where each value comes from.")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse(argv)
    if options is None:
        return 0
    profile = read_profile(options.name)
    rows = [row for row in _fields(profile) if options.all or row["value"] is not None]
    if options.json:
        print_json({"name": profile.name, "file": str(profile.path), "chain": list(profile.chain), "fields": rows})
        return 0
    write_lines([clean(f"{' → '.join(profile.chain)}  ({profile.path})")])
    print_table(("FIELD", "VALUE", "FROM"), [(row["field"], _text(row["value"]), row["from"]) for row in rows])
    return 0


def _fields(profile: Profile) -> list[dict[str, Any]]:
    values = {name: value for name, value in asdict(profile.config).items() if name != "extends"}
    set_first = sorted(values, key=lambda name: name not in profile.origins)
    return [{"field": name, "value": _masked(name, values[name]), "from": _origin(profile, name)} for name in set_first]


def _origin(profile: Profile, name: str) -> str:
    return profile.origins.get(name) or ("default" if DEFAULTS[name] is not None else "not set")


def _masked(name: str, value: Any) -> Any:
    """The value, with what is a secret by its name left out; a reference to a secret is none."""
    if name == "env_vars" and value:
        pairs = [entry.partition("=") for entry in value]
        return [f"{key}={_hidden(text) if is_secret_name(key) else text}" for key, _, text in pairs]
    return _hidden(value) if value and is_secret_name(name) else value


def _hidden(text: str) -> str:
    return text if text.startswith("${") else "***"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
