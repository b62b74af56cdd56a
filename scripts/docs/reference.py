"""The pages of the reference, made from the code: option tables, command trees, dataclasses, docstrings."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

from hydra_plugins.nemotron_kit_launcher.nemo_run import NemoRunConf

from nemotron_kit import envfile, errors
from nemotron_kit.cli import tree
from nemotron_kit.cli.indexing import LiveIndex, text
from nemotron_kit.cli.options import MAYBE, NEMOTRON, PREFIXES
from nemotron_kit.cli.tools import TOOLS, run
from nemotron_kit.discovery import BUILT_IN, discover
from nemotron_kit.envfile import EnvFile
from nemotron_kit.executors.base import EVERYWHERE, executor_class
from nemotron_kit.runs.folder import PLAN_SHAPE
from nemotron_kit.runs.job import EXIT_CODES, STATES
from nemotron_kit.spec import runconfig

# Title, the files' names, and the docstring that describes them: "module" or "module:name".
FORMATS = (
    ("A run's folder", "nemotron_kit.runs.folder"),
    ("plan.json", "nemotron_kit.spec.plan:Plan"),
    ("A job's folder", "nemotron_kit.runs.job"),
    ("job.json", "nemotron_kit.spec.plan:JobSpec"),
    ("artifacts.json", "nemotron_kit.artifacts.lineage"),
    ("metrics.jsonl", "nemotron_kit.runs.metrics"),
    ("The registry: version.json", "nemotron_kit.artifacts.store"),
    ("metadata.json", "nemotron_kit.artifacts.manifest"),
    ("Checkpoints", "nemotron_kit.training.checkpoint"),
    ("TrainingProgress", "nemotron_kit.training.checkpoint:TrainingProgress"),
    ("Checkpoints of a sharded model", "nemotron_kit.training.sharded"),
    ("Tokenized text: .bin and .idx", "nemotron_kit.data_prep.indexed"),
    ("The record of a shard", "nemotron_kit.data_prep.shard"),
    ("blend.json and report.json", "nemotron_kit.data_prep.prepare"),
    ("Packed rows (Parquet)", "nemotron_kit.data_prep.packing"),
)
_MADE = "<!-- Made from the code by scripts/docs/reference.py. -->\n\n"


def pages() -> dict[str, str]:
    """Name → Markdown."""
    return {
        "commands": _commands(),
        **{name: _recipe(name) for name in BUILT_IN},
        "env-toml": _env_toml(),
        "launcher": _launcher(),
        "exit-codes": _exit_codes(),
        "files": _files(),
    }


def _commands() -> str:
    options = [
        (f"`{option.short}`" if option.short else "", _shown(option), option.help) for option in NEMOTRON.options
    ]
    dotted = [(f"`--{name}.{usage}`", about) for name, (usage, about) in PREFIXES.items() if about]
    parts = [
        "# Commands\n\n`nemotron RECIPE COMMAND [options] [key=value …]` runs a command of a recipe. `--help` works "
        "after any name.",
        "## Options of every recipe's command",
        _table(("", "option", "what it does"), options),
        _table(("option", "what it does"), dotted),
        "Each field of the command's config is an option, too: `--train.lr 1e-3` is `train.lr=1e-3`, `--force` is "
        "`force=true`, `--no-force` is `force=false`. The fields of nano3's commands: [nano3](nano3.md).",
    ]
    for name, tool in TOOLS.items():
        parts += [f"## nemotron {name}", _fence(_help(name))]
        for command in tool.commands:
            parts += [f"### nemotron {name} {command}", _fence(_help(name, command))]
    return _page(parts)


def _shown(option: Any) -> str:
    value = f"[{option.metavar}]" if option.takes == MAYBE else option.metavar
    return f"`{option.flag} {value}`".replace(" `", "`")


def _help(*names: str) -> str:
    """What `nemotron NAMES --help` prints at 100 columns, without colours."""
    printed, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(printed):
            run(names[0], [*names[1:], "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return printed.getvalue()


def _recipe(recipe: str) -> str:
    """A section for each command of a recipe: what it reads and saves, its configs, every field."""
    found = discover(EnvFile())
    index = LiveIndex(found.apps, found.broken)
    root = index.root["children"][recipe]
    parts = [
        f"# {recipe}\n\n{root['description']}. Set a field as `field=value` or `--field value`; a "
        "config file, which `-c` chooses, has precedence over the default. `nemotron explain FIELD` prints what "
        "is in effect."
    ]
    for leaf in tree.leaves(root):
        detail = index.detail(leaf)
        parts += [f"## {' '.join(leaf['path'])}", _sentence(leaf["description"])]
        facts = [
            ("reads", ", ".join(f"`--art.{slot['slot']}` {_slot(slot)}" for slot in detail["artifacts"])),
            ("saves", ", ".join(f"`{name}`" for name in detail["produces"])),
            ("configs for `-c`", ", ".join(f"`{name}`" for name in detail["configs"])),
            ("config groups", "; ".join(f"`{name}={'|'.join(each)}`" for name, each in detail["groups"].items())),
            ("stages", ", ".join(f"`{' '.join(stage['path'][1:])}`" for stage in detail.get("stages", ()))),
        ]
        parts.append("\n".join(f"- {name}: {value}" for name, value in facts if value))
        parts.append(_table(("field", "type", "default", "meaning"), map(_row, detail["fields"])))
    return _page(parts)


def _slot(slot: dict[str, Any]) -> str:
    return f"(default `{slot['default']}`)" if slot["default"] else "(optional)"


def _row(row: dict[str, Any]) -> tuple[str, str, str, str]:
    default = "required" if row.get("required") else _code(row.get("default", ""))
    return f"`{row['name']}`", _code(row["type"]), default, _plain(row.get("help", ""))


def _env_toml() -> str:
    reads = {name: executor_class(name).reads for name in runconfig.EXECUTORS}
    rows = []
    for field in dataclasses.fields(runconfig.RunConfig):
        kind = str(field.type).removesuffix(" | None")
        choices = field.metadata["choices"]
        users = [name for name in reads if field.name in reads[name]]
        all_read = field.name in EVERYWHERE or len(users) == len(reads) or not users
        meaning = _plain(field.metadata["help"])
        if choices and choices[0] not in meaning:
            meaning += f": {', '.join(map(_code, choices))}"
        default = "" if field.default is None else _code(text(field.default))
        rows.append((f"`{field.name}`", _code(kind), default, meaning, "all" if all_read else ", ".join(users)))
    parts = [
        "# env.toml",
        _paragraphs(
            "A table is a profile, unless it is one of the reserved tables below. The file is looked for in the "
            "working folder and above it, up to the first folder with a pyproject.toml or .git, then in "
            "`~/.config/nemotron/`; `NEMOTRON_ENV_FILE` names one. One that other users can write to is not read."
        ),
        "## Profiles",
        "`--run.FIELD VALUE` sets a field for one launch, `run.env.FIELD=VALUE` is the same as an override. "
        f"{', '.join(f'`{alias}` is another name of `{name}`' for alias, name in runconfig.ALIASES.items())}. "
        "`[NAME.resources.CLASS]` holds values for jobs of a class, such as `prep` of data preparation.",
        _table(("field", "type", "default", "meaning", "executors that read it"), rows),
    ]
    for name, keys in envfile.KEYS.items():
        described = []
        for key, (expected, about) in keys.items():
            choices = envfile.CHOICES.get((name, key))
            described.append((f"`{key}`", " or ".join(map(_code, choices)) if choices else expected, _plain(about)))
        parts += [f"## [{name}]", _table(("key", "value", "meaning"), described)]
    return _page(parts)


def _launcher() -> str:
    doc = inspect.getdoc(NemoRunConf) or ""
    about = dict(re.findall(r"^(\w+): (.+)$", doc, re.MULTILINE))
    rows = [
        (f"`hydra.launcher.{field.name}`", _code(_kind(field)), _code(_default(field)), _plain(about[field.name]))
        for field in dataclasses.fields(NemoRunConf)
        if field.name in about
    ]
    parts = [
        "# hydra.launcher",
        _paragraphs(
            "`hydra/launcher=nemo_run` runs each job of a sweep (`-m`) as a process with a record, on this machine or "
            "where a profile says: for the commands of recipes, and for any `@hydra.main` program. Its settings are "
            "overrides: `hydra.launcher.KEY=VALUE`."
        ),
        _table(("setting", "type", "default", "meaning"), rows),
    ]
    return _page(parts)


def _kind(field: dataclasses.Field[Any]) -> str:
    """The type of a field whose annotations are not postponed."""
    return (
        field.type.__name__
        if inspect.isclass(field.type)
        else str(field.type).removesuffix(" | None").replace("typing.", "")
    )


def _default(field: dataclasses.Field[Any]) -> str:
    made = field.default_factory is not dataclasses.MISSING
    return "{}" if made else text(field.default)


def _exit_codes() -> str:
    parts = [
        "# Exit codes",
        _table(("code", "meaning"), [(f"`{code}`", about) for code, about in errors.EXIT_CODES.items()]),
        "Where the job runs in the launching process, a code that it chooses itself is passed on: 1 to 255, never 0 "
        "for a failure. The state of a run, and what `nemotron runs wait`, `attach` and `resume` exit with:",
        _table(("state", "exit code"), [(f"`{state}`", f"`{EXIT_CODES.get(state, 0)}`") for state in STATES]),
    ]
    return _page(parts)


def _files() -> str:
    parts = [
        "# File formats",
        "What runs, artifacts and data preparation leave on disk. JSON files are UTF-8 and appear whole; times are ISO "
        "8601, in UTC. Keys that a reader does not know are to be left alone.",
    ]
    for title, described in FORMATS:
        module, _, name = described.partition(":")
        found = import_module(module)
        doc = inspect.getdoc(getattr(found, name)) if name else found.__doc__
        parts += [f"## {title}", _docstring(doc or "")]
        if title == "plan.json":
            parts.append(_table(("key", "type"), [(f"`{key}`", _code(_shape(PLAN_SHAPE[key]))) for key in PLAN_SHAPE]))
        elif name:
            fields = dataclasses.fields(getattr(found, name))
            parts.append(_table(("key", "type"), [(f"`{each.name}`", _code(str(each.type))) for each in fields]))
    return _page(parts)


def _shape(shape: Any) -> str:
    """A shape as runs.job.misshapen takes it, in words: a type, [item], {key: shape}, or one of several."""
    if isinstance(shape, type):
        return shape.__name__
    if isinstance(shape, tuple):
        return " or ".join(map(_shape, shape))
    if isinstance(shape, list):
        return f"list of {_shape(shape[0])}"
    if None in shape:
        return f"table of {_shape(shape[None])}"
    return "{" + ", ".join(shape) + "}"


def _docstring(doc: str) -> str:
    """A docstring as Markdown: indented blocks as fences, the rest as paragraphs."""
    parts: list[str] = []
    for block in re.split(r"\n\s*\n", doc):
        lines = block.splitlines()
        indented = [line.startswith("    ") for line in lines]
        if all(indented):
            parts.append(_fence(inspect.cleandoc("\n" + block)))
        elif any(indented):  # a paragraph that leads to a block without a blank line
            at = indented.index(True)
            parts += [_paragraphs("\n".join(lines[:at])), _fence(inspect.cleandoc("\n" + "\n".join(lines[at:])))]
        else:
            parts.append(_paragraphs(block))
    return "\n\n".join(parts)


def _paragraphs(words: str) -> str:
    return "".join(part if at % 2 else _plain(part) for at, part in enumerate(re.split(r"(`[^`\n]+`)", words)))


def _plain(words: str) -> str:
    """Text that holds no markup, as Markdown; `code` stays code."""
    pieces = re.split(r"(`[^`\n]+`)", words)
    escape = str.maketrans({char: f"\\{char}" for char in "*_[]<|"})
    return "".join(piece if at % 2 else piece.translate(escape) for at, piece in enumerate(pieces))


def _code(words: str) -> str:
    return f"`{words}`" if words else ""


def _sentence(words: str) -> str:
    return _plain(errors.sentence(words))


def _fence(words: str) -> str:
    return f"```text\n{words.strip(chr(10))}\n```"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(_lines(head, rows))


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()) for cell in row)} |"


def _page(parts: Iterable[str]) -> str:
    return _MADE + "\n\n".join(part for part in parts if part) + "\n"
