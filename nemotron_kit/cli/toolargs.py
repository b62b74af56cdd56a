"""The argument parser of nemotron's commands that are no recipes (`nemotron runs …`): argparse with our messages."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from nemotron_kit.cli.options import SEVERAL
from nemotron_kit.cli.output import write_page
from nemotron_kit.cli.tools import (
    ANY_JOBS,
    ARTIFACT,
    FIELDS,
    FOLDERS,
    ID,
    JOB,
    JOB_ID,
    JOBS,
    NEW,
    PROFILE,
    RUN_NAME,
    RUN_NOTE,
    RUN_TAGS,
    TOOLS,
    VERSIONS,
    HelpPrinted,
)
from nemotron_kit.errors import UserError, near

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)\Z")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# What other programs call an option of these commands.
_ELSEWHERE = {
    **dict.fromkeys(("-n", "--last", "--head", "--max"), "--limit N"),
    **dict.fromkeys(("--failed", "--running", "--succeeded", "--status", "-s"), "--state STATE"),
    **dict.fromkeys(("-m", "-y", "--key"), "--metric NAME"),
    "--lines": "--tail N",
}
_POSITIONALS: dict[str, tuple[tuple[str, str | int | None, str, str], ...]] = {
    "": (),
    JOB: (("id", None, "ID", JOB_ID),),
    JOBS: (("ids", "+", "ID", JOB_ID),),
    ANY_JOBS: (("ids", "*", "ID", JOB_ID),),
    RUN_TAGS: (("id", None, "ID", ID), ("tags", "*", "TAG", "letters, digits and . : / = - _")),
    RUN_NOTE: (("id", None, "ID", ID), ("text", None, "NOTE", 'the text, in quotes; "" removes it')),
    RUN_NAME: (("id", None, "ID", ID), ("text", None, "NAME", 'the text, in quotes; "" removes it')),
    PROFILE: (("name", None, "NAME", "a profile of env.toml"),),
    NEW: (("fields", "*", "NAME", "the recipe's name; with --profile, the profile's fields: KEY=VALUE"),),
    FIELDS: (("fields", "*", "FIELD", "a field or block of the config, such as train.lr"),),
    VERSIONS: (("references", "+", "REFERENCE", "a version: Name:v3, Name:alias"),),
    FOLDERS: (("folders", 2, "FOLDER", "the old folder, then the new one"),),
    ARTIFACT: (("reference", "?", "REFERENCE", "a name, or a version: Name:v3, Name:alias"),),
}


class ToolParser(argparse.ArgumentParser):
    """The parser of a command in tools.TOOLS, or of its subcommand. Raises UserError with the nearest option;
    abbreviations are not accepted."""

    def __init__(self, tool: str, command: str = "") -> None:
        entry = TOOLS[tool].commands[command] if command else TOOLS[tool]
        self._given: tuple[str, ...] = ()
        prog = f"nemotron {tool} {command}".rstrip()
        super().__init__(prog=prog, description=entry.description, allow_abbrev=False)
        for name, nargs, metavar, text in _POSITIONALS[entry.takes]:
            self.add_argument(name, nargs=nargs, metavar=metavar, help=text)
        for option in entry.options.values():
            kind: dict[str, Any] = {"help": option.help, "metavar": option.metavar, "default": option.default}
            if not option.metavar:
                kind = {"help": option.help, "action": "store_true"}
            elif option.kind == SEVERAL:
                kind |= {"action": "append", "default": []}
            elif isinstance(option.kind, tuple):
                kind |= {"choices": option.kind, "metavar": None}
            elif option.kind != "":
                kind["type"] = at_least(option.kind) if isinstance(option.kind, int) else span
            self.add_argument(*filter(None, (option.short, option.flag)), **kind)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message, where argparse itself would print it and exit."""
        hint = f"See {self.prog} --help."
        missing = message.partition("the following arguments are required: ")[2]
        if missing:
            message = f"{missing} {'are' if ', ' in missing else 'is'} missing"
            names = [str(action.metavar) for action in self._actions if not action.option_strings]
            hint = f"{' '.join((self.prog, *names))}; see {self.prog} --help."
            known = {option for action in self._actions for option in action.option_strings} | {"--"}
            dashed = [
                at for at, word in enumerate(self._given) if word[:1] == "-" and word.partition("=")[0] not in known
            ]
            if dashed and "--" not in self._given:
                words = shlex.join((*self._given[: dashed[0]], "--", *self._given[dashed[0] :]))
                hint = f"What begins with - is read as an option, unless -- is before it: {self.prog} {words}"
        raise UserError(f"{self.prog}: {message}.", hint=hint)

    def parse(self, argv: Sequence[str], *, instead: str = "") -> argparse.Namespace:
        """The arguments. Raises HelpPrinted once `--help` has been printed. `instead` is the hint at what an argument
        too many may mean."""
        if {"-h", "--help"} & set(argv):
            write_page(self.format_help())
            raise HelpPrinted
        self._given = tuple(argv)
        found, unknown = self.parse_known_args(list(argv))
        if unknown:
            argument = unknown[0].partition("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            other = _ELSEWHERE.get(argument, "")
            if other.partition(" ")[0] in known:
                raise UserError(f"{self.prog}: unknown argument {unknown[0]!r}.", hint=f"Did you mean {other}?")
            hint = near(argument, known) if argument.startswith("-") else instead or f"See {self.prog} --help."
            raise UserError(f"{self.prog}: unknown argument {unknown[0]!r}.", hint=hint)
        return found


def at_least(least: int) -> Any:
    """An argparse type: a whole number from `least`."""

    def whole(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least}, got {text!r}")
        return int(text)

    return whole


def span(text: str) -> timedelta:
    """An argparse type: `90s`, `30m`, `2h`, `3d`, `1w`, or a date (`2026-11-24`), which means since then."""
    match = _SPAN.match(text.strip().lower())
    try:
        if match:
            return timedelta(**{_UNITS[match[2]]: float(match[1])})
        age = datetime.now(UTC) - datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected 30m, 2h, 3d or a date, got {text!r}") from None
    if age < timedelta():
        raise argparse.ArgumentTypeError(f"{text} is in the future: give a date that has passed, or 30m, 2h, 3d")
    return age
