"""Parses the arguments of `nemotron` and of `python -m nemotron_kit` to a request. A pure function over the index."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

from nemotron_kit.cli import tree
from nemotron_kit.cli.options import HYDRA, NEMOTRON
from nemotron_kit.cli.reader import NotThisCommand, Reader
from nemotron_kit.cli.request import Help, Job, Request, Tool, Version, close, near
from nemotron_kit.cli.tools import TOOLS, meant
from nemotron_kit.cli.tree import NO_DETAIL, Index, Node
from nemotron_kit.envfile import unread_env_file
from nemotron_kit.errors import UserError
from nemotron_kit.quoting import hydra_unquoted

PROG = "python -m nemotron_kit"


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
    if prog == "nemotron" and not close(argument, index.root["children"]):
        names = re.split(r"[./:]", argument)  # mine.train, mine:train, mine/train
        joined = len(names) > 1 and tree.find(index, names) is not None
        other = _commands_called(argument, index) or (" ".join(("nemotron", *names)) if joined else meant(argument))
    likely = f"Did you mean {other}?" if other else near(argument, known)
    unread = "" if other or close(argument, known) else unread_env_file()
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
