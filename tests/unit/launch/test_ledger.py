"""The record brought up to date from a back end: one question for many runs, losing sight, what is remembered."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.errors import NemotronError, Unreachable
from nemotron_kit.executors.base import Executor, ExecutorPlan, Observation, PlanContext
from nemotron_kit.files import read_cache, write_json, write_text
from nemotron_kit.home import new_run_id
from nemotron_kit.launch.attach import LogOffsets
from nemotron_kit.launch.dependencies import wait_for
from nemotron_kit.launch.status import (
    StatusCache,
    StatusSnapshot,
    effective_run_state,
    effective_state,
    is_mirrored,
    mirror,
    progress_elsewhere,
    refresh,
)
from nemotron_kit.remote.ssh import LocalTransport, Ssh
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.process_facts import process_facts
from nemotron_kit.spec.runconfig import EXECUTORS, RunConfig

from ...damage import VALUES, changed, keys


class Cluster:
    """A back end whose answers are set here; it counts how often it is asked, and by whom."""

    def __init__(self) -> None:
        self.says: dict[str, Observation] = {}
        self.error: NemotronError | None = None
        self.asked: list[list[str]] = []

    def observe_many(self, runs: Sequence[tuple[RunFolder, Sequence[JobFolder]]]) -> dict[str, dict[int, Observation]]:
        self.asked.append([run.id for run, _ in runs])
        if self.error:
            raise self.error
        return {run.id: {job.number: self.says[run.id] for job in jobs} for run, jobs in runs}


class Fake(Executor):
    """The executor of runs on the cluster that `made` is."""

    made: ClassVar[Cluster]

    def observe_many(self, runs: Sequence[tuple[RunFolder, Sequence[JobFolder]]]) -> dict[str, dict[int, Observation]]:
        return self.made.observe_many(runs)

    def plan(self, context: PlanContext) -> ExecutorPlan:
        raise NotImplementedError

    submit = cancel = plan  # type: ignore[assignment]

    def read_logs(self, *_: object, **__: object) -> list[Any]:
        return []


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path))
    monkeypatch.setattr(Fake, "made", Cluster(), raising=False)
    monkeypatch.setitem(EXECUTORS, "fake", f"{__name__}:Fake")
    yield Fake.made


def make(cluster: Cluster, state: str = "pending", *, jobs: int = 1, host: str | None = None, **says: Any) -> RunFolder:
    settings = {"host": host, "nodes": 3, **({"tunnel": "ssh", "user": "me"} if host else {})}
    plan = {"recipe": "r", "stage": "s", "executor": "fake", "settings": settings}
    run = create_run(new_run_id("r", "s"), plan, [{"config.yaml": ""}] * jobs)
    cluster.says[run.id] = Observation(state, **says)
    return run


def forget(run: RunFolder) -> None:
    for path in (run.path.parent / ".seen").glob("*"):
        path.unlink()


def test_one_question_for_many_runs(cluster: Cluster) -> None:
    runs = [make(cluster, "running", jobs=3), make(cluster, "failed", code=7, error="it broke"), make(cluster)]
    local = create_run(new_run_id("r", "s"), {"executor": "local"}, [{"config.yaml": ""}])
    snapshots = refresh([*runs, local])
    assert cluster.asked == [[run.id for run in runs]] and set(snapshots) == {run.id for run in runs}
    assert [run.state() for run in runs] == ["running", "failed", "pending"]
    assert runs[1].job().state().code == 7 and runs[1].job().state().error == "it broke"
    assert len(runs[0].job(2).history()) == 2
    assert len(runs[2].job().history()) == 1  # nothing changed, so nothing was written


def test_another_target_is_another_question(cluster: Cluster) -> None:
    refresh([make(cluster, host="a"), make(cluster, host="b"), make(cluster, host="a")])
    assert sorted(map(len, cluster.asked)) == [1, 2]


def test_what_was_said_a_moment_ago_is_not_asked_again(cluster: Cluster) -> None:
    run = make(cluster, reason="Resources", estimated_start="soon")
    first, second = refresh([run]), refresh([run])
    assert len(cluster.asked) == 1 and second[run.id].observed == first[run.id].observed
    assert second[run.id].observed[0].estimated_start == "soon"
    other = make(cluster)
    refresh([run, other])
    assert len(cluster.asked) == 2
    refresh([run])
    assert len(cluster.asked) == 2
    run.job().finish(0)
    assert run.id not in refresh([run, other])  # it is over: nobody is asked


def test_a_slow_target_is_asked_less_often(cluster: Cluster) -> None:
    make(cluster)
    seen, now = StatusCache("slow"), time.time()
    seen.keep({"a": StatusSnapshot(now, {0: Observation("running")})}, 8.0)
    seen.keep({"b": StatusSnapshot(now, {0: Observation("running")})}, 0.001)
    until = {run_id: entry["until"] - now for run_id, entry in read_cache(seen.path, 2).items()}
    assert 39 < until["a"] < 42 and 2.5 < until["b"] < 4
    assert seen.fresh({"a": [0, 1]}) is None and seen.fresh({"a": [0], "b": [0]}) is not None


def test_a_damaged_memory_is_none(cluster: Cluster) -> None:
    """Whatever stands in it instead: the target is asked again, and nobody sees a traceback."""
    run = make(cluster, "running")
    refresh([run])
    (path,) = (run.path.parent / ".seen").iterdir()
    head, body = path.read_text().split("\n")
    whole = json.loads(body)
    damaged = [json.dumps(changed(whole, at, kind)) for at in keys(whole) for kind in VALUES if at or kind != "gone"]
    texts = ["", "{", "[]", body, *(f"{head}\n{text}" for text in [body[:-9], *damaged] if text != body)]
    for count, text in enumerate(texts, 2):
        path.write_text(text)
        refresh([run])
        assert len(cluster.asked) == count and run.state() == "running", text


def test_out_of_sight_changes_no_record(cluster: Cluster) -> None:
    run = make(cluster, "running")
    refresh([run])
    forget(run)
    cluster.error = Unreachable("the cluster does not answer.")
    snapshot = refresh([run])[run.id]
    state = effective_state(run.job(), snapshot)
    assert (state.state, state.error, state.facts["known"]) == (
        "unreachable",
        "the cluster does not answer.",
        "running",
    )
    assert effective_run_state(run, snapshot) == "unreachable" and run.state() == "running"
    refresh([run])
    assert len(cluster.asked) == 2  # nor is it asked again at once
    cluster.error = None
    forget(run)
    assert effective_run_state(run, refresh([run])[run.id]) == "running"


@pytest.mark.parametrize("heard", ["nothing", "submitted again", "answered", "another way"])
def test_out_of_sight_does_not_outlive_an_answer(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, heard: str) -> None:
    """Where it took long to find out that nobody answers, and somebody has answered since."""
    run = make(cluster, "running", host="far")
    refresh([run])
    forget(run)
    cluster.error = Unreachable("the cluster does not answer.")
    monkeypatch.setattr("nemotron_kit.launch.status.SHORTEST", 60.0)
    assert refresh([run])[run.id].lost
    cluster.error = None
    if heard == "submitted again":
        run.job().finish(143, "cancelled")
        run.job().begin_again()
    elif heard == "answered":
        monkeypatch.setattr(Ssh, "_connected", lambda self: None)
        monkeypatch.setattr(Ssh, "_ask", lambda *_: ({"ok": True, "result": None}, b""))
        Ssh("far", "/x", user="me").call("ping")
    elif heard == "another way":
        monkeypatch.setenv("NEMOTRON_SSH_CONFIG", "/somewhere/else")
    state = effective_run_state(run, refresh([run])[run.id])
    assert (state, len(cluster.asked)) == (("unreachable", 2) if heard == "nothing" else ("running", 3))


def test_a_job_out_of_sight_that_is_submitted_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(cluster, "unreachable", error="squeue is silent")
    refresh([run])
    run.job().begin_again()
    cluster.says[run.id] = Observation("running")
    assert effective_run_state(run, refresh([run])[run.id]) == "running"


def test_unknown_is_recorded_and_taken_back(cluster: Cluster) -> None:
    run = make(cluster, "unknown", error="Slurm has forgotten the job")
    assert effective_run_state(run, refresh([run])[run.id]) == "unknown"
    forget(run)
    cluster.says[run.id] = Observation("succeeded", 0)
    assert refresh([run]) and run.state() == "succeeded"


def test_one_job_out_of_sight_among_others(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(cluster, "running", jobs=2)
    refresh([run])
    forget(run)
    mixed: Mapping[int, Observation] = {
        0: Observation("unreachable", error="sacct is silent"),
        1: Observation("failed", 2),
    }
    monkeypatch.setattr(cluster, "observe_many", lambda runs: {run.id: mixed})
    snapshot = refresh([run])[run.id]
    assert [effective_state(job, snapshot).state for job in run.jobs()] == ["unreachable", "failed"]
    assert run.job(0).state().state == "running" and run.job(1).state().code == 2


def test_waiting_for_another_run(cluster: Cluster) -> None:
    first, job = make(cluster, "succeeded", code=0), make(cluster).job()
    wait_for(job, [first.id])
    failed = make(cluster, "failed", code=1)
    with pytest.raises(NemotronError, match=f"it did not start: {failed.id}, which it was to start after, failed"):
        wait_for(job, [failed.id])


def test_waiting_for_a_run_that_is_removed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has succeeded before may go; of one that has not, nobody will ever hear."""
    first, second, job = make(cluster, "succeeded", code=0), make(cluster, "running"), make(cluster).job()
    unlucky = make(cluster, "running")

    def later(_: float) -> None:
        for run in (first, unlucky):
            shutil.rmtree(run.path, ignore_errors=True)
        forget(second)
        cluster.says[second.id] = Observation("succeeded", 0)

    monkeypatch.setattr(time, "sleep", later)
    wait_for(job, [first.id, second.id])
    unlucky = make(cluster, "running")
    with pytest.raises(NemotronError, match=f"{unlucky.id}, which it was to start after, was removed"):
        wait_for(job, [unlucky.id])


