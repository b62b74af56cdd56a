"""What sites differ in, on the real Slurm: no requeue (`chain`), and `profiles check --node`."""

# ruff: noqa: F811
from __future__ import annotations

import json
import sys

import pytest

from nemotron_kit.executors.base import executor_for
from nemotron_kit.remote.agent import slurm as slurm_agent
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.spec.plan import stored_plan

from .docker_world import tool
from .slurm_world import World, log, until, world  # noqa: F401


@pytest.fixture(autouse=True)
def profiles(world: World) -> None:
    with (world.folder / "env.toml").open("a") as file:
        file.write('\n[chain]\nextends = "C"\nchain = 4\n')


def ids(world: World, job: JobFolder) -> list[str]:
    (record,) = slurm_agent.read_all(job.path.parents[1])
    assert len(record.ids) == 4
    return record.ids


def waiting(world: World, links: list[str]) -> list[str]:
    return world.queue(f"--jobs={','.join(links)}", "--states=PENDING,RUNNING", "-o", "%i")


def test_a_chain_goes_on_from_the_checkpoint_and_ends_when_the_job_is_done(world: World) -> None:
    job = world.batch("step", "steps=60", profile="chain")
    links = ids(world, job)
    until(lambda: "from step 0" in log(job), 40)
    assert sorted(waiting(world, links)) == sorted(links)
    world.slurm.run("scancel", "--signal=USR1", links[0])
    until(lambda: log(job).count("from step") == 2, 40)
    with world.seen():
        run = RunFolder(job.path.parents[1])

        def observed() -> tuple[str, str]:
            seen = executor_for(stored_plan(run).settings).observe(run, [job])[0]
            return seen.state, seen.facts["scheduler"]["job"]

        # The first link may still be completing when the second has begun.
        until(lambda: observed() == ("running", links[1]), 20, why=lambda: str(observed()))
    assert world.wait(job, timeout=40) == "succeeded"
    assert "restart 1" in log(job) and "from step 0" not in log(job).split("restart 0")[1]
    until(lambda: not waiting(world, links), 20)
    done = json.loads(tool(world, "runs", "show", job.run_id, "--json").stdout)
    assert (done["state"], done["exit_code"], len(done["job_records"])) == ("succeeded", 0, 1)


def test_a_chain_is_cancelled_whole_and_ends_with_a_failure(world: World) -> None:
    cancelled = world.batch("deaf", "sleep=300", profile="chain")
    failed = world.batch("speak", "code=7", "lines=1", profile="chain")
    until(lambda: "sleeping" in log(cancelled), 40)
    assert tool(world, "runs", "cancel", cancelled.run_id).returncode == 0
    assert world.wait(failed, timeout=40) == "failed"
    until(lambda: not waiting(world, [*ids(world, cancelled), *ids(world, failed)]), 30)
    shown = json.loads(tool(world, "runs", "show", cancelled.run_id, "--json").stdout)
    assert shown["state"] == "cancelled"
    assert log(failed).count("line 0") == 1


def test_a_check_on_a_node_runs_setup_and_the_jobs_python(world: World) -> None:
    def found(name: str, lines: str) -> dict[str, tuple[str, str]]:
        with (world.folder / "env.toml").open("a") as file:
            file.write(f'\n[{name}]\nextends = "C"\n{lines}\n')
        done = tool(world, "profiles", "check", name, "--node", "--json")
        findings = {finding["what"]: (finding["state"], finding["detail"]) for finding in json.loads(done.stdout)}
        assert done.returncode == int("wrong" in {state for state, _ in findings.values()}), done.stdout
        return findings

    good = found("good", f'setup = "export A=1"\npython = "{sys.executable}"')
    assert good["node"][1].startswith("n") and good["setup"] == ("ok", "setup: done there")
    assert good["python of node"] == good["python"] and "omegaconf" in good["python"][1]
    assert {state for state, _ in good.values()} == {"ok"}
    bad = found("bad", 'setup = "nosuch --x"')
    assert bad["setup"][0] == "wrong" and "setup: nosuch --x failed with exit code 127 on n" in bad["setup"][1]
    none = found("none", 'python = "/no/such/python"')
    assert [none[what][0] for what in ("python", "setup", "python of node") if what in none] == ["wrong", "wrong"]
    assert none["python"][1] == "/no/such/python: No such file or directory"
