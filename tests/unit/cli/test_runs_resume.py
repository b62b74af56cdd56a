"""`nemotron runs resume` without jobs to submit; submitting is tested on a real Slurm."""

from __future__ import annotations

import math
import re
import subprocess
from pathlib import Path

import pytest

from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.errors import UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.launch.queue import SweepQueue
from nemotron_kit.launch.status import Watch, refresh
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.process_facts import process_facts

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.parametrize(
    ("state", "said", "hint"),
    [
        ("succeeded", "has succeeded", "nemotron runs rerun"),
        ("running", "is running", "nemotron runs attach"),
        ("unknown", "is unknown", "nemotron runs show"),
    ],
)
def test_what_is_not_over_or_all_done_is_refused(state: str, said: str, hint: str) -> None:
    run = create_run(new_run_id("nano3", "pretrain"), {"executor": "local"}, [{}])
    job = run.job()
    if state == "succeeded":
        job.finish(0)
    else:
        job.transition(state)
    with pytest.raises(UserError, match=said) as raised:
        run_tool("runs", ["resume", "latest"])
    assert hint in str(raised.value.hint) and job.state().state == state


def test_a_programs_job_is_run_anew_by_its_program() -> None:
    plan = {"executor": "local", "command_line": "python app.py -m x=1"}
    create_run(new_run_id("app", ""), plan, [{"job.json": '{"module": "m"}'}]).job().finish(0)
    with pytest.raises(UserError, match="has succeeded") as raised:
        run_tool("runs", ["resume", "latest"])
    assert raised.value.hint == "To run it anew: python app.py -m x=1"


def test_of_a_sweep_one_job_is_named() -> None:
    run = create_run(new_run_id("nano3", "pretrain"), {"executor": "local", "kind": "sweep"}, [{}, {}, {}])
    for number, code in enumerate((0, 1, 75)):
        run.job(number).finish(code)
    with pytest.raises(UserError, match="2 have stopped") as raised:
        run_tool("runs", ["resume", "latest"])
    assert f"nemotron runs resume {run.id}/1" in str(raised.value.hint)


def test_one_that_starts_after_another_says_which_goes_first() -> None:
    first = create_run(new_run_id("nano3", "data"), {"executor": "local"}, [{}])
    first.job().finish(1)
    plan = {"executor": "local", "after": [first.id]}
    second = create_run(new_run_id("nano3", "pretrain"), plan, [{}])
    second.job().finish(1, error="it did not start")
    with pytest.raises(UserError, match=f"starts after {first.id}, which failed") as raised:
        run_tool("runs", ["resume", second.id])
    assert f"nemotron runs resume {first.id}" in str(raised.value.hint)
    assert second.job().state().state == "failed"


def test_a_sweep_whose_launch_died_while_it_planned() -> None:
    plan = {"kind": "sweep", "executor": "slurm", "command_line": "python app.py -m x=1,2"}
    create_run(new_run_id("app", ""), plan, [{}])
    with pytest.raises(UserError, match="before any job was submitted") as raised:
        run_tool("runs", ["resume", "latest"])
    assert raised.value.hint == "Launch it again: python app.py -m x=1,2"


def test_jobs_that_a_dead_launch_never_listed_have_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["sleep", "60"]) as launch:
        plan = {"kind": "sweep", "executor": "slurm", "launcher": process_facts(launch.pid)}
        run = create_run(new_run_id("app", ""), plan, [{}, {}])
        SweepQueue(run).add([0])
        assert refreshed(run) == ["pending", "pending"], "it may still list them"
        launch.kill()
        launch.wait()
    assert refreshed(run) == ["pending", "failed"]
    assert run_tool("runs", ["show", run.id, "--job", "1"]) == 0
    assert "its launch ended before it was submitted" in capsys.readouterr().out


def test_wait_gives_up_on_jobs_that_nobody_submits(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["true"]) as launch:
        plan = {"kind": "sweep", "executor": "slurm", "launcher": process_facts(launch.pid)}
    run = create_run(new_run_id("app", ""), plan, [{}, {}])
    queue = SweepQueue(run)
    queue.add([0, 1])
    queue.begin([0])
    queue.end()
    run.job(0).finish(0)
    assert run_tool("runs", ["wait", run.id, "--patience", "0"]) == 3
    assert f"pending: 1 job still to be submitted: nemotron runs resume {run.id}" in capsys.readouterr().out
    watch = Watch(run, unsubmitted=math.inf)
    watch.update(None)
    assert (watch.state, watch.over) == ("pending", False), "what is to start after it waits until somebody resumes it"


def refreshed(run: RunFolder) -> list[str]:
    refresh([run])
    return [job.state().state for job in run.jobs()]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("runs", ["resume", "--help"]) == 0
    assert "No job is submitted twice" in " ".join(capsys.readouterr().out.split())


