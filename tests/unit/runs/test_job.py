"""A job's record: the states it goes through, and which of its files is believed."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_kit.errors import Cancelled, NemotronError, UserError
from nemotron_kit.executors.base import Observation
from nemotron_kit.home import new_run_id
from nemotron_kit.launch.status import record
from nemotron_kit.runs.folder import create_run, open_job
from nemotron_kit.runs.job import NOT_STARTED, UNEXPLAINED, JobFolder, tail_objects
from nemotron_kit.runs.process_facts import _folders_in_commands, process_facts

from ...conftest import until


@pytest.fixture
def job() -> JobFolder:
    return create_run(new_run_id("nano3", "pretrain"), {"recipe": "nano3"}, [{"config.yaml": "a: 1\n"}]).job()


def test_from_pending_to_succeeded(job: JobFolder) -> None:
    assert job.state().state == "pending"
    job.transition("running", gpus=2)
    running = job.state()
    assert running.state == "running" and running.started == running.at and running.facts["gpus"] == 2
    assert running.facts["process"]["pid"] == os.getpid()
    job.finish(0, steps=5)
    done = job.state()
    assert (done.state, done.code, done.error) == ("succeeded", 0, None)
    assert done.finished is not None and done.started is not None and done.finished >= done.started
    assert done.facts["steps"] == 5 and done.terminal
    assert [entry["state"] for entry in job.history()] == ["pending", "running"]
    assert [path.name.partition("-")[0] for path in sorted((job.path / "state").iterdir())] == ["000000", "000001"]


def test_a_failure_keeps_its_code_and_reason(job: JobFolder) -> None:
    job.transition("running")
    job.finish(7, error="CUDA out of memory")
    assert (job.state().state, job.state().code, job.state().error) == ("failed", 7, "CUDA out of memory")


def test_the_exit_record_beats_every_state(job: JobFolder) -> None:
    job.finish(0)
    job.transition("unreachable")
    assert job.state().state == "succeeded"


def test_what_a_signal_ended_is_not_over_before_somebody_has_explained_it(job: JobFolder) -> None:
    job.transition("running", process=None)
    job.finish(143, "failed", error="exit code 143", signalled=["TERM"])
    assert job.state().state == "running" and job.state().code is None
    record([job], {job.number: Observation("running")})
    assert UNEXPLAINED in (job.exit_record() or {})
    record([job], {job.number: Observation("cancelled", 143, "cancelled in Slurm")})
    state = job.state()
    assert (state.state, state.code, state.error) == ("cancelled", 143, "cancelled in Slurm")
    assert UNEXPLAINED not in (job.exit_record() or {})


def test_a_requeue_is_a_new_attempt_with_its_history(job: JobFolder) -> None:
    job.transition("running")
    job.finish(143, "preempted", error="saved", again=True)
    assert (job.state().state, job.state().terminal, job.state().facts["reason"]) == ("pending", False, "saved")
    job.transition("running", attempt=2)
    assert job.state().state == "running" and job.exit_record() is None
    assert [entry["state"] for entry in job.history()] == ["pending", "running", "preempted", "running"]
    assert job.history()[2]["code"] == 143


def test_what_nothing_starts_again_is_over(job: JobFolder) -> None:
    job.transition("running")
    job.finish(75, "preempted")
    assert job.state().terminal and job.state().code == 75
    job.request_cancel()
    job.finish(75, "preempted", error="stopped with a checkpoint")
    assert (job.state().state, job.state().error) == ("cancelled", "cancelled: stopped with a checkpoint")


def test_two_writers_at_once_lose_nothing(job: JobFolder) -> None:
    script = """
import sys
from nemotron_kit.runs.folder import open_job
for _ in range(20):
    open_job(sys.argv[1]).transition("running")
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, str(job.path)]) for _ in range(2)]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    assert len(job.history()) == 41 and job.state().error == "the process disappeared"


@pytest.mark.parametrize(
    ("code", "cancelled", "state", "error"),
    [
        (0, False, "succeeded", None),
        (0, True, "succeeded", None),
        (75, False, "preempted", None),
        (3, False, "failed", "exit code 3; its worker had been killed"),
        (143, True, "cancelled", None),
        ("another process", False, "failed", "the process disappeared"),
        ("no number", False, "failed", "the process disappeared"),
    ],
)
def test_a_child_that_outlived_its_worker(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch, code: int | str, cancelled: bool, state: str, error: str | None
) -> None:
    job.transition("running")
    job.record_child(os.getpid())
    job.record_child_end(code if isinstance(code, int) else 0)
    end = json.loads((job.path / "child-end.json").read_text())
    changed = {"another process": {"started": 1}, "no number": {"code": "0"}}.get(str(code), {})
    (job.path / "child-end.json").write_text(json.dumps({**end, **changed}))
    if cancelled:
        job.request_cancel()
    assert job.state().state == "running"
    monkeypatch.setattr("nemotron_kit.runs.job.is_gone", lambda _: True)
    found = job.state()
    assert (found.state, found.error, found.code) == (state, error, code if isinstance(code, int) else None)
    job.begin_again()
    assert not (job.path / "child-end.json").exists()


