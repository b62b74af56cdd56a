"""`nemotron runs rm`: deletes runs' folders, those that are named or those that match."""

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

_FORCE = "also one that never started, or whose state is not known, or whose jobs wrote into their copy of the code"
# Of a run elsewhere: its scheduler would still start it.
_QUEUED = ("pending",)
_FILTERS = ("older_than", "recipe", "stage", "state", "tag", "keep")


def remove(argv: list[str]) -> int:
    """`nemotron runs rm [ID …]`: delete runs' folders, here and where they ran. Returns 0.

    Runs that are named and can't be removed are an UserError; those that only match are left, and listed with why.
    """
    parser = ToolParser("runs", "rm")
    parser.add_argument("--older-than", type=span, metavar="SPAN", help="all that began longer ago: 12h, 30d")
    parser.add_argument("--recipe", metavar="NAME", help="only of this recipe")
    parser.add_argument("--stage", metavar="STAGE", help="only this stage, or those below it")
    parser.add_argument("--state", action="append", default=[], metavar="STATE", help="only in these states")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="only with this tag")
    parser.add_argument("--keep", type=at_least(0), metavar="N", help="leave the newest N of those that match")
    parser.add_argument("--with-artifacts", action="store_true", help="also the versions whose files lie in them")
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed, and what would stay")
    parser.add_argument("--force", action="store_true", help=_FORCE)
    parser.add_argument("--here", action="store_true", help="only this machine's record: what lies elsewhere stays")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse(argv)
    if options is None:
        return 0
    filtered = any(getattr(options, name) not in (None, []) for name in _FILTERS)
    if filtered == bool(options.ids):
        what = "names runs and says which match" if filtered else "neither names runs nor says which match"
        raise UserError(
            f"nemotron runs rm {what}.", hint="nemotron runs rm ID …, or nemotron runs rm --older-than 30d --dry-run."
        )
    runs = _matching(options) if filtered else list({run.id: run for run in map(open_run, options.ids)}.values())
    asked = [run for run in runs if not is_local(run.summary().executor)]
    if asked:
        refresh(asked)
    rows: list[dict[str, Any]] = []
    for run in runs:
        row: dict[str, Any] = {
            "run": run.id,
            "state": run.state() if run.jobs() else run.summary().state,
            "bytes": size_of(run.path),
        }
        try:
            row["versions"] = _removable(run, options, queued=run in asked)
            if not options.dry_run:
                _remove(run, row["versions"], options, elsewhere=run in asked)
        except NemotronError as error:
            if not (filtered or options.dry_run):
                raise
            row["stays"] = " ".join(filter(None, (error.message, error.hint)))
        rows.append(row)
        if not (options.json or options.dry_run or "stays" in row):
            write_lines([f"removed {run.id}{_named(row)}"])
    if not options.dry_run:
        collect_removed(artifacts_in)
    _report(rows, options)
    return 0


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


def _removable(run: RunFolder, options: Any, *, queued: bool) -> list[str]:
    """The versions that would go with the run. Raises UserError for a run that has to stay."""
    if queued and run.state() in _QUEUED:
        hint = f"Stop it first: nemotron runs cancel {run.id}."
        raise UserError(f"{run.id} is {run.state()}, and its scheduler still has it.", hint=hint)
    registry = open_registry()
    versions = _versions_in(registry, run) if options.with_artifacts else []
    check_removable(
        run,
        referenced_by=lambda run: [label for label in artifacts_in(run) if label not in versions],
        force=options.force,
    )
    for label in versions:
        registry.check_removable(Reference.parse(label), force=options.force, without=versions)
    if not options.force and not (queued and options.here):
        _refuse_written(run)
    return versions


def _versions_in(registry: LocalRegistry, run: RunFolder) -> list[str]:
    """The versions that can go with the run. One whose record is damaged, or that another registry has, can't."""
    folder = run.path.resolve()
    return [
        record.pin.label
        for record in registry.everything()
        if isinstance(record, ArtifactVersion) and (lies_in(record.path, folder) or lies_in(record.root, folder))
    ]


def _remove(run: RunFolder, versions: list[str], options: Any, *, elsewhere: bool) -> None:
    registry = open_registry()
    for label in versions:
        registry.remove(Reference.parse(label), force=True)  # judged before, with those that go with it
    if elsewhere and not options.here:
        _remove_there(run)
    remove_unreferenced(run.path, lambda: artifacts_in(run))


def size_of(folder: Path) -> int:
    """The bytes of the files below a folder, links not followed; what vanishes meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder, onerror=lambda _: None):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118 — thousands of files
            except OSError:
                continue
    return total


def usage(argv: list[str]) -> int:
    """`nemotron runs du`: the bytes of each run's folder on this machine, the largest first; returns 0."""
    parser = ToolParser("runs", "du")
    parser.add_argument("--limit", type=at_least(0), default=20, metavar="N", help="at most so many (20; 0 for all)")
    parser.add_argument("--json", action="store_true", help="for programs")
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


def _named(row: dict[str, Any]) -> str:
    return f" and {', '.join(row['versions'])}" if row.get("versions") else ""


def _report(rows: list[dict[str, Any]], options: Any) -> None:
    gone = [row for row in rows if "stays" not in row]
    left = [row for row in rows if "stays" in row]
    if options.json:
        print_json({"dry_run": options.dry_run, "removed": gone, "left": left})
        return
    if options.dry_run and rows:
        what = [f"stays: {row['stays']}" if "stays" in row else f"would go{_named(row)}" for row in rows]
        sizes = [f"{row['bytes'] / 1e6:,.1f}" for row in rows]
        table = [(row["run"], row["state"], *more) for row, *more in zip(rows, sizes, what, strict=True)]
        print_table(("RUN", "STATE", "MB", "WHAT"), table)
    elif left:
        print_table(("RUN", "STATE", "STAYS"), [(row["run"], row["state"], row["stays"]) for row in left])
    size = sum(row["bytes"] for row in gone) / 1e6
    if options.dry_run or not options.ids:
        verb = "would go" if options.dry_run else "removed"
        write_lines([f"{len(gone)} {verb}, {size:,.1f} MB; {len(left)} stay" if rows else "No runs match."])


def _refuse_written(run: RunFolder) -> None:
    """Raise UserError, with names, if a job has written files into its copy of the code. Files of a registered artifact
    are excluded: its registry refuses by itself."""
    for job in run.jobs():
        found = written_by(job)
        if not found:
            continue
        count = len(found["files"]) + found["more"]
        shown = ", ".join(map(clean, found["files"][:6])) + (", …" if count > 6 else "")
        what = "a file" if count == 1 else f"{count} files"
        raise UserError(
            f"{job.reference} wrote {what} into its copy of the code, which would go with the run: {shown}.",
            hint=f"Copy what is needed from {clean(found['folder'])}; --force removes it.",
        )


def _remove_there(run: RunFolder) -> None:
    """Remove the run's folder on its target. Raises Unreachable; the record then stays, so that the removal can be
    retried."""
    plan = stored_plan(run)
    if plan.has_separate_folder:
        transport = transport_for(plan.settings)
        registry = plan.paths.artifacts or f"{transport.root}/artifacts"
        transport.call("remove_run", folder=plan.paths.run, registry=registry)


def artifacts_in(run: RunFolder) -> list[str]:
    """The versions of this machine's registry whose files lie in the run's folder, and those that its record lists in
    another registry."""
    registry = open_registry()
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
