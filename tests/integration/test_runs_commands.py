"""`nemotron runs …` as a process of its own, on a ledger of real folders."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.process_facts import process_facts

from ..conftest import until
from ..project import asleep, run, start

EVIL = b"\x1b[31mred\x1b[0m \x1b]0;owned\x07\xff end\n"


pytestmark = pytest.mark.usefixtures("project")


def nemotron(*words: str, code: int = 0) -> str:
    done = run("nemotron", *words, code=code, forked=True)
    assert "Traceback" not in done.stderr
    return done.stdout if code in (0, 1, 3, 4) and done.stdout else done.stderr


def in_terminal(*words: str) -> bytes:
    """What the command writes to a terminal."""
    parent, child = pty.openpty()
    process = start("nemotron", *words, stdout=child, stderr=child, stdin=child, close_fds=True)
    os.close(child)
    out = b""
    while select.select([parent], [], [], 30)[0]:
        try:
            piece = os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
        out += piece
    os.close(parent)
    assert process.wait(30) == 0, out
    return out


def make(stage: str = "pretrain", code: int | None = None, log: bytes = b"", **plan: Any) -> RunFolder:
    run = create_run(
        new_run_id("nano3", stage),
        {"recipe": "nano3", "stage": stage, "executor": "local", **plan},
        [{"config.yaml": "a: 1\n"}],
    )
    job = run.job()
    if log:
        with job.open_log() as file:
            file.write(log)
    if code is not None:
        job.transition("running")
        job.finish(code, error="it broke" if code else None)
    return run


def test_the_list() -> None:
    assert "No runs yet in" in nemotron("runs") and nemotron("runs", "--json") == "[]\n"
    first, second = make("data/prep/pretrain", code=0), make(code=7)
    lines = nemotron("runs").splitlines()
    assert lines[0].split() == ["RUN", "JOB", "STATE", "AGE", "TOOK", "EXIT", "WHY"]
    assert lines[1].startswith(second.id) and lines[1].endswith("7     it broke") and " failed " in lines[1]
    assert lines[2].startswith(first.id) and "nano3 data prep pretrain" in lines[2] and " succeeded " in lines[2]
    (found,) = json.loads(
        nemotron("runs", "--json", "--state", "failed,cancelled", "--since", "2h", "--recipe", "nano3")
    )
    assert (found["id"], found["exit_code"], found["state"], found["error"]) == (second.id, 7, "failed", "it broke")
    assert found["folder"] == str(second.path) and found["duration_s"] >= 0
    assert "No runs match" in nemotron("runs", "--stage", "sft")
    assert "and 1 older: --limit 0 lists all" in nemotron("runs", "--limit", "1")
    assert (
        first.id in nemotron("runs", "--stage", "data prep") and len(nemotron("runs", "--limit", "0").splitlines()) == 3
    )


def test_a_damaged_run_is_listed_with_its_reason() -> None:
    good, bad = make(code=0), make(code=0)
    (bad.path / "plan.json").write_text('{"recipe": "na')
    lines = nemotron("runs").splitlines()
    assert "damaged" in lines[1] and "plan.json: not valid JSON" in lines[1] and lines[2].startswith(good.id)
    assert "plan.json: not valid JSON" in nemotron("runs", "show", bad.id, code=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lst"], "Did you mean list?"),
        (["--stat", "failed"], "Did you mean --state"),
        (["--state", "faild"], "Did you mean failed?"),
        (["--since", "soon"], "expected 30m, 2h, 3d or a date, got 'soon'"),
        (["--limit", "-1"], "expected a whole number from 0"),
        (["show"], "ID is missing.\nnemotron runs show ID; see"),
        (["rename", "latest", "-x"], "nemotron runs rename latest -- -x"),
        (["show", "nothing"], "No runs in"),
        (["logs", "latest", "extra"], "unknown argument 'extra'"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    assert message in nemotron("runs", *words, code=2)


def test_help() -> None:
    assert nemotron("runs", "--help").startswith("usage: nemotron runs")
    for command in ("show", "logs", "wait", "cancel", "rm"):
        assert f"usage: nemotron runs {command}" in nemotron("runs", command, "--help")


def test_show() -> None:
    pin = {"name": "Blends", "version": 3, "digest": "ab" * 32, "path": "/data", "type": "T", "registry": "u"}
    run = make(
        code=7,
        command_line="nemotron nano3 pretrain -c tiny",
        hydra="python -m nemotron_kit recipe=nano3",
        profile="C",
        executor="local",
        inputs={"data": pin},
    )
    (run.job().path / "artifacts.json").write_text(json.dumps({"inputs": {}, "outputs": [{**pin, "name": "Model"}]}))
    (run.job().path / "metrics.jsonl").write_text('{"step": 5, "loss": 3.2512345678}\n')
    text = nemotron("runs", "show", "latest")
    for part in (
        f"run        {run.id}",
        "state      failed",
        "why        it broke",
        "command    nemotron nano3 pretrain -c tiny",
        "hydra      python -m nemotron_kit recipe=nano3",
        "profile    C (local)",
        f"folder     {run.path}",
        "exit code  7",
        "inputs     data = Blends:v3  /data  sha256 abababababab",
        "outputs    Model:v3",
        "pending",
        "running",
        "failed, exit code 7: it broke",
        "metrics    loss 3.25123 at step 5",
    ):
        assert part in text, part
    found = json.loads(nemotron("runs", "show", run.id, "--json"))
    assert found["plan"]["inputs"]["data"] == pin
    (job,) = found["job_records"]
    assert [entry["state"] for entry in job["history"]] == ["pending", "running"]
    assert job["metrics"] == [{"step": 5, "loss": 3.2512345678}] and job["exit_code"] == 7


def test_logs_are_harmless_on_a_terminal_and_exact_in_a_pipe() -> None:
    made = make(code=0, log=EVIL)
    assert start("nemotron", "runs", "logs", made.id, text=False).communicate(timeout=60)[0] == EVIL
    assert in_terminal("runs", "logs", made.id) == "red ^[]0;owned^G\ufffd end\r\n".encode()


def test_a_terminal_gets_no_escape_of_the_runs_own() -> None:
    run = make(code=0, command_line="x \x1b]0;owned\x07")
    for words in (["runs"], ["runs", "show", run.id]):
        out = in_terminal(*words)
        assert run.id.encode() in out and b"\x1b]0" not in out and b"\x07" not in out


def test_the_end_of_a_log_and_the_logs_that_there_are() -> None:
    run = make(code=0, log=b"".join(b"%d\n" % n for n in range(1000)))
    assert nemotron("runs", "logs", run.id, "-n", "2") == "998\n999\n"
    with run.job().open_log("rank-1") as log:
        log.write(b"rank one\n")
    assert nemotron("runs", "logs", run.id, "--rank", "1") == "rank one\n"
    assert "It has: job, rank-1" in nemotron("runs", "logs", run.id, "--rank", "2", code=2)
    assert "has no job 3" in nemotron("runs", "logs", run.id, "--job", "3", code=2)
    assert "it is pending" in nemotron("runs", "logs", make().id, code=2)


WRITER = """
import sys, time
from nemotron_kit.runs.folder import open_job
job = open_job(sys.argv[1])
job.transition("running")
with job.open_log() as log:
    for n in range(100):
        log.write(b"%d\\n" % n)
        time.sleep(0.01)
