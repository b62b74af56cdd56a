"""A pipeline of a user's own app: order, what is skipped and why, one record, a chain of detached runs."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.app import App
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.cli.main import nemotron, run_app
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.ledger import list_runs, open_run

APP = """
import json, os
from dataclasses import dataclass
from pathlib import Path

from nemotron_kit import App, Artifact, ArtifactInput
from trio_numbers import numbers


@dataclass
class MakeConfig:
    n: int = 3
    listed: Path | None = None
    stranger: bool = False
    tasks: int | None = None
    task: int | None = None
    step: str | None = None
    output_dir: str = "out"


@dataclass
class SumConfig:
    numbers: Path
    scale: int = 1
    fail: bool = False


@dataclass
class SayConfig:
    total: Path


def save(name, content):
    folder = Path(os.environ["NEMO_RUN_DIR"]) / name
    folder.mkdir(exist_ok=True)
    (folder / "value.json").write_text(json.dumps(content))
    Artifact(path=folder).save(name=name)


def make(cfg: MakeConfig) -> None:
    save("Trio-numbers-" + os.environ["NEMOTRON_CONFIG_NAME"], numbers(cfg.n))
    if cfg.stranger:
        run = os.environ.pop("NEMOTRON_RUN_ID")
        own = os.environ["NEMO_RUN_DIR"]
        os.environ["NEMO_RUN_DIR"] = own + "/elsewhere"
        (Path(own) / "elsewhere").mkdir()
        save("Trio-numbers-" + os.environ["NEMOTRON_CONFIG_NAME"], [1000])
        os.environ.update(NEMO_RUN_DIR=own, NEMOTRON_RUN_ID=run)


def total(cfg: SumConfig) -> None:
    if cfg.fail:
        raise ValueError("asked to fail")
    save("Trio-total", cfg.scale * sum(json.loads((cfg.numbers / "value.json").read_text())))


def say(cfg: SayConfig) -> None:
    print("the total is", (cfg.total / "value.json").read_text())
    save("Trio-said", (cfg.total / "value.json").read_text())


app = App("trio", description="Three stages")
app.command("say", SayConfig, say, produces=["Trio-said"],
            artifacts={"total": ArtifactInput("Trio-total:latest", mappings={"path": "total"})})
app.group("data").command("make-it", MakeConfig, make, produces=["Trio-numbers-{config}"], array=True)
app.command("sum", SumConfig, total, produces=["Trio-total"],
            artifacts={"numbers": ArtifactInput("Trio-numbers-default:latest", mappings={"path": "numbers"})})
