"""`nemotron runs rerun ID`: the same job again, from its record: same config, same artifacts, same settings."""

from __future__ import annotations

from dataclasses import replace

from nemotron_kit.cli.grid import write_lines
from nemotron_kit.errors import UserError

HELP = """\
usage: nemotron runs rerun ID[/N] [KEY=VALUE …] [--art.SLOT REF] [--run.KEY V] [--run|--batch PROFILE] [--dry-run]

The same job anew, from its beginning and under a new id; `nemotron runs resume` goes on with the old one. The config is
the recorded one (whatever its files say now), with the very versions of its artifacts and the settings of its profile,
from the folder where it was launched. The code is what lies there now; `nemotron runs diff` tells whether it is the
same. Of a sweep, ID/N is its job N, and ID all of its jobs, as one sweep: the values that were tried are tried again,
and a sweeper that learns (Optuna's, say) is not asked.

Overrides and options stand on top, as on any job's command line; with --run or --batch PROFILE the profile is read
from env.toml. A pinned artifact that was changed or removed since stops it.
"""


def rerun(argv: list[str]) -> int:
    """Launch a recorded run again; exits as the job's own command does."""
    if not argv or {"-h", "--help"} & set(argv):
        write_lines(HELP.splitlines())
        return 0 if argv else 2
    reference, *words = argv
    if reference.startswith("-"):
        raise UserError(
            f"nemotron runs rerun: a run stands first, and {reference!r} is none.", hint=HELP.splitlines()[0]
        )
    from nemotron_kit.cli.runs_again import Scene, compose_again, plan_again, request_of
    from nemotron_kit.cli.runs_recorded import Recorded
    from nemotron_kit.cli.runs_reference import open_jobs

    run, jobs = open_jobs(reference)
    recorded = Recorded(run, jobs[0])
    scene = Scene.of(recorded)
    request = request_of(words, recorded, scene.tree)
    label = recorded.label if len(jobs) == 1 else run.id
    line = ["nemotron", "runs", "rerun", label, *words]
    if len(jobs) > 1:
        from nemotron_kit.cli.runs_rerun_sweep import rerun_sweep

        return rerun_sweep(run, request, scene, line)
    from nemotron_kit.cli.job import carry_out
    from nemotron_kit.runs.ids import new_run_id

    composed = compose_again(recorded, request, scene.tree, scene.env)
    run_id = new_run_id(request.recipe, request.stage)
    plan = plan_again(recorded, request, composed, scene.app, line, run_id=run_id)
    plan = replace(plan, extra={**plan.extra, "rerun_of": label})
    state = jobs[0].state()
    if state.terminal and state.state != "succeeded":
        note = f"it starts anew; {label} {state.state}, and goes on with: nemotron runs resume {label}"
        plan = replace(plan, notes=(*plan.notes, note))
    return carry_out(plan, composed, request, scene.env)
