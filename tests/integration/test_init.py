"""`nemotron init`: what it writes runs, and passes its tests, at once; a profile that it writes can be read."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from nemotron_kit.cli.tools import run
from nemotron_kit.errors import UserError
from tests.project import environment


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_new_recipe_runs_and_passes_its_tests(folder: Path) -> None:
    assert run("init", ["my_recipe"]) == 0
    variables = environment(folder / "home")

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "2 passed" in python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_my_recipe.py")
    python("-m", "ruff", "check", "--isolated", "--line-length", "120", "my_recipe", "tests")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Recipe", "can't be a recipe's name"),
        ("nano3", "an installed recipe"),
        ("runs", "a command of nemotron"),
        ("json", "a module of Python's standard library"),
        ("class", "a word of the language Python"),
        ("torch", "an installed package"),
        ("nemotron", "an installed package"),
        ("mine", "exists already"),
    ],
)
def test_a_name_that_is_taken_writes_nothing(folder: Path, name: str, message: str) -> None:
    (folder / "mine").mkdir()
    with pytest.raises(UserError, match=message):
        run("init", [name])
    assert [entry.name for entry in folder.iterdir()] == ["mine"]


def test_a_second_recipe_is_listed_beside_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "env.toml").write_text('# mine\n[cli]\nrecipes = [\n  "first",\n]  # two\n')
    assert run("init", ["second"]) == 0
    text = (folder / "env.toml").read_text()
    assert tomllib.loads(text) == {"cli": {"recipes": ["first", "second"]}} and text.startswith("# mine")
    # A package that comes with an extra would be hidden once it is installed.
    monkeypatch.setattr("importlib.machinery.PathFinder.find_spec", lambda *_: None)
    with pytest.raises(UserError, match="'transformers' is taken: a package that nemotron_kit uses"):
        run("init", ["transformers"])

    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("nemotron_kit.cli.init.requires", requires)  # run from a copy of the source
    assert run("init", ["third"]) == 0


def test_what_is_in_the_way_of_one_file_leaves_none(folder: Path) -> None:
    (folder / "tests").touch()
    with pytest.raises(UserError, match="tests: not a folder"):
        run("init", ["mine"])
    (folder / "tests").unlink()
    (folder / "env.toml").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"env\.toml: No such file"):
        run("init", ["mine"])
    assert [entry.name for entry in folder.iterdir()] == ["env.toml"]


def test_a_profile_with_its_values_typed_and_the_file_kept(folder: Path) -> None:
    shared = folder / "shared.toml"  # of a group, say: it stays the file that the link leads to, with its mode
    shared.write_text("# mine\n[cli]\nrecipes = []")
    shared.chmod(0o640)
    (folder / "env.toml").symlink_to(shared)
    arguments = ["executor=slurm", "account=lab", "nodes=2", "mounts=[/a:/a,/b:/b]", "exclusive=true"]
    assert run("init", ["--profile", "cluster", *arguments, "--no-check"]) == 0
    text = (folder / "env.toml").read_text()
    assert text.startswith("# mine\n[cli]\nrecipes = []\n\n[cluster]\n")
    expected = {"executor": "slurm", "account": "lab", "nodes": 2, "mounts": ["/a:/a", "/b:/b"], "exclusive": True}
    assert tomllib.loads(text)["cluster"] == expected
    assert run("init", ["--profile", "away", "--host", "login", "--user=me", "executor=slurm", "--no-check"]) == 0
    assert tomllib.loads((folder / "env.toml").read_text())["away"]["tunnel"] == "ssh"
    assert (folder / "env.toml").is_symlink() and shared.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["p", "executer=slurm"], "no field 'executer'"),
        (["p", "executor=slurm", "nodes=many"], r"env.toml:\d+: \[p\] nodes: expected a whole number"),
        (["p", "slurm"], "is not KEY=VALUE"),
        (["p", "--executor", "slurm", "--image=x"], "no field 'image'.\nDid you mean container_image"),
        ([], "--profile needs a NAME"),
        (["wandb"], "can't be a profile's name"),
        (["there"], "already"),
    ],
)
def test_a_profile_that_can_not_be_is_not_written(folder: Path, arguments: list[str], message: str) -> None:
    (folder / "env.toml").write_text('[there]\nexecutor = "local"\n')
    with pytest.raises(UserError, match=message):
        run("init", ["--profile", *arguments])
    assert (folder / "env.toml").read_text() == '[there]\nexecutor = "local"\n'
