"""Completion: `nemotron completion SHELL` prints a script that asks `nemotron __complete` at each press of Tab."""

from __future__ import annotations

import os
import re
import sys

from nemotron_kit.cli import options, tree
from nemotron_kit.cli.options import MAYBE, NEMOTRON, VALUE, key
from nemotron_kit.cli.tools import ARTIFACT, FIELDS, FOLDERS, NEW, PROFILE, TOOLS, VERSIONS
from nemotron_kit.cli.tree import NO_DETAIL, load_index
from nemotron_kit.errors import UserError, near

# Importing pathlib takes as long as the rest of a help page.
# ruff: noqa: PTH118, PTH208

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from nemotron_kit.cli.tree import Index, Node

    Candidates = Iterator[tuple[str, str]]


# No space is added after a candidate that ends in `=`, `:` or `.`. Without candidates the shell completes file names.
_BASH = """\
_nemotron_complete() {
    local reply
    COMPREPLY=()
    while IFS= read -r reply; do
        COMPREPLY+=("$reply")
    done < <(nemotron __complete bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=:.] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -F _nemotron_complete nemotron
"""

_ZSH = """\
#compdef nemotron
_nemotron() {
    local reply
    local -a open closed
    while IFS= read -r reply; do
        reply="${reply//:/\\\\:}"
        reply="${reply/$'\\t'/:}"
        if [[ ${reply%%:*} == *= ]]; then open+=("$reply"); else closed+=("$reply"); fi
    done < <(nemotron __complete zsh "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( ! $#open && ! $#closed )); then _files; return; fi
    (( $#closed )) && _describe -V nemotron closed
    (( $#open )) && _describe -V nemotron open -S ''
}
compdef _nemotron nemotron
"""

_FISH = """\
function __nemotron_complete
    set -l words (commandline -opc)[2..]
    set -l answers (nemotron __complete fish $words (commandline -ct) 2>/dev/null)
    if test (count $answers) -gt 0
        printf '%s\\n' $answers
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c nemotron -f -a '(__nemotron_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}

# runs.job.STATES and DAMAGED, which a press of Tab need not import.
STATES = ("pending", "running", "succeeded", "failed", "cancelled", "preempted", "unreachable", "unknown", "damaged")


def after_tool(name: str, arguments: Sequence[str], current: str, index: Index) -> Candidates:
    """Pairs (candidate for `current`, its meaning) for the arguments of a command in tools.TOOLS."""
    bare = [argument for argument in arguments if not options.is_option(argument)]
    command = TOOLS[name]
    if command.takes == FIELDS:  # a command line of a recipe follows
        recipes = index.root["children"]
        at = next((number for number, each in enumerate(arguments) if each in recipes), None)
        if at is not None:
            yield from _recipe(arguments[at:], current, index)
            return
        yield from ((each, "") for each in (command.options if current.startswith("-") else recipes))
        return
    entry = command.commands.get(bare[1]) if len(bare) > 1 else None
    last, its = arguments[-1], (entry or command).options
    if last in its and its[last].metavar:
        if last == "--state":
            yield from ((state, "") for state in STATES)
        elif last == "--recipe":
            yield from ((name, "") for name in index.root["children"])
        elif last in ("--run", "--batch"):
            yield from profiles()
    elif current.startswith("-"):
        yield from ((option, "") for option in its)
    elif entry is None and len(bare) == 1:
        yield from ((argument, "") for argument in (*command.commands, *command.choices))
        yield from _positional_values(command.takes, current)
    else:
        yield from _positional_values((entry or command).takes, current)


def _positional_values(takes: str, current: str) -> Candidates:
    if takes in (ARTIFACT, VERSIONS):
        yield from artifacts(current)
    elif takes == PROFILE:
        yield from profiles()
    elif takes not in ("", NEW, FOLDERS):
        yield from runs()


def runs() -> Candidates:
    """The runs' ids, newest first, and `latest`."""
    yield from ((each, "") for each in ("latest", *reversed(listing(os.path.join(tree.home(), "runs")))))


def profiles() -> Candidates:
    """The profiles of env.toml."""
    for name, table in tree.tables().items():
        if name not in tree.RESERVED and isinstance(table, dict):
            yield name, str(table.get("executor", "local"))


def artifacts(current: str) -> Candidates:
    """Artifact names; after `Name:` its versions and aliases. Read from the folders of the registry on this machine."""
    name, colon, _ = current.partition(":")
    root = tree.artifacts_root()
    if not colon:
        yield from ((each, "") for each in listing(root))
        return
    numbers = sorted(int(each[1:]) for each in listing(os.path.join(root, name)) if re.fullmatch(r"v\d+", each))
    versions = [f"v{number}" for number in numbers]
    for each in ("latest", *versions, *listing(os.path.join(root, name, "aliases"))):
        yield f"{name}:{each}", ""


def listing(folder: str) -> list[str]:
    """The names in a folder without hidden ones, sorted; [] if it can't be read."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


_WORD = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'?|"(?:[^"\\]|\\.)*"?)+""", re.DOTALL)


def main(argv: Sequence[str]) -> int:
    """`nemotron completion bash|zsh|fish`: print the script. Exit code 0."""
    shell, *more = argv
    if more:
        raise UserError(f"nemotron completion: unknown argument {more[0]!r}.", hint="See nemotron completion --help.")
    if shell not in SCRIPTS:
        raise UserError(f"No completion for {shell!r}.", hint=near(shell, SCRIPTS))
    sys.stdout.write(SCRIPTS[shell])
    return 0


