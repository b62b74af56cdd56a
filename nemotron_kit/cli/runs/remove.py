"""`nemotron runs rm` and `runs du`: deletes the folders of runs, by name or by filters; prints their sizes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.reference import Reference
from nemotron_kit.artifacts.registry import LocalRegistry, open_registry
from nemotron_kit.artifacts.store import ArtifactVersion
from nemotron_kit.cli.output import clean, print_json, print_table, write_lines
from nemotron_kit.cli.runs.list import states_of
from nemotron_kit.cli.runs.show import written_by
from nemotron_kit.cli.toolargs import ToolParser, at_least, span
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.home import first_id_since
from nemotron_kit.launch.status import refresh
from nemotron_kit.remote.agent.operations import lies_in, versions_in
from nemotron_kit.remote.ssh import transport_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import DamagedRecord
from nemotron_kit.runs.ledger import check_removable, collect_removed, list_runs, open_run, remove_unreferenced
from nemotron_kit.spec.plan import is_local, stored_plan

_FORCE = "also runs that never started, of unknown state, or whose jobs wrote files into their copy of the code"
# States of a run on another machine that its scheduler would still start.
_QUEUED = ("pending",)
_FILTERS = ("older_than", "recipe", "stage", "state", "tag", "keep")


def remove(argv: list[str]) -> int:
    """`nemotron runs rm [ID …]`: delete the folders of runs, on this machine and where they ran. Returns 0.

    Raises UserError for a named run that can't be removed; runs that match filters and can't be removed are kept, and
    listed with the reason.
    """
    parser = ToolParser("runs", "rm")
    parser.add_argument("--older-than", type=span, metavar="SPAN", help="runs launched longer ago than: 12h, 30d")
    parser.add_argument("--recipe", metavar="NAME", help="only runs of this recipe")
    parser.add_argument("--stage", metavar="STAGE", help="only runs of this stage, or of those below it")
    parser.add_argument("--state", action="append", default=[], metavar="STATE,…", help="only runs in these states")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="only runs with this tag")
    parser.add_argument("--keep", type=at_least(0), metavar="N", help="keep the newest N of the runs that match")
    parser.add_argument("--with-artifacts", action="store_true", help="also remove the artifacts in these folders")
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed and what would be kept")
    parser.add_argument("--force", action="store_true", help=_FORCE)
    parser.add_argument(
        "--here", action="store_true", help="remove only the records on this machine, not the folders on the target"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse(argv)
    if options is None:
        return 0
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
    remote_runs = [run for run in runs if not is_local(run.summary().executor)]
    if remote_runs:
        refresh(remote_runs)
    rows: list[dict[str, Any]] = [{"run": each, "state": "removed", "bytes": 0, "versions": []} for each in completed]
    if completed and not options.json:
        write_lines([f"removed {run_id}, whose removal had been interrupted" for run_id in completed])
    for run in runs:
        row: dict[str, Any] = {
            "run": run.id,
            "state": run.state() if run.jobs() else run.summary().state,
            "bytes": size_of(run.path),
        }
        try:
            row["versions"] = _removable(run, registry, options, queued=run in remote_runs)
            if not options.dry_run:
                _remove(run, row["versions"], registry, options, remote=run in remote_runs)
        except NemotronError as error:
            if not (filtered or options.dry_run):
                raise
            row["stays"] = " ".join(filter(None, (error.message, error.hint)))
        rows.append(row)
        if not (options.json or options.dry_run or "stays" in row):
            write_lines([f"removed {run.id}{_with_versions(row)}"])
    if options.with_artifacts and not options.dry_run:
        for name in registry.entries():
            registry.remove_dangling(name)
    _report(rows, options)
    return 0


def _is_one_of(name: str, run_ids: list[str]) -> bool:
    """Whether a run's id, the start of one or its last six digits names one of these."""
    return any(name and (run_id.startswith(name) or run_id.endswith(f"-{name}")) for run_id in run_ids)


