"""A NEMOTRON_HOME that was moved, or is of an older version: every command, and every job, finds what lies in it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.artifacts import Artifact
from nemotron_kit.cli.main import nemotron
from nemotron_kit.runs.ledger import open_run
from nemotron_kit.spec.plan import read_config, read_spec, stored_plan

from ..old_home import move_home, unpack

Says = Callable[..., str]
RECIPE = """
import json, os
from dataclasses import dataclass
from pathlib import Path
from nemotron_kit import App, Artifact, ArtifactInput

@dataclass
class WriteConfig:
    text: str = "to be or not"
    where: str = "${oc.env:NEMO_RUN_DIR}/words"

@dataclass
class CountConfig:
    words: str
    at_least: int = 1
    where: str = "${oc.env:NEMO_RUN_DIR}/count"
    note: str = ""

def write(cfg: WriteConfig) -> None:
    Path(cfg.where).mkdir()
    Path(cfg.where, "words.txt").write_text(cfg.text)
    Artifact(path=Path(cfg.where), metadata={"file": f"{cfg.where}/words.txt"}).save(name="Words")

def count(cfg: CountConfig) -> float:
    found = len(Path(cfg.words).read_text().split())
    Path(cfg.where).mkdir(exist_ok=True)
    Path(cfg.where, "count.json").write_text(json.dumps([found, cfg.at_least]))
    Artifact(path=Path(cfg.where)).save(name="Count")
    if Path(cfg.note or "none").exists():
        raise ValueError(cfg.note)
    return float(found)

app = App("letters")
app.command("write", WriteConfig, write, produces=["Words"])
app.command("count", CountConfig, count, produces=["Count"],
    artifacts={"words": ArtifactInput(default_name="Words:latest", mappings={"file": "words"})})
app.pipeline("all", stages=["write", "count"])
"""


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Says]:
    """Run a command in the launch folder; what it printed."""
    work = tmp_path / "work"
    (work / "letters").mkdir(parents=True)
    (work / "letters/__init__.py").write_text(RECIPE)
    (work / "env.toml").write_text('[cli]\nrecipes = ["letters"]\n')
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(work)

    def run(line: str, code: int = 0) -> str:
        monkeypatch.chdir(work)
        capfd.readouterr()
        got = nemotron(line.split())
        assert got == code, "\n".join(capfd.readouterr())
        out, err = capfd.readouterr()
        return out if out and not code else out + err

    yield run
    sys.modules.pop("letters", None)


def versions(says: Says, name: str) -> list[dict[str, Any]]:
    return json.loads(says(f"artifacts {name} --json"))  # type: ignore[no-any-return]


def test_everything_is_found_where_it_is_now(tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "home"
    says("letters all")
    says("letters count -m at_least=1,2")
    (tmp_path / "home/stop").write_text("stop")
    says(f"letters count at_least=3 note={old}/stop", code=1)
    before = {name: versions(says, name) for name in ("Words", "Count")}
    runs = {row["id"]: row for row in json.loads(says("runs --json"))}
    failed = next(run for run, row in runs.items() if row["state"] == "failed")
    sweep = next(run for run, row in runs.items() if row["jobs"] == 2)

    home = move_home(tmp_path, monkeypatch)
    for name, rows in before.items():
        assert versions(says, name) == json.loads(json.dumps(rows).replace(str(old), str(home)))
        assert json.loads(says(f"artifacts {name}:latest --verify --json"))["verified"]
    assert {row["id"]: row["state"] for row in json.loads(says("runs --json"))} == {
        run: row["state"] for run, row in runs.items()
    }
    for run in runs:
        shown = json.loads(says(f"runs show {run} --json"))
        pins = [record["artifacts"] for record in shown.get("job_records", ())]
        assert str(old) not in json.dumps([shown["plan"], pins])
        assert not stored_plan(open_run(run)).has_separate_folder
    assert "at_least" in says(f"runs show {sweep}") and "job 1: succeeded" in says(f"runs logs {sweep}")
    # Lineage, an artifact by its name, a pipeline that has nothing to do, a job anew and one that goes on.
    (words,) = Artifact.from_uri("art://Count:v1").get_input_uris()
    assert words == "art://Words:v0" and Path(Artifact.from_uri(words).metadata["file"]).read_text() == "to be or not"
    assert "nothing to do" in says("letters all")
    plan = json.loads(says(f"runs rerun {failed} --dry-run --json"))
    assert plan["problems"] == [] and plan["config"]["note"] == f"{home}/stop"
    assert plan["inputs"]["words"]["path"].startswith(str(home))
    (home / "stop").unlink()
    assert "succeeded" in says(f"runs resume {failed}")
    says("letters count at_least=4")
    assert len(versions(says, "Count")) == 4
    # Its files lie in it still.
    whole = next(run for run, row in runs.items() if row["stage"] == "write")
    assert "holds the files of Words:v0" in says(f"runs rm {whole}", code=2)
    assert not (tmp_path / "home").exists()


def test_an_input_that_was_relocated(tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that goes on reads it where it is now; so do a job anew and a pipeline that is skipped."""
    says(f"letters write where={tmp_path}/outside")
    (tmp_path / "stop").write_text("stop")
    says(f"letters count note={tmp_path}/stop", code=1)
    (failed,) = (row["id"] for row in json.loads(says("runs --json")) if row["state"] == "failed")
    (tmp_path / "outside").rename(tmp_path / "new")
    (tmp_path / "stop").unlink()
    assert "was removed" not in says(f"artifacts relocate {tmp_path}/outside {tmp_path}/new")
    assert "succeeded" in says(f"runs resume {failed}")
    assert json.loads(says(f"runs show {failed} --json"))["job_records"][0]["artifacts"]["inputs"]["words"]["path"] == (
        f"{tmp_path}/new"
    )
    assert json.loads(says(f"runs rerun {failed} --dry-run --json"))["inputs"]["words"]["path"] == f"{tmp_path}/new"


def test_it_is_moved_again_and_back(tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    says("letters all")
    first = versions(says, "Count")
    home = move_home(tmp_path, monkeypatch)
    says("letters count at_least=2")
    home.rename(tmp_path / "home")
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "home"))
    assert versions(says, "Count")[0] == first[0] and versions(says, "Count")[1]["files"] == "whole"
    # A copy reads its own files, and not the first ones.
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "copy"))
    (found,) = (row["path"] for row in versions(says, "Words"))
    assert found.startswith(f"{tmp_path}/copy/") and versions(says, "Words")[0]["files"] == "whole"


def test_a_home_of_an_older_version(tmp_path: Path, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    was = unpack(tmp_path / "old")
    (was / "home").rename(tmp_path / "home")
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / "home"))
    for run in (path.name for path in (tmp_path / "home/runs").iterdir() if path.name[0] != "."):
        plan, record = json.loads(says(f"runs show {run} --json"))["plan"], open_run(run)
        if plan.get("executor") == "local" and "place" in plan:
            assert plan["place"]["run"] == str(record.path)
            for job in record.jobs():
                assert read_spec(job.path).environment["NEMO_RUN_DIR"] == str(job.path)
        assert read_config(record.job().path)["run"]
