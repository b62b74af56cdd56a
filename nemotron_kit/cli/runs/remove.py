"""`nemotron runs rm` and `runs du`: deletes the folders of runs, by name or by filters; prints their sizes."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.reference import Pin, Reference
from nemotron_kit.artifacts.registry import LocalRegistry, open_registry
from nemotron_kit.artifacts.store import ArtifactVersion
from nemotron_kit.cli.output import clean, print_json, print_status, print_table, write_lines
from nemotron_kit.cli.runs.list import matching
from nemotron_kit.cli.runs.show import written_by
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import NemotronError, UserError, listed
from nemotron_kit.files import read_regular
from nemotron_kit.home import RUN_ID, first_id_since, runs_root, sort_key
from nemotron_kit.launch.status import refresh
from nemotron_kit.remote.agent.operations import lies_in, versions_in
from nemotron_kit.remote.ssh import transport_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import DAMAGED, TERMINAL, DamagedRunRecord
from nemotron_kit.runs.ledger import check_removable, collect_removed, list_runs, open_run, remove_unreferenced, run_ids
from nemotron_kit.spec.plan import is_local, stored_plan

# States of a run on another machine that its scheduler would still start.
_QUEUED = ("pending",)
_FILTERS = ("older_than", "recipe", "stage", "state", "tag", "keep")


def remove(argv: list[str]) -> int:
    """`nemotron runs rm [ID …]`: delete the folders of runs, on this machine and where they ran. Returns 0.

    Raises UserError for a named run that can't be removed; runs that match filters and can't be removed are kept, and
    listed with the reason.
    """
    options = ToolParser("runs", "rm").parse(argv)
    _check_filters(options)
    filtered = any(getattr(options, name) not in (None, []) for name in _FILTERS)
    if filtered == bool(options.ids):
        what = "give either IDs or filters, not both" if filtered else "no ID and no filter is given"
        raise UserError(
            f"nemotron runs rm: {what}.", hint="nemotron runs rm ID …, or nemotron runs rm --older-than 30d --dry-run."
        )
    # An earlier removal of the same runs may have been killed.
    registry = open_registry()
    completed = [] if options.dry_run else collect_removed(lambda run: artifacts_in(run, registry))
    names = [name for name in options.ids if not _is_one_of(name, completed)]
    if completed and "latest" in names:
        hint = f"latest is {open_run('latest').id} now; name the run that is meant."
        raise UserError(f"The removal of {', '.join(completed)} had been interrupted, and is complete now.", hint=hint)
    runs = _matching(options) if filtered else list({run.id: run for run in map(open_run, names)}.values())
    remote = {run.id for run in runs if not is_local(run.summary().executor)}
    if remote:
        refresh([run for run in runs if run.id in remote])
    plan = _Plan(runs, registry, options, remote)
    held = next((plan.stay[run.id] for run in runs if run.id in plan.stay), None)
    if held and not (filtered or options.dry_run):
        raise held
    rows: dict[str, dict[str, Any]] = {
        run.id: {
            "run": run.id,
            "state": run.state(),
            "bytes": size_of(run.path),
            "versions": plan.versions.get(run.id, []),
        }
        for run in runs
    }
    if completed and not options.json:
        write_lines([f"removed {run_id}, whose removal had been interrupted" for run_id in completed])
    for run in [] if options.dry_run else plan.in_order():
        try:
            plan.remove(run)
        except NemotronError as error:
            if not filtered:
                raise
            plan.stay[run.id] = error
            continue
        if not options.json:
            write_lines([f"removed {run.id}{_with_versions(rows[run.id])}"])
    for run_id, why in plan.stay.items():
        del rows[run_id]["versions"]
        rows[run_id]["stays"] = " ".join(filter(None, (why.message, why.hint)))
    if options.with_artifacts and not options.dry_run:
        for name in registry.entries():
            registry.remove_dangling(name)
    before = [{"run": each, "state": "removed", "bytes": 0, "versions": []} for each in completed]
    _report([*before, *rows.values()], options)
    return 0


def _check_filters(options: Any) -> None:
    """Raise UserError for a filter without a value, as of a shell's variable that is not set: it would match all."""
    for name in ("recipe", "stage", "state", "tag"):
        given = getattr(options, name)
        for text in given if isinstance(given, list) else [given]:
            if text is not None and not text.strip(" ,/"):
                hint = "Leave it out for all of them; --dry-run lists what would be removed."
                raise UserError(f"nemotron runs rm: --{name} is {text!r}: expected a name.", hint=hint)


