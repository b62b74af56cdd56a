"""Parses the arguments of `nemotron` and of `python -m nemotron_kit` to a request. A pure function over the index.

The Reader reads a line as one command: each argument is an option, an override, a part of the command's name, or an
error. Of the commands that a line may name, `parse` takes the one that it can be read as.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from nemotron_kit.cli import options, tree
from nemotron_kit.cli.options import HYDRA, MAYBE, NEMOTRON, NOTHING, Option, Table, key
from nemotron_kit.cli.request import Assignments, Help, Job, Request, Row, Tool, Version
from nemotron_kit.cli.tools import TOOLS, meant
from nemotron_kit.cli.tree import NO_DETAIL, Index, Node
from nemotron_kit.envfile import unread_env_file
from nemotron_kit.errors import UserError, closest, near
from nemotron_kit.quoting import hydra_unquoted, hydra_untyped

PROG = "python -m nemotron_kit"
_NEGATIVE = r"(?i)-(\d|\.\d|inf\Z)"
_OVERRIDE = r"\+{0,2}[A-Za-z_][\w./@:-]*=|~[A-Za-z_][\w./@:-]*(=|\Z)"
_PROFILE_OPTIONS = ("run", "batch")
# Settings that both Hydra's overrides and our options can choose.
_CHOICES = {"recipe": "recipe", "stage": "stage", "config": "config", "run.profile": "profile", "run.mode": "mode"}


def parse_hydra(argv: Sequence[str], index: Index) -> Request:
    """The request that `python -m nemotron_kit ARGV` makes: Hydra's overrides and flags (with Hydra's meanings of -c
    and -r), --run NAME, --batch NAME, --dry-run, --json, --art.X, --run.KEY and --wandb.KEY. Raises UserError."""
    if "--version" in argv:
        return Version()
    recipe, stage = _choice_value(argv, "recipe"), _choice_value(argv, "stage")
    node = index.root
    if recipe:
        if recipe not in index.root["children"]:
            raise _no_recipe(recipe, index, PROG)
        node = index.root["children"][recipe]
    if recipe and stage:
        found = tree.find(index, (recipe, *stage.split("/")))
        if found is None or tree.is_group(found):
            raise UserError(f"{recipe} has no stage {stage!r}.", hint=near(stage, _stages(node)))
        node = found
    leaf = node if not tree.is_group(node) else None
    if tree.wants_help(argv):
        return Help(tuple(node["path"]))
    detail = index.detail(leaf) if leaf else NO_DETAIL
    choices = [f"recipe={each}" for each in node["path"][:1]]
    choices += [f"stage={'/'.join(node['path'][1:])}"] if len(node["path"]) > 1 else []
    job = Reader(argv, HYDRA, detail, " ".join((PROG, *choices)), f"{PROG} --help").read()
    _check_complete(job, node)
    _check_launcher(job)
    return job


def _stages(recipe: Node) -> list[str]:
    return ["/".join(names[1:]) for leaf in tree.leaves(recipe) for names in tree.spellings(leaf)]


def _check_complete(job: Job, node: Node) -> None:
    """Raise UserError unless a job has a recipe and a stage, a sweep is over them, or Hydra itself is asked."""
    swept = {override.partition("=")[0] for override in job.overrides}
    if _needs_no_command(job):
        return
    if not job.recipe and "recipe" not in swept and node["path"]:
        raise UserError("recipe= was taken for the value of the option before it.", hint="Give that option its value.")
    if not job.recipe and "recipe" not in swept:
        raise UserError("No recipe was given.", hint=f"Give recipe=NAME. {near('', node['children'])}")
    if job.recipe and not job.stage and "stage" not in swept and not tree.is_group(node):
        raise UserError("stage= was taken for the value of the option before it.", hint="Give that option its value.")
    if job.recipe and not job.stage and "stage" not in swept:
        raise UserError(f"No stage of {job.recipe} was given.", hint=f"Give stage=NAME. {near('', _stages(node))}")


def _needs_no_command(job: Job) -> bool:
    """Whether Hydra can answer without a recipe and a command: --info (for the plugins) and --hydra-help."""
    return job.flag("--info") is not None or job.flag("--hydra-help") is not None


def _choice_value(argv: Sequence[str], choice: str) -> str:
    """The value of the last `choice=value`; "" if there is none, or if it is a sweep."""
    found = [hydra_unquoted(argument.partition("=")[2]) for argument in argv if argument.startswith(f"{choice}=")]
    return (found[-1] or "") if found else ""


def _check_launcher(job: Job) -> None:
    """Raise UserError for a launcher that would run the job elsewhere than its profile specifies."""
    launcher = _choice_value(job.overrides, "hydra.launcher.profile") if job.profile else ""
    if launcher and launcher != job.profile:
        raise UserError(
            f"run.profile is {job.profile}, and hydra.launcher.profile is {launcher}.", hint="Give one of the two."
        )


def _no_recipe(argument: str, index: Index, prog: str) -> UserError:
    """The error for a name that no recipe has, or a broken one."""
    if argument in index.broken:
        return UserError(
            f"The recipe {argument!r} is broken: {index.broken[argument].rstrip('.')}.",
            hint="The other recipes still work.",
        )
    known = [*index.root["children"], *(TOOLS if prog == "nemotron" else ())]
    other = ""
    if prog == "nemotron" and not closest(argument, index.root["children"]):
        names = re.split(r"[./:]", argument)  # mine.train, mine:train, mine/train
        joined = len(names) > 1 and tree.find(index, names) is not None
        other = _commands_called(argument, index) or (" ".join(("nemotron", *names)) if joined else meant(argument))
    likely = f"Did you mean {other}?" if other else near(argument, known)
    unread = "" if other or closest(argument, known) else unread_env_file()
    hint = _unregistered_folder_hint(argument) or unread or f"{likely} `{prog} --help` lists all of them."
    return UserError(f"There is no recipe {argument!r}.", hint=hint.strip())


def _commands_called(name: str, index: Index) -> str:
    """The commands of recipes with this name, as lines to type; "" for none."""
    paths = [
        leaf["path"]
        for leaf in tree.leaves(index.root)
        if "path" in leaf and name in (leaf["path"][-1], *leaf.get("aliases", ()))
    ]
    return " or ".join(" ".join(("nemotron", *path)) for path in paths[:3])


def _unregistered_folder_hint(argument: str) -> str:
    """A hint if `argument` is a program, or a recipe's folder that env.toml does not name, in the working folder; ""
    for neither."""
    program_file = argument if argument.endswith(".py") else f"{argument}.py"
    if len(argument) < 200 and os.path.isfile(program_file):  # noqa: PTH113
        return f"{program_file} is a program: run it as `python {program_file} …`."
    # Not by pathlib, which raises for a name that is longer than any file's.
    package, program = (os.path.isfile(f"{argument}/{name}.py") for name in ("__init__", "__main__"))  # noqa: PTH113
    if not argument.isidentifier() or not (package or program):
        return ""
    run_hint = f"run it as `python -m {argument} …`, or " if program else ""
    return f'The folder {argument}/ is not listed in env.toml: {run_hint}add [cli] recipes = ["{argument}"] to it.'


def parse(argv: Sequence[str], index: Index, root: tuple[str, ...] = (), prog: str = "") -> Request:
    """What `nemotron ARGV` asks for; with `root=("myrecipe",)` what `python -m myrecipe ARGV` does, which has no
    commands of nemotron's. `prog` is the program's name in hints. Raises UserError."""
    argv, prog = list(argv), prog or tree.program(root)
    first = tree.first_name(argv)
    wants_help = not argv or tree.wants_help(argv)
    if not root and argv[:1] == ["--version"]:
        return Version()
    if not root and first in TOOLS:
        return Tool(first, tuple(_without(argv, first)))
    if not root and first == "help":
        argv = _without(argv, first)
        if (first := tree.first_name(argv)) in TOOLS:
            return Tool(first, (*_without(argv, first)[:1], "--help"))
        wants_help = True
    if not wants_help:
        return _job(argv, index, root, prog)
    reached = tree.walk(argv, index, root)
    if reached.unknown is not None:
        raise _unknown_name(reached, index, root, prog)
    return Help(reached.path)


def _job(argv: list[str], index: Index, root: tuple[str, ...], prog: str) -> Request:
    reached = tree.walk(argv, index, root)
    # The commands that the line may name, with their names; if it begins with the full name of one, that one only.
    top = tree.find(index, root) or index.root
    every = [(leaf, names[len(root) :]) for leaf in tree.leaves(top) for names in tree.spellings(leaf)]
    exact = [(leaf, names) for leaf, names in every if tuple(argv[: len(names)]) == names]
    jobs: list[Job] = []
    best: tuple[tuple[bool, int, bool], UserError] | None = None
    for leaf, names in exact or every:
        rest = iter(argv)
        if not all(name in rest for name in names):  # in their order, possibly with other arguments between them
            continue
        reader = None
        try:
            if "broken" in leaf:
                raise UserError(f"{' '.join(leaf['path'])} can't be used: {leaf['broken']}")
            name = " ".join((*root, *names))
            reader = Reader(argv, NEMOTRON, index.detail(leaf), name, " ".join((prog, *names, "--help")))
            job = reader.read(names)
            if job.recipe or job.stage:
                raise UserError(
                    f"The command {' '.join(leaf['path'])!r} sets recipe= and stage= already.", hint="Leave those out."
                )
            _check_launcher(job)
            recipe, *stage = leaf["path"]
            jobs.append(dataclasses.replace(job, recipe=recipe, stage="/".join(stage)))
        except UserError as error:
            # The error to report: where the arguments name the command, so that something else is wrong, before where
            # they do not; then where most arguments were read; then where the names come first in the line.
            named = tuple(leaf["path"]) == reached.path
            rank = (not isinstance(error, NotThisCommand), reader.at if reader else 0, named)
            if best is None or rank > best[0]:
                best = rank, error
    if len(jobs) == 1:
        return jobs[0]
    if jobs:
        both = " and as ".join(repr(" ".join(job.path)) for job in jobs)
        raise UserError(f"This line can be read as {both}.", hint="Put the options after the command.")
    if best is not None and (best[0][0] or not tree.is_group(reached.node)):
        raise best[1]
    if reached.unknown is not None:
        raise _unknown_name(reached, index, root, prog)
    # Help for a group without a command, unless it has an option that only a command can have, which is an error.
    # Questions to Hydra itself need no command.
    names = reached.path[len(root) :]
    job = Reader(argv, NEMOTRON, NO_DETAIL, " ".join((prog, *names)), " ".join((prog, *names, "--help"))).read(names)
    return job if not names and _needs_no_command(job) else Help(reached.path, asked=False)


def _unknown_name(reached: tree.Walk, index: Index, root: tuple[str, ...], prog: str) -> UserError:
    """The error for an argument that names no node of the tree."""
    argument, names = reached.unknown or "", reached.path[len(root) :]
    for option, taken in reached.taken:
        if tree.child(reached.node, taken) is not None:
            what = "PROFILE" if option.startswith(("--run", "--batch", "-r", "-b")) else "VALUE"
            return UserError(f"{option} needs a {what}, but is followed by {taken!r}.", hint=f"Write {option} {what}.")
    if not reached.path:
        return _no_recipe(argument, index, prog)
    children = reached.node["children"].values()
    known = [name for child in children for name in (child["name"], *child.get("aliases", ()))]
    hint = f"{near(argument, known)} See `{' '.join((prog, *names, '--help'))}`."
    return UserError(f"{' '.join(reached.path)} has no command {argument!r}.", hint=hint.strip())


def _without(argv: Sequence[str], argument: str) -> list[str]:
    at = list(argv).index(argument)
    return [*argv[:at], *argv[at + 1 :]]


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
        swept = "--multirun" in self.flags or "hydra.mode=MULTIRUN" in self.assigned.overrides
        self.assigned.split_artifacts(swept=swept)
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
        is_text = row is not None and row.get("verbatim") and not re.match(_OVERRIDE, argument)
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
            not options.is_option(following) or (negative and re.match(_NEGATIVE, following) is not None)
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
