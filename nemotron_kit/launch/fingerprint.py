"""What decides whether a stage of a pipeline can be skipped: its fingerprint (its config, its code, the files that
these name), and its earlier runs with theirs, their inputs and their outputs."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import nemotron_kit
from nemotron_kit.app import Command, Pipeline
from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.config.config_files import load_mapping
from nemotron_kit.config.freeze import flat, walk_strings
from nemotron_kit.errors import DamagedRecordError, NemotronError, UserError
from nemotron_kit.home import new_run_id, runs_root
from nemotron_kit.launch.placing import ResolvedJob
from nemotron_kit.launch.status import is_mirrored, mirror, refresh
from nemotron_kit.runs.folder import DAMAGE, PIPELINE, RunFolder
from nemotron_kit.runs.job import DamagedRunRecord
from nemotron_kit.runs.ledger import run_ids
from nemotron_kit.spec.plan import is_local, stored_plan

# A larger file is identified by size and modification time.
_HASHED = 64 << 20
# A file that lists others (a blend) is small. Of a listed folder so many files are compared by size and time, the
# others by name only.
_LISTING = 4 << 20
_MOST_FILES = 10_000
# Parts of the config that do not change the result.
_NO_RESULT = ("run", "force")
_PACKAGE = Path(nemotron_kit.__file__).resolve().parent
# The packages of nemotron_kit that recipes compute with; the others are represented by the version.
_ENGINES = ("data_prep", "training")
_NAMED = [f"{name}.{engine}".encode() for name in ("nemotron_kit", "nemotron") for engine in _ENGINES]
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")})


@dataclass(frozen=True)
class Fingerprint:
    """`config` is the frozen config without `run` and `force`, flat, the job's folder written as `<job>`; `code`
    file → digest; `files` those that the config names, and those that these list. A record holds it as plain JSON.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON data, for the pipeline's record."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Fingerprint:
        """As `to_dict` wrote it; what is missing or of another kind counts as empty."""
        tables = {name: stored.get(name) for name in ("config", "code", "files")}
        return cls(**{name: dict(table) for name, table in tables.items() if isinstance(table, Mapping)})

    def changes(self, before: Fingerprint, outputs: Sequence[str]) -> list[str]:
        """Sentences on what differs from the fingerprint `before`; [] where nothing does. Files in the folders
        `outputs`, the stage's results, are not compared."""
        found = [f"{key} {_short(old)} → {_short(new)}" for key, old, new in _pairs(before.config, self.config)]
        found += [f"code: {name} {_how(old, new)}" for name, old, new in _pairs(before.code, self.code)]
        for name, old, new in _pairs(before.files, self.files):
            if not any(Path(name).is_relative_to(folder) for folder in outputs):
                found.append(f"{name} {_how(old, new)}")
        return found


_ABSENT = object()