job.finish(0)
"""


def test_follow_from_before_the_first_line_to_the_last() -> None:
    run = make()
    reader = start("nemotron", "runs", "logs", "-f", run.id, text=False)
    until(lambda: asleep(reader))
    subprocess.run([sys.executable, "-c", WRITER, str(run.job().path)], check=True)
    out, _ = reader.communicate(timeout=30)
    assert out == b"".join(b"%d\n" % n for n in range(100)) and reader.returncode == 0


def test_follow_ends_when_the_job_was_killed() -> None:
    run = make(log=b"so far\n")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run.job().transition("running", process=process_facts(child.pid))
    reader = start("nemotron", "runs", "logs", "-f", run.id, text=False)
    until(lambda: asleep(reader))
    child.kill()
    child.wait()
    assert reader.communicate(timeout=30)[0] == b"so far\n"


def test_ctrl_c_while_following() -> None:
    run = make(log=b"so far\n")
    run.job().transition("running")
    reader = start("nemotron", "runs", "logs", "-f", run.id, text=False)
    assert reader.stdout is not None and reader.stdout.readline() == b"so far\n"
    reader.send_signal(signal.SIGINT)
    _, errors = reader.communicate(timeout=10)
    assert reader.returncode == 130 and b"Traceback" not in errors


@pytest.mark.parametrize(
    ("finish", "code"),
    [
        (lambda job: job.finish(0), 0),
        (lambda job: job.finish(7, error="it broke"), 1),
        (lambda job: job.finish(143, "cancelled"), 4),
        (lambda job: job.transition("unreachable"), 3),
        (lambda job: (job.path / "exit.json").write_text("{"), 3),
    ],
)
def test_wait_exits_as_the_run_did(finish: Callable[[Any], object], code: int) -> None:
    run = make()
    run.job().transition("running")
    waiting = start("nemotron", "runs", "wait", run.id)
    until(lambda: asleep(waiting))
    finish(run.job())
    out, _ = waiting.communicate(timeout=10)
    assert waiting.returncode == code and out.startswith(f"{run.id}: ")


def test_cancel() -> None:
    run = make()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    run.job().transition("running", process=process_facts(child.pid))
    assert nemotron("runs", "cancel", run.id).startswith(f"{run.id}: cancelled")
    assert child.wait(10) == -signal.SIGTERM
    assert nemotron("runs", "cancel", run.id) == f"{run.id} has ended already: cancelled\n"
    elsewhere = make()
    elsewhere.job().transition("running", process={**process_facts(), "host": "node-7"}, writer="node-7-12")
    assert "runs on node-7" in nemotron("runs", "cancel", elsewhere.id, code=2)


def test_rm_refuses_what_an_artifact_refers_to(home: Path) -> None:
    kept, free, running = make(code=0), make(code=0), make()
    running.job().transition("running")
    save = (
        "import sys; from pathlib import Path; from nemotron.kit import ModelArtifact\n"
        "folder = Path(sys.argv[1]) / 'checkpoint'; folder.mkdir(); (folder / 'w').write_text('x')\n"
        "ModelArtifact(path=folder, step=1, loss=0.5).save(name='Model')\n"
    )
    subprocess.run([sys.executable, "-c", save, str(kept.job().path)], check=True, timeout=60)
    assert "holds the files of Model:v0" in nemotron("runs", "rm", kept.id, code=2)
    assert "is running" in nemotron("runs", "rm", running.id, code=2)
    assert nemotron("runs", "rm", free.id) == f"removed {free.id}\n"
    assert kept.path.exists() and running.path.exists() and not free.path.exists()


def test_rm_refuses_what_is_registered_elsewhere() -> None:
    run = make(code=0)
    pin = {"name": "Model", "version": 0, "path": str(run.job().path / "x"), "registry": "another"}
    (run.job().path / "artifacts.json").write_text(json.dumps({"outputs": [pin]}))
    assert "Model:v0 (of another registry)" in nemotron("runs", "rm", run.id, code=2)


def test_reading_into_a_closed_pipe_is_no_error() -> None:
    run = make(code=0, log=b"line\n" * 200_000)
    reader = start("nemotron", "runs", "logs", run.id, text=False)
    assert reader.stdout is not None and reader.stderr is not None
    assert reader.stdout.readline() == b"line\n"
    reader.stdout.close()
    assert reader.wait(30) == 0 and reader.stderr.read() == b""