def _is_one_of(name: str, run_ids: list[str]) -> bool:
    """Whether a run's id, the start of one or its last six digits names one of these."""
    return any(name and (run_id.startswith(name) or run_id.endswith(f"-{name}")) for run_id in run_ids)


def _matching(options: Any) -> list[RunFolder]:
    """The runs that match the filters, oldest first, without the newest `--keep`."""
    found = matching(options)[options.keep or 0 :]
    if options.older_than is not None:
        first = first_id_since(options.older_than)
        found = [run for run in found if run.id[: len(first)] < first]
    return [open_run(run.id) for run in reversed(found)]


class _Plan:
    """Which of some runs can be removed, with which versions, and why the others stay (`stay`). Nothing that stays
    refers to what goes."""

    def __init__(
        self, runs: Sequence[RunFolder], registry: LocalRegistry, options: Any, remote: Collection[str]
    ) -> None:
        self._runs, self._registry, self._options, self._remote = runs, registry, options, remote
        self.stay: dict[str, NemotronError] = {}
        self.versions = {run.id: _versions_in(registry, run) if options.with_artifacts else [] for run in runs}
        self._users = {} if options.force or not runs else users_of_runs(registry)
        without = {label for versions in self.versions.values() for label in versions}
        while True:  # until nothing that stays refers to a run that goes
            stayed = len(self.stay)
            # Those that refer to others first: what one of them holds back is seen in the same round.
            for run in self.in_order():
                try:
                    self._check(run, without)
                except NemotronError as error:
                    self.stay[run.id] = error
                    without.difference_update(self.versions.pop(run.id))
            if len(self.stay) == stayed:
                break

    def _going(self) -> list[RunFolder]:
        return [run for run in self._runs if run.id not in self.stay]

    def _check(self, run: RunFolder, without: Collection[str]) -> None:
        """Raise UserError if the run can't be removed; `without`: the versions that would be removed, too."""
        self._check_ended(run)
        held = [label for label in artifacts_in(run, self._registry) if label not in self.versions[run.id]]
        check_removable(run, referenced_by=lambda _: held, force=self._options.force)
        for label in self.versions[run.id]:
            self._registry.check_removable(Reference.parse(label), force=self._options.force, without=without)
        if not self._options.force and not (run.id in self._remote and self._options.here):
            refuse_written(run)
        self._check_unused(run, {*(each.id for each in self._going()), *without})

    def _check_ended(self, run: RunFolder) -> None:
        if run.id in self._remote and run.state() in _QUEUED:
            hint = f"Stop it first: nemotron runs cancel {run.id}."
            raise UserError(f"{run.id} is {run.state()}: its scheduler may still start it.", hint=hint)

    def _check_unused(self, run: RunFolder, going: Collection[str]) -> None:
        if users := sorted(self._users.get(run.id, set()) - set(going)):
            verb = "needs" if len(users) == 1 else "need"
            raise UserError(f"{listed(users, 6)} {verb} files of {run.id}.", hint=_FORCED)

    def in_order(self) -> list[RunFolder]:
        """Those to remove: pipelines before their stages, the rest newest first; killed between two of them, what is
        left refers to nothing that is gone."""
        return sorted(self._going(), key=lambda run: (run.is_pipeline, sort_key(run.id)), reverse=True)

    def remove(self, run: RunFolder) -> None:
        """Remove one with its versions. Raises UserError if it can't be removed any more."""
        self._check_ended(run)
        check_removable(run, force=self._options.force)  # it may have been resumed
        self._check_unused(run, {each.id for each in self._going()}.union(*self.versions.values()))
        for label in self.versions[run.id]:
            self._registry.remove(Reference.parse(label), force=True)  # all of them have been checked together
        if run.id in self._remote and not self._options.here:
            plan = stored_plan(run)
            if plan.has_separate_folder:
                # Before the record on this machine: Unreachable is raised here, and the removal can be repeated.
                transport = transport_for(plan.settings)
                registry = plan.paths.artifacts or f"{transport.root}/artifacts"
                transport.call("remove_run", folder=plan.paths.run, registry=registry)
        remove_unreferenced(run.path, lambda: artifacts_in(run, self._registry))


