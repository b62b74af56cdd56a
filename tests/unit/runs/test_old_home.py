"""A home that an older version made (tests/old_home.py says which): every command reads it, and it is gone on with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.artifacts import Artifact, DataBlendsArtifact
from nemotron_kit.cli.main import nemotron
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.ledger import open_run
from nemotron_kit.spec.plan import read_config, read_spec
from nemotron_kit.training import checkpoint

from ...old_home import unpack

Says = Callable[..., str]
# The last digits of each run's id → what `nemotron runs show --json` says of it: state, executor, jobs, exit code.
RUNS = {
    "487456": ("letters write", "succeeded", "local", 1, 0),
    "bf94ac": ("letters write", "succeeded", "local", 1, 0),
    "6a6c90": ("letters count", "succeeded", "local", 1, 0),
    "7096ea": ("letters count", "failed", "local", 1, 1),
    "758286": ("letters write", "succeeded", None, 3, 0),
    "b2223e": ("letters count", "succeeded", "local", 1, 0),
    "349d00": ("letters write", "succeeded", "local", 3, 0),
    "5a185a": ("letters count", "succeeded", "local", 1, 0),
    "268a0b": ("letters count", "succeeded", "docker", 1, 0),
    "4602fb": ("letters count", "succeeded", "slurm", 1, 0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture
def says(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Says]:
    """Run a command in the old launch folder; what it printed."""
    monkeypatch.setenv("NEMOTRON_HOME", str(folder / "home"))
    monkeypatch.chdir(folder / "work")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(line: str, code: int = 0) -> str:
        assert nemotron(line.split()) == code, capsys.readouterr()
        return capsys.readouterr().out

    yield run
    sys.modules.pop("letters", None)


def test_the_list_of_runs(says: Says) -> None:
    rows = json.loads(says("runs --json"))
    found = {
        row["id"][-6:]: (
            f"{row['recipe']} {row['stage']}",
            row["state"],
            row["executor"],
            row["jobs"],
            row["exit_code"],
        )
        for row in rows
    }
    assert found == RUNS
    assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), reverse=True)
    failed = json.loads(says("runs --json --state failed"))
    assert [row["error"] for row in failed] == ["ValueError: 4 words are more than 2"]
    assert says("runs").count("succeeded") == 9


@pytest.mark.parametrize("run", RUNS)
def test_a_run(says: Says, folder: Path, run: str) -> None:
    command, state, executor, jobs, code = RUNS[run]
    shown = json.loads(says(f"runs show {run} --json"))
    assert (shown["state"], shown["executor"], shown["jobs"], shown["exit_code"]) == (state, executor, jobs, code)
    assert {record["state"] for record in shown["job_records"]} == {state}
    # An in-process sweep's plan is what its jobs have in common.
    plan = shown["plan"]
    assert (plan["recipe"], plan["stage"]) == tuple(command.split())
    text = says(f"runs show {run}")
    assert f"nemotron {command}" in text and f"jobs     {jobs}: 3 succeeded" in text if jobs > 1 else "took" in text
    for job in open_run(run).jobs():
        spec, values = read_spec(job.path), read_config(job.path)
        assert (spec.command, spec.handler) == (command, command.replace(" ", ":"))
        assert spec.executor == (executor or "local")
        assert values["run"]["recipe"]["name"] == command.replace(" ", "/")
    inputs = [record["artifacts"]["inputs"] for record in shown["job_records"]]
    assert inputs[0].keys() == ({"data"} if "count" in command else set())


def test_what_jobs_printed(says: Says) -> None:
    assert says("runs logs 5a185a") == "2 words\n"
    assert [says(f"runs logs 349d00 --job {job}") for job in range(3)] == ["Dear Kim,\n", "Dear Lee,\n", "Dear Max,\n"]
    assert says("runs wait 5a185a 349d00 268a0b").count("succeeded") == 3
    says("runs wait 7096ea", code=1)


def test_what_two_runs_differ_in(says: Says) -> None:
    differences = json.loads(says("runs diff 6a6c90 7096ea --json", code=1))["differences"]
    assert differences == {"config": {"limit": {"a": 100, "b": 2}}}
    others = json.loads(says("runs diff 268a0b 4602fb --json", code=1))["differences"]
    assert others["launch"]["executor"] == {"a": "docker", "b": "slurm"}
    assert others["artifacts"]["data"]["b"] == "Letter:v0 sha256 cd23432fc36b"


@pytest.mark.parametrize(("run", "data"), [("7096ea", "Letter:v1"), ("b2223e", "Letter:v4"), ("4602fb", "Letter:v0")])
def test_the_same_anew(says: Says, run: str, data: str) -> None:
    old = json.loads(says(f"runs show {run} --json"))["plan"]
    if old["executor"] == "slurm":
        pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    plan = json.loads(says(f"runs rerun {run} limit=7 --dry-run --json"))
    assert plan["problems"] == [] and plan["rerun_of"].endswith(run)
    same = ("recipe", "stage", "mode", "profile", "executor", "settings", "launch")
    assert {key: plan[key] for key in same} == {key: old[key] for key in same}
    name, _, version = data.partition(":v")
    pin = plan["inputs"]["data"]
    assert (pin["name"], pin["version"]) == (name, int(version)) and pin == old["inputs"]["data"]
    assert plan["config"] == {**old["config"], "limit": 7, "output_dir": plan["config"]["output_dir"], "run": {
        **old["config"]["run"], "data": data}}  # fmt: skip
    assert plan.keys() - {"rerun_of"} >= old.keys() - {"created_at", "code"}


def test_an_input_that_was_not_pinned_yet_is_the_one_that_was_typed(
    tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job that never got to where its inputs are pinned: not the command's default, Letter:latest."""
    home = unpack(tmp_path) / "home"
    monkeypatch.setenv("NEMOTRON_HOME", str(home))
    monkeypatch.chdir(tmp_path / "work")
    run = next(home.glob("runs/*-4602fb"))
    (run / "jobs/0/artifacts.json").write_text('{"inputs": {}, "outputs": []}')
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    plan = json.loads(says("runs rerun 4602fb --dry-run --json"))
    assert (plan["references"], plan["inputs"]["data"]["version"]) == ({"data": "Letter:draft"}, 0)
    assert json.loads(says("runs rerun 4602fb --art.data v3 --dry-run --json"))["references"] == {"data": "v3"}


