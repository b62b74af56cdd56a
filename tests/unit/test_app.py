"""Declaring a command tree."""

import importlib
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.app import App, ArtifactInput, Command
from nemotron_kit.config.schema import schema_node
from nemotron_kit.errors import UserError


@dataclass
class Config:
    n: int = 1


def handler(config: Config) -> None:
    del config


def test_nested_groups_and_their_paths() -> None:
    app = App("nano", description="d")
    prep = app.group("data", description="Data commands").group("prep")
    command = prep.command("pretrain", Config, handler)
    assert command.path == ("nano", "data", "prep", "pretrain")
    assert command.stage == "data/prep/pretrain"
    assert app.group("data") is app.children["data"]
    assert list(app.commands()) == [command]


def test_the_older_keyword_for_the_config_class() -> None:
    assert App("a").command("x", config=Config, handler=handler).config_cls is Config


def test_a_command_that_is_one_process() -> None:
    assert App("a").command("x", Config, handler, distributed=False).torchrun is False
    assert App("a").command("x", Config, handler).torchrun is None
    with pytest.raises(TypeError, match=r"artifacts\['data'\] is 'Data', not an ArtifactInput"):
        App("demo").command("read", dict, print, artifacts={"data": "Data"})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="distributed=False is one process"):
        App("a").command("x", Config, handler, distributed=False, torchrun=True)


def test_a_config_folder_beside_the_script_or_the_handler(tmp_path: Path) -> None:
    app = App("a")
    by_script = app.command("x", Config, handler, script_path=tmp_path / "stage" / "train.py")
    assert by_script.config_folder == (tmp_path / "stage" / "config").resolve()
    assert app.command("y", Config, handler).config_folder == Path(__file__).resolve().parent / "config"
    assert app.command("z", Config, handler, config_dir=tmp_path).config_folder == tmp_path


