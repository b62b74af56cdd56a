"""`nemotron artifacts gc`, which removes what nothing refers to, and `nemotron artifacts relocate`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.artifacts.manifest import absolute
from nemotron_kit.artifacts.reference import ArtifactNotFoundError, ArtifactVersionNotFoundError
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.artifacts.store import ArtifactVersion, DamagedVersion
from nemotron_kit.cli.output import ask, print_json, print_table, write_lines
from nemotron_kit.cli.runs.remove import artifacts_in, ids_in, named_in, read_by, record_text, refuse_written, size_of
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import collect_leftovers
from nemotron_kit.home import first_id_since, runs_root
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.ledger import collect_removed, remove_run, run_ids
from nemotron_kit.spec.plan import is_local

if TYPE_CHECKING:
    from nemotron_kit.artifacts.registry import LocalRegistry

# The states of runs that gc removes. Runs in other states may have results.
_FAILED = ("failed", "cancelled")


def collect(argv: list[str]) -> int:
    """`nemotron artifacts gc`: returns 0. Raises UserError if there is something to remove and no
    terminal on which to confirm it."""
    options = ToolParser("artifacts", "gc").parse(argv)
    registry = open_registry()
    plan = Garbage.find(registry, first_id_since(options.older_than), unmounted=options.unmounted)
    found = list(plan.rows())
    if found and not options.dry_run:
        if not options.yes and (options.json or not (sys.stdin.isatty() and sys.stdout.isatty())):
            hint = "nemotron artifacts gc --dry-run lists them."
            raise UserError(f"nemotron artifacts gc: {len(found)} removals need --yes without a terminal.", hint=hint)
        if not options.yes:
            print_table(["", "WHAT", "WHY"], found)
            if ask(f"{plan.bytes / 1e6:,.1f} MB. Continue? [y/N] ").lower() not in ("y", "yes"):
                raise UserError("Nothing was removed.")
        plan.remove()
        found = list(plan.rows())
    if options.json:
        print_json({"dry_run": options.dry_run, **plan.to_dict()})
        return 0
    verb = "would be " if options.dry_run else ""
    if found:
        print_table(["", "WHAT", "WHY"], [[f"{verb}{remedy}", what, why] for remedy, what, why in found])
        write_lines([f"{plan.bytes / 1e6:,.1f} MB"])
    else:
        write_lines([f"Nothing to repair or remove in {registry.root} and {runs_root()}."])
    for label, why in plan.kept.items():
        write_lines([f"{label} is kept: {why}"])
    return 0


@dataclass
class Garbage:
    """What gc removes: versions of which no file is left (by label), failed runs (id → bytes), damaged records,
    leftover files, dangling aliases. `kept`: label or run id → why it is not removed."""

    registry: LocalRegistry
    versions: dict[str, ArtifactVersion]
    runs: dict[str, int]
    kept: dict[str, str]
    damaged: list[Any] = field(default_factory=list)
    leftovers: list[Path] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)

    @classmethod
    def find(cls, registry: LocalRegistry, before: str, *, unmounted: bool) -> Garbage:
        """Everything that no kept version and no kept run refers to. `before`: the first run id that is too new."""
        every = list(registry.everything())
        everything = [each for each in every if isinstance(each, ArtifactVersion)]
        damaged = [each for each in every if isinstance(each, DamagedVersion)]
        versions, kept = _without_files(registry, everything, unmounted=unmounted)
        records = {run_id: _Run.read(RunFolder(runs_root() / run_id)) for run_id in run_ids()}
        runs = {run_id for run_id, run in records.items() if run_id[: len(before)] < before and run.removable}
        held = dict(_always_held(registry, damaged))
        named = {each.pin.label: _runs_named_by(each) for each in everything} if runs else {}
        while True:  # until no version and no run to be removed is referred to by one that is kept
            for version in everything:
                if version.pin.label not in versions:
                    held |= {pin.label: f"{version.pin.label} was made from it" for pin in version.inputs}
                    held |= dict.fromkeys(named.get(version.pin.label, ()), f"{version.pin.label} refers to it")
            for run_id, run in records.items():
                if run_id not in runs:
                    held |= dict.fromkeys(run.versions, f"{run_id} read it")
                    held |= dict.fromkeys(run.others, f"{run_id} refers to it")
            again = (versions.keys() | runs) & held.keys()
            if not again:
                break
            kept |= {each: held[each] for each in again if each in versions}
            versions = {label: version for label, version in versions.items() if label not in again}
            runs -= again
        sizes = {run_id: size_of(runs_root() / run_id) for run_id in sorted(runs, key=records.__getitem__)}
        garbage = cls(registry, versions, sizes, kept)
        garbage.damaged = registry.repair(dry_run=True)
        garbage.leftovers = [*registry.gc(dry_run=True), *collect_leftovers(runs_root(), ours=True, dry_run=True)]
        garbage.leftovers += [
            runs_root() / run_id for run_id in collect_removed(lambda run: artifacts_in(run, registry), dry_run=True)
        ]
        for name in registry.entries():
            garbage.aliases += [f"{name}:{alias}" for alias in registry.remove_dangling(name, dry_run=True)]
        return garbage

    @property
    def bytes(self) -> int:
        """The bytes of the runs."""
        return sum(self.runs.values())

    def rows(self) -> Iterator[tuple[str, str, str]]:
        """(remedy, what, why) of each."""
        for each in self.damaged:
            yield each.remedy, each.what, each.why
        for path in self.leftovers:
            yield "removed", "leftover of a killed command", str(path)
        for alias in self.aliases:
            yield "removed", alias, "its version was removed"
        for label, version in self.versions.items():
            yield "removed", label, f"its files are gone: {version.root}"
        for run_id, size in self.runs.items():
            yield "removed", run_id, f"failed or cancelled, and nothing refers to it: {size / 1e6:,.1f} MB"

    def remove(self) -> None:
        """Remove all of it. Killed at any point, the command can be given again. What is in use or back by now is
        kept, and moves to `kept`."""
        registry = self.registry
        registry.repair()
        registry.gc()
        collect_leftovers(runs_root(), ours=True)
        collect_removed(lambda run: artifacts_in(run, registry))
        for label, version in list(self.versions.items()):
            if not _missing(version, registry.home, unmounted=True):
                del self.versions[label]
                self.kept[label] = "its files are back."
                continue
            with contextlib.suppress(ArtifactNotFoundError, ArtifactVersionNotFoundError):  # another command was first
                registry.remove(label, force=True)
        for name in registry.entries():
            registry.remove_dangling(name)
        for run_id in list(self.runs):
            try:
                remove_run(RunFolder(runs_root() / run_id), referenced_by=lambda run: artifacts_in(run, registry))
            except NemotronError as error:
                del self.runs[run_id]
                self.kept[run_id] = error.message

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {
            "records": [
                {"what": each.what, "file": str(each.file), "why": each.why, "remedy": each.remedy}
                for each in self.damaged
            ],
            "leftovers": [str(path) for path in self.leftovers],
            "aliases": self.aliases,
            "versions": {label: version.root for label, version in self.versions.items()},
            "runs": self.runs,
            "kept": self.kept,
            "bytes": self.bytes,
        }


def _without_files(
    registry: LocalRegistry, everything: Iterable[ArtifactVersion], *, unmounted: bool
) -> tuple[dict[str, ArtifactVersion], dict[str, str]]:
    """The versions of which no file is left, by label; and those that may only be out of reach, with why."""
    found, kept = {}, {}
    for version in everything:
        if _missing(version, registry.home, unmounted=unmounted):
            found[version.pin.label] = version
        elif _missing(version, registry.home, unmounted=True):
            kept[version.pin.label] = (
                f"{Path(version.root).parent} is missing, too: it may not be mounted, or was moved (nemotron artifacts "
                "relocate OLD NEW). --unmounted removes the version."
            )
    return found, kept


def _missing(version: ArtifactVersion, home: Path | None, *, unmounted: bool) -> bool:
    """Whether no file of a version is left. Unless `unmounted`, the folder that held its folder must be there: else the
    file system may be missing. The home is there, since the registry is read."""
    root = Path(version.root)
    try:
        there = root.parent.is_dir() or (home is not None and root.is_relative_to(home))
        entries = [root / entry.path for entry in version.files] or [root]
        return (there or unmounted) and not any(path.exists() or path.is_symlink() for path in entries)
    except OSError:  # no permission to look
        return False


def _always_held(registry: LocalRegistry, damaged: Iterable[DamagedVersion]) -> Iterator[tuple[str, str]]:
    """(version or run, why it is kept): what aliases and damaged records name."""
    for name in registry.names():
        for alias, version in registry.aliases(name).items():
            yield f"{name}:v{version}", f"the alias {alias} names it"
    for record in damaged:
        yield from ((each, f"{record.label}, whose record is damaged, names it") for each in named_in(record.text))


def _runs_named_by(version: ArtifactVersion) -> set[str]:
    """The runs that a version's record names, and those in whose folders its files lie, also by links."""
    root, found = os.path.realpath(runs_root()), ids_in(json.dumps(version.to_dict()))
    for path in (version.root, version.path, *(f"{version.root}/{entry.path}" for entry in version.files)):
        real = os.path.realpath(path)
        if real.startswith(f"{root}/"):
            found.add(real[len(root) + 1 :].partition("/")[0])
    return found


