"""The quick look-ups say what home.py, envfile.py and the registry say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_kit import Artifact, envfile, home
from nemotron_kit.artifacts.registry import artifact_settings
from nemotron_kit.cli import tree
from nemotron_kit.cli.main import nemotron
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.runs.folder import create_run


@pytest.fixture
def project(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("NEMOTRON_ENV_FILE", raising=False)
    inner = tmp_path / "project" / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    return tmp_path


def _agree() -> None:
    found = envfile.find_env_file()
    assert tree.find_env_file() == (str(found) if found else None)
    read = envfile.read_env_file()
    assert tree.tables() == read.tables
    assert tree.artifacts_root() == str(artifact_settings(read)["root"])


def test_reserved_tables_are_the_same() -> None:
    assert set(tree.RESERVED) == envfile.RESERVED


@pytest.mark.parametrize("mark", [None, "pyproject.toml", ".git"])
@pytest.mark.parametrize("place", ["project/a/b", "project/a", "project", "", "user/.config/nemotron"])
def test_the_same_env_file(project: Path, mark: str | None, place: str) -> None:
    if mark:
        (project / "project" / mark).mkdir()
    (project / place).mkdir(parents=True, exist_ok=True)
    (project / place / "env.toml").write_text("[C]\nexecutor = 'local'\n[artifacts]\nroot = 'store'\n")
    _agree()


def test_no_env_file(project: Path) -> None:
    _agree()


def test_named_outright(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "other.toml").write_text("[artifacts]\nroot = 'file:///data/store'\n")
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(project / "other.toml"))
    _agree()


def test_a_broken_env_file_gives_no_tables(project: Path) -> None:
    Path("env.toml").write_text("not toml")
    assert tree.tables() == {}


@pytest.mark.parametrize("value", ["~/x", "relative", "", "/abs"])
def test_the_same_home(project: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NEMOTRON_HOME", value)
    assert tree.home() == str(home.nemotron_home())


def test_a_program_that_no_shell_has_started_has_a_working_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = project / "other"
    other.mkdir()
    monkeypatch.setenv("PWD", "")
    for name, wanted in (("", Path.cwd()), (str(other), Path.cwd()), ("..", Path.cwd()), (str(project / "link"), None)):
        (project / "link").unlink(missing_ok=True)
        (project / "link").symlink_to(Path.cwd())
        os.environ["PWD"] = name
        assert nemotron(["--version"]) == 0
        assert os.environ["PWD"] == str(wanted or project / "link")
    monkeypatch.delenv("PWD")
    assert nemotron(["nano3", "pretrain", "-c", "tiny", "--dry-run"]) == 0
    assert "not found" not in capsys.readouterr().err and os.environ["PWD"] == str(Path.cwd())


def test_a_user_whom_the_system_does_not_know(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a container that runs under any number, without HOME, each command ended with a traceback, help among them."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    assert nemotron(["nano3", "pretrain", "--help"]) == 0
    assert nemotron(["nano3", "data", "prep", "pretrain", "-c", "tiny", "--dry-run"]) == 0
    folder = project / "made"
    folder.mkdir()
    (folder / "text").write_text("x")
    Artifact(path=folder).save(name="Made")
    assert (folder / "metadata.json").is_file()
    capsys.readouterr()
    monkeypatch.delenv("NEMOTRON_HOME", raising=False)
    assert nemotron(["runs"]) == 2
    said = capsys.readouterr().err
    assert "HOME is not set, and the system has no entry" in said and "export NEMOTRON_HOME=" in said


@pytest.mark.parametrize("below", ["file/home", "file"])
def test_a_home_that_can_not_be_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path / below))
    with pytest.raises(UserError, match=r"the folder for runs and artifacts, .*is not a folder") as wrong:
        home.nemotron_home()
    assert "export NEMOTRON_HOME" in str(wrong.value.hint)


def test_a_home_where_no_folder_can_be_made() -> None:
    with pytest.raises(
        NemotronError, match=r"/proc/x/runs, the folder for runs, can't be made: .*: No such file"
    ) as wrong:
        create_run(home.new_run_id("r", "s"), {}, [], root=Path("/proc/x/runs"))
    assert "export NEMOTRON_HOME" in str(wrong.value.hint)
