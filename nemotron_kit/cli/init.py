"""`nemotron init`: writes a recipe of the user's own, or a profile into env.toml."""

from __future__ import annotations

import importlib.machinery
import json
import keyword
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

from nemotron_kit.cli.output import ask, write_lines
from nemotron_kit.cli.profile_commands import check
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.cli.tools import TOOLS
from nemotron_kit.config.wording import profile_field
from nemotron_kit.discovery import BUILT_IN, entry_points
from nemotron_kit.envfile import RESERVED
from nemotron_kit.errors import UserError, near
from nemotron_kit.files import write_text
from nemotron_kit.spec.profiles import read_profile
from nemotron_kit.spec.runconfig import FIELDS, RunConfig

TEMPLATES = Path(__file__).parent / "new_recipe"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}\Z")
_PROFILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
# The questions on a terminal, by executor: (field, question, whether it may be left out).
_QUESTIONS = {
    "slurm": (
        ("account", "Slurm account (empty: none is needed)", True),
        ("partition", "partition (empty: the default one)", True),
        ("nodes", "nodes (empty: 1)", True),
        ("gpus_per_node", "GPUs on each (empty: none)", True),
        ("time", "time limit, such as 04:00:00 (empty: the partition's)", True),
        ("host", "login node, through ssh (empty: this machine is one)", True),
    ),
    "docker": (("container_image", "image", False),),
    "local": (("nproc_per_node", "processes, started by torchrun (empty: 1)", True),),
}


def init(argv: list[str]) -> int:
    """`nemotron init NAME` or `nemotron init --profile NAME [KEY=VALUE …]`: the exit code. Raises UserError, and writes
    nothing, for a name that is taken and for an invalid profile."""
    options = ToolParser("init").parse(list(_with_fields(argv)))
    if options.profile == "":
        raise UserError("nemotron init: --profile needs a NAME.", hint="For instance: nemotron init --profile cluster")
    if options.profile is not None:
        return _profile(options.profile, options.fields, checked=not options.no_check)
    if len(options.fields) != 1 or options.no_check:
        raise UserError(
            "nemotron init: expected the name of one recipe.",
            hint="nemotron init my_recipe, or nemotron init --profile NAME for a profile in env.toml.",
        )
    return _recipe(options.fields[0])


def _with_fields(argv: Sequence[str]) -> Iterator[str]:
    """The arguments, with a profile's fields given as options (`--nodes 2`, `--gpus-per-node=8`) as KEY=VALUE, and
    `--profile` without a name with an empty one."""
    rest = list(argv)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        name = option.removeprefix("--").replace("-", "_")
        following = bool(rest) and not rest[0].startswith("--")
        if option == "--profile" and not equals and not following:
            yield "--profile="
        elif option.startswith("--") and "--profile" in argv and (name in FIELDS or profile_field(name)):
            yield f"{name}={value if equals or not following else rest.pop(0)}"
        else:
            yield f"{option}{equals}{value}"


def _recipe(name: str) -> int:
    if not _NAME.match(name) or keyword.iskeyword(name):
        hint = "Small letters, digits and _, a letter first: it is a Python package and a command."
        likely = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-. ]+", "_", os.path.basename(name.rstrip("/"))).lower()  # noqa: PTH119
        if _NAME.match(likely) and likely != name:
            hint = f"{hint} It's written into the working folder. Did you mean nemotron init {likely}?"
        why = ": it is a word of the language Python" if keyword.iskeyword(name) else ""
        raise UserError(f"{name!r} can't be a recipe's name{why}.", hint=hint)
    folder, test = Path(name), Path("tests", f"test_{name}.py")
    for path in (folder, test):
        if os.path.lexists(path):
            raise UserError(f"{path} exists already.", hint="Choose another name, or another folder.")
    if holder := _taken_by(name):
        raise UserError(f"{name!r} is taken: {holder}.", hint="Choose another name.")
    # All checks come before anything is written: half a recipe would be in the way of the next attempt.
    for parent in (Path(), test.parent):
        if parent.exists() and not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
            raise UserError(f"{parent.absolute()}: {'not writable' if parent.is_dir() else 'not a folder'}.")
    env_text = _env_with_recipe(name)  # before anything is written: env.toml may be unreadable
    title = name.replace("_", "-").capitalize()  # the prefix of the artifacts' names: My-recipe-data
    for template in sorted(TEMPLATES.rglob("*.txt")):
        relative = template.relative_to(TEMPLATES).with_suffix("")
        target = test if relative.name == "test_recipe.py" else folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        text = Template(template.read_text(encoding="utf-8")).substitute(name=name, title=title)
        write_text(target, text, mode=0o644)
    if env_text is not None:
        _write_env(env_text)
    listed = env_text is not None
    steps = [] if listed else [f'  add "{name}" to [cli] recipes in env.toml']
    steps += [
        f"  nemotron {name} all -c tiny       # both stages; again: only what has changed",
        f"  nemotron {name} train -m optimizer.lr=0.1,0.3",
        "  nemotron runs show latest         # the sweep's jobs, best first",
        f"  python -m pytest                  # its tests{'' if find_spec('pytest') else ' (pip install pytest)'}",
    ]
    write_lines([f"{name}/, {test}{' and env.toml' if listed else ''} are written. Next:", *steps])
    return 0