@dataclass(frozen=True, order=True)
class _Run:
    """The facts of a run's record that decide whether it can be removed. When sorted, a run comes before those that it
    refers to: pipelines before their stages, newer runs before older ones. `versions` and `others` are the labels of
    the versions and the ids of the runs that it refers to."""

    is_stage: bool
    newer: int
    removable: bool = field(compare=False)
    versions: frozenset[str] = field(compare=False)
    others: frozenset[str] = field(compare=False)

    @classmethod
    def read(cls, run: RunFolder) -> _Run:
        number = -int(run.id[:8] + run.id[9:15] + f"{int(run.id[-6:], 16):08d}")
        text = record_text(run)
        others = frozenset(ids_in(text) - {run.id})
        try:
            summary, versions = run.summary(), read_by(run)
            removable = summary.state in _FAILED and is_local(summary.executor) and not any(run.labels().values())
            if removable:
                refuse_written(run)
        except NemotronError:  # its record is damaged, or it wrote files: it is kept, and so is all that its text names
            return cls(False, number, False, frozenset(named_in(text)), others)
        return cls(not run.is_pipeline, number, removable, versions, others)


def relocate(argv: list[str]) -> int:
    """`nemotron artifacts relocate OLD NEW`: returns 1 if files of a version in OLD are not in NEW, else 0."""
    options = ToolParser("artifacts", "relocate").parse(argv)
    old, new = map(absolute, options.folders)
    if old == new:
        raise UserError(f"Both folders are {old}.")
    if not new.is_dir():
        raise UserError(f"There is no folder {new}.", hint="Move the files there first; the records follow them.")
    registry = open_registry()
    rows: list[dict[str, Any]] = []
    for version in registry.everything():
        if isinstance(version, ArtifactVersion) and (row := _relocate(registry, version, old, new, options.dry_run)):
            rows.append(row)
    left = [row for row in rows if "left" in row]
    if options.json:
        print_json({"dry_run": options.dry_run, "versions": rows})
    elif rows:
        verb = "would be relocated" if options.dry_run else "relocated"
        shown = [[row["version"], f"left: {row['left']}" if "left" in row else verb, row["path"]] for row in rows]
        print_table(["VERSION", "", "PATH"], shown)
    else:
        write_lines([f"No version in {registry.root} has files or inputs in {old}."])
    return 1 if left else 0