_FORCED = "--force removes it nevertheless."
# In the text of a record: a run, also in a path; a path in a run's folder, but not that of the config that a rerun
# began with, which it has a copy of; a pin.
_ID = re.compile(RUN_ID.removesuffix(r"\Z"))
_PATH = re.compile(rf"/runs/({_ID.pattern})/(?!jobs/\d+/composed\.yaml)")
_PIN = re.compile(r'"name":\s*"([^"]+)",\s*"version":\s*([0-9]+)')
_REFERRING = ("config.yaml", "composed.yaml", "artifacts.json", "job.json", ".hydra/overrides.yaml")


def ids_in(text: str) -> set[str]:
    """The ids of the runs that a text names, also in paths."""
    return set(_ID.findall(text))


def record_text(run: RunFolder) -> str:
    """The text of the files of a run's record that can refer to other runs and to versions."""
    # Paths are strings: of 10,000 runs these files are read.
    folder, names = str(run.path), ["plan.json"]
    names += [f"stages/{name}" for name in _listing(f"{folder}/stages") if name.endswith(".json")]
    names += [f"jobs/{job}/{name}" for job in _listing(f"{folder}/jobs") for name in _REFERRING]
    texts = []
    for name in names:
        with contextlib.suppress(OSError):
            texts.append(read_regular(f"{folder}/{name}").decode("utf-8", "replace"))
    return "\n".join(texts)


