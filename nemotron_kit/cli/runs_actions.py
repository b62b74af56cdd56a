"""`nemotron runs wait|cancel|rm`: what can be done with a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nemotron_kit.cli.grid import clean, write_lines
from nemotron_kit.cli.toolargs import ToolParser, at_least
from nemotron_kit.runs.cancel import GRACE, cancel_jobs
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.ledger import open_run, remove_run
from nemotron_kit.runs.records import DamagedRecord
from nemotron_kit.runs.states import EXIT_CODES

_ID = "a run's id, the start of one, its last six digits, or latest"
_POLL, _SLOWEST = 0.1, 2.0


def wait(argv: list[str]) -> int:
    """Wait until a run has ended; the exit code says how."""
    parser = ToolParser("nemotron runs wait", "Waits until a run has ended, and exits as it did.")
    parser.add_argument("id", metavar="ID", help=_ID)
    options = parser.parse(argv)
    if options is None:
        return 0
    run = open_run(options.id)
    pause = _POLL
    while (state := run.state()) not in EXIT_CODES:
        time.sleep(pause)
        pause = min(pause * 1.2, _SLOWEST)
    _say_end(run, state)
    return EXIT_CODES[state]


def cancel(argv: list[str]) -> int:
    """Stop a run's jobs on this machine."""
    parser = ToolParser("nemotron runs cancel", "Stops a run: TERM, then KILL.")
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
    if all(job.state().terminal for job in jobs):
        write_lines([f"{run.id} is over already: {run.state()}"])
        return 0
    cancel_jobs(jobs, grace=options.grace)
    _say_end(run, run.state())
    return 0


def remove(argv: list[str]) -> int:
    """Delete runs' folders."""
    parser = ToolParser(
        "nemotron runs rm", "Deletes the folders of runs that are over, unless an artifact lies in one."
    )
    parser.add_argument("ids", metavar="ID", nargs="+", help=_ID)
    parser.add_argument("--force", action="store_true", help="also one that never started, or whose state is not known")
    options = parser.parse(argv)
    if options is None:
        return 0
    runs = [open_run(reference) for reference in options.ids]
    for run in runs:
        remove_run(run, referenced_by=artifacts_in, force=options.force)
        write_lines([f"removed {run.id}"])
    return 0


def artifacts_in(run: RunFolder) -> list[str]:
    """The versions of this machine's registry whose files lie in the run's folder, and what it says that it saved there
    into another registry. A version record that can't be read is an error: it could be one of them."""
    from nemotron_kit.artifacts.registry import open_registry

    registry = open_registry()
    folder = run.path.resolve()
    found = []
    for name in registry.names():
        for version in registry.versions(name):
            record = registry.record(name, version)
            if any(Path(place).resolve().is_relative_to(folder) for place in (record.path, record.root)):
                found.append(f"{name}:v{version}")
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


def _say_end(run: RunFolder, state: str) -> None:
    summary = run.summary()
    code = f" (exit code {summary.code})" if summary.code else ""
    write_lines([clean(f"{run.id}: {state}{code}{f': {summary.error}' if summary.error else ''}")])
