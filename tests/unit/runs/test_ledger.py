"""Runs: created atomically, found by part of their id, listed newest first, also if some are damaged."""

from __future__ import annotations

import binascii
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.launch.status import Watch
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import DamagedRunRecord
from nemotron_kit.runs.ledger import collect_removed, list_runs, open_run, remove_run, run_ids
from nemotron_kit.runs.process_facts import process_facts

MakeRun = Callable[..., RunFolder]


def test_a_run_and_its_plan(home: Path) -> None:
    run_id = new_run_id("nano3", "pretrain")
    plan = {"recipe": "nano3", "stage": "pretrain", "command_line": "nemotron nano3 pretrain"}
    run = create_run(
        run_id, plan, [{"config.yaml": "a: 1\n", "hydra/overrides.yaml": "- a=1\n"}, {"config.yaml": "a: 2\n"}]
    )
    assert run.path == home / "runs" / run_id
    assert run.plan().items() >= plan.items() and run.plan()["created_at"]
    assert [job.config_path.read_text() for job in run.jobs()] == ["a: 1\n", "a: 2\n"]
    assert (run.job(0).path / "hydra" / "overrides.yaml").read_text() == "- a=1\n"
    assert sorted(path.name for path in run.path.parent.iterdir()) == [run_id]


def test_the_same_id_twice(make_run: MakeRun) -> None:
    run = make_run()
    with pytest.raises(NemotronError, match="exists already"):
        create_run(run.id, {}, [{}])
    assert [path.name for path in run.path.parent.iterdir()] == [run.id]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../b", ""])
def test_no_file_outside_the_job(home: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no file name inside"):
        create_run(new_run_id("nano3", "sft"), {}, [{name: "x"}])
    assert not any((home / "runs").iterdir())


def test_a_plan_that_is_not_json_leaves_nothing(home: Path) -> None:
    with pytest.raises(TypeError):
        create_run(new_run_id("nano3", "sft"), {"x": object()}, [{}])
    assert not any((home / "runs").iterdir())
    with pytest.raises(UserError, match="is not a run id"):
        create_run("../evil", {}, [{}])


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["succeeded", "succeeded"], "succeeded"),
        (["succeeded", "failed"], "failed"),
        (["failed", "running"], "running"),
        (["succeeded", "pending"], "pending"),
        (["failed", "cancelled"], "failed"),
        (["unreachable", "failed"], "unreachable"),
        (["preempted", "succeeded"], "preempted"),
    ],
)
def test_a_runs_state_follows_from_its_jobs(states: list[str], expected: str) -> None:
    run = create_run(new_run_id("nano3", "sweep"), {}, [{}] * len(states))
    for job, state in zip(run.jobs(), states, strict=True):
        if state in ("succeeded", "failed", "cancelled"):
            job.finish(0 if state == "succeeded" else 1, state)
        else:
            job.transition(state)
    assert run.state() == run.summary().state == expected


def test_newest_first_and_filters(make_run: MakeRun) -> None:
    old = make_run("data/prep/pretrain", age=timedelta(hours=3), codes=(0,))
    failed = make_run("pretrain", age=timedelta(hours=1), codes=(3,))
    other = make_run("pretrain", recipe="mine", age=timedelta(minutes=5), codes=(0, 0))
    new = make_run("pretrain")

    def ids(**filters: object) -> list[str]:
        return [run.id for run in list_runs(**filters)]  # type: ignore[arg-type]

    assert ids() == [new.id, other.id, failed.id, old.id]
    assert ids(limit=2) == [new.id, other.id]
    assert ids(recipe="nano3") == [new.id, failed.id, old.id]
    assert ids(stage="data/prep") == ids(stage="data/prep/pretrain") == [old.id]
    assert ids(stage="data/pre") == []
    assert ids(states=["failed", "pending"]) == [new.id, failed.id]
    assert ids(since=timedelta(hours=2)) == [new.id, other.id, failed.id]
    assert ids(states=["succeeded"], since=timedelta(hours=2), limit=1) == [other.id]
    summary = list_runs()[2]
    assert (summary.code, summary.jobs, summary.recipe, summary.stage) == (3, 1, "nano3", "pretrain")
    assert summary.started and summary.finished and summary.created