def _listing(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []


def users_of_runs(registry: LocalRegistry) -> dict[str, set[str]]:
    """Run id → the ids of runs and labels of versions that need its files: their records name a path in its folder. A
    run that has not ended may need whatever it names."""
    found: dict[str, set[str]] = {}
    for summary in list_runs():
        text = record_text(RunFolder(runs_root() / summary.id))
        named = set(_PATH.findall(text)) if summary.state in (*TERMINAL, DAMAGED) else ids_in(text)
        for other in named - {summary.id}:
            found.setdefault(other, set()).add(summary.id)
    for version in registry.everything():
        if isinstance(version, ArtifactVersion):
            # Inputs that are versions protect their files themselves.
            for other in {each for pin in version.inputs if pin.version is None for each in _PATH.findall(pin.path)}:
                found.setdefault(other, set()).add(version.pin.label)
    return found


def named_in(text: str) -> set[str]:
    """The runs and versions (labels) that the text of a record names."""
    return ids_in(text) | {f"{name}:v{version}" for name, version in _PIN.findall(text)}


def readers_of(labels: Collection[str]) -> dict[str, list[str]]:
    """Label → the runs that read the version, for those of these versions that a run has read."""
    found: dict[str, list[str]] = {}
    for run in (RunFolder(runs_root() / run_id) for run_id in run_ids()):
        text = record_text(run)
        if named := named_in(text).intersection(labels):
            with contextlib.suppress(NemotronError):  # a damaged record: whatever it names
                named &= read_by(run)
            for label in named:
                found.setdefault(label, []).append(run.id)
    return found


def read_by(run: RunFolder) -> frozenset[str]:
    """The labels of the versions that a run or its stages read, or found made already. Raises NemotronError for a
    damaged record."""
    records = run.stages() if run.is_pipeline else []
    inputs = [run.plan().get("inputs") or {}, *(job.artifacts()["inputs"] for job in run.jobs())]
    inputs += [record.get("inputs") or {} for record in records]
    pins = [pin for each in inputs for pin in each.values() if pin]
    pins += [pin for record in records for pin in record.get("outputs") or ()]
    return frozenset(Pin.from_dict(pin).label for pin in pins)


def _versions_in(registry: LocalRegistry, run: RunFolder) -> list[str]:
    """The labels of the versions in the run's folder that --with-artifacts removes: not those with a damaged record,
    or of another registry."""
    folder = str(run.path.resolve())
    return [
        record.pin.label
        for record in registry.everything()
        if isinstance(record, ArtifactVersion) and registry.lies_in(record, folder)
    ]


def size_of(folder: Path) -> int:
    """The size in bytes of the files below a folder; links are not followed, files deleted meanwhile not counted."""
    total = 0
    for parent, _, names in os.walk(folder, onerror=lambda _: None):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 — thousands of files
            except OSError:
                continue
    return total


def usage(argv: list[str]) -> int:
    """`nemotron runs du`: the bytes of each run's folder on this machine, the largest first; returns 0."""
    options = ToolParser("runs", "du").parse(argv)
    rows: list[dict[str, Any]] = [
        {"run": run.id, "state": run.state, "bytes": size_of(open_run(run.id).path)} for run in list_runs()
    ]
    rows.sort(key=lambda row: -row["bytes"])
    if options.json:
        print_json(rows[: options.limit or None])
        return 0
    shown = rows[: (20 if options.limit is None else options.limit) or None]
    print_table(("MB", "STATE", "RUN"), [(f"{row['bytes'] / 1e6:,.1f}", row["state"], row["run"]) for row in shown])
    more = f", of which {len(shown)} are shown" if len(shown) < len(rows) else ""
    write_lines([f"{sum(row['bytes'] for row in rows) / 1e6:,.1f} MB in {len(rows)} runs{more}"])
    return 0


def _with_versions(row: dict[str, Any]) -> str:
    return f" and {', '.join(row['versions'])}" if row.get("versions") else ""


def _report(rows: list[dict[str, Any]], options: Any) -> None:
    removed = [row for row in rows if "stays" not in row]
    kept = [row for row in rows if "stays" in row]
    if options.json:
        print_json({"dry_run": options.dry_run, "removed": removed, "left": kept})
        return
    if options.dry_run and rows:
        what = [f"kept: {row['stays']}" if "stays" in row else f"would be removed{_with_versions(row)}" for row in rows]
        sizes = [f"{row['bytes'] / 1e6:,.1f}" for row in rows]
        table = [(row["run"], row["state"], *more) for row, *more in zip(rows, sizes, what, strict=True)]
        print_table(("RUN", "STATE", "MB", "WHAT"), table)
    elif kept:
        print_table(
            ("RUN", "STATE", "KEPT BECAUSE"),
            [(row["run"], row["state"], row["stays"]) for row in kept],
            keep="KEPT BECAUSE",
        )
    size = sum(row["bytes"] for row in removed) / 1e6
    if options.dry_run or not options.ids:
        verb = "would be removed" if options.dry_run else "removed"
        write_lines([f"{len(removed)} {verb}, {size:,.1f} MB; {len(kept)} kept" if rows else "No runs match."])


def refuse_written(run: RunFolder) -> None:
    """Raise UserError, with names, if a job has written files into its copy of the code, other than the files of
    registered artifacts."""
    for job in run.jobs():
        found = written_by(job)
        if not found:
            continue
        count = len(found["files"]) + found["more"]
        shown = ", ".join(map(clean, found["files"][:6])) + (", …" if count > 6 else "")
        what = "a file" if count == 1 else f"{count} files"
        raise UserError(
            f"{job.reference} wrote {what} into its copy of the code, which would be removed with the run: {shown}.",
            hint=f"Copy what you need from {clean(found['folder'])}; --force removes it.",
        )


def artifacts_in(run: RunFolder, registry: LocalRegistry | None = None) -> list[str]:
    """The labels of the artifacts whose files are in the run's folder: versions of this machine's registry, and those
    that the run's record lists in another registry."""
    registry = registry or open_registry()
    folder = run.path.resolve()
    found = versions_in(registry, folder)
    for job in run.jobs():
        try:
            saved = job.artifacts()["outputs"]
        except DamagedRunRecord as error:
            print_status(f"note: {clean(error.message)}")
            continue
        for pin in saved:
            if not isinstance(pin, dict) or pin.get("version") is None or not lies_in(pin.get("path"), folder):
                continue
            label = f"{pin.get('name')}:v{pin['version']}"
            if pin.get("registry") != registry.uuid:
                found.append(f"{label} (of another registry)")
            elif label not in found and _is_gone(registry, label):
                found.append(f"{label} (its record names a folder that is gone: nemotron artifacts relocate OLD NEW)")
    return found


def _is_gone(registry: LocalRegistry, label: str) -> bool:
    """Whether there is such a version, and no folder where its record says: its files may have been moved, as with a
    home whose registry lies elsewhere."""
    try:
        return not Path(registry.find(label).root).exists()
    except NemotronError:  # removed, or damaged: versions_in judges that
        return False
