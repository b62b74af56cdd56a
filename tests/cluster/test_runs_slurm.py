"""`nemotron runs …` about jobs of the real Slurm, each command a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder

from ..project import run, start
from .slurm_world import World, until, world  # noqa: F401

LINES = [f"line {n} of rank -" for n in range(12)]


def runs(world: World, *words: str, code: int = 0, **env: str) -> str:  # noqa: F811
    """What `nemotron runs WORDS` prints, from a folder that has nothing to do with the launch."""
    done = run("nemotron", "runs", *words, code=code, forked=True, cwd=world.home, env={**world.env, **env})
    assert "Traceback" not in done.stderr
    return done.stdout if code in (0, 1, 3, 4) and done.stdout else done.stderr


def begin(world: World, *words: str, **env: str) -> subprocess.Popen[str]:  # noqa: F811
    return start("nemotron", "runs", *words, cwd=world.home, env={**world.env, **env})


def shown(world: World, job: JobFolder, code: int = 0, **env: str) -> dict[str, Any]:  # noqa: F811
    found: dict[str, Any] = json.loads(runs(world, "show", job.run_id, "--json", code=code, **env))
    return {**found, **found["job_records"][0], "state": found["state"]}


def forget(world: World) -> None:  # noqa: F811
    """The next command asks anew."""
    for path in (world.home / "runs" / ".seen").glob("*.json"):
        path.unlink()


def test_many_runs_are_one_question(world: World) -> None:  # noqa: F811
    jobs = [world.batch("speak", "sleep=20") for _ in range(3)]
    world.wait(jobs[0], "running")
    calls = world.folder / "calls"
    path = world.fake("squeue", f'echo x >> {calls}\nexec $REAL "$@"')
    listed = runs(world, **path)
    assert listed.count("running") + listed.count("pending") == 3
    assert calls.read_text().count("x") == 1
    for _ in range(3):  # for some seconds everybody else hears the same
        runs(world, **path)
    assert calls.read_text().count("x") == 1
    for job in jobs:
        runs(world, "cancel", job.run_id)
    assert {job.state().state for job in jobs} == {"cancelled"}
    ended = runs(world, "wait", *(job.run_id for job in jobs), code=4).splitlines()
    assert [line.split()[1].rstrip(":") for line in ended] == ["cancelled"] * 3


def test_a_pending_job_says_why_and_when(world: World) -> None:  # noqa: F811
    everything = ("--run.nodes", "2", "--run.cpus_per_task", "16")
    first = world.batch("deaf", "sleep=60", *everything)
    world.wait(first, "running")
    second = world.batch("deaf", *everything)

    def estimated() -> dict[str, Any]:
        forget(world)
        found = shown(world, second)
        return found if found["estimated_start"] and found["reason"] else {}

    found = until(estimated, 40)
    assert (found["state"], found["reason"]) == ("pending", "Resources")
    text = runs(world, "show", second.run_id)
    assert "waits for  Resources" in text and f"may start  {found['estimated_start']}" in text
    assert "waits for Resources" in runs(world)
    for job in (second, first):
        assert "cancelled" in runs(world, "cancel", job.run_id)


def test_out_of_sight_is_not_an_end(world: World) -> None:  # noqa: F811
    job = world.batch("deaf", "sleep=60")
    world.wait(job, "running")
    gone = world.fake("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    found = shown(world, job, code=3, **gone)
    assert (found["state"], found["last_known"]) == ("unreachable", "running")
    assert "Unable to contact" in found["error"]
    listed = runs(world, **gone)
    assert "unreachable" in listed and "was running" in listed
    assert [run["state"] for run in json.loads(runs(world, "--state", "unreachable", "--json", **gone))] == [
        "unreachable"
    ]
    assert "last known  running" in runs(world, "show", job.run_id, code=3, **gone)
    assert "unreachable" in runs(world, "wait", job.run_id, "--patience", "0", code=3, **gone)
    assert job.state().state == "running"  # the record says only what is known
    forget(world)
    assert shown(world, job)["state"] == "running"
    runs(world, "cancel", job.run_id)


def test_what_slurm_has_forgotten_is_still_on_record(world: World) -> None:  # noqa: F811
    done, killed = world.batch("speak", "code=4"), world.batch("deaf", "sleep=60")
    assert world.wait(done) == "failed"
    world.wait(killed, "running")
    (number,) = world.slurm_ids(RunFolder(killed.path.parent.parent))
    world.slurm.run("scancel", "--signal=KILL", number)
    until(lambda: number not in world.slurm.run("squeue", "-h", "-o", "%A", "-t", "running,completing"), 40)
    runs(world)
    forget(world)
    nothing = {**world.fake("squeue", "exit 0"), **world.fake("sacct", "exit 0")}
    assert shown(world, done, **nothing)["error"] == "exit code 4"
    assert shown(world, killed, **nothing)["state"] == killed.state().state != "succeeded"
    assert killed.state().terminal
    assert runs(world, "wait", killed.run_id, code=4 if killed.state().state == "cancelled" else 1, **nothing)


def test_nobody_knows_it_any_more(world: World) -> None:  # noqa: F811
    job = world.batch("deaf", "sleep=60")
    world.wait(job, "running")
    nothing = {**world.fake("squeue", "exit 0"), **world.fake("sacct", "exit 0")}
    record = next((job.path.parent.parent / "slurm").glob("*.json"))
    values = json.loads(record.read_text())
    record.write_text(json.dumps({**values, "at": values["at"] - 3600}))
    found = shown(world, job, code=3, **nothing)
    assert found["state"] == "unknown" and "forgotten" in found["error"]
    runs(world, "wait", job.run_id, "--patience", "0", code=3, **nothing)
    record.write_text(json.dumps(values))
    forget(world)
    assert shown(world, job)["state"] == "running"
    runs(world, "cancel", job.run_id)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_attach_goes_on_where_it_stopped(world: World, stop: signal.Signals) -> None:  # noqa: F811
    first = world.start("python", "work.py", "speak", "lines=12", "sleep=0.8", "--run", "C")
    assert first.stdout is not None
    seen = [first.stdout.readline() for _ in range(3)]
    time.sleep(0.4)  # between two lines
    first.send_signal(stop)
    # Not communicate(): it passes over what readline() has already taken into its buffer.
    seen += first.stdout.read().splitlines(keepends=True)
    first.wait(30)
    job = world.only_run().job()
    second = begin(world, "attach", job.run_id)
    assert second.stdout is not None
    seen += [second.stdout.readline() for _ in range(3)]
    time.sleep(0.4)  # between two lines
    second.send_signal(stop)
    seen += second.stdout.read().splitlines(keepends=True)
    second.wait(30)
    assert second.returncode in (130, -signal.SIGKILL)
    seen += runs(world, "attach", job.run_id).splitlines(keepends=True)
    assert "".join(seen) == "".join(f"{line}\n" for line in [*LINES, "last words"])
    again = begin(world, "attach", "--all", job.run_id).communicate(timeout=60)
    assert again[0].splitlines() == [*LINES, "last words"] and "succeeded" in again[1]


def test_attach_exits_as_the_job_did(world: World) -> None:  # noqa: F811
    failed = world.batch("speak", "code=3")
    assert "failed: exit code 3" in begin_and_end(world, failed, 1)
    cancelled = world.batch("deaf", "sleep=60")
    world.wait(cancelled, "running")
    process = begin(world, "attach", cancelled.run_id)
    assert process.stdout is not None and process.stdout.readline() == "sleeping\n"
    runs(world, "cancel", cancelled.run_id)
    assert process.wait(40) == 4


def test_a_sweep_is_attached_to_whole(world: World) -> None:  # noqa: F811
    done = world.run("speak", "-m", "text=a,b,c", "lines=2", "sleep=1", "--batch", "C")
    assert done.returncode == 0, done.stderr
    job = newest(world)
    out = runs(world, "attach", job.run_id).splitlines()
    for number in range(3):
        own = [line.removeprefix(f"[job {number}] ") for line in out if line.startswith(f"[job {number}] ")]
        assert own == ["line 0 of rank -", "line 1 of rank -", "last words"]
    assert len(out) == 9
    assert set(runs(world, "logs", "-f", job.run_id).splitlines()) == set(out)
    each = [f"==> job {n}: succeeded, text={text} <==\nlast words\n" for n, text in enumerate("abc")]
    assert runs(world, "logs", job.run_id, "-n", "1") == "\n".join(each)
    assert len(shown(world, job)["job_records"]) == 3


def begin_and_end(world: World, job: JobFolder, code: int) -> str:  # noqa: F811
    process = begin(world, "attach", job.run_id)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    return err


def test_logs_of_ranks(world: World) -> None:  # noqa: F811
    job = world.batch("speak", "lines=5", "sleep=0.3", profile="two")
    follower = begin(world, "logs", "-f", job.run_id)
    assert world.wait(job) == "succeeded"
    out, err = follower.communicate(timeout=60)
    assert [out.count(f"[rank {rank}] line") for rank in range(4)] == [5] * 4, err  # on two nodes
    third = runs(world, "logs", job.run_id, "--rank", "3")
    assert third.splitlines() == [*(f"line {n} of rank 3" for n in range(5)), "last words"]
    assert runs(world, "logs", job.run_id, "--rank", "3", "-n", "2").splitlines() == ["line 4 of rank 3", "last words"]
    assert "has no log of rank 7" in runs(world, "logs", job.run_id, "--rank", "7", code=2)


def after(world: World, job: JobFolder) -> JobFolder:  # noqa: F811
    done = world.run("speak", "--after", job.run_id, "--batch", "C")
    assert done.returncode == 0 and f"it starts when {job.run_id} has succeeded" in done.stderr, done.stderr
    return newest(world)


def test_a_job_after_another(world: World) -> None:  # noqa: F811
    first, gate = world.gated()
    second = after(world, first)
    third = world.start("python", "work.py", "speak", "--after", second.run_id)  # here: it waits itself
    assert third.stderr is not None
    said = next((line for line in third.stderr if f"waits for {second.run_id}" in line), "")
    gate.touch()
    _, err = third.communicate(timeout=120)
    assert third.returncode == 0 and said, err
    assert first.state().finished <= second.state().started  # type: ignore[operator]
    assert second.state().finished <= newest(world).state().started  # type: ignore[operator]
    (number,) = world.slurm_ids(RunFolder(first.path.parent.parent))
    script = world.slurm.run("sacct", "-n", "-X", "-P", "-j", number, "-o", "State").strip()
    assert script == "COMPLETED"
    assert json.loads((second.path.parent.parent / "plan.json").read_text())["after"] == [first.run_id]


def test_a_sweep_after_a_job(world: World) -> None:  # noqa: F811
    first, gate = world.gated()
    done = world.run("speak", "-m", "lines=1,2", "--after", first.run_id, "--batch", "C")
    assert done.returncode == 0, done.stderr
    sweep = RunFolder(newest(world).path.parent.parent)
    assert first.state().state in ("pending", "running"), "the launch does not stay"
    gate.touch()
    runs(world, "wait", sweep.id)
    assert [job.state().state for job in sweep.jobs()] == ["succeeded"] * 2
    assert all(first.state().finished <= job.state().started for job in sweep.jobs())  # type: ignore[operator]
    gate.unlink()
    second, _ = world.gated()
    runs(world, "rerun", sweep.id, "--batch", "C", "--after", second.run_id)
    again = RunFolder(newest(world).path.parent.parent)
    assert second.state().state in ("pending", "running"), "nor does a rerun of it"
    gate.touch()
    runs(world, "wait", again.id)
    assert all(second.state().finished <= job.state().started for job in again.jobs())  # type: ignore[operator]


def test_a_job_after_one_that_fails_never_starts(world: World) -> None:  # noqa: F811
    first, gate = world.gated("code=2")
    second = after(world, first)
    assert shown(world, second)["state"] == "pending"
    gate.touch()
    assert runs(world, "wait", first.run_id, second.run_id, code=1).count("\n") == 2
    assert second.state().state == "cancelled"
    assert second.state().error == f"it did not start: {first.run_id}, which it was to start after, failed."
    refused = world.run("speak", "--after", first.run_id, "--batch", "C")
    assert refused.returncode == 2 and "a job after it would never start" in refused.stderr


def test_a_job_after_one_of_this_machine(world: World) -> None:  # noqa: F811
    """No scheduler knows of both: what waits is a process here, and a third one waits for it in turn."""
    first, gate = world.gated(profile="here")
    second = after(world, first)
    assert shown(world, second)["state"] == "pending" and not world.slurm_ids(RunFolder(second.path.parent.parent))
    third = after(world, second)
    gate.touch()
    assert world.wait(third) == "succeeded"
    assert first.state().finished <= second.state().started  # type: ignore[operator]
    assert second.state().finished <= third.state().started  # type: ignore[operator]


def test_a_shell_in_the_allocation(world: World) -> None:  # noqa: F811
    job = world.batch("deaf", "sleep=60")
    world.wait(job, "running")
    said = runs(world, "shell", job.run_id, "--", "sh", "-c", 'pwd; echo "$SLURM_JOB_ID" "$1"', "sh", "a 'b' $c")
    (number,) = world.slurm_ids(RunFolder(job.path.parent.parent))
    assert said.splitlines() == [str(job.path), f"{number} a 'b' $c"]
    assert "is running" in runs(world, "rm", job.run_id, code=2)
    runs(world, "cancel", job.run_id)
    assert "not running" in runs(world, "shell", job.run_id, "--", "true", code=2)
    runs(world, "rm", job.run_id)
    assert not Path(job.path).exists()


def test_a_rerun_is_the_same_job_again(world: World) -> None:  # noqa: F811
    first = world.batch("speak", "lines=2", "text=hello")
    assert world.wait(first) == "succeeded"
    (world.folder / "env.toml").write_text("[other]\nexecutor = 'local'\n")  # the profile is gone
    runs(world, "rerun", first.run_id, "lines=3", "code=1")
    again = newest(world)
    assert again.run_id != first.run_id and world.wait(again) == "failed"
    assert (again.path / "logs" / "job.log").read_text().count("line") == 3
    plan = json.loads((again.path.parent.parent / "plan.json").read_text())
    assert plan["rerun_of"] == first.run_id and plan["config"]["text"] == "hello"
    found = json.loads(runs(world, "diff", first.run_id, again.run_id, "--json", code=1))["differences"]
    assert found == {"config": {"lines": {"a": 2, "b": 3}, "code": {"a": 0, "b": 1}}, **_code(found)}
    runs(world, "rerun", first.run_id)
    assert world.wait(newest(world)) == "succeeded"


def _code(found: dict[str, Any]) -> dict[str, Any]:
    """env.toml was changed, so the code that was sent is another."""
    assert set(found["code"]) == {"digest"}
    return {"code": found["code"]}


def newest(world: World) -> JobFolder:  # noqa: F811
    return RunFolder(
        sorted((world.home / "runs").glob("2*"), key=lambda path: (path / "plan.json").stat().st_mtime_ns)[-1]
    ).job()
