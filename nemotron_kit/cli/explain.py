"""`nemotron explain`: prints a field's value for a command line, its meaning, and every layer that sets it; or the
differences between two configs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nemotron_kit.cli.help import Paint
from nemotron_kit.cli.indexing import LiveIndex
from nemotron_kit.cli.options import known, split, takes_next
from nemotron_kit.cli.output import (
    colour,
    hanging,
    print_json,
    print_table,
    terminal_width,
    width,
    wrap,
    write_lines,
)
from nemotron_kit.cli.parse import parse
from nemotron_kit.cli.request import Job, hydra_overrides
from nemotron_kit.cli.run_job import find_pipeline, normalized
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.cli.tree import Node, find
from nemotron_kit.config.compose import compose_prepared, prepare
from nemotron_kit.config.freeze import flat, resolve
from nemotron_kit.config.layers import Layers, Setting
from nemotron_kit.config.resolvers import pinned
from nemotron_kit.discovery import Tree, discover
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import NemotronError, UserError, near, printable
from nemotron_kit.home import new_run_id
from nemotron_kit.launch.plan import build_plan
from nemotron_kit.masking import MASK, is_secret_name, mask
from nemotron_kit.spec.profiles import read_profile
from nemotron_kit.spec.runconfig import RunConfig
from nemotron_kit.worker.hydra import plain

_EXAMPLE = "For instance: nemotron explain train.lr nano3 pretrain -c tiny"
_MISSING = "(not set)"


@dataclass(frozen=True)
class Explained:
    """A field of a composed config: its value as the job gets it (`raw` before interpolation, if that differs), its
    type and help, and the layers that set it, in order; the last one determines the value."""

    field: str
    value: Any
    raw: Any
    type: str
    help: str
    layers: list[Setting]


@dataclass(frozen=True)
class _Composition:
    """One command line, composed: the config as written and as the job gets it, both by dotted field."""

    request: Job
    written: dict[str, Any]
    values: dict[str, Any]
    layers: Layers
    detail: Node


def explain(argv: list[str]) -> int:
    """`nemotron explain [FIELD …] RECIPE COMMAND [options]`: returns 0. Runs nothing. Raises UserError for a field that
    the config does not have, with the nearest names, and for an invalid command line."""
    tree = discover()
    # The arguments of explain, then the command line to explain, which begins with a recipe's name.
    recipes = {*tree.apps, *tree.broken}
    at = next((position for position, argument in enumerate(argv) if argument in recipes), len(argv))
    arguments, line = argv[:at], argv[at:]
    if arguments[-1:] == ["nemotron"]:  # the whole line, as typed in a shell
        arguments.pop()
    options = ToolParser("explain").parse([argument for argument in arguments if argument != "--"])
    if not line:
        raise UserError("nemotron explain: there is no command line to explain.", hint=_EXAMPLE)
    lines = _by_config(line)
    run_id = new_run_id("explain", "")  # the same for all, so that the job's folder is no difference between them
    found = [_compose(each, tree, run_id) for _, each in lines]
    as_json = options.json or found[0].request.json
    if len(found) > 1:
        return _compare([name for name, _ in lines], found, options.fields, as_json=as_json)
    explained = [_explained(found[0], field) for field in _fields(found[0], options.fields)]
    if as_json:
        print_json([asdict(each) for each in explained])
        return 0
    _print(explained)
    if not options.fields:
        hint = f"These fields differ from their defaults. For another one: nemotron explain FIELD {shlex.join(line)}"
        write_lines(["", hint])
    return 0


def _by_config(line: list[str]) -> list[tuple[str, list[str]]]:
    """The line once for each -c in it (config, line); the line itself where there is one or none."""
    names, rest, tokens = [], [], iter(line)
    for token in tokens:
        option = known(token)
        if option is None or option.name != "config":
            rest.append(token)
        elif takes_next(token):
            names.append(next(tokens, ""))
        else:  # --config=tiny, -ctiny
            names.append(split(token)[1] or token.removeprefix(option.short))
    return [(name, [*rest, "-c", name]) for name in names] if len(names) > 1 else [("", line)]


def _compose(line: list[str], tree: Tree, run_id: str) -> _Composition:
    index = LiveIndex(tree.apps, tree.broken)
    try:
        request = parse(line, index)
    except UserError as error:
        order = "The fields to explain come before the recipe: nemotron explain FIELD RECIPE COMMAND."
        raise UserError(error.message, hint=f"{error.hint or ''}\n{order}".strip()) from error
    if not isinstance(request, Job):
        raise UserError(f"nemotron {shlex.join(line)}: starts no job.", hint=_EXAMPLE)
    if (pipeline := find_pipeline(tree, request)) is not None:
        stage = " ".join(pipeline.stages[0].path)
        raise UserError(
            f"nemotron explain: {' '.join(request.path)} is a pipeline; each of its stages has a config.",
            hint=f"Explain a stage: nemotron explain {stage}",
        )
    request, env = normalized(request), read_env_file()
    if request.flag("--multirun") is not None:
        hint = "Leave -m out, and give each key one value."
        raise UserError("nemotron explain: it explains one job, and -m makes several.", hint=hint)
    prepared = prepare(tree, hydra_overrides(request), env)
    layers = Layers(prepared, request.flag("--config-dir"))
    composed = compose_prepared(prepared, request.flag("--config-dir"))
    from omegaconf import OmegaConf

    written: Any = OmegaConf.to_container(composed.config, resolve=False, enum_to_str=True)
    argv = ["nemotron", *line]
    plan = build_plan(composed, tree.apps[request.recipe], run_id=run_id, argv=argv, connect=False)
    values = plan.config
    with suppress(NemotronError), pinned({slot: pin for slot, pin in plan.inputs.items() if pin is not None}):
        values = resolve(plan.config, keep_secrets=True)  # as it is written if an artifact can't be found here
    settings = {f"run.env.{name}": value for name, value in asdict(plan.settings).items()}
    leaf = find(index, (request.recipe, *request.stage.split("/")))
    detail = index.detail(leaf) if leaf is not None else {"fields": []}
    return _Composition(request, dict(flat(written)), {**dict(flat(values)), **settings}, layers, detail)


def _fields(found: _Composition, asked: Sequence[str]) -> Iterator[str]:
    """The names of the fields `asked` for, each block as its fields; all that differ from their defaults if none is."""
    every = {**found.written, **found.values}
    # A field of the profile that nothing sets is explained only where it is asked for by its name.
    names = [name for name in every if asked and (name in asked or every[name] is not None or "run.env." not in name)]
    if not asked:
        names = [name for name in every if name.partition(".")[0] != "run"]
        yield from (name for name in names if len(found.layers.settings(name)) > 1)
    for field in asked:
        inside = [name for name in names if name == field or name.startswith(f"{field}.")]
        if not inside:
            blocks = {name[:end] for name in names for end in range(len(name)) if name[end] == "."}
            same_end = [name for name in names if name.rpartition(".")[2] == field]
            known = {*names, *blocks, *(name for name in every if field.startswith("run."))}
            hint = f"Did you mean {', '.join(same_end[:3])}?" if same_end else near(field, known)
            raise UserError(f"{' '.join(found.request.path)} has no field {field!r}.", hint=hint)
        # An empty block whose fields the profile sets is none of the values.
        yield from (name for name in inside if every[name] != {} or not any(n.startswith(f"{name}.") for n in inside))


def _explained(found: _Composition, field: str) -> Explained:
    rows = {row["name"]: row for row in found.detail["fields"]}
    name = field
    while name and name not in rows:  # for a key of a block that takes any key, the block's help
        name = name.rpartition(".")[0]
    row = rows.get(name, {})
    written = found.written.get(field)
    value = found.values.get(field, written)
    layers = found.layers.settings(field)
    profile, of_profile = found.request.profile, field.removeprefix("run.env.")
    if profile and of_profile != field:
        read = read_profile(profile)
        if origin := read.origins.get(of_profile):
            layers = [Setting(f"profile {profile}, {origin}", asdict(read.config)[of_profile]), *layers]
    if {"run.profile": found.request.profile, "run.mode": found.request.mode}.get(field):  # options, no overrides
        layers.append(Setting("command line", f"--{found.request.mode or 'run'} {found.request.profile}"))
    kind = row.get("type", "") if name == field else type(value).__name__
    raw = written if isinstance(written, str) and "${" in written else None
    masked = [Setting(each.source, _masked(field, each.value)) for each in layers]
    of_settings = (str(each.metadata["help"]) for each in fields(RunConfig) if f"run.env.{each.name}" == field)
    about = row.get("help", "") or next(of_settings, "")
    return Explained(field, _masked(field, value), raw, kind, about, masked)


def _masked(field: str, value: Any) -> Any:
    """The value as JSON has it (a path as a text), with secrets masked."""
    value = plain(value)
    if isinstance(value, str):
        return MASK if is_secret_name(field.rpartition(".")[2]) and "${" not in value else mask(value)
    return value


def _print(explained: Sequence[Explained]) -> None:
    working_folder = f"{Path.cwd()}/"
    paint, columns = Paint(colour(sys.stdout)), width(sys.stdout)
    for number, each in enumerate(explained):
        lines = [""] if number else []
        kind = f"  ({each.type})" if each.type else ""
        edge = terminal_width()
        first, *more = hanging(f"{each.field} = ", _text(each.value), edge)
        lines += [paint.name(each.field) + first[len(each.field) :], *more]
        lines[-1] += paint.quiet(kind) if len(lines[-1]) + len(kind) <= edge else paint.quiet(f"\n {kind}")
        lines += [f"  {line}" for line in wrap(each.help, columns - 2)] if each.help else []
        if each.raw is not None:
            lines += hanging("  from ", each.raw, edge)
        sources = [layer.source.replace(working_folder, "") for layer in each.layers]
        longest = max(map(len, sources), default=0)
        pairs = zip(sources, each.layers, strict=True)
        lines += [
            line for source, layer in pairs for line in hanging(f"    {source:{longest}}  ", _text(layer.value), edge)
        ]
        if len(each.layers) > 1:
            end = "  (in effect)"
            lines[-1] += paint.quiet(end if len(lines[-1]) + len(end) <= edge else f"\n    {end}")
        print("\n".join(lines))  # noqa: T201


def _text(value: Any) -> str:
    return printable(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _compare(names: Sequence[str], found: Sequence[_Composition], asked: Sequence[str], *, as_json: bool) -> int:
    """A table of the fields whose values differ, a column a config."""
    every = dict.fromkeys(name for each in found for name in (_fields(each, asked) if asked else each.values))
    rows = []
    for field in every:
        values = [each.values.get(field, _MISSING) for each in found]
        if any(value != values[0] for value in values):
            rows.append((field, *(_text(_masked(field, value)) for value in values)))
    if as_json:
        print_json([{"field": field, **dict(zip(names, texts, strict=True))} for field, *texts in rows])
    elif rows:
        print_table(("FIELD", *names), rows)
    else:
        write_lines(["No field differs."])
    return 0
