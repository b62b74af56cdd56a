"""What a config file from an untrusted place may not say, and who is not from elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.app import App, Command
from nemotron_kit.config.compose import compose
from nemotron_kit.config.foreign import is_trusted, permitted
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import UserError
from nemotron_kit.launch.placing import resolve_job

ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")


@dataclass
class Config:
    n: int = 1
    part: dict[str, Any] = field(default_factory=dict)
    kind: str = "demo.parts.Usual"


class World:
    """A recipe with a config folder, a project that is this user's, and a folder elsewhere."""

    def __init__(self, root: Path) -> None:
        self.recipe, self.project, self.elsewhere = root / "recipe", root / "project", root / "elsewhere"
        for folder in (self.recipe / "config", self.project / "sub", self.elsewhere):
            folder.mkdir(parents=True)
        (self.project / "pyproject.toml").touch()
        (self.recipe / "config/default.yaml").write_text("part: {_target_: demo.parts.Own}\n")
        (self.recipe / "config/filled.yaml").write_text("part: {_target_: '${kind}'}\n")
        self.app = App("demo")
        self.command: Command = self.app.command(
            "go", Config, print, config_dir=self.recipe / "config", targets=["demo.parts.Registered"]
        )

    def compose(self, path: Path, *words: str) -> Any:
        tree = Tree(apps={"demo": self.app})
        composed = compose(tree, ["recipe=demo", "stage=go", f"config='{path}'", *words], EnvFile())
        return composed, resolve_job(composed, "demo-go-20260101-000000-abcd", 0)


