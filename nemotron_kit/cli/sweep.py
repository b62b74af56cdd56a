"""`nemotron sweep resume ID`: submits the jobs of a sweep that did not fit, or whose launch ended before they were."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_kit.cli.grid import write_lines
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import UserError
from nemotron_kit.runs.ledger import open_run

HELP = """\
usage: nemotron sweep resume ID

Submits the jobs of a sweep that wait: those that the cluster had no room for, and those whose launch ended too early.
None is submitted twice. `nemotron runs show ID` tells how a sweep stands."""


def main(argv: Sequence[str]) -> int:
    """The words after `nemotron sweep`. Returns the exit code; raises UserError for wrong ones."""
    words = list(argv)
    if not words or words[0] in ("-h", "--help", "help"):
        write_lines(HELP.splitlines())
        return 0 if words else 2
    if words[0] != "resume":
        raise UserError(f"nemotron sweep has no command {words[0]!r}.", hint="There is: resume.")
    return resume(words[1:])


def resume(argv: list[str]) -> int:
    """Submit what waits, as far as there is room."""
    parser = ToolParser("nemotron sweep resume", "Submits the jobs of a sweep that wait.")
    parser.add_argument("id", metavar="ID", help="a run's id, the start of one, its last six digits, or latest")
    options = parser.parse(argv)
    if options is None:
        return 0
    from nemotron_kit.execution.hydra_launcher.elsewhere import submit_waiting
    from nemotron_kit.execution.hydra_launcher.queue import FILE, SweepQueue

    run = open_run(options.id)
    if not (run.path / FILE).exists():
        raise UserError(
            f"{run.id} has no jobs that wait to be submitted.",
            hint="A sweep has some where the cluster had no room, or its launch ended while it submitted.",
        )
    given = submit_waiting(run)
    waiting = len(SweepQueue(run).waiting)
    rest = f"; {waiting} wait for room: nemotron sweep resume {run.id}" if waiting else ""
    write_lines([f"{run.id}: {len(given)} jobs submitted{rest}"])
    return 0