def _taken_by(name: str) -> str:
    """What a recipe of this name would hide, or be hidden by; "" for nothing."""
    if name in TOOLS:
        return "a command of nemotron"
    if name in sys.stdlib_module_names:
        return "a module of Python's standard library"
    if name in (*BUILT_IN, *(each for each, _ in entry_points())):
        return "an installed recipe"
    # The recipe's folder comes first on the import path: every `import torch` here would be of the recipe.
    elsewhere = [each for each in sys.path if Path(each).resolve() != Path.cwd()]
    found = importlib.machinery.PathFinder.find_spec(name, elsewhere)
    if found is not None:
        return f"an installed package ({found.origin or name})"
    # Also of those that our extras need: the recipe would hide one that is installed later.
    with suppress(PackageNotFoundError):  # run from a copy of the source
        for requirement in requires("nemotron-kit") or ():
            if re.split(r"[^A-Za-z0-9_-]", requirement)[0].replace("-", "_").lower() == name:
                return "a package that nemotron_kit uses"
    return ""


def _env_with_recipe(name: str) -> str | None:
    """env.toml's text with the recipe listed; None where its `[cli]` has to be edited by hand."""
    text = _env_text()
    before = tomllib.loads(text)
    if "cli" in before:
        longer = re.sub(
            r"^(recipes *= *\[[^\]#]*?),?(\s*\])", rf'\1, "{name}"\2', text, count=1, flags=re.MULTILINE
        ).replace("[, ", "[", 1)
        wanted = {**before, "cli": {**before["cli"], "recipes": [*before["cli"].get("recipes", ()), name]}}
        try:
            return longer if tomllib.loads(longer) == wanted else None
        except tomllib.TOMLDecodeError:
            return None
    return f'{text}{_separator(text)}[cli]\nrecipes = ["{name}"]\n'


def _env_text() -> str:
    """The text of env.toml in the working folder; "" without one. Raises UserError for what is no TOML."""
    path = Path("env.toml")
    try:
        text = path.read_text(encoding="utf-8-sig") if os.path.lexists(path) else ""
        tomllib.loads(text)
    except OSError as error:
        raise UserError(f"{path.absolute()}: {error.strerror}.", hint="Correct it first.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path.absolute()}: not valid TOML: {error}.", hint="Correct it first.") from error
    return text


def _write_env(text: str) -> None:
    """Write env.toml: a new one for this user only; an existing one keeps its mode, and stays behind its link."""
    path = Path("env.toml").resolve()
    write_text(path, text, mode=path.stat().st_mode & 0o777 if path.exists() else 0o600)


def _separator(text: str) -> str:
    return "" if not text else "\n" if text.endswith("\n") else "\n\n"


def _profile(name: str, given: Sequence[str], *, checked: bool) -> int:
    if not _PROFILE_NAME.match(name) or name in RESERVED:
        raise UserError(
            f"{name!r} can't be a profile's name.",
            hint=f"A profile's name has letters, digits, - and _, and is none of {', '.join(sorted(RESERVED))}.",
        )
    text = _env_text()
    if name in tomllib.loads(text):
        raise UserError(f"env.toml has [{name}] already.", hint=f"nemotron profiles show {name}")
    values = {}
    for argument in given:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(
                f"nemotron init: {argument!r} is not KEY=VALUE.", hint="For instance: executor=slurm account=lab"
            )
        if key not in FIELDS:
            meant = profile_field(key)
            hint = f"Did you mean {meant}?" if meant else near(key, FIELDS)
            raise UserError(f"A profile has no field {key!r}.", hint=hint)
        values[key] = _toml_value(key, value)
    if sys.stdin.isatty() and sys.stdout.isatty():
        _ask(values)
    if "host" in values:
        values.setdefault("tunnel", "ssh")
    # JSON spells texts, numbers, booleans and lists of them as TOML does.
    table = "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in {"executor": "local", **values}.items()
    )
    text = f"{text}{_separator(text)}[{name}]\n{table}"
    _check_profile(text, name)
    _write_env(text)
    write_lines([f"[{name}] is written to env.toml:", *(f"  {line}" for line in table.splitlines())])
    if not checked:
        return 0
    write_lines(["", f"nemotron profiles check {name}"])
    return check([name])


def _toml_value(key: str, text: str) -> Any:
    """The value to write: an integer or a boolean if the field has that type, a list for `[a,b]`, else the text."""
    if text[:1] == "[":
        return [part.strip() for part in text.strip("[]").split(",") if part.strip()]
    kind = next(str(field.type) for field in fields(RunConfig) if field.name == key)
    if "bool" in kind and text in ("true", "false"):
        return text == "true"
    return int(text) if "int" in kind and re.fullmatch(r"-?\d{1,18}", text) else text


def _ask(values: dict[str, Any]) -> None:
    if "executor" not in values:
        values["executor"] = ask(f"executor ({', '.join(_QUESTIONS)}): ") or "local"
    for key, question, optional in _QUESTIONS.get(str(values["executor"]), ()):
        while key not in values and (answer := ask(f"{question}: ") or not optional):
            if isinstance(answer, str):
                values[key] = _toml_value(key, answer)
    if "host" in values and "user" not in values:
        values["user"] = ask(f"user on {values['host']}: ") or os.environ.get("USER", "")


def _check_profile(text: str, name: str) -> None:
    """Raise UserError for a profile that can't be read, before env.toml is touched."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "env.toml")
        file.write_text(text, encoding="utf-8")
        try:
            read_profile(name, file)
        except UserError as error:
            raise UserError(error.message.replace(f"{file}:", "env.toml:"), hint=error.hint) from error