def test_what_a_job_wrote_into_its_code_is_not_removed_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    run = create_run(new_run_id("demo", "go"), {"executor": "local"}, [{}])
    job = run.job(0)
    job.transition("running")
    written = {"folder": "/there/code", "files": ["out/model.bin", "odd\x1b[2J"], "more": 3}
    job.finish(0, "succeeded", written=written)
    with pytest.raises(UserError, match=r"wrote 5 files .* with the run: out/model\.bin, odd[^\x1b]*") as raised:
        run_tool("runs", ["rm", run.id])
    assert "/there/code" in str(raised.value.hint)
    assert run_tool("runs", ["show", run.id]) == 0
    assert "out/model.bin, odd" in capsys.readouterr().out
    assert run_tool("runs", ["rm", run.id, "--force"]) == 0
    assert not run.path.exists()


def _sweep() -> RunFolder:
    """Three jobs of a sweep that are over: succeeded, failed, preempted."""
    run = create_run(
        new_run_id("nano3", "sweep"), {"executor": "local", "kind": "sweep"}, [{"config.yaml": "n: 1"}] * 3
    )
    for number, code in enumerate((0, 3, 75)):
        run.job(number).log_path().write_text(f"log of {number}\n")
        run.job(number).finish(code)
    return run


@pytest.mark.parametrize("reference", ["latest", "latest/1"])
def test_nobody_waits_for_a_run_that_does_not_say_where_it_is(
    reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = create_run(new_run_id("nano3", "sweep"), {"executor": "slurm"}, [{}, {}])
    (run.path / "plan.json").write_text('{"executor": 3}')
    assert run_tool("runs", ["wait", reference]) == 3
    assert "damaged: plan.json" in capsys.readouterr().out


@pytest.mark.parametrize("start", ["{id}", "latest", "{tail}"])
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "{run}/1"], 0, r"job +1: failed\n"),
        (["show", "{run}/1", "--json"], 0, '"number": 1,\n      "state": "failed",\n      "exit_code": 3'),
        (["logs", "{run}/1"], 0, "^log of 1\n$"),
        (["logs", "{run}/1", "--job", "1"], 0, "^log of 1\n$"),
        (["logs", "{run}"], 0, "^==> job 0: succeeded <==\nlog of 0\n\n==> job 1: failed <==\nlog of 1\n\n==> job 2"),
        (["logs", "{run}/1", "--job", "2"], 2, "{run}/1 and --job 2 name two jobs"),
        (["logs", "{run}/3"], 2, "has no job 3"),
        (["logs", "{run}/x"], 2, "after the / comes a job's number"),
        (["attach", "--all", "{run}/1"], 1, "^log of 1\n$"),
        (["wait", "{run}/1"], 1, r"^{id}/1: failed \(exit code 3\)\n$"),
        (["wait", "{run}/0", "{run}/2"], 75, r"^{id}/0: succeeded\n{id}/2: preempted"),
        (["cancel", "{run}/1"], 0, "^{id}/1 has ended already: failed\n$"),
        (["diff", "{run}/1", "{run}/2"], 0, "no difference"),
        (["resume", "{run}/0"], 2, "{id}/0 has succeeded"),
        (["rerun", "{run}/1"], 2, "jobs/1/job.json"),
        (["shell", "{run}/3"], 2, "has no job 3"),
        (["rm", "{run}/1"], 2, "'{run}/1' is one job; this command takes whole runs"),
    ],
)
def test_one_job_is_named_wherever_one_is_meant(
    start: str, words: list[str], code: int, said: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    run = create_run(
        new_run_id("nano3", "sweep"), {"executor": "local", "kind": "sweep"}, [{"config.yaml": "n: 1"}] * 3
    )
    for number, (end, state) in enumerate(((0, "succeeded"), (3, "failed"), (75, "preempted"))):
        run.job(number).log_path().write_text(f"log of {number}\n")
        run.job(number).finish(end, state)
    names = {"id": run.id, "tail": run.id[-6:]}
    names["run"] = start.format(**names)
    try:
        found = run_tool("runs", [word.format(**names) for word in words])
        text = capfdbinary.readouterr().out.decode()
    except UserError as error:
        found, text = error.exit_code, error.message
    assert found == code and re.search(said.format(**names), text), text


def test_levels_are_submitted_one_after_the_other_and_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    (tmp_path / "jobs").mkdir()
    for number in range(5):
        (tmp_path / "jobs" / str(number)).mkdir()
    SweepQueue(run).add(range(5), [[0], [1, 2, 3], [4]])
    submitted = []
    while (queue := SweepQueue(run)).waiting:
        numbers = queue.together(queue.waiting)
        submitted.append((numbers, queue.before(numbers[0])))
        queue.begin(numbers)
        queue.end()
    assert submitted == [([0], []), ([1, 2, 3], [0]), ([4], [1, 2, 3])]
    queue.drop([4])
    SweepQueue(run).requeue([2, 4])
    again = SweepQueue(run)
    assert (again.waiting, again.together(again.waiting), again.listed) == ([2, 4], [2], {0, 1, 2, 3, 4})
    assert SweepQueue(run).unfinished == []
