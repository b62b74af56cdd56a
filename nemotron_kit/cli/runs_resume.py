"""`nemotron runs resume ID`: submits the jobs of a sweep that did not fit, or whose launch ended before they were."""

from __future__ import annotations

from nemotron_kit.cli.grid import write_lines
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import UserError
from nemotron_kit.plan.plan import WAIT_FIRST
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.ledger import open_run

_SAYS = """\
Submits the jobs of a sweep that wait: those that the cluster had no room for, and those whose launch ended too early.
Of a job that is to start after another run, and whose waiting process has ended, it starts another. None is submitted
twice."""


def resume(argv: list[str]) -> int:
    """Submit what waits, as far as there is room."""
    parser = ToolParser("nemotron runs resume", _SAYS)
    parser.add_argument("id", metavar="ID", help="a run's id, the start of one, its last six digits, or latest")
    options = parser.parse(argv)
    if options is None:
        return 0
    from nemotron_kit.execution.hydra_launcher.elsewhere import submit_waiting
    from nemotron_kit.execution.hydra_launcher.queue import FILE, SweepQueue

    run = open_run(options.id)
    if not (run.path / FILE).exists():
        raise _nothing_waits(run)
    if run.plan().get(WAIT_FIRST):
        from nemotron_kit.execution import deferred

        if not deferred.resume(run):
            raise _nothing_waits(run)
        write_lines([f"{run.id}: it waits again, to be submitted"])
        return 0
    given = submit_waiting(run)
    waiting = len(SweepQueue(run).waiting)
    rest = f"; {waiting} wait for room: nemotron runs resume {run.id}" if waiting else ""
    write_lines([f"{run.id}: {len(given)} jobs submitted{rest}"])
    return 0


def _nothing_waits(run: RunFolder) -> UserError:
    """What is said of a run without a list of its jobs, which is written once all their folders are there."""
    plan = run.plan()
    elsewhere = plan.get("executor") not in (None, "local")
    if plan.get("kind") == "sweep" and (elsewhere or not run.jobs()):
        return UserError(
            f"{run.id} ended while it was planned, before anything was submitted.",
            hint=f"Launch it again: {plan.get('command_line')}",
        )
    return UserError(
        f"{run.id} has no jobs that wait to be submitted.",
        hint="A sweep has some where the cluster had no room, or its launch ended while it submitted.",
    )
