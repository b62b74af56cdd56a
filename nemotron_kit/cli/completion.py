"""Completion: `nemotron completion SHELL` prints a script that asks `nemotron __complete` at each press of Tab."""

from __future__ import annotations

import re
import sys

from nemotron_kit.cli import options, tree
from nemotron_kit.cli.index import load_index
from nemotron_kit.cli.options import MAYBE, NEMOTRON, VALUE, key
from nemotron_kit.cli.tool_completion import after_tool, artifacts, profiles, runs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from nemotron_kit.cli.index import Index, Node

    Answers = Iterator[tuple[str, str]]

_EMPTY: Node = {"fields": [], "artifacts": [], "configs": []}
_WORD = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'?|"(?:[^"\\]|\\.)*"?)+""", re.DOTALL)


def main(argv: Sequence[str]) -> int:
    """`nemotron completion bash|zsh|fish`: print the script. Exit code 0."""
    from nemotron_kit.cli.shells import SCRIPTS, USAGE

    shell = argv[0] if argv else "--help"
    if shell not in SCRIPTS and shell not in ("-h", "--help"):
        from nemotron_kit.cli.suggest import near
        from nemotron_kit.errors import UserError

        raise UserError(f"No completion for {shell!r}.", hint=near(shell, SCRIPTS))
    sys.stdout.write(SCRIPTS.get(shell, USAGE))
    sys.stdout.flush()
    return 0


def answer(argv: Sequence[str]) -> int:
    """`__complete bash LINE`, or `__complete zsh|fish WORD…` (the last one unfinished): one answer a line, in zsh and
    fish with a tab and what it means. Exit code 0, also when there is nothing to say: the shell offers files then."""
    shell = argv[0] if argv else ""
    words = split_line(argv[1] if argv[1:] else "")[1:] if shell == "bash" else list(argv[1:])
    words = words or [""]
    found = list(dict(complete(words[:-1], words[-1], load_index())).items())
    if shell == "bash":
        # Readline replaces only what follows the last `=` or `:` of the word.
        cut = max(words[-1].rfind(mark) for mark in "=:") + 1
        lines = [text[cut:] for text, _ in found]
    else:
        lines = [f"{text}\t{meaning}".rstrip() for text, meaning in found]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    return 0


def split_line(line: str) -> list[str]:
    """The words of an unfinished shell line, the last one possibly empty or inside quotes."""
    words = [re.sub(r"\\(.)|['\"]", r"\1", match[0]) for match in _WORD.finditer(line)]
    return [*words, ""] if not line or line[-1].isspace() else words


def complete(words: Sequence[str], current: str, index: Index) -> Answers:
    """(what may stand in place of `current`, what it means), given the finished words before it."""
    first = tree.first_word(words)
    answers = after_tool(first, words, current, index) if first in tree.TOOLS else _recipe(words, current, index)
    return ((text, meaning) for text, meaning in answers if text.startswith(current))


def _recipe(words: Sequence[str], current: str, index: Index) -> Answers:
    reached = tree.walk(words, index)
    if reached.unknown is not None:
        return iter(())
    leaf = not tree.is_group(reached.node)
    detail = index.detail(reached.node) if leaf and "broken" not in reached.node else _EMPTY
    name, equals, _ = current.partition("=")
    waiting = words[-1] if words and _takes_value(words[-1], detail) else ""
    if waiting:
        return _values(waiting, current, detail)
    if equals:
        option = name if name.startswith("-") else _option_of(name)
        return _joined(name, _values(option, current[len(name) + 1 :], detail))
    if current.startswith("-"):
        return _flags(detail)
    return _fields(detail, words[-1], current) if leaf else _words(reached.node)


def _fields(detail: Node, before: str, current: str) -> Answers:
    option = options.known(before) if options.is_option(before) else None
    if option is not None and option.takes == MAYBE:
        yield from ((choice, "") for choice in option.choices)
    yield from ((f"{row['name']}=", row.get("help", "")) for row in detail["fields"] if row["kind"] != "dict")
    if current.startswith("run."):
        yield from ((f"run.{slot['slot']}=", f"instead of {slot['default']}") for slot in detail["artifacts"])


def _words(node: Node) -> Answers:
    for child in node["children"].values():
        yield child["name"], child["description"]
    if not node["path"]:
        yield from ((name, summary) for name, (_, summary, _) in tree.TOOLS.items())


def _flags(detail: Node) -> Answers:
    for option in NEMOTRON.options:
        yield option.flag, option.help
    for slot in detail["artifacts"]:
        yield f"--art.{slot['slot']}", f"instead of {slot['default']}"
    for row in detail["fields"]:
        if row["name"] not in NEMOTRON.long:
            yield "--" + row["name"].replace("_", "-"), row.get("help", row["type"])


def _field(name: str, detail: Node) -> dict[str, Any]:
    """The field that an option or an override's key names, {} for none."""
    rows: list[dict[str, Any]] = detail["fields"]
    return next((row for row in rows if key(name) == row["name"] or name == row.get("short")), {})


def _takes_value(token: str, detail: Node) -> bool:
    """Whether the word after `token` is its value."""
    if not options.is_option(token) or "=" in token:
        return False
    option = options.known(token)
    if option is not None:
        return option.takes == VALUE and token in (option.short, "--" + token[2:])
    return bool(_field(token, detail).get("kind", "bool") != "bool")


def _option_of(name: str) -> str:
    """The option whose values an override's key has: `config=`, `run.profile=`, `run.data=` (an artifact)."""
    return {"config": "--config", "run.profile": "--run"}.get(name, name)


def _joined(name: str, answers: Answers) -> Answers:
    return ((f"{name}={text}", meaning) for text, meaning in answers)


def _values(name: str, current: str, detail: Node) -> Answers:
    """The values that an option, or an override's key, can have as far as that is known."""
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
    else:
        row = _field(name, detail)
        choices: Iterable[str] = ("true", "false") if row.get("kind") == "bool" else row.get("choices", ())
        yield from ((choice, "") for choice in choices)