def test_what_follows_from_a_commands_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "by_module"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "train.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass C:\n    x: int = 1\n"
        "def main(cfg): return cfg.x\ndef other(cfg): return -cfg.x\ndef preflight(cfg, *, connect): return ['no']\n"
    )
    (folder / "bare.py").write_text("def run(cfg): return 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    app = App("a", package="by_module")
    whole = app.group("g").command("x", "C", module=".train", config_dir="config/x")
    assert "by_module.train" not in sys.modules  # declaring one imports nothing
    assert (whole.config_cls, whole.handler) == ("by_module.train:C", "by_module.train:main")
    assert (whole.script_path, whole.config_folder) == (folder / "train.py", folder / "config/x")
    assert whole.job_script is None  # run as a script, it would do nothing
    with (folder / "train.py").open("a") as file:
        file.write("if __name__ == '__main__':\n    main()\n")
    assert whole.job_script == folder / "train.py"
    assert whole.load_handler()(whole.load_config_cls()()) == 1
    check = whole.load_preflight()
    assert check is not None and check(None, connect=False) == ["no"]
    called = app.command("y", "C", "other", module="by_module.train")
    assert (called.handler, called.script_path, called.config_folder) == (
        "by_module.train:other",
        None,
        (folder / "config").resolve(),
    )
    bare = app.command("z", Config, "run", module=".bare", preflight="by_module.train:preflight")
    assert bare.load_preflight() is check
    assert app.command("w", Config, "run", module=".bare").load_preflight() is None
    with pytest.raises(ValueError, match=r"a n: there is no module '\.gone'"):
        app.command("n", "C", module=".gone")
    with pytest.raises(ValueError, match=r"is relative to the app's package: App\(…, package=__name__\)"):
        App("b").command("n", "C", module=".train")
    with pytest.raises(
        TypeError, match=r"needs a config class .* It is no decorator; for instance app\.command\('n', Config, n\)"
    ):
        app.command("n", module=".train")


@pytest.mark.parametrize("name", ["", "a b", "../x", "a..b", "-x", "a" * 65, "ü"])
def test_names_are_slugs(name: str) -> None:
    with pytest.raises(ValueError, match="use letters, digits"):
        App("a").group(name)


@pytest.mark.parametrize("slot", ["env", "mode", "profile", "recipe", "wandb", "run"])
def test_an_artifact_may_not_take_a_word_of_the_launchers(slot: str) -> None:
    with pytest.raises(ValueError, match="can't be called"):
        App("a").command("x", Config, handler, artifacts={slot: ArtifactInput("D")})


@pytest.mark.parametrize(
    ("name", "kind"), [("batch", int), ("config", str | None), ("recipe", "Path | None"), ("stage", Path)]
)
def test_a_single_value_may_not_take_a_choices_name(name: str, kind: Any) -> None:
    clashing = dataclass(type("Clash", (), {"__annotations__": {name: kind}, "__module__": __name__, name: None}))
    with pytest.raises(ValueError, match="Rename the field; a block may"):
        App("a").command("x", clashing, handler)
    with pytest.raises(UserError, match="a single value can't be called"):
        schema_node(Command(("a", "x"), clashing, handler), {})


def test_a_block_called_recipe_is_fine_and_a_field_called_run_is_not() -> None:
    @dataclass
    class Block:
        recipe: dict[str, int] = field(default_factory=dict)

    @dataclass
    class Run:
        run: int = 1

    App("a").command("x", Block, handler)
    with pytest.raises(ValueError, match="'run'"):
        App("a").command("y", Run, handler)


def test_a_command_is_registered_once() -> None:
    app = App("a")
    app.command("x", Config, handler, aliases=("y",))
    with pytest.raises(ValueError, match="registered already"):
        app.command("x", Config, handler)
    for again in (
        lambda: app.command("y", Config, handler),
        lambda: app.command("z", Config, handler, aliases=("y",)),
        lambda: app.group("y"),
        lambda: app.pipeline("y", ["x"]),
    ):
        with pytest.raises(ValueError, match=r"'y' is (registered|another name of a command) already"):
            again()


def test_config_and_handler_of_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of one module, which dataclasses look up by its name; a file may be called like another module, one that
    is imported later (pstats) too."""
    for name in ("program_of_one_file", "pstats", *(str(tmp_path / f"{each}.py") for each in ("json", "pstats"))):
        monkeypatch.delitem(sys.modules, name, raising=False)
    text = """
        from __future__ import annotations
        from dataclasses import dataclass, field

        @dataclass
        class Config:
            steps: list[int] = field(default_factory=list)

        def main(config: Config) -> bool:
            return isinstance(config, Config)
    """
    for name in ("program_of_one_file.py", "json.py", "pstats.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        command = App("a").command("x", f"{tmp_path / name}:Config", f"{tmp_path / name}:main")
        assert command.load_handler()(command.load_config_cls()())
    assert hasattr(importlib.import_module("pstats"), "Stats")
    with pytest.raises(UserError, match=r"none\.py' can't be imported: there is no such file"):
        App("a").command("x", Config, f"{tmp_path}/none.py:main").load_handler()


def test_handlers_by_name_are_not_imported() -> None:
    command = App("a").command("x", "no.such.module:Config", "no.such.module:main")
    assert command.handler_name == "no.such.module:main"
    with pytest.raises(ModuleNotFoundError):
        command.load_config_cls()


def test_a_pipeline_is_in_the_order_of_its_artifacts() -> None:
    app = App("a")
    late = app.command("late", Config, handler, artifacts={"m": ArtifactInput("M-x:latest")})
    app.group("data").command("prep", Config, handler, produces=["D-{config}"])
    app.command("train", Config, handler, artifacts={"data": ArtifactInput("D-default")}, produces=["M-x"])
    pipeline = app.pipeline("all", stages=[late, "data/prep", "train"])
    assert [stage.stage for stage in pipeline.stages] == ["data/prep", "train", "late"]
    assert (pipeline.full_name, pipeline.stage) == ("a all", "all")
    assert [stage.stage for stage in app.commands()] == ["late", "data/prep", "train"]
    assert list(app.pipelines()) == [pipeline]


@pytest.mark.parametrize(
    ("name", "stages", "said"),
    [
        ("p", ["x", "y"], "a p: these stages read each other's artifacts: a x ← a y ← a x."),
        ("p", ["z", "zz"], "'zz' is no command of a: did you mean z"),
        ("p", ["z", "z"], "'a z' is given twice"),
        ("p", [], "at least one stage"),
        ("z", ["z"], "'z' is registered already"),
        ("p q", ["z"], "use letters, digits"),
        ("p", ["chat"], "is interactive"),
    ],
)
def test_a_pipeline_that_cannot_be(name: str, stages: list[str], said: str) -> None:
    app = App("a")
    app.command("x", Config, handler, artifacts={"in": ArtifactInput("Y")}, produces=["X"])
    app.command("y", Config, handler, artifacts={"in": ArtifactInput("X")}, produces=["Y"])
    app.command("z", Config, handler, artifacts={"in": ArtifactInput("Z")}, produces=["Z"])
    app.command("chat", Config, handler, interactive=True)
    with pytest.raises(ValueError, match=said):
        app.pipeline(name, stages)
