"""What launches left on a target goes when it is old and no unfinished run names it, and never else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from zipfile import BadZipFile

import pytest

from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.errors import NemotronError
from nemotron_kit.remote.agent.bootstrap import unpack
from nemotron_kit.remote.agent.code import used
from nemotron_kit.remote.ssh import LocalTransport
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.job import JobFolder, JobState

DIGEST, KIT, TOOL = "a" * 64, "b" * 32, "tool-" + "c" * 12


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "env.toml").write_text('[here]\nexecutor = "local"\n')
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"{DIGEST}.tar.gz").write_bytes(b"x" * 2_000_000)
    for folder in (f"kit/{KIT}", f"repositories/{TOOL}"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_bytes(b"x")
    for path in things(tmp_path):
        os.utime(path, (0, 0))
    return tmp_path


def things(root: Path) -> list[Path]:
    return sorted(path for kind in ("code", "kit", "repositories") for path in (root / kind).iterdir())


def clean(root: Path, seconds: float = 60.0, *, remove: bool = True) -> list[str]:
    found, _ = LocalTransport(str(root)).call("clean", root=str(root), unused_seconds=seconds, remove=remove)
    return [Path(entry["path"]).name for entry in found]


def test_what_is_old_goes_and_what_was_used_stays(root: Path) -> None:
    used(root / "kit" / KIT)
    assert clean(root, remove=False) == [f"{DIGEST}.tar.gz", TOOL]
    assert len(things(root)) == 3, "it was only asked for"
    assert clean(root) == [f"{DIGEST}.tar.gz", TOOL]
    assert things(root) == [root / "kit" / KIT]


def test_what_launches_have_not_made_stays(root: Path) -> None:
    """The root may be somebody's home, where `code` is no folder of ours alone."""
    for name in ("code/thesis", "code/old.tar.gz", "kit/drums", "repositories/mine"):
        (root / name).mkdir()
        os.utime(root / name, (0, 0))
    (root / "kit" / ("d" * 32)).symlink_to(root / "code")
    assert len(clean(root)) == 3
    assert [path.name for path in things(root)] == ["old.tar.gz", "thesis", "d" * 32, "drums", "mine"]


@pytest.mark.parametrize("over", [False, True])
def test_what_an_unfinished_run_names_stays(root: Path, over: bool) -> None:
    spec = {"environment": {"PYTHONPATH": f"{root}/kit/{KIT}"}}
    run = create_run("20260102-030405-work-speak-abc123", {}, [{"job.json": json.dumps(spec)}])
    (run.path / "code.json").write_text(json.dumps({"digest": DIGEST}))
    (run.path / "slurm").mkdir()
    (run.path / "slurm" / "again.sh").write_text(f"--container-mounts={root}/repositories/{TOOL}:/opt/tool")
    if over:
        run.job().finish(0)
    assert len(clean(root)) == (3 if over else 0)


def test_what_a_launch_takes_while_the_runs_are_read_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_run("20260102-030405-work-speak-abc123", {}, [{"job.json": "{}"}])
    state = JobFolder.state

    def slowly(job: JobFolder) -> JobState:
        used(root / "code" / f"{DIGEST}.tar.gz")
        return state(job)

    monkeypatch.setattr(JobFolder, "state", slowly)
    assert clean(root) == [KIT, TOOL] and things(root) == [root / "code" / f"{DIGEST}.tar.gz"]


def test_what_can_not_be_removed_keeps_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may remove anything, so the system's refusal is made up."""

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(NemotronError, match=rf"1 could not be removed: .*{DIGEST}.tar.gz: Operation not permitted"):
        run_tool("profiles", ["clean", "here"])
    said = capsys.readouterr().out
    assert "2 removed" in said and DIGEST not in said and KIT in said and TOOL in said


def test_the_command_says_what_it_removes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("profiles", ["clean", "here", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert DIGEST in said and "3 would be removed, 2.0 MB: unused for 30d00h" in said
    assert run_tool("profiles", ["clean", "here", "--unused", "1h", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3 and not things(root)
    assert run_tool("profiles", ["clean", "here"]) == 0
    assert capsys.readouterr().out.startswith("0 removed, 0.0 MB")


def test_what_killed_processes_left_behind_goes_too(root: Path) -> None:
    left = [
        f"code/.{DIGEST}.tar.gz.123.0123abcd.tmp",
        "kit/.kit-a1_b2c3",
        f"kit/.{KIT}-77",
        f"repositories/.{TOOL}-x1y2",
    ]
    for name in [*left, "kit/.other"]:
        (root / name).touch() if name.startswith("code") else (root / name).mkdir()
        os.utime(root / name, (0, 0))
    used(root / "kit" / KIT)
    removed = set(clean(root))
    assert removed == {DIGEST + ".tar.gz", TOOL, *(Path(name).name for name in left)}
    assert things(root) == [root / "kit" / ".other", root / "kit" / KIT]


def test_a_package_that_can_not_be_unpacked_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadZipFile):
        unpack(b"half a zip", tmp_path / "packages" / KIT)
    assert list((tmp_path / "packages").iterdir()) == []
