"""Reads a command line as one command: each argument is an option, an override, a part of the command's name, or an
error."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from nemotron_kit.cli import options
from nemotron_kit.cli.options import MAYBE, NOTHING, Option, Table, key
from nemotron_kit.cli.request import Assignments, Job, Row, near
from nemotron_kit.errors import UserError
from nemotron_kit.quoting import hydra_unquoted, hydra_untyped

_NEGATIVE = re.compile(r"-(\d|\.\d|inf\Z)", re.IGNORECASE)
_OVERRIDE = re.compile(r"\+{0,2}[A-Za-z_][\w./@:-]*=|~[A-Za-z_][\w./@:-]*(=|\Z)")
_PROFILE_OPTIONS = ("run", "batch")
# Settings that both Hydra's overrides and our options can choose.
_CHOICES = {"recipe": "recipe", "stage": "stage", "config": "config", "run.profile": "profile", "run.mode": "mode"}


class NotThisCommand(UserError):
    """An argument does not fit this command's name; the line may name another command."""


class Reader:
    """Reads `argv` for the command that `detail` describes. Fields are options unless the table is Hydra's."""

    def __init__(self, argv: Sequence[str], table: Table, detail: dict[str, Any], where: str, help_line: str) -> None:
        self.argv, self.table, self.where, self.help_line = list(argv), table, where, help_line
        self.assigned = Assignments(detail, where, help_line)
        self.configs = detail["configs"]
        self.positionals: list[Row] = [row for row in detail["fields"] if row.get("positional") and table.fields]
        self.at = 0
        self.names: list[str] = []
        self.chosen: dict[str, tuple[str, str]] = {}  # choice → (its value, how that was spelled)
        self.flags: list[str] = []
        self.switches: set[str] = set()
        self.after: list[str] = []
        self.tags: list[str] = []
        self.texts: dict[str, str] = {}

    def read(self, names: Sequence[str] = ()) -> Job:
        """The job, once all arguments have been assigned. Raises UserError."""
        self.names = list(names)
        ended = False
        while self.at < len(self.argv):
            argument = self.argv[self.at]
            self.at += 1
            if argument == "--" and not ended:
                ended = True
            elif ended or not options.is_option(argument):
                self._positional(argument)
            elif argument.startswith("--"):
                self._long(argument)
            else:
                self._short(argument)
        if self.names:
            raise NotThisCommand(f"{self.where}: {self.names[0]!r} is missing.")
        if "--multirun" in self.flags or "hydra.mode=MULTIRUN" in self.assigned.overrides:
            self.assigned.sweep_artifacts()
        else:
            self.assigned.refuse_several_artifacts()
        chosen = {choice: text for choice, (text, _) in self.chosen.items()}
        return Job(
            recipe=chosen.get("recipe", ""),
            stage=chosen.get("stage", ""),
            config=chosen.get("config"),
            profile=chosen.get("profile"),
            mode=chosen.get("mode"),
            overrides=tuple(self.assigned.overrides),
            flags=tuple(dict.fromkeys(self.flags)),
            after=tuple(dict.fromkeys(self.after)),
            dry_run="dry_run" in self.switches,
            json="json" in self.switches,
            name=self.texts.get("name"),
            tags=tuple(dict.fromkeys(self.tags)),
            note=self.texts.get("note"),
        )

    def _positional(self, argument: str) -> None:
        row = self.positionals[0] if self.positionals and not self.names else None
        is_path = row is not None and argument.startswith(("/", "./", "../", "~/"))
        # `name=…` is taken for a mistyped override, other text for the positional argument.
        is_text = row is not None and row.get("verbatim") and not _OVERRIDE.match(argument)
        if options.is_override(argument) and not is_path and not is_text:
            name, _, raw = argument.partition("=")
            if not name.strip("+~"):
                raise UserError(f"{argument!r} sets no key.", hint="An override is key=value, +key=value or ~key.")
            text = hydra_unquoted(raw) if name in _CHOICES else None
            if text is None:
                self.assigned.overrides.append(argument)
            else:
                self._choose(_CHOICES[name], text, name)
        elif self.names:
            if argument != self.names[0]:
                raise NotThisCommand(f"{self.where}: expected {self.names[0]!r}, got {argument!r}.")
            self.names.pop(0)
        elif row is not None:
            self.assigned.field(row, argument)
            if row["kind"] != "list":
                self.positionals.pop(0)
        else:
            raise UserError(
                f"{self.where} takes no further argument: {argument!r}.", hint=self._argument_hint(argument)
            )

    def _argument_hint(self, argument: str) -> str:
        if argument in self.configs or argument.endswith((".yaml", ".yml")):
            return f"Choose a config with `-c {shlex.quote(argument)}`."
        if spaced := self._spaced(argument):
            return f"Write it without spaces: {spaced}"
        # argparse's lists, `--layers 3 4`
        before = next((at for at in range(self.at - 1, -1, -1) if options.is_option(self.argv[at])), None)
        name = self.argv[before] if before is not None else ""
        if before is not None and self.assigned.fields.get(key(name), {}).get("kind") == "list":
            values = takewhile(lambda each: not options.is_option(each) and "=" not in each, self.argv[before + 1 :])
            return f"A list is one value: {name} {','.join(values)}"
        last = self.argv[self.at - 2] if self.at > 1 else ""
        if options.is_override(last) and last[:1] != "~":  # `lr=0.1 0.2`, as a loop of a shell has them
            in_list = shlex.quote(last.replace("=", "=[", 1) + f",{argument}]")
            return f"Several values are a sweep, -m {last},{shlex.quote(argument)}, or a list, {in_list}"
        return f"A value of the config is given as key=value; see `{self.help_line}`."

    def _spaced(self, argument: str) -> str:
        """`key = value`, `key= value`, `key: value` or `key value`, which the shell takes apart, as one override; ""
        for what is none of them. `argument` is the first part that can't be read."""
        before, after = self.argv[: self.at - 1], self.argv[self.at :]
        if before and (before[-1] == "=" or before[-1].endswith("=")):  # the key has been read as an option or override
            name = before[-2] if before[-1] == "=" and len(before) > 1 else before[-1]
            return f"{options.key(name.rstrip('='))}={shlex.quote(argument)}"
        name = argument.rstrip(":")
        if after and (after[0].startswith("=") or argument.endswith(":") or name in self.assigned.fields):
            value = after[1:2] if after[0] == "=" else [after[0].removeprefix("=")]
            return f"{name}={shlex.quote(value[0]) if value else 'VALUE'}"
        return ""

    def _long(self, argument: str) -> None:
        name, joined = options.split(argument)
        option = options.known(argument, self.table)
        if (
            option is not None
            and option.name in options.LABELS
            and self.table.fields
            and key(name) in self.assigned.fields
        ):
            option = None
        prefix, dot, rest = name[2:].partition(".")
        if option is None:
            self._field(name, joined)
        elif dot:
            if not all(rest.split(".")):
                raise UserError(
                    f"{name} names no {'artifact input' if prefix == 'art' else 'key'}.",
                    hint=f"Write --{prefix}.{options.PREFIXES[prefix][0] or 'KEY VALUE'}.",
                )
            setter = {"art": self.assigned.art, "wandb": self.assigned.wandb}.get(prefix, self.assigned.run)
            setter(rest, self._value(name, joined))
        else:
            self._global(option, name, joined)

    def _short(self, argument: str) -> None:
        """Parse `-c tiny`, `-c=tiny`, `-ctiny`; `-config` is an error: a long option with one dash."""
        name, joined = options.split(argument)
        option = options.known(argument, self.table)
        if not self.table.fields or name in ("-cn", "-cp"):  # no config called n or p
            self._refuse(name)
        elif name == "-cd":
            raise UserError("-cd: Hydra's short form is not taken here.", hint="Write --config-dir DIR.")
        row = self.assigned.shorts.get(argument[:2]) if self.table.fields else None
        single_dash_long = len(name) > 2 and name not in self.table.short
        if single_dash_long and (key(name) in self.table.long or key(name) in self.assigned.fields):
            option = row = None
        short = option.short if option else argument[:2]
        if len(argument) > len(short):
            joined = argument[len(short) :].removeprefix("=")
        if option is not None:
            self._global(option, short, joined)
        elif row is not None:
            self._set_field(row, short, joined)
        else:
            raise self.assigned.unknown(name, self.table.long, self._following(joined))

    def _global(self, option: Option, name: str, joined: str | None) -> None:
        text = self._global_value(option, name, joined)
        if option.name in _PROFILE_OPTIONS:
            if "=" in text:
                raise UserError(
                    f"{name} takes a profile, not {text!r}.",
                    hint=f"Write {name} PROFILE (`nemotron profiles` lists them); run.mode=local is this machine.",
                )
            if {option.name, self.chosen.get("mode", (option.name, ""))[0]} == set(_PROFILE_OPTIONS):
                raise UserError(
                    "--run and --batch exclude each other.", hint="--run waits for the job; --batch returns at once."
                )
            self._choose("profile", text, name)
            self._choose("mode", option.name, name)
        elif option.name == "config" and "," in text and "/" not in text:
            self.assigned.set("config", text)  # `-c tiny,default` sweeps
        elif option.name == "config":
            self._choose("config", text, name)
        elif option.name == "after":
            self.after.append(text)
        elif option.name == "tag":
            self.tags += [tag.strip() for tag in text.split(",") if tag.strip()]
        elif option.name in options.LABELS:
            if option.name in self.texts:
                raise UserError(f"{name} is given twice.", hint="A run has one name and one note; tags may be many.")
            self.texts[option.name] = text
        elif option.name in options.HYDRA_FLAGS:
            self.flags.append(option.flag + (f"={text}" if text else ""))
        else:
            self.switches.add(option.name)

    def _global_value(self, option: Option, name: str, joined: str | None) -> str:
        if option.takes == NOTHING and joined is not None:
            raise UserError(f"{name} takes no value, and got {joined!r}.", hint=f"Write {name} without a value.")
        following = self.argv[self.at] if self.at < len(self.argv) else ""
        if option.takes == NOTHING or (option.takes == MAYBE and joined is None and following not in option.choices):
            return ""
        if option.name in _PROFILE_OPTIONS and joined is None and "=" in following:
            joined, self.at = following, self.at + 1
        text = self._value(name, joined, what=option.metavar, empty=False)
        if option.choices and text not in option.choices:
            raise UserError(f"{name} has no choice {text!r}.", hint=near(text, option.choices))
        return text

    def _choose(self, choice: str, text: str, name: str) -> None:
        before, spelled = self.chosen.setdefault(choice, (text, name))
        if before != text:
            raise UserError(f"{name} is {text}, and {spelled} is {before}.", hint="Give one of the two.")

    def _value(
        self, name: str, joined: str | None, *, what: str = "VALUE", empty: bool = True, negative: bool = False
    ) -> str:
        """The value of an option: joined by `=`, else the next argument if that is no option."""
        following = self.argv[self.at] if self.at < len(self.argv) else None
        fits = following is not None and (
            not options.is_option(following) or (negative and _NEGATIVE.match(following) is not None)
        )
        if joined is None and fits and (following or empty) and following is not None:
            self.at += 1
            return following
        if joined is not None and (joined or empty):
            return joined
        instead = f", but is followed by {following!r}" if following else ""
        listed = "`nemotron profiles` lists them" if what == "PROFILE" else f"{name}={what} if it begins with a dash"
        raise UserError(f"{name} needs a {what}{instead}.", hint=f"Write {name} {what}; {listed}.")

    def _field(self, name: str, joined: str | None) -> None:
        field, assigned = key(name), self.assigned
        if field not in assigned.fields:
            self._refuse(name)
        row, switched = assigned.fields.get(field), assigned.fields.get(field.removeprefix("no_"), {})
        negated = switched if field.startswith("no_") and switched.get("kind") == "bool" else None
        if not self.table.fields and (row or negated or field in assigned.groups):
            raise UserError(
                f"{name} is no option of Hydra's.", hint=f"Write {(row or negated or {'name': field})['name']}=VALUE."
            )
        if row is not None:
            self._set_field(row, name, joined)
        elif negated is not None and joined is None:
            assigned.set(negated["name"], "false")
        elif self.table.fields and (field in assigned.groups or assigned.open_block(field)):
            assigned.set(field, hydra_untyped(self._value(name, joined, negative=True)))
        else:
            raise assigned.unknown(name, self.table.long, self._following(joined))

    def _following(self, joined: str | None) -> str | None:
        """The value that an unknown option seems to have: what it is joined to by `=`, or the next argument."""
        following = next((each for each in self.argv[self.at : self.at + 1] if not options.is_option(each)), None)
        return following if joined is None else joined

    def _refuse(self, name: str) -> None:
        """Raise UserError for a flag of Hydra's that is not supported here."""
        for long, (short, instead) in options.REFUSED.items():
            if key(name) == long or name == short:
                raise UserError(f"Hydra's {name} is not supported.", hint=instead)

    def _set_field(self, row: Row, name: str, joined: str | None) -> None:
        if row["kind"] == "bool" and joined is None:
            self.assigned.set(row["name"], "true")
        else:
            negative = row["kind"] in ("int", "float", "any", "list")
            what = "STAGE" if row["type"] == "STAGE" else "VALUE"
            self.assigned.field(row, self._value(name, joined, what=what, negative=negative))
