"""How a sweep ended, or that it goes on: in words on standard error; with --json, as a line on standard output too."""

from __future__ import annotations

import sys
from collections import Counter

from nemotron_kit.cli.job import print_end, say_commands
from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.execution.tee import unless_gone
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.states import TERMINAL, run_state


def told(run: RunFolder, as_json: bool) -> int:
    """Say how a sweep ended that nobody complains of, or that it goes on; the exit code."""
    states = Counter(job.state().state for job in run.jobs())
    said = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    over = states.keys() <= TERMINAL
    more = f" · nemotron runs show {run.id}" if over else ""
    with unless_gone(sys.stderr):
        print(f"{run.id}: of {states.total()} jobs {said}{more}", file=sys.stderr)  # noqa: T201
    if not over:
        say_commands(run.id, "show", "attach", "cancel")
    if as_json:
        print_end(run.id, run_state(states), 0, jobs=dict(states), folder=str(run.path))
    return 0


def failures(run: RunFolder, why: object, as_json: bool) -> NemotronError | None:
    """The error of a sweep some of whose jobs did not succeed; None where all did."""
    states = {job.number: job.state().state for job in run.jobs()}
    failed = [number for number, state in states.items() if state != "succeeded"]
    if not failed:
        return None
    # What was refused, or lost sight of, before anything ran is no failure of a job.
    kind = next((each for each in (UserError, Unreachable) if isinstance(why, each)), NemotronError)
    if as_json:
        ended = Counter(states.values())
        print_end(run.id, run_state(ended), kind.exit_code, jobs=dict(ended), folder=str(run.path))
    names = ", ".join(map(str, failed[:8]))
    return kind(
        f"{run.id}: {len(failed)} of {len(states)} jobs did not succeed (job {names}): {why}",
        hint=f"Their logs: nemotron runs logs {run.id} --job {failed[0]}"
        if kind is NemotronError
        else f"Its record: nemotron runs show {run.id}",
    )
