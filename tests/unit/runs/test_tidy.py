"""`nemotron runs rm|du` of many runs, and `nemotron artifacts rm|du`: what goes, what stays and why."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from nemotron.kit import Artifact

from nemotron_kit.artifacts.lineage import given_inputs
from nemotron_kit.artifacts.reference import ArtifactNotFoundError
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.cli.tools import run as tool
from nemotron_kit.errors import UserError
from nemotron_kit.runs.ledger import list_runs

from .conftest import MakeRun

DAY = timedelta(days=1)


def saved(folder: Path, name: str, text: str, **inputs: str) -> None:
    """Save `folder` as the next version of `name`, made from `inputs`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.txt").write_text(text)
    with given_inputs({slot: open_registry().resolve(reference) for slot, reference in inputs.items()}):
        Artifact(path=folder).save(name=name)


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], list[str]]:
    """The ids that went, and those that stay."""
    assert tool("runs", ["rm", "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    return [row["run"] for row in found["removed"]], [row["run"] for row in found["left"]]


def test_runs_that_match(make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    old, failed, new = (
        make_run(age=40 * DAY, codes=(0,)),
        make_run(age=35 * DAY, codes=(1,)),
        make_run(age=DAY, codes=(0,)),
    )
    going, holds = make_run(age=50 * DAY), make_run(age=45 * DAY, codes=(0,))
    going.job().transition("running")
    saved(holds.path / "jobs/0/model", "Model", "weights")

    assert report(capsys, "--older-than", "30d", "--state", "failed", "--dry-run") == ([failed.id], [])
    assert report(capsys, "--older-than", "30d", "--keep", "4", "--dry-run") == ([], [going.id])
    assert report(capsys, "--older-than", "30d") == ([old.id, failed.id], [going.id, holds.id])
    assert {each.id for each in list_runs()} == {new.id, going.id, holds.id}
    # What is named is an error instead, and with its version it goes.
    with pytest.raises(UserError, match="holds the files of Model:v0"):
        tool("runs", ["rm", holds.id])
    assert report(capsys, holds.id, "--with-artifacts") == ([holds.id], [])
    with pytest.raises(ArtifactNotFoundError):
        open_registry().resolve("Model:v0")
    with pytest.raises(UserError, match="no ID and no filter"):
        tool("runs", ["rm", "--dry-run"])
    with pytest.raises(UserError, match="either IDs or filters"):
        tool("runs", ["rm", new.id, "--older-than", "1d"])


def test_a_run_stays_with_a_version_that_others_were_made_from(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = make_run(codes=(0,))
    saved(run.path / "jobs/0/data", "Data", "text")
    saved(tmp_path / "model", "Model", "weights", data="Data:v0")
    with pytest.raises(UserError, match="Model:v0 was made from Data:v0"):
        tool("runs", ["rm", run.id, "--with-artifacts"])
    assert open_registry().resolve("Data:v0") and run.path.exists()


def test_a_run_stays_with_a_version_whose_record_is_damaged(make_run: MakeRun) -> None:
    run = make_run(codes=(0,))
    saved(run.path / "jobs/0/data", "Data", "text")
    (record,) = open_registry().root.glob("Data/v0/*.json")
    record.chmod(0o644)
    record.write_text(record.read_text()[:-20])
    with pytest.raises(UserError, match=r"holds the files of Data:v0 \(its record is damaged\)"):
        tool("runs", ["rm", run.id, "--with-artifacts"])
    assert run.path.exists()


def test_a_version_that_is_removed_leaves_its_number_and_its_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved(tmp_path / "a", "Data", "one")
    saved(tmp_path / "b", "Data", "two")
    open_registry().set_alias("Data", "good", 1)
    saved(tmp_path / "model", "Model", "weights", data="Data:v0")
    for reference, why in (("Data:v0", "Model:v0 was made from Data:v0"), ("Data:good", "alias good names Data:v1")):
        with pytest.raises(UserError, match=why):
            tool("artifacts", ["rm", reference])
    with pytest.raises(UserError, match="is a name, not one version"):
        tool("artifacts", ["rm", "Data"])
    assert tool("artifacts", ["rm", "Data:v1", "--dry-run", "--force"]) == 0 and open_registry().resolve("Data:v1")
    assert tool("artifacts", ["rm", "Data:v1", "--force"]) == 0
    assert (tmp_path / "b/data.txt").read_text() == "two" and open_registry().aliases("Data") == {}
    saved(tmp_path / "b", "Data", "two")
    assert open_registry().versions("Data") == [0, 2]
    # The model and what it was made from go together; with the files, and what else lies there stays.
    (tmp_path / "a/mine.txt").write_text("not registered")
    assert tool("artifacts", ["rm", "Data:v0", "Model:v0", "--files"]) == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine.txt"] and not (tmp_path / "model").exists()


def test_files_of_another_version_are_not_deleted(tmp_path: Path) -> None:
    saved(tmp_path / "a", "Data", "one")
    saved(tmp_path / "a", "Data", "two")
    with pytest.raises(UserError, match="The files of Data:v1 are those of Data:v0, too"):
        tool("artifacts", ["rm", "Data:v1", "--files"])
    assert (tmp_path / "a/data.txt").read_text() == "two"


def test_sizes(make_run: MakeRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small, large = make_run(codes=(0,)), make_run(codes=(0,))
    (large.path / "jobs/0/weights").write_bytes(bytes(100_000))
    assert tool("runs", ["du", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in rows] == [large.id, small.id] and rows[0]["bytes"] > 100_000
    saved(tmp_path / "a", "Data", "12345")
    saved(tmp_path / "b", "Data", "123")
    assert tool("artifacts", ["du", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "Data", "versions": 2, "files": 2, "bytes": 8}]