app.pipeline("pipeline", stages=["say", "data make-it", "sum"])
"""
CONFIGS = {"default": "n: 3\n", "tiny": "n: 2\n"}


@dataclass
class World:
    folder: Path
    app: App
    said: Callable[[], Any]

    def run(self, *words: str) -> tuple[int, str, str]:
        """(exit code, what it printed, what it said) of `trio pipeline WORDS`."""
        self.said()
        code = run_app(self.app, ["pipeline", *words])
        out, err = self.said()
        return code, out, err

    def tool(self, *words: str) -> str:
        self.said()
        nemotron(list(words))
        out: str = self.said()[0]
        return out

    @property
    def newest(self) -> RunFolder:
        return RunFolder(self.folder / "home" / "runs" / list_runs(stage="pipeline", limit=1)[0].id)

    def decisions(self) -> list[tuple[str, bool]]:
        return [(record["stage"], bool(record.get("skipped"))) for record in self.newest.stages()]


@pytest.fixture
def world(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "code"
    (code / "config").mkdir(parents=True)
    (code / "trio.py").write_text(APP)
    (code / "trio_numbers.py").write_text("def numbers(n):\n    return list(range(n + 1))\n")
    (tmp_path / "env.toml").write_text('[here]\nexecutor = "local"\n')
    for name, text in CONFIGS.items():
        (code / "config" / f"{name}.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(code))
    yield World(tmp_path, importlib.import_module("trio").app, capfd.readouterr)
    for name in ("trio", "trio_numbers"):
        sys.modules.pop(name)


def value(reference: str) -> Any:
    return json.loads((Path(open_registry().resolve(reference).path) / "value.json").read_text())


def test_stages_run_in_the_order_of_their_artifacts_and_once(world: World) -> None:
    code, out, err = world.run()
    assert (code, out) == (0, "the total is 6\n"), err
    assert open_run("latest").id == world.newest.id and list_runs()[0].id != world.newest.id
    assert nemotron(["runs", "attach", "latest"]) == 2
    assert "whose stages are runs" in world.said()[1]
    assert world.decisions() == [("data/make-it", False), ("sum", False), ("say", False)]
    assert world.run("--dry-run", "--json")[0] == 0
    _, out, _ = world.run("--dry-run", "data.make-it.tasks=4")
    assert out.count("note: one job does all of its work: a pipeline submits no array of 4 tasks\n") == 1
    code, out, err = world.run()
    assert (code, out) == (0, "") and "nothing to do" in err
    assert "sum skipped: unchanged since" in err and "Trio-total:v0" in err
    assert world.decisions() == [("data/make-it", True), ("sum", True), ("say", True)]
    # One record of all; each stage's run is a run like any other.
    shown = json.loads(world.tool("runs", "show", world.newest.id, "--json"))
    assert shown["state"] == "succeeded" and [row["state"] for row in shown["stages"]] == ["skipped"] * 3
    one = json.loads(world.tool("runs", "show", f"{world.newest.id}/1", "--json"))
    assert one["stage"] == "sum" and one["plan"]["part_of"] == list_runs(stage="pipeline")[1].id
    assert len(list_runs()) == 5


def test_a_stage_runs_again_for_what_has_changed_and_says_what(world: World) -> None:
    (world.folder / "blend.json").write_text('{"datasets": ["words.txt"]}')
    (world.folder / "words.txt").write_text("a")
    listed = "data.make-it.listed=blend.json"
    assert world.run(listed)[0] == 0
    code, _, err = world.run(listed, "sum.scale=2")
    assert (
        code == 0 and "sum runs: scale 1 → 2\n" in err and "say runs: input total: Trio-total:v0 → Trio-total:v1" in err
    )
    assert value("Trio-said:latest") == "12"
    # What it had been before is still known.
    assert "say skipped" in world.run(listed)[2]
    (world.folder / "words.txt").write_text("b")
    code, _, err = world.run(listed)
    assert f"make-it runs: {world.folder / 'words.txt'} changed" in err and "sum skipped" in err
    # Code that the handler's module imports is the stage's code.
    helper = world.folder / "code" / "trio_numbers.py"
    helper.write_text(f"{helper.read_text()}# changed\n")
    _, _, err = world.run(listed, "--dry-run")
    (world.folder / "out").write_text(err)
    assert f"runs: code: {helper} changed" in world.run(listed)[2]
    saved = Path(open_registry().resolve("Trio-total:v0").path)
    (saved / "value.json").write_text("99")
    code, _, err = world.run(listed)
    assert code == 0 and "sum runs: " in err and "Trio-total:v0" in err.partition("sum runs: ")[2]


def test_the_first_failure_ends_it_and_the_same_line_goes_on_there(world: World) -> None:
    code, _, err = world.run("sum.fail=true")
    assert code == 1 and "stopped at sum; the same command continues there\n" in err
    assert world.newest.summary().state == "failed" and world.newest.summary().error == "sum: ValueError: asked to fail"
    assert world.decisions() == [("data/make-it", False), ("sum", False)]
    code, out, err = world.run()
    assert (code, out) == (0, "the total is 6\n") and "sum runs: it did not succeed in" in err
    assert [skipped for _, skipped in world.decisions()] == [True, False, False]
    code, _, err = world.run("sum.fail=true", "--force", "data.make-it")
    assert code == 1 and "stopped at sum; the same command first runs data make-it again" in err


def test_who_saves_the_same_name_meanwhile_changes_nothing(world: World) -> None:
    code, out, _ = world.run("data.make-it.stranger=true")
    assert (code, out) == (0, "the total is 6\n")
    assert value("Trio-numbers-default:latest") == [1000]
    # Nor does it for a part of the pipeline: what this pipeline saved last is read.
    code, out, err = world.run("--from", "sum", "--force", "sum", "--force", "say")
    assert (code, out) == (0, "the total is 6\n"), err
    # A reference on the command line is meant.
    assert world.run("--from", "sum", "sum.run.numbers=Trio-numbers-default:latest")[1] == "the total is 1000\n"


def test_a_dry_run_shows_the_graph_and_writes_nothing(world: World) -> None:
    code, out, _ = world.run("--dry-run", "--json", "sum.scale=3")
    graph = json.loads(out)
    assert code == 0 and not (world.folder / "home" / "runs").exists()
    assert graph["hydra"] == "python -m nemotron_kit recipe=trio stage=pipeline sum.scale=3"
    assert [(row["stage"], row["decision"], row["problems"]) for row in graph["stages"]] == [
        ("data/make-it", "run", []),
        ("sum", "run", []),
        ("say", "run", []),
    ]
    wired = {"reference": "Trio-numbers-default:latest", "from": "data/make-it", "version": None}
    assert graph["stages"][1]["inputs"] == {"numbers": wired}
    # With another config for the maker only, nobody saves what is read: said before anything starts.
    code, _, err = world.run("-c", "tiny")
    assert code == 2 and "sum: numbers: No artifact is called 'Trio-numbers-default'" in err
    assert not (world.folder / "home" / "runs").exists()
    assert world.run("-c", "tiny", "sum.run.numbers=Trio-numbers-tiny:latest")[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scale=2"], "Name the stage: sum.scale=2."),
        (["smu.scale=2"], "Did you mean sum?"),
        (["sum.scal=2"], "Did you mean scale? Add a new one with +sum.scal=…"),
        (["data.mak-it.n=2"], "Did you mean data.make-it?"),
        (["--from", "sumn"], "--from: trio pipeline has no stage 'sumn'.\nDid you mean sum?"),
        (["--from", "say", "--to", "sum"], "--from say --to sum: say comes after sum."),
        (["--only", "sum", "--to", "sum"], "--only leaves nothing"),
        (["--only", "sum", "--force", "say"], "--force say: that stage is not among those that run."),
        (["--only", "sum", "data.make-it.n=3"], "data.make-it.n=3: data.make-it is not among the stages that run."),
        (["--only", "sum", "+data.make-it.n=3"], "error: +data.make-it.n=3: data.make-it is not among the stages that"),
        (["only="], "--only names no stage.\nGive one of"),
        (["-c", "tyni"], "has a config 'tyni'.\nThere is: default, tiny."),
        (["--cfg", "job"], "--cfg can't be used with a pipeline.\n"),
        (["-m", "sum.scale=1,2"], "--multirun can't be used with a pipeline."),
    ],
)
def test_wrong_words(world: World, words: list[str], said: str) -> None:
    code, _, err = world.run(*words)
    assert code == 2 and said in err


def test_a_chain_of_detached_runs_decides_again_where_each_starts(world: World) -> None:
    assert world.run()[0] == 0
    code, _, err = world.run("--batch", "here", "--force", "data make-it")
    assert code == 0 and "3 stages submitted" in err
    chain = world.newest
    assert nemotron(["runs", "wait", chain.id]) == 0
    shown = json.loads(world.tool("runs", "show", chain.id, "--json"))
    assert [row["state"] for row in shown["stages"]] == ["succeeded", "skipped", "skipped"]
    assert [pin["version"] for row in shown["stages"] for pin in row["outputs"]] == [0, 0, 0]
    # What it handed on is what it saved: the next one may refer to that.
    assert open_registry().resolve(f"Trio-said@run:{shown['stages'][2]['run']}").label == "Trio-said:v0"
    code, _, err = world.run("--batch", "here", "sum.fail=true")
    assert nemotron(["runs", "wait", world.newest.id]) == 1
    # Not the newest run of this stage: of two that begin in one second, either may be it.
    stages = json.loads(world.tool("runs", "show", world.newest.id, "--json"))["stages"]
    # The last stage is not submitted where the one before it had failed by then.
    assert [row["state"] for row in stages[1:]] in (["failed", "failed"], ["failed", "not started"])
    assert world.newest.summary().error == "sum: ValueError: asked to fail"