def test_a_record_of_now_is_composed_of_what_was_composed(
    tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the job's own config has the target's paths, the one of this machine is on record, too."""
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    home, work = unpack(tmp_path) / "home", tmp_path / "work"
    monkeypatch.setenv("NEMOTRON_HOME", str(home))
    monkeypatch.chdir(work)
    first = json.loads(says(f"runs rerun 4602fb output_dir={work}/new --dry-run --json"))
    assert first["config"]["output_dir"] == f"{first['place']['code']}/new"
    assert f"output_dir: {work}/new\n" in first["files"]["composed.yaml"]
    create_run(first["run_id"], first, [first["files"]])
    monkeypatch.setattr("nemotron_kit.spec.paths.RemotePaths.move_back", None)
    again = json.loads(says(f"runs rerun {first['run_id']} limit=8 --dry-run --json"))
    assert again["config"]["output_dir"] == f"{again['place']['code']}/new"
    assert again["config"]["limit"] == 8 and again["inputs"] == first["inputs"]


def test_a_sweep_anew(says: Says) -> None:
    plans, rest = [], says("runs rerun 349d00 --dry-run --json").strip()
    while rest:
        plan, end = json.JSONDecoder().raw_decode(rest)
        plans.append(plan)
        rest = rest[end:].strip()
    assert [plan["config"]["name"] for plan in plans] == ["Kim", "Lee", "Max"]


def test_a_container_anew(says: Says, folder: Path) -> None:
    plan = json.loads(says("runs rerun 268a0b --dry-run --json"))
    assert plan["inputs"]["data"]["path"] == str(folder / "work/letter2")
    assert "--volume=/data:/data" in plan["container"]["words"] and plan["problems"] == []


def test_the_registry(says: Says, folder: Path) -> None:
    names = {row["name"]: row for row in json.loads(says("artifacts --json"))}
    assert names.keys() == {"Letter", "Count"}
    versions = json.loads(says("artifacts Letter --json"))
    assert [row["version"] for row in versions] == list(range(8))
    for name, version in [("Letter", v) for v in range(8)] + [("Count", 1)]:
        shown = json.loads(says(f"artifacts {name}:v{version} --verify --json"))
        assert (shown["name"], shown["version"]) == (name, version)
    assert "1 file read again: as registered" in says("artifacts Letter:draft --verify")
    assert "made from     Letter:v4" in says("artifacts Count:v1")
    says("artifacts gc --dry-run")
    # Another run has written other words there since.
    assert "changed" in says("artifacts Count")


def test_an_artifact_is_loaded_as_what_it_was(says: Says) -> None:
    count: Any = DataBlendsArtifact.from_uri("art://Count:v1")
    assert (count.total_tokens, count.elapsed_sec, count.get_input_uris()) == (2, 0.5, ["art://Letter:v4"])
    letter = Artifact.from_uri("art://Letter:draft")
    assert letter.metadata == {"times": 1} and (Path(letter.path) / "letter.txt").read_text() == "Dear Ada,\n"


def test_a_checkpoint(folder: Path) -> None:
    step = checkpoint.latest(folder / "work/model")
    assert step is not None and step.name == "step-00000002"
    record = checkpoint.read(step, verify=True)
    assert record["step"] == 2 and record["progress"]["loss"] == pytest.approx(2.6717, abs=1e-4)


def test_the_registry_goes_on(tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    home = unpack(tmp_path) / "home"
    monkeypatch.setenv("NEMOTRON_HOME", str(home))
    monkeypatch.chdir(tmp_path / "work")
    same = Artifact(path=tmp_path / "work/letter", metadata={"times": 1})
    same.save(name="Letter")
    assert same.uri == "art://Letter:v0"
    new = tmp_path / "work/new"
    new.mkdir()
    (new / "letter.txt").write_text("Dear Zoe,\n")
    another = Artifact(path=new)
    another.save(name="Letter")
    assert another.uri == "art://Letter:v8"
    says("artifacts Letter:v8 --alias draft")
    assert "Dear Zoe," in (Path(Artifact.from_uri("art://Letter:draft").path) / "letter.txt").read_text()
    assert json.loads(says("artifacts Letter --json"))[-1]["version"] == 8
    says("runs rm 487456 --force")
    assert "487456" not in says("runs")