def _pairs(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if old != new:
            yield key, old, new


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "(not set)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _how(old: Any, new: Any) -> str:
    return "is new" if old is _ABSENT else "is gone" if new is _ABSENT else "changed"


def fingerprint(resolved: ResolvedJob, command: Command) -> Fingerprint:
    """The fingerprint of a composed job; its inputs are not in it."""
    config = {key: value for key, value in resolved.config.items() if key not in _NO_RESULT}
    values = {key: _portable(value, resolved) for key, value in flat(config)}
    beside = [command.script_path.resolve().parent] if command.script_path else []
    return Fingerprint(values, code_of(command), named_files(config, [Path.cwd(), *beside]))


def _portable(value: Any, resolved: ResolvedJob) -> Any:
    if isinstance(value, list):
        return [_portable(item, resolved) for item in value]
    return value.replace(resolved.paths.job, "<job>") if isinstance(value, str) else value


# --- code


def code_of(command: Command) -> dict[str, str]:
    """File → digest of the modules that implement a command: its handler's, and those that they import, without
    Python's and those of installed packages other than the recipe's. Files are parsed, not imported. nemotron_kit
    is represented by its version, and its engines (`nemotron_kit.training`, `nemotron_kit.data_prep`) by all of their
    files if the recipe uses them."""
    found: dict[Path, str] = {}
    engines: set[str] = set()
    cls = command.config_cls
    names = [command.handler_name, cls if isinstance(cls, str) else f"{cls.__module__}:{cls.__qualname__}"]
    left = [command.script_path.resolve()] if command.script_path else []
    for module in (name.rpartition(":")[0] for name in names):
        file = Path(module) if module.endswith(".py") else _spec_file(module)
        if file is not None and not file.resolve().is_relative_to(_PACKAGE):
            left.append(file.resolve())
    left = [path for path in left if path.is_file()]
    recipe_packages = {name.partition(":")[0].partition(".")[0] for name in names if name}
    while left:
        path = left.pop()
        if path in found:
            continue
        data = path.read_bytes()
        found[path] = hashlib.sha256(data).hexdigest()[:16]
        engines |= {name.rpartition(b".")[2].decode() for name in _NAMED if name in data}
        left += [file for module in _imported(path, data) if (file := _source(module, recipe_packages))]
    for engine in list(engines):  # one of them may use the other
        files = sorted((_PACKAGE / engine).rglob("*.py"))
        engines |= {name.rpartition(b".")[2].decode() for file in files for name in _NAMED if name in file.read_bytes()}
    for engine in engines:
        for file in sorted((_PACKAGE / engine).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                found[file] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    digests = {"nemotron_kit": nemotron_kit.__version__}
    for file in sorted(found):
        # nemotron_kit's own files by their names in the package: the same wherever that is installed.
        name = Path("nemotron_kit", file.relative_to(_PACKAGE)) if file.is_relative_to(_PACKAGE) else file
        digests[str(name)] = found[file]
    return digests


def _spec_file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module) if module and module != "__main__" else None
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.has_location else None


def _imported(path: Path, data: bytes) -> Iterator[str]:
    """The names of the modules that a file may import, absolute; also those in texts of the form "module:name"."""
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError):
        return
    package: list[str] = []  # the names of the package that the file is in, from the topmost folder with an __init__.py
    folder = path.parent
    while (folder / "__init__.py").is_file():
        package.insert(0, folder.name)
        folder = folder.parent
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
            module, _, name = node.value.partition(":")
            if name.isidentifier() and module.replace(".", "").isidentifier():
                yield module


def _source(module: str, recipe_packages: set[str]) -> Path | None:
    """The file of a module that counts as the recipe's code; None for all others."""
    first, *rest = module.split(".")
    if not first or first in ("nemotron_kit", "__main__"):
        return None
    try:
        name, spec = first, importlib.util.find_spec(first)
        for part in rest:
            loaded = getattr(sys.modules.get(name), "__path__", None)  # which a package may have extended
            search_paths = loaded if loaded is not None else spec.submodule_search_locations if spec else None
            name = f"{name}.{part}"
            spec = PathFinder.find_spec(name, list(search_paths)) if search_paths is not None else None
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.has_location or not spec.origin or not spec.origin.endswith(".py"):
        return None
    installed = spec.origin.startswith(_INSTALLED)
    return Path(spec.origin).resolve() if not installed or first in recipe_packages else None


# --- files


def named_files(config: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, str]:
    """File → digest of the files that a config names, and of what is listed in those of them that are JSON or YAML
    (a blend of datasets); of a folder that is listed, its files by size and time. Relative paths are tried in
    `folders`, in that order."""
    found: dict[str, str] = {}
    for _, text in walk_strings(config):
        path = _existing_path(text, folders)
        if path is None or not path.is_file():  # a folder may be the stage's output
            continue
        found[str(path)] = _digest(path)
        is_listing = path.suffix.lower() in (".json", ".yaml", ".yml") and path.stat().st_size <= _LISTING
        try:
            values = load_mapping(path) if is_listing else {}
        except (UserError, OSError):  # reported by the job, which reads it
            continue
        for _, listed in walk_strings(values):
            target = _existing_path(listed, [path.parent, *folders])
            if target is not None and target != path:
                found[str(target)] = _digest(target) if target.is_file() else _folder_digest(target)
    return found


def _existing_path(text: str, folders: Sequence[Path]) -> Path | None:
    """The path that a text denotes, if it exists."""
    text = text.removeprefix("file://")
    if text in ("", ".", "..") or len(text) > 4096 or any(mark in text for mark in ("\n", "\0", "${", "://")):
        return None
    for folder in folders:
        path = os.path.normpath(folder / os.path.expanduser(text))  # noqa: PTH111 — any text
        if os.path.exists(path):  # noqa: PTH110 — a name may be too long
            return Path(path)
    return None