def test_an_unknown_state_is_refused(job: JobFolder) -> None:
    with pytest.raises(UserError, match="did you mean running"):
        job.transition("runing")
    with pytest.raises(UserError, match="is not a state"):
        job.finish(0, "done")


def test_a_process_that_is_gone_has_failed(job: JobFolder) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    job.transition("running", process=process_facts(child.pid))
    assert job.state().state == "running"
    child.kill()
    assert child.wait() == -9
    assert (job.state().state, job.state().error) == ("failed", "the process disappeared")
    job.finish(0)
    assert job.state().state == "succeeded", "an exit record that came late is still believed"


ANOTHER_BOOT = "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    "damage",
    [
        *({"pid": "7"}, {"pid": True}, {"pid": -1}, {"started": []}, {"boot": [[]]}, {"boot": "another"}),
        *({"host": None}, {"host": "a\x1b[31m"}, {"host": "9999-12-31T23:59:59"}, {"host": "elsewhere"}),
        {"namespace": "another"},
    ],
)
@pytest.mark.parametrize("where", ["process", "starter", "child"])
def test_a_process_on_record_that_is_none(job: JobFolder, where: str, damage: dict[str, object]) -> None:
    """Nobody can tell whether the job goes on: it does not count as running for ever. A host is that of whoever wrote
    the record, whose name the file has."""
    broken, gone = {**process_facts(), **damage}, {**process_facts(), "boot": ANOTHER_BOOT}
    if where == "starter":
        job.transition("pending", starter=broken)
    else:
        job.transition("running", process=broken if where == "process" else gone)
    if where == "child":
        (job.path / "child.json").write_text(json.dumps(broken))
    state = job.state()
    assert state.state == "unknown" and "not a process" in str(state.error)


@pytest.mark.parametrize("name", ["boot", "namespace"])
def test_a_process_of_this_machine_has_what_its_system_tells(job: JobFolder, name: str) -> None:
    broken = {**process_facts(), name: None}
    job.transition("running", process=broken)
    assert (job.state().state, job.state().error) == ("unknown", "process: not a process")
    job.transition("running", process={**process_facts(), "boot": ANOTHER_BOOT})
    (job.path / "child.json").write_text(json.dumps(broken))
    assert (job.state().state, job.state().error) == ("unknown", "child.json: not a process")


def test_a_zombie_is_gone_too(job: JobFolder) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    facts = process_facts(child.pid)
    assert child.stdout is not None and child.stdout.read() == b""  # it ended, and nobody has waited for it
    job.transition("running", process=facts)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert job.state().state == "failed"
    child.wait()


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"started": 1}, "failed"),  # the pid is another process's now
        ({"boot": ANOTHER_BOOT}, "failed"),  # the machine was restarted
        ({"host": "elsewhere", "pid": 2**22 + 1}, "running"),  # can't be judged from here
        ({"namespace": "pid:[1]", "pid": 2**22 + 1}, "running"),  # another container's pids
        ({"pid": 2**22 + 1}, "failed"),
        ({"pid": "garbage"}, "unknown"),
    ],
)
def test_whose_process_it_is(job: JobFolder, change: dict[str, object], state: str) -> None:
    process = {**process_facts(), **change}
    job.transition("running", process=process, writer=f"{process['host']}-7")
    assert job.state().state == state


def test_pending_in_this_process(tmp_path: Path) -> None:
    run = create_run(new_run_id("nano3", "sft"), {}, [{}], attached=True)
    facts = run.job().history()[0]["process"]
    assert facts == process_facts()
    assert run.job().state().state == "pending"


GARBAGE = ["", "{", "[]", "null", "{}", '{"state": "done"}', '{"state": "failed", "code": "1"}', "[" * 10**5]


def test_pending_while_there_is_a_process_to_start_it(job: JobFolder) -> None:
    with subprocess.Popen(["true"]) as launch:
        starter = process_facts(launch.pid)
    words = ["sleep 30; :", "nemotron_kit.worker", str(job.path)]
    with subprocess.Popen(["sh", "-c", *words], start_new_session=True) as worker:
        job.transition("pending", starter=starter)
        assert until(lambda: len(Path(f"/proc/{worker.pid}/cmdline").read_bytes().split(b"\0")) > len(words))
        assert job.state().state == "pending"
        os.killpg(worker.pid, signal.SIGKILL)
    assert until(lambda: job.state().state == "failed", 5)
    assert job.state().error == NOT_STARTED


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_damaged_exit_record_is_never_read_as_good(job: JobFolder, garbage: str) -> None:
    job.finish(0)
    (job.path / "exit.json").write_text(garbage)
    assert job.state().state == "unknown" and job.state().error