def answer(argv: Sequence[str]) -> int:
    """`__complete bash LINE`, or `__complete zsh|fish WORD…` (the last one unfinished): prints one candidate a line, in
    zsh and fish followed by a tab and its meaning. The exit code is always 0; without candidates the shell completes
    file names."""
    shell = argv[0] if argv else ""
    arguments = split_line(argv[1] if argv[1:] else "")[1:] if shell == "bash" else list(argv[1:])
    arguments = arguments or [""]
    found = list(dict(complete(arguments[:-1], arguments[-1], load_index())).items())
    if shell == "bash":
        # Readline replaces only what follows the last `=` or `:` of the word.
        cut = max(arguments[-1].rfind(mark) for mark in "=:") + 1
        lines = [text[cut:] for text, _ in found]
    else:
        lines = [f"{text}\t{meaning}".rstrip() for text, meaning in found]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    return 0


def split_line(line: str) -> list[str]:
    """The arguments of an unfinished shell line; the last one may be empty or inside quotes."""
    arguments = [re.sub(r"\\(.)|['\"]", r"\1", match[0]) for match in _WORD.finditer(line)]
    return [*arguments, ""] if not line or line[-1].isspace() else arguments


def complete(arguments: Sequence[str], current: str, index: Index) -> Candidates:
    """Pairs (candidate for `current`, its meaning), given the finished arguments before it."""
    first = tree.first_name(arguments)
    candidates = after_tool(first, arguments, current, index) if first in TOOLS else _recipe(arguments, current, index)
    return ((text, meaning) for text, meaning in candidates if text.startswith(current))


def _recipe(arguments: Sequence[str], current: str, index: Index) -> Candidates:
    reached = tree.walk(arguments, index)
    if reached.unknown is not None:
        return
    leaf = not tree.is_group(reached.node)
    detail = index.detail(reached.node) if leaf and "broken" not in reached.node else NO_DETAIL
    name, equals, value = current.partition("=")
    if arguments and _takes_value(arguments[-1], detail):
        yield from _values(arguments[-1], current, detail)
    elif equals:
        # The option that takes the same values as an override's key.
        option = {"config": "--config", "run.profile": "--run"}.get(name, name)
        yield from ((f"{name}={text}", meaning) for text, meaning in _values(option, value, detail))
    elif current.startswith("-"):
        yield from _flags(detail)
    elif leaf:
        yield from _fields(detail, arguments[-1], current)
    else:
        yield from ((child["name"], child["description"]) for child in reached.node["children"].values())
        if not reached.path:
            yield from ((name, command.summary) for name, command in TOOLS.items())


def _fields(detail: Node, before: str, current: str) -> Candidates:
    option = options.known(before) if options.is_option(before) else None
    if option is not None and option.takes == MAYBE:
        yield from ((choice, "") for choice in option.choices)
    yield from ((f"{row['name']}=", row.get("help", "")) for row in detail["fields"] if row["kind"] != "dict")
    yield from ((f"{group}=", f"one of {', '.join(choices)}") for group, choices in detail["groups"].items())
    if current.startswith("run."):
        yield from ((f"run.{slot['slot']}=", f"instead of {slot['default']}") for slot in detail["artifacts"])


def _flags(detail: Node) -> Candidates:
    for option in NEMOTRON.options:
        yield option.flag, option.help
    for slot in detail["artifacts"]:
        yield f"--art.{slot['slot']}", f"instead of {slot['default']}"
    yield from (
        ("--" + group.replace("_", "-"), f"one of {', '.join(choices)}") for group, choices in detail["groups"].items()
    )
    for row in detail["fields"]:
        if row["name"] not in NEMOTRON.long:  # an option of the same name is listed already
            yield "--" + row["name"].replace("_", "-"), row.get("help", row["type"])


def _field(name: str, detail: Node) -> dict[str, Any]:
    """The field that an option or an override's key names, {} for none."""
    rows: list[dict[str, Any]] = detail["fields"]
    return next((row for row in rows if key(name) == row["name"] or name == row.get("short")), {})


def _takes_value(token: str, detail: Node) -> bool:
    """Whether the argument after `token` is its value."""
    if not options.is_option(token) or "=" in token:
        return False
    option = options.known(token)
    if option is not None:
        return option.takes == VALUE and token in (option.short, "--" + token[2:])
    return key(token) in detail["groups"] or bool(_field(token, detail).get("kind", "bool") != "bool")


def _values(name: str, current: str, detail: Node) -> Candidates:
    """The known values of an option or an override's key."""
    option = options.known(name) if name.startswith("-") else None
    slots = [f"{prefix}.{slot['slot']}" for slot in detail["artifacts"] for prefix in ("--art", "run")]
    if name in slots:
        yield from artifacts(current)
    elif option is not None and option.name in ("run", "batch"):
        yield from profiles()
    elif option is not None and option.name == "after":
        yield from runs()
    elif option is not None and option.name == "config":
        yield from ((config, "") for config in detail["configs"])
    elif option is not None:
        yield from ((choice, "") for choice in option.choices)
    elif key(name) in detail["groups"]:
        yield from ((choice, "") for choice in detail["groups"][key(name)])
    else:
        row = _field(name, detail)
        choices: Iterable[str] = ("true", "false") if row.get("kind") == "bool" else row.get("choices", ())
        yield from ((choice, "") for choice in choices)