def _relocate(
    registry: LocalRegistry, version: ArtifactVersion, old: Path, new: Path, dry_run: bool
) -> dict[str, Any] | None:
    """Relocate one version's record; None if it has nothing in `old`. It is left if its files are not in `new`."""
    inputs = tuple(replace(pin, path=_at(pin.path, old, new, must_exist=True)) for pin in version.inputs)
    root = _at(version.root, old, new)
    if root == version.root:
        changed = replace(version, inputs=inputs)
        if inputs != version.inputs and not dry_run:
            registry.replace_record(changed)
        return None if inputs == version.inputs else {"version": version.pin.label, "path": f"inputs in {new}"}
    row = {"version": version.pin.label, "path": root}
    if why := registry.relocate(replace(version, inputs=inputs), root, dry_run=dry_run):
        return {"version": version.pin.label, "path": version.root, "left": why}
    return row


def _at(path: str, old: Path, new: Path, *, must_exist: bool = False) -> str:
    """A path in `old`, also one that a link leads there, as one in `new`; any other one, and one that has been in `new`
    since an earlier call, as it is."""
    here = Path(path)
    if not here.is_relative_to(old):
        here = Path(os.path.realpath(path))
    if not here.is_relative_to(old) or (new.is_relative_to(old) and here.is_relative_to(new)):
        return path
    there = new / here.relative_to(old)
    return str(there) if there.exists() or not must_exist else path
