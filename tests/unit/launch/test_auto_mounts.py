"""${auto_mount:…}: which folder and which commit a mount means, and what can't be one."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.launch.placing import with_repositories
from nemotron_kit.remote.agent.code import commit_of, fetch_repository
from nemotron_kit.remote.agent.operations import perform
from nemotron_kit.spec.runconfig import RunConfig

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com"]


class Here:
    """A target that is this process, and counts its questions."""

    asked = 0

    def __init__(self, settings: Mapping[str, Any]) -> None: ...

    def call(self, op: str, **args: Any) -> tuple[Any, bytes]:
        Here.asked += 1
        return perform(op, b"", args)


def run(folder: Path, *words: str) -> str:
    return subprocess.run([*GIT, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two commits, an annotated tag on the first."""
    folder = tmp_path / "tool.git"
    folder.mkdir()
    run(folder, "init", "-q", "-b", "main")
    for number in "12":
        (folder / "text").write_text(number)
        run(folder, "add", "text")
        run(folder, "commit", "-q", "-m", number)
        if number == "1":
            run(folder, "tag", "-a", "v1", "-m", "first")
    return folder


def mounted(text: str, reach: Any = Here) -> tuple[list[str], list[dict[str, str]], tuple[str, ...]]:
    settings, fetch, notes = with_repositories(RunConfig(mounts=["/a:/b", text]), "/root/nk", reach)
    return list(settings.mounts or ()), list(fetch), notes


@pytest.mark.parametrize("ref", ["main", "v1"])
def test_a_branch_or_a_tag_is_its_commit(repository: Path, tmp_path: Path, ref: str) -> None:
    commit = run(repository, "rev-parse", f"{ref}^{{commit}}")
    mounts, (fetch,), notes = mounted(f"auto_mount:git+file://{repository}@{ref},/opt/it")
    assert mounts == ["/a:/b", f"/root/nk/repositories/tool-{commit[:12]}:/opt/it"]
    assert notes == ()
    for _ in range(2):
        place = fetch_repository(**{**fetch, "cache": str(tmp_path / "cache")})
        assert (Path(place) / "text").read_text() == {"main": "2", "v1": "1"}[ref]
    assert [path.name for path in Path(place).parent.iterdir()] == [Path(place).name], "nothing half-made is left"


def test_a_commit_needs_no_question_and_a_sweep_asks_once(repository: Path) -> None:
    Here.asked = 0
    commit = run(repository, "rev-parse", "HEAD")
    mounts, _, _ = mounted(f"${{auto_mount:git+file://{repository}@{commit}}}", reach=None)
    assert mounts[1] == f"/root/nk/repositories/tool-{commit[:12]}:/opt/tool"
    for _ in range(3):
        mounted(f"auto_mount:git+file://{repository}@main,/opt/it")
    assert Here.asked == 1


def test_the_cache_is_where_env_toml_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"auto_mount:git+https://no.invalid/tool@{'a' * 40},/opt/it"
    for named, cache in (("/lustre/git", "/lustre/git"), ("git", "/root/nk/git")):
        (tmp_path / "env.toml").write_text(f'[cache]\ngit_dir = "{named}"\n')
        monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
        assert mounted(text, reach=None)[0][1] == f"{cache}/tool-{'a' * 12}:/opt/it"


def test_a_dry_run_asks_nobody_and_says_so() -> None:
    mounts, (fetch,), (note,) = mounted("auto_mount:git+https://no.invalid/x/tool.git@r1.0/fix,/opt/it", reach=None)
    assert mounts[1] == "/root/nk/repositories/tool-r1.0-fix:/opt/it"
    assert fetch["commit"] == ""
    assert "r1.0/fix is resolved to a commit at launch" in note


@pytest.mark.parametrize(
    "text",
    [
        "git+https://host/x,/opt/x",  # no ref
        "https://host/x@main,/opt/x",
        "git+ext::sh -c touch% /tmp/x@main,/opt/x",
        "git+--upload-pack=touch@main,/opt/x",
        "git+https://host/x@-main,/opt/x",
        "git+https://host/x@a..b,/opt/x",
        "git+https://host/x@main,opt/x",
        "git+https://host/x@main,/opt/$(id)",
        "git+https://host/x@main,/opt/../etc",
        "git+https://me:hunter2@host/x@main,/opt/x",
    ],
)
def test_what_is_no_repository_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="mounts") as refused:
        mounted(f"auto_mount:{text}", reach=None)
    assert "hunter2" not in str(refused.value)


def test_what_git_refuses_is_one_error(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no branch or tag 'gone'"):
        commit_of(f"file://{repository}", "gone")
    with pytest.raises(UserError, match="git could not fetch"):
        commit_of(f"file://{tmp_path}/nothing", "main")
    with pytest.raises(UserError, match="git could not fetch"):
        fetch_repository(str(tmp_path / "r"), f"file://{repository}", "main", "0" * 40, "x-0")
    assert list((tmp_path / "r").iterdir()) == []


def test_a_fetch_inside_a_git_hook_leaves_the_hooks_repository_alone(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    run(tmp_path / "mine", "init", "-q")
    before = (tmp_path / "mine" / ".git" / "HEAD").read_text()
    commit = run(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "mine" / ".git"))
    folder = fetch_repository(str(tmp_path / "cache"), f"file://{repository}", "main", commit, "tool-0")
    assert (tmp_path / "mine" / ".git" / "HEAD").read_text() == before
    assert (Path(folder) / "text").read_text() == "2"


def test_a_cache_in_a_home_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "env.toml").write_text('[cache]\ngit_dir = "~/git"\n')
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    with pytest.raises(UserError, match=r"git_dir: '~/git'.*\n.*relative to the folder for jobs, /root/nk"):
        mounted(f"auto_mount:git+https://no.invalid/tool@{'a' * 40},/opt/it", reach=None)
