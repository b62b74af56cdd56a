"""`nemotron runs cancel|rm`: stopping a run, and forgetting it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from nemotron_kit.cli.grid import clean, write_lines
from nemotron_kit.cli.runs import is_asked
from nemotron_kit.cli.runs_look import written_by
from nemotron_kit.cli.runs_wait import say_end
from nemotron_kit.cli.toolargs import ToolParser, at_least
from nemotron_kit.errors import Unreachable, UserError
from nemotron_kit.runs.cancel import GRACE, cancel_jobs
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import check_removable, collect_removed, open_run, remove_run
from nemotron_kit.runs.records import DamagedRecord

_LOOK_SECONDS = 0.5
_FORCE = "also one that never started, or whose state is not known, or whose jobs wrote into their copy of the code"
_QUEUED = ("pending",)
_ID = "a run's id, the start of one, its last six digits, or latest"


def cancel(argv: list[str]) -> int:
    """Stop a run's jobs, wherever they are."""
    parser = ToolParser(
        "nemotron runs cancel", "Stops a run: TERM, then KILL; on a cluster as its scheduler does that."
    )
    parser.add_argument("id", metavar="ID", help=_ID)
    parser.add_argument("--job", type=at_least(0), metavar="N", help="only this job of it")
    parser.add_argument(
        "--grace", type=at_least(0), default=int(GRACE), metavar="S", help="seconds between TERM and KILL"
    )
    options = parser.parse(argv)
    if options is None:
        return 0
    run = open_run(options.id)
    jobs = run.jobs() if options.job is None else [run.job(options.job)]
    elsewhere = is_asked(run.summary().executor)
    if not elsewhere and all(job.state().terminal for job in jobs):
        write_lines([f"{run.id} is over already: {run.state()}"])
        return 0
    if elsewhere:
        return _cancel_elsewhere(run, jobs, options.grace)
    cancel_jobs(jobs, grace=options.grace)
    say_end(run, run.state())
    return 0


def _cancel_elsewhere(run: RunFolder, jobs: Sequence[JobFolder], grace: float) -> int:
    """Ask for the end, and stay for a moment to see it. Raises Unreachable where it isn't known to have been asked."""
    from nemotron_kit.execution.backends.base import backend_for
    from nemotron_kit.execution.hydra_launcher.elsewhere import drop_waiting
    from nemotron_kit.execution.ledger import ask, refresh

    refresh([run])
    left = [job for job in jobs if not job.state().terminal]
    if not left:
        write_lines([f"{run.id} is over already: {run.state()}"])
        return 0
    backend = backend_for(run.plan())
    if handed_over := drop_waiting(run, left):
        backend.cancel(run, handed_over)
    end = time.monotonic() + grace
    while any(not job.state().terminal for job in left) and time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        with suppress(Unreachable):  # it was asked for; that is what counts
            ask(run, backend, left)
    if all(job.state().terminal for job in left):
        say_end(run, run.state())
    else:
        write_lines([f"{run.id}: its end is asked for; nemotron runs wait {run.id} sees it"])
    return 0


def remove(argv: list[str]) -> int:
    """Delete runs' folders, here and where they ran."""
    parser = ToolParser(
        "nemotron runs rm", "Deletes the folders of runs that are over, unless an artifact lies in one."
    )
    parser.add_argument("ids", metavar="ID", nargs="+", help=_ID)
    parser.add_argument("--force", action="store_true", help=_FORCE)
    parser.add_argument("--here", action="store_true", help="only this machine's record: what lies elsewhere stays")
    options = parser.parse(argv)
    if options is None:
        return 0
    runs = list({run.id: run for run in map(open_run, options.ids)}.values())
    asked = [run for run in runs if is_asked(run.summary().executor)]
    if asked:
        from nemotron_kit.execution.ledger import refresh

        refresh(asked)
    for run in runs:
        if run in asked and run.state() in _QUEUED:
            hint = f"Stop it first: nemotron runs cancel {run.id}."
            raise UserError(f"{run.id} is {run.state()}, and its scheduler still has it.", hint=hint)
        check_removable(run, referenced_by=artifacts_in, force=options.force)
        if not options.force:
            _refuse_written(run)
        if run in asked and not options.here:
            _remove_there(run)
        remove_run(run, force=options.force)
        write_lines([f"removed {run.id}"])
    collect_removed(artifacts_in)
    return 0


def _refuse_written(run: RunFolder) -> None:
    """UserError, with names, where a job's own files lie in its copy of the code."""
    for job in run.jobs():
        found = written_by(job)
        if found:
            names, count = found["files"], len(found["files"]) + found["more"]
            shown = ", ".join(map(clean, names[:6])) + (", …" if count > 6 else "")
            what = "a file" if count == 1 else f"{count} files"
            raise UserError(
                f"{job.reference} wrote {what} into its copy of the code, which would go with the run: {shown}.",
                hint=f"Copy what is needed from {clean(found['folder'])}; --force removes it.",
            )


def _remove_there(run: RunFolder) -> None:
    """The run's folder on its target. Raises Unreachable: the record stays, so that it can be tried again."""
    from nemotron_kit.execution.mirror import folder_there, is_apart
    from nemotron_kit.execution.reach import reach_for

    plan = run.plan()
    if is_apart(run, plan):
        reach = reach_for(plan.get("settings") or {})
        registry = (plan.get("place") or {}).get("artifacts") or f"{reach.root}/artifacts"
        reach.call("remove_run", folder=folder_there(run, plan), registry=registry)


def artifacts_in(run: RunFolder) -> list[str]:
    """The versions of this machine's registry whose files lie in the run's folder, and what it says that it saved there
    into another registry."""
    from nemotron_kit.artifacts.registry import open_registry
    from nemotron_kit.target.records import versions_in

    registry = open_registry()
    folder = run.path.resolve()
    found = versions_in(registry, folder)
    for pin in _saved(run):
        inside = Path(str(pin.get("path"))).resolve().is_relative_to(folder)
        if inside and pin.get("version") is not None and pin.get("registry") != registry.uuid:
            found.append(f"{pin.get('name')}:v{pin['version']} (of another registry)")
    return found


def _saved(run: RunFolder) -> Iterator[dict[str, object]]:
    for job in run.jobs():
        try:
            yield from (pin for pin in job.artifacts()["outputs"] if isinstance(pin, dict))
        except DamagedRecord as error:
            sys.stderr.write(f"note: {clean(error.message)}\n")