@pytest.mark.parametrize("record", ["{", "[]", '{"state": [], "code": 0}', '{"state": "succeeded", "code": "0"}'])
def test_a_damaged_end_is_that_of_its_run_alone(cluster: Cluster, record: str) -> None:
    """The others of its target are asked about as ever, and its own scheduler has the last word."""
    damaged, whole = make(cluster, "failed", code=3), make(cluster, "succeeded", code=0)
    for run in (damaged, whole):
        forget(run)
    (damaged.job().path / "exit.json").write_text(record)
    found = refresh([damaged, whole])
    assert [found[run.id].lost for run in (damaged, whole)] == [None, None]
    assert (damaged.state(), whole.state()) == ("failed", "succeeded")


def test_whoever_waits_for_what_nobody_knows_is_told_so(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record that can't be read is final, and so is what its scheduler has forgotten."""
    monkeypatch.setattr("nemotron_kit.launch.status.PATIENCE", 0.0)
    unplanned, forgotten = make(cluster, "running"), make(cluster, "unknown", error="the cluster has forgotten it")
    (unplanned.path / "plan.json").write_text("{")
    here = create_run(new_run_id("r", "s"), {"executor": "local"}, [{"config.yaml": ""}])
    here.job().path.joinpath("exit.json").write_text("{")
    launcher = {**process_facts(), "boot": "00000000-0000-4000-8000-000000000000"}
    empty = create_run(new_run_id("r", "s"), {"executor": "local", "kind": None, "launcher": launcher}, [])
    assert run_tool("runs", ["wait", empty.id]) == 3 and "its launch has ended" in capsys.readouterr().out
    running = create_run(new_run_id("r", "s"), {"executor": "local"}, [{"config.yaml": ""}])
    running.job().transition("running", process=None)
    assert run_tool("runs", ["wait", running.id]) == 3 and "process: missing" in capsys.readouterr().out
    for run, how, code in (
        (unplanned, "plan.json: not valid JSON", 3),
        (forgotten, "has forgotten it", 3),
        (here, "exit.json: not valid JSON", 3),
    ):
        run.job().open_log().close()
        with pytest.raises(NemotronError, match=f"it did not start: {run.id}, which it was to start after, is .*{how}"):
            wait_for(None, [run.id])
        assert run_tool("runs", ["wait", run.id, "--patience", "0"]) == code
        assert how in capsys.readouterr().out
        with pytest.raises(NemotronError, match=how) as error:
            run_tool("runs", ["logs", "-f", run.id])
        assert error.value.exit_code == code


def test_how_far_a_log_was_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path))
    run = create_run(new_run_id("r", "s"), {}, [{"config.yaml": ""}])
    shown = LogOffsets(run)
    shown.keep({0: {"job": 12, "node-1": 3}, 4: {}})
    assert LogOffsets(run).of(0) == {"job": 12, "node-1": 3} and LogOffsets(run).of(4) == {}
    for damaged in ("{", "[]", '{"0": {"job": -1}}', '{"0": {"job": "x"}}'):
        (run.path / "attached.json").write_text(damaged)
        assert LogOffsets(run).of(0) == {}