def test_every_truncation_of_an_exit_record_is_unknown(job: JobFolder) -> None:
    job.finish(0)
    whole = (job.path / "exit.json").read_text()
    for length in range(len(whole.rstrip())):
        (job.path / "exit.json").write_text(whole[:length])
        assert job.state().state == "unknown"


def test_a_damaged_state_is_passed_over(job: JobFolder) -> None:
    job.transition("running")
    (job.path / "state" / "000009-x.json").write_text('{"state": "succ')
    (job.path / "state" / "notes.txt").write_text("not a state")
    assert job.state().state == "running"
    job.transition("unreachable")
    assert (job.path / "state").joinpath("000010-" + _writer()).exists()


def _writer() -> str:
    import socket

    return f"{socket.gethostname()}-{os.getpid()}.json"


def test_cancelled_before_it_ran(job: JobFolder) -> None:
    job.request_cancel()
    with pytest.raises(Cancelled):
        job.transition("running")
    job.finish(143, error="killed by SIGTERM (exit code 143)")
    assert (job.state().state, job.state().error) == ("cancelled", "cancelled")


def test_what_a_cancelled_job_finished_anyway_counts(job: JobFolder) -> None:
    job.transition("running")
    job.request_cancel()
    job.finish(0)
    assert job.state().state == "succeeded"


def test_modes_are_private(job: JobFolder) -> None:
    job.transition("running")
    with job.open_log("rank-0") as log:
        log.write(b"hello\n")
    job.finish(0)
    run = job.path.parent.parent
    for path in (run, *run.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_job_that_begins_again_is_over_at_no_moment(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    job.transition("running", process=None)
    job.finish(143, "failed", signalled=["TERM"])
    seen, write = [], JobFolder._write_state

    def looked_at(self: JobFolder, *words: object) -> None:
        seen.append(self.state().state)
        write(self, *words)  # type: ignore[arg-type]
        seen.append(self.state().state)

    monkeypatch.setattr(JobFolder, "_write_state", looked_at)
    job.transition("running", process=None)
    assert seen == ["running"] * 4 and job.state().state == "running"
    assert [entry["state"] for entry in job.history()] == ["pending", "running", "failed", "running"]


def test_a_log_goes_on_where_it_stopped(job: JobFolder) -> None:
    for text in (b"one\n", b"two\n"):
        with job.open_log() as log:
            log.write(text)
    assert job.log_path().read_bytes() == b"one\ntwo\n"
    for name in ("../x", "a/b", "", ".hidden", "a..b", "x" * 65):
        with pytest.raises(ValueError, match="log name"):
            job.log_path(name)


def test_artifacts_and_metrics(job: JobFolder) -> None:
    assert job.artifacts() == {"inputs": {}, "outputs": []} and job.metrics(3) == []
    pin = {"name": "Data", "version": 0}
    (job.path / "artifacts.json").write_text(json.dumps({"inputs": {"data": pin}}))
    lines = [json.dumps({"step": step}) for step in range(10)]
    (job.path / "metrics.jsonl").write_text("\n".join([*lines, "garbage", '{"step": 1']))
    assert job.artifacts() == {"inputs": {"data": pin}, "outputs": []}
    assert job.metrics(3) == [{"step": 8}, {"step": 9}]
    (job.path / "artifacts.json").write_text("{")
    with pytest.raises(NemotronError, match=r"artifacts\.json: not valid JSON"):
        job.artifacts()


def test_open_job(job: JobFolder, tmp_path: Path) -> None:
    assert open_job(str(job.path)) == job and job.number == 0 and job.config_path.read_text() == "a: 1\n"
    with pytest.raises(UserError, match="not a job folder"):
        open_job(tmp_path)


def test_rows_that_are_no_json_are_left_out(tmp_path: Path) -> None:
    rows = tmp_path / "metrics.jsonl"
    rows.write_text('{"a": 1}\n' + "[" * 100_000 + "\nno\n[1]\n" + '{"a": 2}\n{"a": 3')
    assert tail_objects(rows, 5) == [{"a": 1}, {"a": 2}]


def test_commands_with_odd_paths_are_read() -> None:
    """Whether a job's worker runs is found in the commands of all processes, in which any text may be."""
    arguments = [sys.executable, "-c", "import sys; sys.stdin.read()", "nemotron_kit.x", "/", "a/", "r/jobs/0/"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE) as process:
        file = Path(f"/proc/{process.pid}/cmdline")
        until(lambda: b"jobs/0" in file.read_bytes(), every=0.01)
        assert {b"r/jobs/0", b"a"} <= set(_folders_in_commands())
