"""Somebody else's `@hydra.main` program, where this package is installed: `${art:…}` and the recipes' configs in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_kit.artifacts import Artifact
from nemotron_kit.artifacts.registry import open_registry

from ..project import run

APP = """
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from nemotron_kit.artifacts import Artifact

@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg):
    out = Path(HydraConfig.get().runtime.output_dir, "model")
    out.mkdir()
    (out / "read.txt").write_text(f"{cfg.folder} {cfg.size} {cfg.seed}")
    Artifact(path=out).save(name=f"Read{cfg.seed}")

if __name__ == "__main__":
    main()
"""
CONFIG = "seed: 0\nrun: {data: 'Words:latest'}\nfolder: ${art:data}\nsize: ${art:data,metadata.size}\n"


@pytest.fixture
def world(home: Path, tmp_path: Path) -> Path:
    """A folder with the program, and two versions of the artifact that its config refers to."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "app.yaml").write_text(CONFIG)
    for version in (0, 1):
        folder = tmp_path / f"words-{version}"
        folder.mkdir()
        (folder / "words.txt").write_text("word " * version)
        Artifact(path=folder, metadata={"size": version}).save(name="Words")
    return tmp_path


def inputs_of(name: str) -> list[list[str]]:
    """What each version of a name was made from."""
    registry = open_registry()
    pins = [registry.resolve(f"{name}:v{version}") for version in registry.versions(name)]
    return sorted([pin.label for pin in registry.record_of(pin).inputs] for pin in pins)


@pytest.mark.parametrize(
    "launcher",
    [
        [],
        ["-m", "hydra/launcher=basic"],
        ["-m", "hydra/launcher=submitit_local"],
        ["-m", "hydra/launcher=nemo_run", "hydra.launcher.via=kit"],
    ],
    ids=["single", "basic", "submitit", "nemo_run"],
)
def test_an_artifact_is_resolved_and_on_record_in_any_program(world: Path, launcher: list[str]) -> None:
    seeds = "seed=1,2" if launcher else "seed=1"
    run("python", "app.py", *launcher, seeds, *(["run.data=Words:v0"] if launcher else []), cwd=world)
    texts = sorted(path.read_text() for path in world.glob("**/read.txt"))
    version = 0 if launcher else 1
    expected = [f"{world}/words-{version} {version} {seed}" for seed in ((1, 2) if launcher else (1,))]
    assert texts == expected
    # Each job's output descends from what that job read, also where one process runs several.
    for seed in range(1, len(expected) + 1):
        assert inputs_of(f"Read{seed}") == [[f"Words:v{version}"]]


def test_jobs_of_one_process_keep_their_inputs_apart(world: Path) -> None:
    run("python", "app.py", "-m", "run.data=Words:v0,Words:v1", cwd=world)
    assert inputs_of("Read0") == [["Words:v0"], ["Words:v1"]]


def test_our_launcher_pins_at_launch_and_refuses_what_is_not_there(world: Path) -> None:
    words = ["-m", "hydra/launcher=nemo_run", "hydra.launcher.via=kit"]
    done = run("python", "app.py", *words, "run.data=Words:v7", cwd=world, code=2)
    assert "run.data: Words has no v7." in done.stderr
    assert "v0, v1" in done.stderr
    assert not list(world.glob("**/read.txt"))


def test_cfg_resolve_and_a_notebook_see_the_same(world: Path) -> None:
    shown = run("python", "app.py", "--cfg", "job", "--resolve", cwd=world).stdout
    assert f"folder: {world}/words-1" in shown
    assert "size: 1\n" in shown
    notebook = (
        "from hydra import compose, initialize\n"
        "with initialize(version_base=None, config_path='.'):\n"
        "    config = compose('app', ['run.data=Words:v0'])\n"
        "print(config.folder, config.size)\n"
    )
    (world / "notebook.py").write_text(notebook)
    assert run("python", "notebook.py", cwd=world).stdout.strip() == f"{world}/words-0 0"


def test_a_program_keeps_a_resolver_of_its_own(world: Path) -> None:
    own = "from omegaconf import OmegaConf\nOmegaConf.register_new_resolver('art', lambda *a: 'own')\n"
    (world / "app.py").write_text(own + APP)
    assert "folder: own" in run("python", "app.py", "--cfg", "job", "--resolve", cwd=world).stdout


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["+recipe/nano3/pretrain=tiny", "recipe.nano3.pretrain.run.data=./words-1"], "recipe.nano3.pretrain."),
        (["+recipe/nano3/pretrain@train=tiny", "train.run.data=./words-1"], "train."),
        (["+recipe/nano3/pretrain@_global_=tiny", "run.data=./words-1"], ""),
        (
            ["hydra.searchpath=[pkg://nemotron_kit.conf]", "+recipe/nano3/pretrain@a.b=tiny", "a.b.run.data=./words-1"],
            "a.b.",
        ),
    ],
)
def test_a_recipes_config_in_somebody_elses_program(world: Path, words: list[str], package: str) -> None:
    (world / "app.yaml").write_text("mine: 1\n")
    shown = run("python", "app.py", *words, f"{package}train.lr=1e-5", "--cfg", "job", "--resolve", cwd=world)
    assert f"per_split_data_args_path: {world}/words-1/blend.json" in shown.stdout
    assert "lr: 1.0e-05" in shown.stdout
    wrong = run("python", "app.py", *words, f"{package}train.lr=fast", "--cfg", "job", cwd=world, code=1)
    assert f"full_key: {package}train.lr" in wrong.stderr


def test_the_primary_config_by_hydras_own_functions(world: Path) -> None:
    (world / "ours.py").write_text(
        "from hydra import compose, initialize_config_module\n"
        "from hydra.core.config_store import ConfigStore\n"
        "with initialize_config_module('nemotron_kit.conf', version_base='1.3'):\n"
        "    config = compose('config', ['recipe=nano3', 'stage=pretrain', 'config=tiny', 'train.lr=1'])\n"
        "    print(config.train.lr, config.dataset.seq_length, 'recipe' in ConfigStore.instance().repo)\n"
    )
    done = run("python", "ours.py", cwd=world)
    assert done.stdout.strip() == "1.0 128 False", done.stderr


def test_an_app_of_ones_own_is_registered_by_a_public_function(world: Path) -> None:
    (world / "ours.py").write_text(
        "from dataclasses import dataclass\n"
        "from hydra import compose, initialize_config_module\n"
        "from nemotron.kit import App, register_recipes\n"
        "@dataclass\nclass C:\n    n: int = 1\n"
        "def go(cfg): ...\n"
        "app = App('mine')\napp.command('go', C, go)\n"
        "register_recipes([app])\n"
        "with initialize_config_module('nemotron_kit.conf', version_base='1.3'):\n"
        "    print(compose('config', ['recipe=mine', 'stage=go', 'n=4']).n)\n"
    )
    done = run("python", "ours.py", cwd=world)
    assert done.stdout.strip() == "4", done.stderr


def test_other_programs_do_not_see_the_recipes(world: Path) -> None:
    shown = run("python", "app.py", "--help", cwd=world).stdout
    assert "recipe" not in shown
    assert "nano3" not in shown
