"""What code goes along with a job."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from nemotron_kit.errors import UserError
from nemotron_kit.remote.agent.code import unpack_code
from nemotron_kit.remote.snapshot import artifact_folders, send_snapshot, take_snapshot
from nemotron_kit.remote.ssh import LocalTransport
from nemotron_kit.spec.paths import CodeTree, repositories_left_out
from nemotron_kit.spec.runconfig import RunConfig

from ...project import write_files


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t.invalid"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg" / "train.py").write_text("print('committed')\n")
    (root / ".gitignore").write_text("ignored/\n*.bin\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def tree(root: Path, packager: str = "worktree", *, in_git: bool = True) -> CodeTree:
    return CodeTree(str(root), ".", packager, in_git)


def contents(archive: bytes) -> dict[str, str]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        for member in packed:
            source = packed.extractfile(member) if member.isfile() else None
            found[member.name] = source.read().decode() if source else f"→ {member.linkname}"
    return found


def test_the_edit_of_a_moment_ago_is_what_goes(repository: Path) -> None:
    before = take_snapshot(tree(repository))
    (repository / "pkg" / "train.py").write_text("print('edited')\n")
    (repository / "pkg" / "new.py").write_text("print('new')\n")
    (repository / "ignored").mkdir()
    (repository / "ignored" / "big").write_text("x")
    (repository / "weights.bin").write_text("x")
    after = take_snapshot(tree(repository))
    assert contents(after.archive) == {
        ".gitignore": "ignored/\n*.bin\n",
        "pkg/new.py": "print('new')\n",
        "pkg/train.py": "print('edited')\n",
    }
    assert (before.dirty, after.dirty) == (False, True)
    assert before.commit == after.commit
    assert before.digest != after.digest


def test_equal_content_is_the_same_archive(repository: Path) -> None:
    first = take_snapshot(tree(repository))
    os.utime(repository / "pkg" / "train.py", (1, 1))
    assert take_snapshot(tree(repository)).digest == first.digest


def test_a_deleted_file_stays_away_and_odd_names_go(repository: Path) -> None:
    (repository / "pkg" / "train.py").unlink()
    odd = "a 'b' $(x)\n\udcff.py"
    (repository / "pkg" / odd).write_text("1\n")
    assert set(contents(take_snapshot(tree(repository)).archive)) == {".gitignore", f"pkg/{odd}"}


def test_a_folder_of_the_repository_goes_alone(repository: Path) -> None:
    snapshot = take_snapshot(tree(repository / "pkg"))
    assert contents(snapshot.archive) == {"train.py": "print('committed')\n"}


@pytest.fixture
def nested(repository: Path, tmp_path: Path) -> Path:
    """A submodule, a clone that git does not know, one inside that, one added by mistake, and ignored ones."""

    def made(folder: Path) -> Path:
        folder.mkdir(parents=True)
        (folder / "old.py").write_text(f"{folder.name}\n")
        git(folder, "init", "-q")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "first")
        return folder

    git(
        repository,
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "--quiet",
        "add",
        str(made(tmp_path / "sub")),
        "sub",
    )
    made(repository / "added")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "with others in it")
    made(made(repository / "lib") / "deep")
    made(repository / "ignored")
    made(repository / "ignored" / "below")
    for folder in ("sub", "lib"):
        (repository / folder / "new.py").write_text("new\n")
        (repository / folder / ".gitignore").write_text("*.log\n")
        (repository / folder / "a.log").write_text("noise")
    return repository


def test_repositories_inside_go_along(nested: Path) -> None:
    own, sub = {".gitignore", ".gitmodules", "pkg/train.py"}, {"sub/old.py", "sub/new.py", "sub/.gitignore"}
    lib = {"lib/old.py", "lib/new.py", "lib/.gitignore", "lib/deep/old.py"}
    assert set(take_snapshot(tree(nested)).files) == own | sub | lib | {"added/old.py"}
    without = take_snapshot(tree(nested), RunConfig(include_submodules=False))
    assert set(without.files) == own | lib
    committed = take_snapshot(tree(nested, "git"), RunConfig(allow_dirty=True))
    assert set(committed.files) == own | {"sub/old.py", "added/old.py"}


def test_repositories_that_git_ignores_are_named(nested: Path) -> None:
    left_out = repositories_left_out(CodeTree(str(nested), ".", "worktree", git=True))
    assert left_out == ("ignored", "ignored/below")
    assert repositories_left_out(CodeTree(str(nested), ".", "pattern", git=True)) == ()


def test_an_ignored_folder_that_can_not_be_read_prevents_no_launch(
    nested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: str) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "scandir", denied)
    assert repositories_left_out(CodeTree(f"{nested}/.", ".", "worktree", git=True)) == ("ignored",)


def test_links_inside_stay_links_and_others_name_their_place(repository: Path, tmp_path: Path) -> None:
    (repository / "inside").symlink_to("pkg/train.py")
    (repository / "outside").symlink_to(tmp_path / "data")
    (repository / "up").symlink_to("../data")
    (repository / "pkg" / "whole").symlink_to(repository / "pkg" / "train.py")
    found = contents(take_snapshot(tree(repository)).archive)
    assert found["inside"] == "→ pkg/train.py"
    assert found["outside"] == found["up"] == f"→ {tmp_path}/data"
    assert found["pkg/whole"] == "→ train.py", "the copy's file, and not that of the work tree"


def test_too_much_names_the_largest(repository: Path) -> None:
    (repository / "large.dat").write_bytes(b"x" * 30_000)
    (repository / "larger.dat").write_bytes(b"x" * 40_000)
    with pytest.raises(UserError) as caught:
        take_snapshot(tree(repository), limit=50_000)
    message = caught.value.message
    assert message.index("larger.dat") < message.index("large.dat")
    assert "40.0 kB" in message
    assert ".gitignore" in str(caught.value.hint)


def test_without_git_environments_and_records_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "plain"
    names = "src/a.py env/pyvenv.cfg env/lib/b.py home/runs/x cache/CACHEDIR.TAG src/__pycache__/a.pyc"
    write_files(root, dict.fromkeys(names.split(), "x"))
    monkeypatch.setenv("NEMOTRON_HOME", str(root / "home"))
    assert set(contents(take_snapshot(tree(root, in_git=False)).archive)) == {"src/a.py"}


def test_artifacts_are_named_and_not_copied(
    repository: Path, monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    from nemotron_kit.artifacts import Artifact

    (repository / "output").mkdir()
    (repository / "output" / "data.txt").write_text("large")
    Artifact(path=repository / "output").save(name="Made")
    folders = artifact_folders(str(repository))
    assert folders == [str(repository / "output")]
    names = set(contents(take_snapshot(tree(repository), leave_out=folders).archive))
    assert names == {".gitignore", "pkg/train.py"}


def test_git_refuses_what_is_not_committed(repository: Path) -> None:
    clean = take_snapshot(tree(repository, "git"))
    (repository / "pkg" / "train.py").write_text("print('edited')\n")
    with pytest.raises(UserError, match=r"pkg/train\.py"):
        take_snapshot(tree(repository, "git"))
    allowed = take_snapshot(tree(repository, "git"), RunConfig(allow_dirty=True))
    assert contents(allowed.archive) == contents(clean.archive)


def test_pattern_sends_what_matches(repository: Path) -> None:
    settings = RunConfig(packager_include_pattern=["pkg/*.py"])
    assert set(contents(take_snapshot(tree(repository, "pattern"), settings).archive)) == {"pkg/train.py"}
    with pytest.raises(UserError, match="nothing in"):
        take_snapshot(tree(repository, "pattern"), RunConfig(packager_include_pattern=["*.nothing"]))
    with pytest.raises(UserError, match="leads out"):
        take_snapshot(tree(repository, "pattern"), RunConfig(packager_include_pattern=["../*"]))
    with pytest.raises(UserError, match="needs packager_include_pattern"):
        take_snapshot(tree(repository, "pattern"))
    for pattern in ("**x.py", ".", ""):
        with pytest.raises(UserError, match=f"packager_include_pattern: {re.escape(repr(pattern))} is no pattern"):
            take_snapshot(tree(repository, "pattern"), RunConfig(packager_include_pattern=[pattern]))


def test_patterns_add_ignored_files_with_hybrid_and_have_no_effect_with_git(repository: Path) -> None:
    (repository / "weights.bin").write_text("x")
    settings = RunConfig(packager_include_pattern=["*.bin"])
    sent = {kind: set(take_snapshot(tree(repository, kind), settings).files) for kind in ("git", "hybrid")}
    assert sent["hybrid"] - sent["git"] == {"weights.bin"} and sent["git"] == {".gitignore", "pkg/train.py"}


def test_a_pattern_takes_nothing_out_of_environments(repository: Path) -> None:
    write_files(repository, dict.fromkeys(("env/pyvenv.cfg", "env/lib/b.py", "pkg/__pycache__/c.py"), "x"))
    settings = RunConfig(packager_include_pattern=["**/*.py"])
    assert set(contents(take_snapshot(tree(repository, "pattern"), settings).archive)) == {"pkg/train.py"}


def test_the_commit_of_a_submodule_brings_its_own_submodules(repository: Path, tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    add = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add")
    for folder in (inner, outer):
        folder.mkdir()
        git(folder, "init", "-q")
        (folder / "file.py").write_text(folder.name)
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "first")
    git(outer, *add, str(inner), "inner")
    git(outer, "commit", "-qm", "with another")
    git(repository, *add, str(outer), "outer")
    git(repository, "-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init", "--recursive")
    git(repository, "commit", "-qm", "with both")
    whole = take_snapshot(tree(repository, "git"))
    (repository / "pkg" / "train.py").write_text("print('edited')\n")
    committed = take_snapshot(tree(repository, "git"), RunConfig(allow_dirty=True))
    assert contents(committed.archive) == contents(whole.archive)
    assert {"outer/file.py", "outer/inner/file.py"} <= set(committed.files)


def test_a_launch_inside_a_git_hook_sends_its_own_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook's GIT_DIR names the repository of the commit that runs it."""
    git(tmp_path, "init", "-q", "other")
    (repository / "ignored").mkdir()
    (repository / "ignored" / "x").touch()
    git(repository / "ignored", "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert repositories_left_out(tree(repository)) == ("ignored",)
    assert "pkg/train.py" in take_snapshot(tree(repository)).files


def test_a_repositorys_own_programs_are_not_run(repository: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    git(repository, "config", "core.fsmonitor", f"touch {canary}")
    take_snapshot(tree(repository))
    assert not canary.exists()


def test_each_job_has_its_own_copy(repository: Path, tmp_path: Path) -> None:
    snapshot, root = take_snapshot(tree(repository)), tmp_path / "root"
    jobs = [tmp_path / "jobs" / str(n) / "code" for n in range(3)]
    for job in jobs:
        job.parent.mkdir(parents=True)

    def unpacked(folders: list[Path]) -> None:
        send_snapshot(LocalTransport(), snapshot, str(root))
        for folder in folders:
            unpack_code(str(root), snapshot.digest, folder)

    unpacked(jobs[:2])
    (jobs[0] / "output").mkdir()
    (jobs[0] / "pkg" / "train.py").write_text("changed by the job\n")
    unpacked(jobs)
    assert (jobs[0] / "pkg" / "train.py").read_text() == "changed by the job\n", "a requeued job keeps what it wrote"
    assert (jobs[1] / "pkg" / "train.py").read_text() == "print('committed')\n"
    assert sorted(p.name for p in jobs[2].iterdir()) == [".gitignore", "pkg"]
    assert len(list((root / "code").iterdir())) == 1
