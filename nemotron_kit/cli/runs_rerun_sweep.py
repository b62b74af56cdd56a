"""`nemotron runs rerun ID` of a whole sweep: the jobs on record again, one by one; its sweeper chooses nothing anew."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from nemotron_kit.cli import sweep_ends
from nemotron_kit.cli.request import Job
from nemotron_kit.cli.runs_again import Scene, compose_again, plan_again
from nemotron_kit.cli.runs_recorded import Recorded
from nemotron_kit.config.compose import Composed
from nemotron_kit.config.secrets import masked_words
from nemotron_kit.execution.after import SweepAfter, wait_for
from nemotron_kit.execution.code_facts import code_facts
from nemotron_kit.execution.hydra_launcher.jobs import Jobs
from nemotron_kit.execution.hydra_launcher.point import Point
from nemotron_kit.execution.hydra_launcher.recipe import point_of
from nemotron_kit.execution.hydra_launcher.settings import Settings
from nemotron_kit.plan.plan import Plan
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.ids import new_run_id

_QUIET_SECONDS = 10.0


def rerun_sweep(run: RunFolder, request: Job, scene: Scene, argv: Sequence[str]) -> int:
    """Launch all jobs of a sweep again, as one sweep; the exit code."""
    old = run.plan()
    run_id = new_run_id(str(old.get("recipe") or "sweep"), str(old.get("stage") or "jobs"))
    points = partial(_points, run, request, scene, argv, run_id)
    if request.dry_run:
        return _shown(points(), request, scene)
    if request.after and (request.mode or old.get("mode")) != "batch":
        wait_for(None, request.after)
        points = partial(_points, run, replace(request, after=()), scene, argv, run_id)
    words = [*(word for word in old.get("hydra") or () if word not in ("-m", "--multirun")), *_typed(request)]
    plan = {"recipe": old.get("recipe"), "stage": old.get("stage"), "kind": "sweep", "after": list(request.after),
            "command_line": shlex.join(masked_words(argv)), "hydra": masked_words(["-m", *words]),
            "rerun_of": run.id, "code": code_facts()}  # fmt: skip
    again = create_run(run_id, plan, [])
    print(f"{run_id}: the {len(run.jobs())} jobs of {run.id} again", file=sys.stderr)  # noqa: T201
    # One that Hydra's own launcher ran in its process, one job after another, has no settings on record.
    return _carried_out(again, points(), len(run.jobs()), Settings(max_parallel=None if "settings" in old else 1),
                        words, as_json=request.json)  # fmt: skip


def _typed(request: Job) -> list[str]:
    """What was added to the sweep on the command line, in Hydra's words."""
    profile = [f"run.profile={request.profile}", f"run.mode={request.mode}"] if request.profile else []
    return [*profile, *request.overrides]


def _carried_out(
    run: RunFolder, points: Iterator[Point], count: int, settings: Settings, words: Sequence[str], *, as_json: bool
) -> int:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    jobs = Jobs(run, settings, words, ours=True)
    try:
        (first, _), *_ = jobs.carry_out(points, count)
    except BaseException:
        if not run.jobs():
            shutil.rmtree(run.path)
        raise
    finally:
        jobs.close()
    if jobs.detached(first):
        return sweep_ends.told(run, as_json)
    why = next((state.error for state in (job.state() for job in run.jobs()) if state.state != "succeeded"), None)
    if error := sweep_ends.failures(run, why, as_json):
        raise error
    return sweep_ends.told(run, as_json)


def _points(run: RunFolder, request: Job, scene: Scene, argv: Sequence[str], run_id: str) -> Iterator[Point]:
    jobs, said = run.jobs(), time.monotonic()
    after = SweepAfter(request.after) if request.after and not request.dry_run else None
    for done, job in enumerate(jobs):
        if time.monotonic() - said > _QUIET_SECONDS:
            said = time.monotonic()
            print(f"{run_id}: {done} of {len(jobs)} jobs composed", file=sys.stderr)  # noqa: T201
        recorded = Recorded(run, job)
        asked = replace(request, recipe=recorded.recipe, stage=recorded.stage)
        composed = compose_again(recorded, asked, scene.tree, scene.env)
        planned = partial(_plan, recorded, asked, scene, composed, argv, run_id)
        plan = after.apply(planned(), composed.command, planned) if after else planned()
        yield point_of(plan, composed, (*recorded.overrides, *request.overrides))


def _plan(recorded: Recorded, asked: Job, scene: Scene, composed: Composed, argv: Sequence[str], run_id: str) -> Plan:
    app = scene.tree.apps[asked.recipe]
    plan = plan_again(recorded, asked, composed, app, argv, run_id=run_id, job=recorded.job.number, alone=False)
    return replace(plan, extra={**plan.extra, "rerun_of": recorded.run.id})


def _shown(points: Iterator[Point], request: Job, scene: Scene) -> int:
    from nemotron_kit.cli.dryrun import show_plan

    for point in points:
        show_plan(point.plan, as_json=request.json, theme=scene.env.table("cli").get("theme"))
    return 0