@pytest.mark.parametrize("garbage", [None, "", "{", "[1]", "\x00" * 50, '{"recipe": "nano3", "st', "[" * 10**5])
def test_one_damaged_plan_hides_no_other(make_run: MakeRun, garbage: str | None) -> None:
    first, damaged, last = make_run(codes=(0,)), make_run(codes=(0,)), make_run(codes=(0,))
    if garbage is None:
        (damaged.path / "plan.json").unlink()
    else:
        (damaged.path / "plan.json").write_text(garbage)
    found = list_runs()
    assert [run.id for run in found] == [last.id, damaged.id, first.id]
    assert [run.state for run in found] == ["succeeded", "damaged", "succeeded"]
    assert "plan.json" in (found[1].error or "")
    assert [run.id for run in list_runs(states=["damaged"])] == [damaged.id]


def test_strange_things_in_the_folder_are_passed_over(make_run: MakeRun, home: Path) -> None:
    run = make_run()
    (home / "runs" / "notes").mkdir()
    (home / "runs" / new_run_id("nano3", "a-file")).write_text("x")
    (home / "runs" / new_run_id("nano3", "a-link")).symlink_to(run.path)
    (home / "runs" / f".{new_run_id('nano3', 'half')}.tmp").mkdir()
    assert run_ids() == [run.id]


def test_no_runs_at_all(home: Path) -> None:
    assert list_runs() == [] and list_runs(states=["failed"]) == []
    with pytest.raises(UserError, match="No runs in"):
        open_run("latest")
    assert not home.exists(), "asking makes no folder"


def test_open_by_part_of_the_id(make_run: MakeRun) -> None:
    first = make_run(age=timedelta(days=400))
    make_run(age=timedelta(seconds=1))
    last = make_run()
    assert open_run("latest") == last and open_run(first.id) == first
    assert open_run(first.id[:8]) == first and open_run(first.id[-6:]) == first
    with pytest.raises(UserError, match="matches 2 runs"):
        open_run(last.id[:4])
    with pytest.raises(UserError, match=f"Did you mean.*{first.id}"):
        open_run(first.id[:-7] + "x" + first.id[-6:])
    first.label(name="the 日本 one")
    assert open_run("the 日本 one") == first
    last.label(name="the 日本 one")
    with pytest.raises(UserError, match="matches 2 runs"):
        open_run("the 日本 one")
    for evil in ("", "../x", ".", "/etc"):
        with pytest.raises(UserError, match="No run"):
            open_run(evil)
    with pytest.raises(UserError, match="has no job 4"):
        first.job(4)


def cached(index: Path) -> dict[str, object]:
    """The entries of the cache: a line with their checksum stands in front."""
    head, _, body = index.read_bytes().partition(b"\n")
    assert json.loads(head)["crc"] == binascii.crc32(body)
    return json.loads(body)  # type: ignore[no-any-return]


