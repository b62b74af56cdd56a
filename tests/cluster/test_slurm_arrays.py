"""Many jobs of one run: one array for each distinct header, and one question about all of them."""

# ruff: noqa: F811
from __future__ import annotations

import json

from nemotron_kit.executors.base import executor_for
from nemotron_kit.home import new_run_id
from nemotron_kit.remote.agent import slurm
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.spec.plan import Plan

from .slurm_world import World, until, world  # noqa: F401


def sweep(world: World, points: list[tuple[str, ...]], profile: str = "C") -> tuple[RunFolder, list[Plan]]:
    """The run of a sweep over `speak`; `points` are the overrides of its jobs."""
    with world.seen():
        run_id = new_run_id("work", "sweep")
        plans = [world.plan("speak", *p, profile=profile, run_id=run_id, job=n) for n, p in enumerate(points)]
        return create_run(run_id, plans[0].to_dict(), [plan.files for plan in plans]), plans


def counting(world: World) -> dict[str, str]:
    """A PATH whose sbatch, squeue and sacct each leave a line when they are called."""
    for program in ("sbatch", "squeue", "sacct"):
        env = world.fake(program, f'echo {program} >> {world.folder}/calls; exec $REAL "$@"')
    return env


def calls(world: World) -> list[str]:
    path = world.folder / "calls"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def states(run: RunFolder) -> list[str]:
    return [job.state().state for job in run.jobs()]


def test_a_sweep_is_one_array_and_each_task_finds_its_own_job(world: World) -> None:
    run, plans = sweep(world, [("lines=1", f"text=t{n}") for n in range(12)])
    with world.seen(**counting(world)):
        executor_for(plans[0].settings).submit(run, plans)
        assert calls(world) == ["sbatch"]
        until(lambda: set(states(run)) == {"succeeded"}, 90, lambda: str(states(run)))
        assert set(executor_for(plans[0].settings).observe(run, run.jobs())) == set(range(12))
        assert calls(world) == [], "their own records say all"
    for job in run.jobs():
        assert json.loads((job.path / "job.json").read_text())["environment"]["NEMO_RUN_DIR"] == str(job.path)
        assert (job.path / "logs" / "job.log").read_text() == "line 0 of rank -\nlast words\n"
        assert job.state().facts["scheduler"]["job"] == f"{world.slurm_ids(run)[0]}_{job.number}"


def test_other_resources_are_another_array(world: World) -> None:
    points = [("lines=1", f"run.env.cpus_per_task={1 + n % 2}") for n in range(6)]
    run, plans = sweep(world, points)
    with world.seen(**counting(world)):
        executor_for(plans[0].settings).submit(run, plans)
    assert calls(world).count("sbatch") == 2
    until(lambda: set(states(run)) == {"succeeded"}, 90, lambda: str(states(run)))
    assert sorted(tuple(found.jobs) for found in slurm.read_all(run.path)) == [(0, 2, 4), (1, 3, 5)]


def test_a_failed_task_is_told_from_the_others(world: World) -> None:
    run, plans = sweep(world, [(f"code={int(n == 3)}", "lines=1") for n in range(5)])
    with world.seen():
        executor_for(plans[0].settings).submit(run, plans)
        until(lambda: "pending" not in states(run) and "running" not in states(run), 90)
    assert states(run) == ["succeeded", "succeeded", "succeeded", "failed", "succeeded"]


def test_all_pending_jobs_are_seen_with_one_squeue(world: World) -> None:
    run, plans = sweep(world, [("lines=1", f"text=t{n}", "run.env.max_parallel=1", "sleep=2") for n in range(8)])
    with world.seen(**counting(world)):
        backend = executor_for(plans[0].settings)
        backend.submit(run, plans)
        calls(world)
        seen = backend.observe(run, run.jobs())
        assert calls(world) == ["squeue"]
        assert len(seen) == 8 and {o.state for o in seen.values()} <= {"pending", "running", "succeeded"}
        assert sum(o.state == "running" for o in seen.values()) <= 1
        until(lambda: "JobArrayTaskLimit" in {o.reason for o in backend.observe(run, run.jobs()).values()}, 20)
        backend.cancel(run, run.jobs())
        until(lambda: all(o.state in ("cancelled", "succeeded") for o in backend.observe(run, run.jobs()).values()), 60)


def test_an_array_that_was_submitted_is_not_submitted_again(world: World) -> None:
    run, plans = sweep(world, [("lines=1", f"text=t{n}") for n in range(3)])
    with world.seen(**counting(world)):
        executor_for(plans[0].settings).submit(run, plans)
        executor_for(plans[0].settings).submit(run, plans)
    assert calls(world).count("sbatch") == 1
    until(lambda: set(states(run)) == {"succeeded"}, 90, lambda: str(states(run)))