@pytest.fixture
def world(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    world = World(tmp_path)
    monkeypatch.chdir(world.project / "sub")
    return world


REFUSED = [
    ("hydra: {callbacks: {x: {_target_: os.system}}}", "hydra.callbacks.x._target_"),
    ("hydra: {job_logging: {handlers: {f: {class: logging.FileHandler, filename: /tmp/x}}}}", "hydra.job_logging"),
    ("hydra: {launcher: {_target_: a.b}}", "hydra.launcher._target_"),
    ("hydra: {sweep: {dir: /}}", "hydra.sweep.dir"),
    ("hydra: {run: {dir: /}}", "hydra.run.dir"),
    ("hydra: {searchpath: ['file:///tmp']}", r"hydra.searchpath\[0\]"),
    ("hydra: {job: {env_set: {LD_PRELOAD: x}}}", "hydra.job.env_set.LD_PRELOAD"),
    ("run: {env: {env_vars: {PYTHONPATH: /tmp}}}", "run.env.env_vars.PYTHONPATH"),
    ("run: {env: {env_vars: ['LD_PRELOAD=/tmp/x']}}", r"run.env.env_vars\[0\]"),
    ("run: {env: {startup_commands: [x]}}", r"run.env.startup_commands\[0\]"),
    ("run: {env: {container: img, python: /tmp/python}}", "run.env.container"),
    ("run: {env: '${other}'}", "run.env"),
    ("part: {_target_: os.system}", "part._target_"),
    ("part: {a: [{_target_: '${kind}'}]}", r"part.a\[0\]._target_"),
    ("defaults: [/hydra/launcher: joblib]", "defaults: '/hydra/launcher'"),
    ("defaults: [group/evil@hydra.callbacks]", "defaults: "),
    ("defaults: [evil@_global_.run.env]", "defaults: "),
]


@pytest.mark.parametrize(("text", "key"), REFUSED)
def test_what_decides_whose_code_runs_is_refused(world: World, text: str, key: str) -> None:
    (world.elsewhere / "group").mkdir()
    for name in ("evil.yaml", "group/evil.yaml"):
        (world.elsewhere / name).write_text("x: {_target_: demo.parts.Own}\n")
    path = world.elsewhere / "x.yaml"
    path.write_text(text + "\n")
    with pytest.raises(
        UserError, match=rf"x\.yaml(:\d+)?: {key}.* may not be set by a config file from an untrusted place"
    ):
        world.compose(path)


@pytest.mark.parametrize("package", ["hydra.callbacks.x", "run.env", "_global_"])
def test_a_group_beside_it_is_judged_by_where_it_goes(world: World, package: str) -> None:
    (world.elsewhere / "beside").mkdir()
    body = "hydra: {callbacks: {x: {_target_: demo.parts.Own}}}" if package == "_global_" else "env_vars: [a]"
    (world.elsewhere / "beside/evil.yaml").write_text(f"# @package {package}\n{body}\n")
    (world.elsewhere / "x.yaml").write_text("defaults: [beside: evil]\n")
    with pytest.raises(UserError, match="may not be set by a config file from an untrusted place"):
        world.compose(world.elsewhere / "x.yaml")


def test_what_is_data_is_taken(world: World) -> None:
    path = world.elsewhere / "x.yaml"
    path.write_text(
        "n: 3\npart: {a: {_target_: demo.parts.Own}, b: {_target_: demo.parts.Registered}}\n"
        "hydra: {job: {name: x}, verbose: true}\nrun: {env: {nodes: 2, time: '1:00:00'}}\n"
    )
    composed, placed = world.compose(path)
    assert placed.config["n"] == 3 and placed.config["part"]["b"] == {"_target_": "demo.parts.Registered"}
    assert composed.hydra.verbose is True


def test_the_command_line_may_do_all(world: World) -> None:
    path = world.elsewhere / "x.yaml"
    path.write_text("n: 3\n")
    words = ["+part.x={_target_: os.getcwd}", "+hydra.callbacks.x._target_=demo.Back", "hydra.run.dir=/there"]
    composed, placed = world.compose(path, *words)
    assert placed.config["part"]["x"] == {"_target_": "os.getcwd"}
    assert composed.hydra.callbacks.x._target_ == "demo.Back"


def test_a_value_from_elsewhere_does_not_become_a_target(world: World) -> None:
    """The recipe's own config says `_target_: ${kind}`; the file from elsewhere stands on it and says what kind."""
    path = world.elsewhere / "x.yaml"
    path.write_text("defaults: [/job/demo/go/filled]\nkind: os.system\n")
    with pytest.raises(UserError, match=r"part\._target_: 'os\.system' would be imported and called"):
        world.compose(path)
    assert world.compose(path, "kind=os.getcwd")[1].config["part"] == {"_target_": "os.getcwd"}
    path.write_text("defaults: [/job/demo/go/filled]\n")
    assert world.compose(path)[1].config["part"] == {"_target_": "demo.parts.Usual"}


def test_the_projects_own_files_may_do_all(world: World) -> None:
    path = world.project / "mine.yaml"
    path.write_text("part: {_target_: os.getcwd}\nhydra: {run: {dir: /there}}\nrun: {env: {env_vars: {A: b}}}\n")
    _, placed = world.compose(path)
    assert placed.config["part"] == {"_target_": "os.getcwd"}


def test_whose_a_file_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = world.project / "mine.yaml"
    mine.touch()
    other = world.elsewhere / "x.yaml"
    other.touch()
    assert is_trusted(world.recipe / "config/default.yaml", world.command)
    assert is_trusted(mine, world.command)
    assert not is_trusted(other, world.command)
    (world.project / "link.yaml").symlink_to(other)
    assert not is_trusted(world.project / "link.yaml", world.command)
    mine.chmod(0o666)
    assert not is_trusted(mine, world.command)
    (world.recipe / "config/default.yaml").chmod(0o666)
    assert not is_trusted(world.recipe / "config/default.yaml", world.command)
    monkeypatch.chdir(world.elsewhere)
    assert not is_trusted(other, world.command)  # a folder that is no project


@ROOT
def test_another_users_file_in_the_project_is_from_elsewhere(world: World) -> None:
    theirs = world.recipe / "config/model/theirs.yaml"
    theirs.parent.mkdir()
    theirs.touch()
    os.chown(theirs, 12345, -1)
    assert is_trusted(theirs, world.command)  # as all that the recipe's installer put there
    theirs.parent.chmod(0o777)
    assert not is_trusted(theirs, world.command)
    mine = world.project / "mine.yaml"
    mine.touch()
    os.chown(mine, 12345, -1)
    assert not is_trusted(mine, world.command)
    os.chown(mine, os.getuid(), -1)
    os.chown(world.project / "pyproject.toml", 12345, -1)
    assert not is_trusted(mine, world.command)


@pytest.mark.parametrize(
    ("target", "allowed"),
    [
        ("megatron.bridge.recipes.nemotronh.x_config", True),
        ("ours.train", True),
        ("ours.train.more", False),
        ("megatron.bridge.recipes", False),
        ("megatron.bridge.recipes.", False),
        ("megatron.bridge.recipes..os", False),
        ("megatron.bridge.recipes_of_mine.x", False),
    ],
)
def test_a_target_that_ends_in_a_dot_allows_what_is_below_it(target: str, allowed: bool) -> None:
    assert permitted(target, {"ours.train", "megatron.bridge.recipes."}) is allowed
