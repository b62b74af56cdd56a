"""`nemotron runs logs` of a sweep; and the error for a followed job whose state can't be read."""

from __future__ import annotations

import json
import subprocess
import threading
from typing import Any

import pytest

from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.launch.queue import SweepQueue
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import DamagedRunRecord
from nemotron_kit.runs.process_facts import process_facts

pytestmark = pytest.mark.usefixtures("project")


def sweep(logs: dict[int, bytes], ended: dict[int, int], executor: str = "local") -> RunFolder:
    """Three jobs, with these logs; those that have ended, with their exit codes."""
    texts = [{".hydra/overrides.yaml": json.dumps(["recipe=demo", f"n={n}"])} for n in range(3)]
    run = create_run(new_run_id("demo", "go"), {"executor": executor, "kind": "sweep"}, texts)
    for number, text in logs.items():
        with run.job(number).open_log() as file:
            file.write(text)
    for number, code in ended.items():
        run.job(number).transition("running")
        run.job(number).finish(code)
    return run


def test_each_job_of_a_sweep_under_a_heading(capfdbinary: Any) -> None:
    run = sweep({0: b"a\nb\nno end", 2: b"c\xff\n"}, {0: 0, 2: 3})
    assert run_tool("runs", ["logs", run.id]) == 0
    assert capfdbinary.readouterr().out == (
        b"==> job 0: succeeded, n=0 <==\na\nb\nno end\n"
        b"\n==> job 1: pending, n=1, no job log <==\n"
        b"\n==> job 2: failed, n=2 <==\nc\xff\n"
    )
    assert run_tool("runs", ["logs", run.id, "-n", "1"]) == 0
    assert b" n=0 <==\nno end\n\n" in capfdbinary.readouterr().out
    # Of one job: its bytes and nothing else.
    for words in ([f"{run.id}/0"], [run.id, "--job", "0"]):
        run_tool("runs", ["logs", *words])
        assert capfdbinary.readouterr().out == b"a\nb\nno end"
    with pytest.raises(UserError, match="job 0 has no log of rank 4"):
        run_tool("runs", ["logs", run.id, "--rank", "4"])


def test_a_job_of_several_nodes_has_the_logs_of_all(capfdbinary: Any) -> None:
    run = sweep({0: b"first\n"}, {0: 0})
    for name in ("node-1", "node-10", "node-2", "rank-3", "worker"):
        with run.job(0).open_log(name) as file:
            file.write(f"a\n[rank 3] in {name}\n".encode())
    nodes = b"".join(b"\n==> node-%d <==\na\n[rank 3] in node-%d\n" % (n, n) for n in (1, 2, 10))
    assert run_tool("runs", ["logs", f"{run.id}/0"]) == 0
    assert capfdbinary.readouterr().out == b"first\n" + nodes
    assert run_tool("runs", ["logs", run.id]) == 0
    assert b" n=0 <==\nfirst\n" + nodes + b"\n==> job 1: " in capfdbinary.readouterr().out
    assert run_tool("runs", ["logs", f"{run.id}/0", "--rank", "3", "-n", "1"]) == 0
    assert capfdbinary.readouterr().out == b"[rank 3] in rank-3\n"


def test_a_sweep_is_followed_as_attach_does(capsys: pytest.CaptureFixture[str]) -> None:
    run = sweep({0: b"a\nb\n", 1: b"c\nd\n", 2: b"e\n"}, {0: 0, 1: 0, 2: 0})
    for words, said in (([], {"[job 0] a", "[job 0] b", "[job 1] c", "[job 1] d", "[job 2] e"}),
                        (["-n", "1"], {"[job 0] b", "[job 1] d", "[job 2] e"})):  # fmt: skip
        assert run_tool("runs", ["logs", "-f", run.id, *words]) == 0
        assert set(capsys.readouterr().out.splitlines()) == said
    with pytest.raises(UserError, match="--rank with -f needs one job") as refused:
        run_tool("runs", ["logs", "-f", run.id, "--rank", "1"])
    assert f"runs logs {run.id}/0 -f --rank 1" in str(refused.value.hint)
    # What attach would show has not been shown.
    assert not (run.path / "attached.json").exists()


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ("{", "plan.json"),
        ('{"recipe": "demo"}', "plan.json: executor: missing"),
        ('{"kind": "sweep", "settings": {}}', "plan.json: executor: missing"),
        ('{"executor": "slurm", "settings": {"account": 1e300}}', "plan.json: settings.account"),
    ],
)
@pytest.mark.parametrize("jobs", ["", "/0"])
def test_nobody_can_be_asked_how_it_goes_on(capsys: pytest.CaptureFixture[str], plan: str, why: str, jobs: str) -> None:
    run = sweep({0: b"so far\n"}, {}, "slurm")
    (run.path / "plan.json").write_text(plan)
    for words in (["logs", "-f"], ["attach"]):
        with pytest.raises(DamagedRunRecord, match=why):
            run_tool("runs", [*words, run.id + jobs])
    assert jobs == "" or capsys.readouterr().out == "so far\n"
    with pytest.raises(NemotronError, match=why):
        run_tool("runs", ["logs", "-f", f"{run.id}/1"])
    assert run_tool("runs", ["wait", run.id + jobs]) == 3
    assert f"{run.id}{jobs}: damaged: plan.json" in capsys.readouterr().out


def test_a_sweep_by_hydras_own_launcher_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Its record names no executor: its jobs are processes of this machine."""
    run = create_run(new_run_id("demo", "go"), {"recipe": "demo", "stage": "go", "kind": "sweep"}, [{}, {}])
    with subprocess.Popen(["sleep", "60"]) as process:
        for job in run.jobs():
            job.transition("running", process=process_facts(process.pid))
        ends = threading.Timer(0.3, process.kill)
        ends.start()
        assert run_tool("runs", ["wait", run.id]) == 1
        ends.join()
    assert f"{run.id}: failed: the process disappeared" in capsys.readouterr().out


@pytest.mark.parametrize(
    "batches", [None, [None], [{"done": True}], [{"jobs": None}], [{"jobs": [None]}], [{"jobs": [10**400]}]]
)
def test_a_queue_that_lost_jobs_is_damaged(batches: object) -> None:
    """Its jobs would count as not submitted yet, for which `wait` waits without end."""
    run = sweep({}, {}, "slurm")
    (run.path / "sweep.json").write_text(json.dumps({"jobs": [0, 1, 2], "batches": [{"jobs": [0, 1], "done": True}]}))
    assert SweepQueue(run).waiting == [2]
    (run.path / "sweep.json").write_text(json.dumps({"jobs": [0, 1, 2], "batches": batches}))
    with pytest.raises(DamagedRunRecord, match=r"sweep\.json"):
        SweepQueue(run)


@pytest.mark.parametrize("pin", [None, {"name": "A", "version": 0, "path": "x" * 5000},
                                 {"name": "A", "version": 0, "path": "\0"}])  # fmt: skip
def test_an_output_that_is_no_path_is_shown_and_removed(pin: object) -> None:
    run = sweep({}, {0: 0, 1: 0, 2: 0})
    (run.job(0).path / "artifacts.json").write_text(json.dumps({"inputs": {}, "outputs": [pin]}))
    assert run_tool("runs", ["show", f"{run.id}/0"]) == 0
    assert run_tool("runs", ["rm", run.id]) == 0 and not run.path.exists()