def test_a_damaged_end_on_the_target_keeps_no_other_from_being_copied(tmp_path: Path) -> None:
    jobs = [JobFolder(tmp_path / "here" / "jobs" / str(number)) for number in range(3)]
    for job in jobs:
        there = tmp_path / "there" / "jobs" / job.path.name
        for folder in (job.path, there):
            folder.mkdir(parents=True)
        JobFolder(there).finish(0)
    (tmp_path / "there" / "jobs" / "1" / "exit.json").write_text("{")
    plan: Any = SimpleNamespace(
        has_separate_folder=True, settings=RunConfig(), paths=SimpleNamespace(run=tmp_path / "there")
    )
    with pytest.raises(NemotronError, match=r"jobs/1/exit\.json: not valid JSON"):
        mirror(plan, jobs)
    assert [is_mirrored(job) for job in jobs] == [True, False, True]


def test_progress_of_a_job_on_another_machine_comes_with_its_state(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request for all jobs of a target; a target that does not give the metrics gives none, and no error."""
    far = tmp_path / "far"
    runs = [make(cluster, "running") for _ in range(3)]
    for number, run in enumerate(runs):
        plan = json.loads((run.path / "plan.json").read_text())
        write_json(run.path / "plan.json", {**plan, "place": {"run": str(far / run.id)}})
        (run.job().path / "config.yaml").write_text("max_steps: 90\n")
        rows = [{"step": 10, "elapsed": 0.0}, {"step": 20, "elapsed": 10.0, "loss": 0.5 + number}]
        if number < 2:  # the third has logged nothing yet
            (far / run.id / "jobs/0").mkdir(parents=True)
            write_text(far / run.id / "jobs/0/metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    asked: list[list[str]] = []
    local = LocalTransport.call

    def call(self: LocalTransport, op: str, payload: bytes = b"", **args: Any) -> tuple[Any, bytes]:
        asked.append(args["jobs"])
        return local(self, op, payload, **args)

    monkeypatch.setattr(LocalTransport, "call", call)
    refresh(runs, progress=True)
    summaries = [run.summary() for run in runs]
    assert [str(each) for _, each in sorted(progress_elsewhere(summaries).items())] == [
        "step 20/90, 1m10s left, loss 0.5",
        "step 20/90, 1m10s left, loss 1.5",
    ]
    assert [len(jobs) for jobs in asked] == [3] and len(cluster.asked) == 1
    run_tool("runs", ["--json"])
    shown = {row["id"]: row["progress"] for row in json.loads(capsys.readouterr().out)}
    assert shown[runs[1].id]["loss"] == 1.5 and shown[runs[2].id] is None
    assert len(asked) == 1
    forget(runs[0])
    refresh(runs)  # whoever waits needs no progress: one request
    assert (len(asked), len(cluster.asked)) == (1, 2)
    assert len(progress_elsewhere(summaries)) == 2 and len(asked) == 2  # that answer does not count for who does

    def lost(*_: Any, **__: Any) -> Any:
        raise Unreachable("far does not answer.")

    forget(runs[0])
    monkeypatch.setattr(LocalTransport, "call", lost)
    assert progress_elsewhere(summaries) == {} and [run.state() for run in runs] == ["running"] * 3