def _digest(path: Path) -> str:
    info = path.stat()
    if info.st_size > _HASHED or not os.access(path, os.R_OK):
        return f"{info.st_size} bytes, {info.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _folder_digest(folder: Path) -> str:
    rows: list[tuple[str, int, int]] = []
    for at, file in enumerate(sorted(folder.rglob("*"))):
        size = modified = 0
        with suppress(OSError):  # a link to a file that is gone
            if at < _MOST_FILES and file.is_file():
                size, modified = (info := file.stat()).st_size, info.st_mtime_ns
        rows.append((str(file.relative_to(folder)), size, modified))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


# --- the earlier runs of a pipeline's stages

# How many of a pipeline's earlier runs are compared with.
_REMEMBERED = 30


@dataclass(frozen=True)
class Earlier:
    """A stage's record in an earlier run of its pipeline, and the stage's run (None if it was skipped or removed)."""

    record: Mapping[str, Any]
    pipeline: str
    run: RunFolder | None

    @property
    def id(self) -> str:
        """The run that did the stage's work."""
        return str(self.record.get("run") or self.record.get("producer") or self.pipeline)

    @property
    def removed(self) -> bool:
        """Whether the run has been deleted."""
        return bool(self.record.get("run")) and self.run is None

    @property
    def succeeded(self) -> bool:
        """Whether the stage's work was done: it succeeded, or was skipped."""
        return bool(self.record.get("skipped")) or (self.run is not None and self.run.state() == "succeeded")

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint that the stage had then; an empty one if none is recorded."""
        return Fingerprint.from_dict(self.record.get("fingerprint") or {})

    def inputs(self) -> dict[str, Pin]:
        """Slot → pin of the artifacts that the run read."""
        return _pins_of(self._artifacts("inputs") or self.record.get("inputs") or {})

    def outputs(self) -> list[Pin]:
        """The versions that the run saved; of a skipped stage, those that it took over."""
        found = self.record.get("outputs") if self.record.get("skipped") else self._artifacts("outputs")
        return list(_pins_of(dict(enumerate(found or ()))).values())

    def _artifacts(self, what: str) -> Any:
        try:
            return self.run.job(0).artifacts()[what] if self.run is not None else None
        except (DamagedRunRecord, UserError):
            return None


def saved_by(run: RunFolder) -> list[Pin]:
    """What a run has saved. Raises DamagedRunRecord."""
    return list(_pins_of(dict(enumerate(run.job(0).artifacts()["outputs"]))).values())


def _pins_of(stored: Mapping[Any, Any]) -> dict[Any, Pin]:
    found = {}
    for key, value in stored.items():
        with suppress(DamagedRecordError):
            found[key] = Pin.from_dict(value)
    return found


def earlier_runs(pipeline: Pipeline, connect: bool) -> dict[str, list[Earlier]]:
    """Stage → its records, the newest first, in the last runs of the pipeline."""
    middle = new_run_id(pipeline.recipe, pipeline.stage)[15:-6]
    ids = [run_id for run_id in run_ids() if run_id[15:-6] == middle][:_REMEMBERED]
    found: dict[str, list[Earlier]] = {}
    for run in (RunFolder(runs_root() / run_id) for run_id in ids):
        try:
            stored = run.plan()
        except DamagedRunRecord:
            continue
        if (stored.get("kind"), stored.get("recipe"), stored.get("stage")) != (
            PIPELINE,
            pipeline.recipe,
            pipeline.stage,
        ):
            continue
        for record in (each for each in run.stages() if DAMAGE not in each):
            found.setdefault(str(record.get("stage")), []).append(Earlier(record, run.id, run.stage_run(record)))
    if not connect:
        return found
    # Update the records of submitted runs, and fetch those of the artifacts that they saved.
    submitted = []
    for run in [each.run for records in found.values() for each in records if each.run is not None]:
        with suppress(DamagedRunRecord):
            plan = stored_plan(run)
            if not is_local(plan.executor) and not (run.jobs() and is_mirrored(run.job(0))):
                submitted.append((run, plan))
    snapshots = refresh([run for run, _ in submitted])
    for run, plan in submitted:
        lost = run.id in snapshots and snapshots[run.id].lost
        if not lost and run.state() == "succeeded":
            with suppress(NemotronError):  # then it is not known what it saved, and the stage runs again
                mirror(plan, run.jobs())
    return found
