"""Jobs composed of what is on record: the command as it is now, the recorded values, and overrides on top."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from nemotron_kit.app import App, ArtifactInput
from nemotron_kit.cli.main import run_app
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import UserError
from nemotron_kit.home import runs_root
from nemotron_kit.sweep.compose_jobs import ConfigRecord, RecordComposer
from nemotron_kit.sweep.recipe_task import RecipeTask, enter_reading_fixes


@dataclass
class Train:
    iters: int = 10
    rates: dict[str, float] = field(default_factory=lambda: {"a": 0.1, "b": 0.2})


@dataclass
class Config:
    out: Path
    train: Train = field(default_factory=Train)
    more: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def composer(tmp_path: Path) -> RecordComposer:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "default.yaml").write_text("train: {iters: 99}\nmore: {read: too}\n")
    app = App("demo")
    app.command("train", Config, print, config_dir=tmp_path / "config")
    return RecordComposer(Tree(apps={"demo": app}), EnvFile())


def record(folder: Path, values: str, **fields: Any) -> ConfigRecord:
    (folder / "config.yaml").write_text(values)
    return ConfigRecord("demo", "train", "small", folder / "config.yaml", yaml.safe_load(values), **fields)


def test_each_job_has_its_own_values_and_no_config_file_is_read(composer: RecordComposer, tmp_path: Path) -> None:
    texts = ("out: /a\ntrain: {iters: 1}\n", "out: /b\nmore: {x: [1, {y: null}]}\n")
    first = composer.compose(record(tmp_path, texts[0]), ["train.rates.a=0.5", "+more.z=2"])
    second = composer.compose(record(tmp_path, texts[1]), [])
    assert (str(first.config.out), first.config.train.iters, first.config.more) == ("/a", 1, {"z": 2})
    assert (second.config.train.iters, second.config.train.rates.a) == (10, 0.1)
    assert second.config.more == {"x": [1, {"y": None}]}
    assert (second.config_name, second.hydra.runtime.choices.config) == ("small", "small")
    assert list(first.hydra.overrides.task)[-2:] == ["train.rates.a=0.5", "+more.z=2"]


def test_what_was_added_and_deleted_is_so_again(composer: RecordComposer, tmp_path: Path) -> None:
    text = "out: /a\ntrain: {iters: 1, rates: {a: 1.0}, seed: 3}\nmine: {own: [1, 2]}\n"
    added = {"added": ["train.seed", "mine.own", "gone.long.since"], "deleted": ["~train.rates.b"]}
    config = composer.compose(record(tmp_path, text, **added), ["train.seed=4"]).config
    assert (config.train.seed, config.mine.own, dict(config.train.rates)) == (4, [1, 2], {"a": 1.0})


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (
            "out: /a\ntrain:\n  itres: 1\n",
            [],
            r"train.itres: `demo train` has no such field \(given in .*config.yaml:3",
        ),
        ("out: /a\nold: 1\n", [], r"old: `demo train` has no such field \(given in .*config.yaml:2"),
        ("out: /a\ntrain: {iters: many}\n", [], r"train.iters: expected int, got 'many' \(given in .*config.yaml:2"),
        ("out: /a\n", ["train.itres=1"], r"train.itres: `demo train` has no such field \(given on the command line"),
        ("out: /a\n", ["train.iters=many"], r"train.iters: expected int, got 'many' \(given in train.iters=many"),
        ("out: /a\n", ["train.iters=1,2"], "Ambiguous value for argument"),
        ("out: /a\n", ["train.iters=[1"], "grammar can't read the value"),
    ],
)
def test_what_does_not_fit_now(
    composer: RecordComposer, tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        composer.compose(record(tmp_path, text), overrides)


def test_a_program_of_its_own_is_sent_to_no_process_that_would_not_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As submitit would: its jobs would end with "No recipe is called 'alone'", after they were submitted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nemotron_kit.discovery._in_use", [Tree(apps={"alone": App("alone")})])
    with pytest.raises(UserError, match="can't find the recipe 'alone'"):
        pickle.dumps(RecipeTask(tmp_path, ["alone.py"]))
    monkeypatch.setattr("nemotron_kit.discovery._in_use", [])
    assert pickle.dumps(RecipeTask(tmp_path, []))


@pytest.mark.parametrize("launcher", ["basic", "nemo_run"])
@pytest.mark.parametrize(
    ("word", "why"), [("train.nope=1,2", "no such field"), ("run.data=None:v1,None:v2", "No artifact is called 'None'")]
)
def test_a_refused_sweep_names_no_run(
    project: Path, launcher: str, word: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    app = App("demo")
    app.command("train", Config, print, artifacts={"data": ArtifactInput("Data", mappings={"path": "out"})})
    assert run_app(app, ["train", "-m", f"hydra/launcher={launcher}", word]) == 2
    said = "".join(capfd.readouterr())
    assert why in said and "a sweep over" not in said and "demo-train-" not in said and not list(runs_root().glob("*"))


def test_a_handler_that_cannot_be_imported_leaves_no_run_of_a_sweep(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def load_handler(_: object) -> object:
        raise UserError("train.py has no 'main'.")

    app = App("demo")
    app.command("train", Config, print)
    monkeypatch.setattr("nemotron_kit.app.Command.load_handler", load_handler)
    assert run_app(app, ["train", "-m", "out=a,b"]) == 2
    assert "error: train.py has no 'main'." in capfd.readouterr().err and not list(runs_root().glob("*"))


def test_a_sweep_is_announced_once_and_by_the_launching_process(tmp_path: Path) -> None:
    said: list[str] = []
    task = RecipeTask(tmp_path, [], announce=lambda: said.append("begun"))
    assert not task.begun
    update = OmegaConf.update
    copy = pickle.loads(pickle.dumps(task))  # noqa: S301
    with enter_reading_fixes():  # the other process composes with them from now on; here they end
        assert OmegaConf.update is not update
    enter_reading_fixes.cache_clear()
    assert OmegaConf.update is update
    task.begin()
    copy.begin()
    assert said == ["begun"] and task.begun and copy.begun