def _matching(options: Any) -> list[RunFolder]:
    """The runs that match the filters, oldest first, without the newest `--keep`."""
    found = list_runs(
        recipe=options.recipe,
        stage=options.stage.replace(" ", "/") if options.stage else None,
        states=states_of(options.state),
        tags=options.tag,
    )
    found = found[options.keep or 0 :]
    if options.older_than is not None:
        first = first_id_since(options.older_than)
        found = [run for run in found if run.id[: len(first)] < first]
    return [open_run(run.id) for run in reversed(found)]


def _removable(run: RunFolder, registry: LocalRegistry, options: Any, *, queued: bool) -> list[str]:
    """The labels of the versions to remove with the run. Raises UserError if the run can't be removed."""
    if queued and run.state() in _QUEUED:
        hint = f"Stop it first: nemotron runs cancel {run.id}."
        raise UserError(f"{run.id} is {run.state()}: its scheduler may still start it.", hint=hint)
    versions = _versions_in(registry, run) if options.with_artifacts else []
    check_removable(
        run,
        referenced_by=lambda run: [label for label in artifacts_in(run, registry) if label not in versions],
        force=options.force,
    )
    for label in versions:
        registry.check_removable(Reference.parse(label), force=options.force, without=versions)
    if not options.force and not (queued and options.here):
        refuse_written(run)
    return versions


def _versions_in(registry: LocalRegistry, run: RunFolder) -> list[str]:
    """The labels of the versions in the run's folder that --with-artifacts removes: not those with a damaged record,
    or of another registry."""
    folder = str(run.path.resolve())
    return [
        record.pin.label
        for record in registry.everything()
        if isinstance(record, ArtifactVersion) and registry.lies_in(record, folder)
    ]


def _remove(run: RunFolder, versions: list[str], registry: LocalRegistry, options: Any, *, remote: bool) -> None:
    for label in versions:
        registry.remove(Reference.parse(label), force=True)  # _removable has checked all of them together
    if remote and not options.here:
        _remove_on_target(run)
    remove_unreferenced(run.path, lambda: artifacts_in(run, registry))


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
    parser = ToolParser("runs", "du")
    parser.add_argument("--limit", type=at_least(0), default=20, metavar="N", help="at most N runs (20; 0 for all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse(argv)
    if options is None:
        return 0
    rows: list[dict[str, Any]] = [
        {"run": run.id, "state": run.state, "bytes": size_of(open_run(run.id).path)} for run in list_runs()
    ]
    rows.sort(key=lambda row: -row["bytes"])
    if options.json:
        print_json(rows)
        return 0
    shown = rows[: options.limit or None]
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
        print_table(("RUN", "STATE", "KEPT BECAUSE"), [(row["run"], row["state"], row["stays"]) for row in kept])
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


def _remove_on_target(run: RunFolder) -> None:
    """Remove the run's folder on its target. Raises Unreachable, before the record on this machine is removed, so the
    removal can be repeated."""
    plan = stored_plan(run)
    if plan.has_separate_folder:
        transport = transport_for(plan.settings)
        registry = plan.paths.artifacts or f"{transport.root}/artifacts"
        transport.call("remove_run", folder=plan.paths.run, registry=registry)


def artifacts_in(run: RunFolder, registry: LocalRegistry | None = None) -> list[str]:
    """The labels of the artifacts whose files are in the run's folder: versions of this machine's registry, and those
    that the run's record lists in another registry."""
    registry = registry or open_registry()
    folder = run.path.resolve()
    found = versions_in(registry, folder)
    for pin in _saved(run):
        if lies_in(pin.get("path"), folder) and pin.get("version") is not None and pin.get("registry") != registry.uuid:
            found.append(f"{pin.get('name')}:v{pin['version']} (of another registry)")
    return found


def _saved(run: RunFolder) -> Iterator[dict[str, object]]:
    for job in run.jobs():
        try:
            yield from (pin for pin in job.artifacts()["outputs"] if isinstance(pin, dict))
        except DamagedRecord as error:
            sys.stderr.write(f"note: {clean(error.message)}\n")