def test_the_index_is_a_cache(make_run: MakeRun, home: Path) -> None:
    runs = [make_run(codes=(1,)) for _ in range(40)]
    index = home / "runs" / ".index.json"
    before = list_runs(states=["failed"])
    assert len(cached(index)) == 40
    assert list_runs(states=["failed"]) == before and len(before) == 40
    # what changes afterwards is seen
    runs[0].job().transition("running")
    runs[1].job().finish(0)
    (runs[2].path / "plan.json").write_text("{")
    remove_run(runs[3])
    assert len(list_runs(states=["failed"])) == 36
    assert [run.id for run in list_runs(states=["damaged"])] == [runs[2].id]
    assert len(list_runs(recipe="nano3", states=["failed"])) == 36 and not list_runs(recipe="other")
    index.write_text('{"version": 3, "runs": {"x": 3}')
    assert len(list_runs(states=["failed"])) == 36
    assert all(isinstance(entry, list) for entry in cached(index).values())
    whole = index.read_bytes()
    for at in (whole.index(b"failed"), len(whole) // 2, 5):  # one changed byte, and the folders are asked
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert len(list_runs(states=["failed"])) == 36
    index.unlink()
    assert [run.id for run in list_runs(states=["running"])] == [runs[0].id]


def test_the_index_follows_sweeps_and_pipelines(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep adds its jobs one after another, and a pipeline's stages are runs of their own."""
    monkeypatch.setattr("nemotron_kit.files._WORTH_WRITING", 1)
    sweep, stage = make_run(codes=(0,)), make_run("make", codes=(1,))
    whole = create_run(new_run_id("r", "all"), {"kind": "pipeline", "recipe": "r", "stages": ["make"]}, [])
    whole.add_stage(0, {"stage": "make", "run": stage.id})
    states = {each.id: each.state for each in list_runs(states=["succeeded", "failed"])}
    assert states == {sweep.id: "succeeded", stage.id: "failed", whole.id: "failed"}
    sweep.add_job(1, {"config.yaml": "a: 2\n"}).finish(3)
    stage.job().begin_again()
    stage.job().finish(0)
    states = {each.id: each.state for each in list_runs(states=["succeeded", "failed"])}
    assert states == {sweep.id: "failed", stage.id: "succeeded", whole.id: "succeeded"}


def test_an_index_of_garbage_entries(make_run: MakeRun, home: Path) -> None:
    run = make_run(codes=(1,))
    strange = (3, [], {}, [[], [], 3], [None, [1], []], [[], [], []], [[], [], ["x"] * 12], {"stamp": [], "summary": 3})
    for entry in strange:
        body = json.dumps({run.id: entry}).encode()
        head = json.dumps({"version": 4, "crc": binascii.crc32(body)}).encode()
        (home / "runs" / ".index.json").write_bytes(head + b"\n" + body)
        assert [found.id for found in list_runs(states=["failed"])] == [run.id]


def test_rm(make_run: MakeRun) -> None:
    done, running, pending, used = make_run(codes=(0,)), make_run(), make_run(), make_run(codes=(0,))
    running.job().transition("running")
    remove_run(done)
    assert not done.path.exists()
    with pytest.raises(UserError, match="is running"):
        remove_run(running, force=True)
    with pytest.raises(UserError, match="is pending"):
        remove_run(pending)
    remove_run(pending, force=True)
    asked: list[RunFolder] = []

    def referenced(run: RunFolder) -> list[str]:
        asked.append(run)
        return ["Data:v0"]

    with pytest.raises(UserError, match="holds the files of Data:v0"):
        remove_run(used, referenced_by=referenced, force=True)
    assert asked == [used]
    assert {run.id for run in list_runs()} == {running.id, used.id}
    assert all(not path.name.endswith(".removed") for path in used.path.parent.iterdir())


def test_a_damaged_run_without_jobs_can_be_removed(make_run: MakeRun) -> None:
    run = make_run()
    for path in sorted(run.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    remove_run(RunFolder(run.path))
    assert list_runs() == []


@pytest.mark.parametrize(
    ("file", "record", "why"),
    [
        ("stages/000.json", "{", "stages/000.json: not valid JSON"),
        ("stages/000.json", '{"stage": null, "run": "x"}', "stages/000.json: stage: missing"),
        ("stages/000.json", '{"stage": "make"}', "stages/000.json: run: missing"),
        ("plan.json", "{", "plan.json: not valid JSON"),  # of the stage's own run
    ],
)
def test_a_pipelines_stage_whose_record_is_damaged(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], file: str, record: str, why: str
) -> None:
    """That is its end; the other stages keep their numbers, and are named as ever."""
    first, second = (make_run(stage, codes=(0,), executor="local") for stage in ("make", "use"))
    run_id = new_run_id("r", "all")
    run = create_run(run_id, {"kind": "pipeline", "recipe": "r", "stage": "all", "stages": ["make", "use"]}, [])
    for number, stage in enumerate((first, second)):
        run.add_stage(number, {"stage": stage.plan()["stage"], "run": stage.id})
    assert run.summary().state == "succeeded"
    ((first if file == "plan.json" else run).path / file).write_text(record)
    assert run.summary().state == "damaged" and why in str(run.summary().error)
    assert run_tool("runs", ["wait", run.id, "--patience", "0"]) == 3 and why in capsys.readouterr().out
    assert run_tool("runs", ["show", run.id]) == 3
    assert (said := capsys.readouterr().out) and "1  use: succeeded in" in said and second.id in said
    assert run_tool("runs", ["show", f"{run.id}/1"]) == 0
    assert re.match(f"run +{second.id}\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ({"environment": {"A": None}}, "environment.A is null"),
        ({"after": ["x", None]}, r"after\[1\] is null"),
        ({"place": {"moves": {"/a": None}}}, "place.moves./a is null"),
    ],
)
def test_null_is_no_text(make_run: MakeRun, plan: dict[str, object], why: str) -> None:
    """A key may be null in a record; a text in a list or in a table may not."""
    run = make_run(profile=None, inputs={"data": None})
    assert run.plan()["inputs"] == {"data": None}
    (run.path / "plan.json").write_text(json.dumps({**run.plan(), **plan}))
    with pytest.raises(DamagedRunRecord, match=f"plan.json: {why}"):
        run.plan()


@pytest.mark.parametrize("plan", [{}, {"launcher": {**process_facts(), "started": 0}}])
def test_a_run_that_will_have_no_job(home: Path, plan: dict[str, object]) -> None:
    """Its launch has ended, or its job's folder was removed: nobody may wait for it."""
    run = create_run(new_run_id("nano3", "sweep"), plan, [])
    assert (run.state(), run.summary().error) == ("damaged", "jobs: there are none, and its launch has ended.")
    watch = Watch(run)
    watch.update(None)
    assert watch.over
    remove_run(run)


def test_a_sweep_grows(home: Path) -> None:
    launcher = process_facts()
    run = create_run(new_run_id("nano3", "sweep"), {"recipe": "nano3", "launcher": launcher}, [])
    assert run.state() == run.summary().state == "pending"
    with pytest.raises(UserError, match="is pending"):
        remove_run(run)
    for number in (0, 1):
        job = run.add_job(number, {"config.yaml": f"a: {number}\n"}, attached=True)
        job.transition("running")
        job.finish(0)
    assert [job.number for job in run.jobs()] == [0, 1] and run.state() == "succeeded"
    assert run.job(1).config_path.read_text() == "a: 1\n"
    with pytest.raises(NemotronError, match="exists already"):
        run.add_job(1, {})
    (run.path / "jobs" / "2").mkdir()  # as Hydra's basic launcher makes it
    with pytest.raises(OSError):
        run.add_job(2, {"config.yaml": "a: 2\n", "x" * 300: ""})
    assert sorted(path.name for path in (run.path / "jobs").iterdir()) == ["0", "1"] and run.state() == "succeeded"


@pytest.mark.parametrize(
    ("ended", "failure", "state", "why"),
    [
        (False, None, "running", None),
        (True, None, "failed", "its launch was interrupted, and jobs may be missing"),
        (False, "/h/jobs/1: No space left on device", "failed", "/h/jobs/1: No space left on device"),
    ],
)
def test_a_sweep_has_not_succeeded_before_it_has_all_of_its_jobs(
    home: Path, ended: bool, failure: str | None, state: str, why: str | None
) -> None:
    """The folder of its second job could not be made, or its launch was killed between two jobs."""
    launcher = {**process_facts(), **({"started": 0} if ended else {})}
    run = create_run(new_run_id("nano3", "sweep"), {"kind": "sweep", "launcher": launcher}, [], more_jobs=True)
    job = run.add_job(0, {"config.yaml": "a: 0\n"}, attached=True)
    job.transition("running")
    assert run.state() == "running"
    job.finish(0)
    if failure:
        run.launch_failed(failure)
    watch = Watch(run)
    watch.update(None)
    assert (run.state(), watch.state, watch.over) == (state, state, state == "failed")
    assert (run.summary().state, run.summary().error) == (state, why)
    run.all_jobs_added()
    assert run.state() == "succeeded" and run.summary().error is None


def test_what_killed_launches_and_removals_left_is_collected(make_run: MakeRun, home: Path) -> None:
    root = home / "runs"
    kept, gone = make_run(codes=(0,)), make_run(codes=(0,))
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, here = ended.pid, os.getpid()
    left = {
        f".20261124-171204-a-b-1f03a7.{dead}.0123abcd.tmp": True,
        ".20261124-171204-a-b-1f03a7.0123abcd.tmp": True,  # as they were called once
        f".20261124-171204-a-b-1f03a7.{here}.0123abcd.tmp": False,
        f".{kept.id}.{dead}.0123abcd.removed": True,
        f".{gone.id}.{dead}.0123abcd.removed": True,
        ".somebody-elses": False,
    }
    for run in (kept, gone):
        run.path.rename(root / f".{run.id}.{dead}.0123abcd.removed")
    for name in left:
        (root / name).mkdir(exist_ok=True)
        (root / name / "plan.json").touch()
        os.utime(root / name, (time.time() - 90_000,) * 2)
    (root / f".20261124-171204-a-b-1f03a7.{dead}.99999999.tmp").mkdir()  # of today
    make_run()
    collect_removed(lambda run: ["M:v0"] if run.id == kept.id else [])
    assert {name for name in left if not (root / name).exists()} == {name for name, goes in left.items() if goes}
    assert (root / f".20261124-171204-a-b-1f03a7.{dead}.99999999.tmp").exists()
    assert kept.path.is_dir() and not gone.path.exists()


def test_labels_set_at_the_same_time(make_run: MakeRun) -> None:
    run = make_run()

    def tag(prefix: str) -> None:
        for number in range(8):
            run.label(edit_tags=lambda known, number=number: [*known, f"{prefix}{number}"])

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(tag, "a"), pool.submit(tag, "b"), *(pool.submit(run.label, note="n") for _ in range(8))]
    assert not any(job.exception() for job in jobs)
    assert len(run.labels()["tags"]) == 16 and run.labels()["note"] == "n"
