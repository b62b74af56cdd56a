"""`nemotron runs …` about jobs in containers of the real engine."""

from __future__ import annotations

import json
import os
import signal

from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder

from ..project import start
from .docker_world import containers, tool, world  # noqa: F401
from .slurm_world import World, until


def test_a_container_is_seen_entered_followed_and_stopped(world: World) -> None:  # noqa: F811
    job = world.batch("speak", "lines=60", "sleep=0.5")
    until(lambda: job.state().state == "running" or None, 40)
    found = json.loads(tool(world, "runs", "show", job.run_id, "--json").stdout)
    assert (found["state"], found["executor"]) == ("running", "docker")
    assert "running" in tool(world, "runs").stdout
    said = tool(world, "runs", "shell", job.run_id, "--", "sh", "-c", 'pwd; echo "$1"', "sh", "a 'b' $c")
    assert said.stdout.splitlines() == [str(job.path), "a 'b' $c"], said.stderr
    nowhere = {"DOCKER_HOST": "unix:///nowhere"}
    # For three seconds everybody hears what was said last.
    until(lambda: tool(world, "runs", "show", job.run_id, **nowhere).returncode == 3, every=0.5)
    gone = tool(world, "runs", "show", job.run_id, **nowhere)
    assert gone.returncode == 3 and "unreachable" in gone.stdout and "last known  running" in gone.stdout
    assert "cancelled" in tool(world, "runs", "cancel", job.run_id).stdout
    attached = tool(world, "runs", "attach", job.run_id)
    assert attached.returncode == 4 and attached.stdout.startswith("line 0 of rank -\nline 1 of rank -\n")
    assert tool(world, "runs", "logs", job.run_id).stdout == attached.stdout
    assert "not running" in tool(world, "runs", "shell", job.run_id).stderr
    assert tool(world, "runs", "rm", job.run_id).returncode == 0 and not job.path.exists()


def test_a_rerun_in_a_container(world: World) -> None:  # noqa: F811
    first = world.batch("speak", "lines=1")
    assert world.wait(first) == "succeeded"
    done = tool(world, "runs", "rerun", first.run_id, "lines=2", "--run", "C")
    assert done.returncode == 0 and done.stdout.count("line") == 2, done.stderr
    again = world.job(done.stderr)
    assert RunFolder(again.path.parent.parent).plan()["rerun_of"] == first.run_id
    found = json.loads(tool(world, "runs", "diff", first.run_id, again.run_id, "--json").stdout)["differences"]
    assert found.pop("launch") == {"mode": {"a": "batch", "b": "run"}}
    assert found == {"config": {"lines": {"a": 1, "b": 2}}}


def after(world: World, job: JobFolder, *words: str) -> JobFolder:  # noqa: F811
    """A detached container that starts once a job of this machine has succeeded: no scheduler knows of both."""
    done = world.run("speak", *words, "--after", job.run_id, "--batch", "C")
    said = [line for line in done.stderr.splitlines() if "is waiting on this machine, to be submitted to C" in line]
    assert done.returncode == 0 and said, done.stderr
    return world.job(said[0])


def test_a_container_after_a_job_of_this_machine(world: World) -> None:  # noqa: F811
    first, gate = world.gated(profile="here")
    second = after(world, first, "lines=1")
    third = after(world, second, "lines=2")
    (world.folder / "work.py").write_text("raise SystemExit('this was written after the launch')")
    with (world.folder / "much").open("wb") as much:  # nor would this go along: the tree is not looked at again
        much.truncate(200_000_000)
    assert f"waits for  {first.run_id} (running)" in tool(world, "runs", "show", second.run_id).stdout
    line = ("nemotron", "runs", "attach", second.run_id)
    with start(*line, cwd=world.folder, env=world.env) as attached:
        assert attached.stderr.readline().startswith(f"waits for {first.run_id} (running)")
        gate.touch()
        assert attached.communicate(timeout=60)[0].startswith("line 0")
    assert attached.returncode == 0
    assert world.wait(third) == "succeeded" and second.state().state == "succeeded"
    assert first.state().finished <= second.state().started  # type: ignore[operator]
    assert second.state().finished <= third.state().started  # type: ignore[operator]


def test_one_that_waits_is_cancelled_fails_or_is_taken_up_again(world: World) -> None:  # noqa: F811
    first = world.batch("speak", "lines=300", "sleep=1", profile="here")
    dropped, lost, failed = (after(world, first) for _ in range(3))
    assert "cancelled" in tool(world, "runs", "cancel", dropped.run_id).stdout
    os.kill(lost.state().facts["process"]["pid"], signal.SIGKILL)
    until(lambda: lost.state().state == "failed" or None, 10)
    assert "It goes on by itself" in tool(world, "runs", "resume", failed.run_id).stderr
    assert "waiting again, to be submitted" in tool(world, "runs", "resume", lost.run_id).stdout
    tool(world, "runs", "cancel", first.run_id)
    assert world.wait(failed) == "failed" and world.wait(lost) == "failed"
    for job in (failed, lost):
        assert f"it did not start: {first.run_id}" in str(job.state().error)
        attached = tool(world, "runs", "attach", job.run_id)
        assert attached.returncode == 1 and "it did not start" in attached.stderr and attached.stdout == ""
    assert dropped.state().state == "cancelled"
    assert not any(containers(world, job.run_id) for job in (dropped, lost, failed))


def test_one_that_waits_is_not_taken_up_without_its_secret(world: World) -> None:  # noqa: F811
    first, gate = world.gated(profile="here")
    token = {"WORK_TOKEN": "hush"}
    done = world.run("speak", "lines=1", "--after", first.run_id, "--batch", "secret", **token)
    job = world.job(done.stderr[done.stderr.index("is waiting") - 60 :])
    os.kill(job.state().facts["process"]["pid"], signal.SIGKILL)
    until(lambda: job.state().state == "failed" or None, 10)
    lacks = tool(world, "runs", "resume", job.run_id)
    assert lacks.returncode == 2 and "WORK_TOKEN is not set in this environment" in lacks.stderr
    assert tool(world, "runs", "resume", job.run_id, **token).returncode == 0
    gate.touch()
    assert world.wait(job) == "succeeded"


def test_one_that_waits_hears_of_its_cancellation_however_late(world: World) -> None:  # noqa: F811
    """Cancelled after the run before it has succeeded, before its process has seen that."""
    first, gate = world.gated(profile="here")
    done = world.run("speak", "--after", first.run_id, "--batch", "C")
    job = world.job(done.stderr[done.stderr.index("is waiting") - 60 :])
    waiter = job.state().facts["process"]["pid"]
    os.kill(waiter, signal.SIGSTOP)
    gate.touch()
    assert world.wait(first) == "succeeded"
    assert "cancelled" in tool(world, "runs", "cancel", job.run_id).stdout
    os.kill(waiter, signal.SIGCONT)
    until(lambda: not os.path.exists(f"/proc/{waiter}") or None, 10)  # noqa: PTH110
    assert job.state().state == "cancelled" and not containers(world, job.run_id)
