"""`nemotron explain`: a field's value, meaning and every layer that sets it; what differs between two configs."""

import json
import sys
from pathlib import Path

import pytest

from nemotron_kit.cli.tools import run
from nemotron_kit.errors import UserError

APP = """
from dataclasses import dataclass, field
from pathlib import Path
from nemotron.kit import App, ArtifactInput

@dataclass
class Optimizer:
    lr: float = 1e-3
    \"\"\"Peak learning rate\"\"\"

@dataclass
class Config:
    optimizer: Optimizer = field(default_factory=Optimizer)
    steps: int = 10
    folder: str = "out"
    api_key: str = "${secret:EXPLAIN_KEY}"
    where: Path = Path("data")

def work(cfg: Config) -> None: ...

app = App("explained", description="For a test")
app.command("work", Config, work, description="Works")
app.pipeline("all", stages=["work"])

@dataclass
class Fed:
    data: Path

app.command("fed", Fed, work, artifacts={"input": ArtifactInput("Some:latest", mappings={"path": "data"})})
"""
BASE = "steps: 20\nfolder: ${oc.env:EXPLAIN_WHERE}/${steps}\n"
BIG = "defaults: [default, optimizer: slow, _self_]\n\nsteps: 40\n"
SLOW = "lr: 1e-4\n"


@pytest.fixture
def recipe(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(sys.modules, "explained", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = project / "explained"
    (folder / "config/optimizer").mkdir(parents=True)
    (folder / "__init__.py").write_text(APP)
    (folder / "config/default.yaml").write_text(BASE)
    (folder / "config/big.yaml").write_text(BIG)
    (folder / "config/optimizer/slow.yaml").write_text(SLOW)
    (project / "env.toml").write_text('[cli]\nrecipes = ["explained"]\n[two]\nexecutor = "local"\nnproc_per_node = 2\n')
    monkeypatch.setenv("EXPLAIN_WHERE", "/data")
    monkeypatch.setenv("EXPLAIN_KEY", "not-to-be-shown-1234")
    return folder


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    assert run("explain", ["--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_groups_choice_is_a_layer_and_no_value(recipe, capsys):
    (lr,) = explained(capsys, "optimizer.lr", "explained", "work", "optimizer=slow")
    assert [(layer["source"].rpartition("/")[2], layer["value"]) for layer in lr["layers"]] == [
        ("Config", 1e-3),
        ("slow.yaml:1", 1e-4),
    ]


def test_every_layer_that_sets_a_field(recipe, capsys):
    (lr,) = explained(capsys, "optimizer.lr", "explained", "work", "-c", "big", "optimizer.lr=2e-4")
    assert lr["value"] == 2e-4 and lr["type"] == "float"
    assert [layer["source"] for layer in lr["layers"]] == [
        "Config",
        f"{recipe}/config/optimizer/slow.yaml:1",
        "command line",
    ]
    assert [layer["value"] for layer in lr["layers"]] == [1e-3, 1e-4, "optimizer.lr=2e-4"]
    (steps,) = explained(capsys, "steps", "explained", "work", "-c", "big")
    assert [layer["source"].partition("config/")[2] for layer in steps["layers"]] == [
        "",
        "default.yaml:1",
        "big.yaml:3",
    ]
    assert steps["value"] == 40


def test_an_interpolation_a_profile_and_a_secret(recipe, capsys):
    folder, key, where = explained(capsys, "folder", "api_key", "where", "explained", "work")
    assert where["value"] == where["layers"][0]["value"] == "data"  # a path is a text in JSON
    assert (folder["raw"], folder["value"]) == ("${oc.env:EXPLAIN_WHERE}/${steps}", "/data/20")
    assert key["value"] == "${secret:EXPLAIN_KEY}" and "not-to-be-shown" not in json.dumps(key)
    (processes,) = explained(
        capsys, "run.env.nproc_per_node", "explained", "work", "--run", "two", "--run.nproc-per-node", "3"
    )
    assert processes["value"] == 3
    assert [layer["source"].partition(",")[0] for layer in processes["layers"]] == ["profile two", "command line"]


def test_the_section_run(recipe, capsys):
    found = {each["field"]: each for each in explained(capsys, "run", "nemotron", "explained", "work", "--run", "two")}
    assert found["run.profile"]["layers"] == [
        {"source": "nemotron_kit", "value": None},
        {"source": "command line", "value": "--run two"},
    ]
    assert "run.env" not in found and found["run.env.nproc_per_node"]["value"] == 2
    assert explained(capsys, "run.env.partition", "explained", "work")[0]["value"] is None  # a field that nothing sets


def test_a_field_that_an_artifact_fills(recipe, capsys):
    (data,) = explained(capsys, "data", "explained", "fed")
    assert [layer["source"] for layer in data["layers"]] == ["artifact input (--art.input)"]


def test_without_a_field_what_is_set_and_with_two_configs_what_differs(recipe, capsys):
    assert [each["field"] for each in explained(capsys, "explained", "work")] == ["steps", "folder"]
    rows = explained(capsys, "explained", "work", "-c", "default", "-c", "big")
    assert explained(capsys, "explained", "work", "-cdefault", "--config=big", "--json") == rows
    assert [(row["field"], row["default"], row["big"]) for row in rows] == [
        ("optimizer.lr", "0.001", "0.0001"),
        ("steps", "20", "40"),
        ("folder", "/data/20", "/data/40"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["lr", "explained", "work"], "no field 'lr'", "optimizer.lr"),
        (["stepps", "explained", "work"], "no field 'stepps'", "steps"),
        (["explained", "work", "steps"], "no further argument: 'steps'", "fields to explain come before the recipe"),
        (["steps"], "no command line", "For instance"),
        (["explained", "wrok"], "no command 'wrok'", "work"),
        (["explained", "work", "-m", "steps=1,2"], "-m makes several", "Leave -m out"),
        (["explained", "all"], "explained all is a pipeline", "explain explained work"),
    ],
)
def test_mistakes(recipe, arguments, message, hint):
    with pytest.raises(UserError, match=message) as error:
        run("explain", arguments)
    assert hint in (error.value.hint or "")
