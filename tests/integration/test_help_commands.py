"""`nemotron … --help` in real processes: what it prints, what it leaves alone, and that it is never out of date."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ..project import Project

Run = Callable[..., "subprocess.CompletedProcess[str]"]
HEAVY = {"hydra", "omegaconf", "rich", "pydantic", "yaml", "argparse", "dataclasses", "inspect", "typing", "pathlib",
         "importlib.metadata", "tomllib", "logging", "subprocess", "nemotron_kit.app", "nemotron.recipes"}  # fmt: skip
RECIPE = '''
from dataclasses import dataclass
from nemotron.kit import App
from .settings import Config

def main(cfg: Config) -> None:
    """Greets."""

app = App("mine", description="A recipe of one's own")
app.command("go", Config, main, config_dir=__file__.rpartition("/")[0] + "/config")
'''
SETTINGS = "from dataclasses import dataclass\n\n@dataclass\nclass Config:\n    size: int = 1\n"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project", {"pyproject.toml": ""}, tmp_path / "home", HOME=str(tmp_path))


@pytest.fixture
def run(project: Project) -> Run:
    """Run `nemotron ARGS` in the project."""

    def go(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        return project("nemotron", *args, code=None, **more)

    return go


@pytest.fixture
def mine(tmp_path: Path, run: Run) -> Path:
    """A recipe folder that env.toml names."""
    folder = tmp_path / "project" / "mine"
    (folder / "config").mkdir(parents=True)
    (folder / "__init__.py").write_text(RECIPE)
    (folder / "settings.py").write_text(SETTINGS)
    (folder.parent / "env.toml").write_text('[cli]\nrecipes = ["mine"]\n')
    return folder


@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("", 0, "usage: nemotron RECIPE COMMAND", ""),
        ("--help", 0, "nano3", ""),
        ("-h", 0, "usage: nemotron RECIPE COMMAND", ""),
        ("help", 0, "usage: nemotron RECIPE COMMAND", ""),
        ("nano3 --help", 0, "usage: nemotron nano3 COMMAND", ""),
        ("nano3 data --help", 0, "prep pretrain", ""),
        ("nano3 data prep --help", 0, "usage: nemotron nano3 data prep COMMAND", ""),
        ("nano3 pretrain --help", 0, "--train.train-iters int", ""),
        ("nano3 train -c tiny --run C -h", 0, "usage: nemotron nano3 pretrain", ""),
        ("help nano3 data prep pretrain", 0, "usage: nemotron nano3 data prep pretrain", ""),
        ("--version", 0, "nemotron-kit ", ""),
        ("completion bash", 0, "complete -o default", ""),
        ("nano3", 2, "", "Which command?"),
        ("nano3 data", 2, "", "usage: nemotron nano3 data COMMAND"),
        ("nano3 dota --help", 2, "", "Did you mean data?"),
        ("nani3", 2, "", "Did you mean nano3?"),
        ("nano3 pretrain --bogus", 2, "", "nano3 pretrain has no option --bogus."),
    ],
)
def test_pages(line: str, code: int, out: str, err: str, run: Run) -> None:
    done = run(*line.split())
    assert done.returncode == code, done.stderr
    assert out in done.stdout
    assert err in done.stderr
    assert bool(done.stdout) is (code == 0)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "line", ["--help", "nano3 --help", "nano3 pretrain --help", "--version", "__complete bash nemotron"]
)
def test_a_page_imports_nothing_heavy(line: str, run: Run) -> None:
    run("--help")
    done = run(*line.split(), PYTHONPROFILEIMPORTTIME="1")
    imported = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE))
    assert "nemotron_kit.cli.tree" in imported
    assert imported & HEAVY == set()
    assert line != "--version" or "json" not in imported  # which reads no index


def test_a_page_writes_the_index_privately_and_nothing_else(tmp_path: Path, run: Run) -> None:
    run("nano3", "--help")
    (file,) = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert file.parent == tmp_path / "home" / "cache"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    before = file.stat()
    assert run("nano3", "--help").returncode == 0
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_an_error_writes_nothing(tmp_path: Path, run: Run) -> None:
    assert run("nani3", "pretrain").returncode == 2
    assert run("nano3", "pretrain", "--bogus").returncode == 2
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]\n", b"\xff\xfe", b"null\nnull"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, run: Run, damage: bytes) -> None:
    whole = run("nano3", "pretrain", "--help").stdout
    (file,) = (tmp_path / "home" / "cache").iterdir()
    file.write_bytes(damage)
    assert run("nano3", "pretrain", "--help").stdout == whole
    assert len(file.read_bytes()) > len(damage)


def test_a_home_that_cannot_be_written_is_no_obstacle(run: Run) -> None:
    done = run("nano3", "--help", NEMOTRON_HOME="/dev/null/home")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_recipe_named_in_env_toml(mine: Path, run: Run) -> None:
    assert "A recipe of one's own" in run("--help").stdout
    page = run("mine", "go", "--help").stdout
    assert "Greets." in page
    assert "--size int" in page


def test_every_change_shows_at_once(mine: Path, run: Run) -> None:
    assert "--size int" in run("mine", "go", "--help").stdout
    (mine / "settings.py").write_text(SETTINGS.replace("size", "width"))
    assert "--width int" in run("mine", "go", "--help").stdout
    (mine / "config" / "tiny.yaml").write_text("width: 3\n")
    assert "tiny   (" in run("mine", "go", "--help").stdout
    (mine / "config" / "tiny.yaml").rename(mine / "config" / "small.yaml")
    assert "small   (" in run("mine", "go", "--help").stdout
    (mine / "__init__.py").write_text(RECIPE.replace('"go"', '"walk"'))
    assert "walk" in run("mine", "--help").stdout
    (mine.parent / "env.toml").unlink()
    assert "mine" not in run("--help").stdout
    (mine.parent / "env.toml").write_text('[cli]\nrecipes = ["mine", "other"]\n')
    page = run("--help").stdout
    assert "mine" in page
    assert "other" in page.partition("broken")[2]
    other = mine.parent / "other"
    other.mkdir()
    (other / "__init__.py").write_text("from nemotron.kit import App\napp = App('other', description='Mended')\n")
    assert "Mended" in run("--help").stdout


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("__init__.py", "import no_such_thing", "No module named 'no_such_thing'"),
        ("__init__.py", "def (", "SyntaxError"),
        ("__init__.py", "raise SystemExit(3)", "SystemExit"),
        ("settings.py", "1 / 0", "ZeroDivisionError"),
        ("settings.py", None, "No module named 'mine.settings'"),
    ],
)
def test_a_broken_recipe_is_listed_until_it_is_mended(
    mine: Path, run: Run, file: str, text: str | None, reason: str
) -> None:
    good = (mine / file).read_text()
    (mine / file).unlink()
    if text is not None:
        (mine / file).write_text(text)
    for _ in range(2):
        page = " ".join(run("--help").stdout.split())
        assert f"broken mine {reason.split(':')[0]}".split()[0] in page
        assert reason in page
        assert "nano3" in page
    (mine / file).write_text(good)
    assert "A recipe of one's own" in run("--help").stdout


def test_a_missing_module_may_come_later(mine: Path, run: Run) -> None:
    (mine / "settings.py").write_text("import helpers_of_mine\n" + SETTINGS)
    for _ in range(2):
        assert "No module named 'helpers_of_mine'" in " ".join(run("--help").stdout.split())
    (mine.parent / "helpers_of_mine.py").touch()
    assert "A recipe of one's own" in run("--help").stdout


def test_a_broken_env_file_does_not_take_help_away(tmp_path: Path, run: Run) -> None:
    (tmp_path / "project" / "env.toml").write_text("not toml")
    page = " ".join(run("--help").stdout.split())  # a line may end anywhere in the message
    assert "nano3" in page
    assert "not valid TOML" in page


def test_nobody_reading_on_is_no_error(project: Project) -> None:
    done = project("bash", "-c", "nemotron nano3 pretrain --help | head -1; echo ${PIPESTATUS[0]}")
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"


def test_an_app_run_as_a_module_has_help_too(mine: Path, project: Project, run: Run) -> None:
    (mine / "__main__.py").write_text("from . import app\n\napp.run()\n")
    assert project("python", "-m", "mine", "--help").stdout.startswith("usage: python -m mine COMMAND")
    assert project("python", "-m", "mine", "go", "--help").stdout.startswith("usage: python -m mine go ")
    lost = project("python", "-m", "mine", "gone", code=2)
    assert "mine has no command 'gone'." in lost.stderr
