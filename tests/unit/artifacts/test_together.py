"""Saves that happen at the same time as others, or as the removal of what they save; and what they cost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nemotron_kit.artifacts import Artifact, lineage
from nemotron_kit.artifacts import commit as commit_room
from nemotron_kit.artifacts.reference import ArtifactChangedError, Pin
from nemotron_kit.artifacts.registry import LocalRegistry
from nemotron_kit.artifacts.store import Store
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.remote.agent.operations import versions_in
from nemotron_kit.runs import create_run, open_job, remove_run

from .conftest import Maker

RANK = """
import sys
from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.reference import Pin
rank = sys.argv[1]
print("ready", flush=True)
sys.stdin.readline()
for version in range(8):
    lineage.record_output(Pin(f"R{rank}", version, "ab", "T", "/x", "r"))
"""


def test_ranks_that_save_lose_nothing(tmp_path: Path) -> None:
    job = tmp_path / "runs" / "20261124-171204-a-b-1f03a7" / "jobs" / "0"
    job.mkdir(parents=True)
    (job / "artifacts.json").write_text(json.dumps({"inputs": {}, "outputs": [{"name": "old"}]}))
    line = [sys.executable, "-c", RANK]
    pipe = subprocess.PIPE
    env = {**os.environ, "NEMO_RUN_DIR": str(job)}
    ranks = [subprocess.Popen([*line, str(n)], env=env, stdin=pipe, stdout=pipe, text=True) for n in range(6)]
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "ready\n"
    for rank in ranks:
        rank.communicate("go\n", timeout=60)
    saved = {("old", None), *((f"R{n}", version) for n in range(6) for version in range(8))}
    listed = json.loads((job / "artifacts.json").read_text())["outputs"]
    for outputs in (listed, open_job(job).artifacts()["outputs"]):
        assert len(outputs) == len(saved)
        assert {(pin["name"], pin.get("version")) for pin in outputs} == saved


def test_a_list_that_was_not_brought_up_to_date_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "runs" / "R" / "jobs" / "0"
    job.mkdir(parents=True)
    monkeypatch.setenv("NEMO_RUN_DIR", str(job))
    monkeypatch.setattr(lineage, "_list_saves", lambda folder: None)  # it was killed before that
    first, second = (Pin(name, 0, "ab", "T", "/x", "r") for name in "AB")
    for pin in (first, second, first):
        lineage.record_output(pin)
    assert not (job / "artifacts.json").exists()
    assert open_job(job).artifacts() == {"inputs": {}, "outputs": [first.to_dict(), second.to_dict()]}


def test_a_save_reads_no_other_version(
    registry: LocalRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    for number in range(12):
        registry.commit(make.draft("Data", f"{number}"))
    read: list[int] = []
    listed: list[str] = []
    record, versions = Store.record, Store.versions

    def noted(self: Store, name: str, version: int) -> object:
        read.append(version)
        return record(self, name, version)

    monkeypatch.setattr(Store, "record", noted)
    monkeypatch.setattr(Store, "versions", lambda self, name: listed.append(name) or versions(self, name))
    assert registry.commit(make.draft("Data", "new")).version == 12
    assert (set(read), listed) == ({12}, [])
    assert registry.commit(make.draft("Data", "7")).version == 7
    assert (set(read), listed) == ({12, 7}, [])


@pytest.mark.parametrize("lost", ["index", "index/newest", "index/complete"])
def test_the_index_is_only_a_cache(registry: LocalRegistry, make: Maker, lost: str) -> None:
    for content in "abc":
        registry.commit(make.draft("Data", content))
    gone = registry.root / "Data" / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert registry.commit(make.draft("Data", "b")).version == 1
    assert registry.commit(make.draft("Data", "d")).version == 3
    (registry.root / "Data" / "index" / "newest").write_text("99\n")  # it is looked whether that is so
    assert registry.commit(make.draft("Data", "e")).version == 4


def test_many_writers_of_few_contents(registry: LocalRegistry, make: Maker) -> None:
    drafts = [make.draft("Data", content) for content in "abcdef"]
    labels: list[tuple[str, int | None]] = []

    def save(first: int) -> None:
        for number in range(len(drafts)):
            draft = drafts[(first + number) % len(drafts)]
            labels.append((draft.root.name, LocalRegistry(registry.root).commit(draft).version))

    threads = [threading.Thread(target=save, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(labels) == 48
    assert len(set(labels)) == len(drafts)
    assert registry.versions("Data") == list(range(len(drafts)))


def _meanwhile(monkeypatch: pytest.MonkeyPatch, when: str, do: Callable[[], object]) -> None:
    """Do something once, just before or after a version gets its name."""
    real, done = commit_room.publish, []

    def publish(stage: Path, target: Path) -> bool:
        if when == "before" and not done:
            done.append(do())
        published = real(stage, target)
        if when == "after" and not done:
            done.append(do())
        return published

    monkeypatch.setattr(commit_room, "publish", publish)


@pytest.mark.parametrize("when", ["before", "after"])
def test_files_that_are_removed_while_they_are_saved(
    registry: LocalRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    draft = make.draft("Data", "a")
    registry.commit(make.draft("Other", "x"))
    _meanwhile(monkeypatch, when, lambda: shutil.rmtree(draft.root))
    with pytest.raises(ArtifactChangedError, match="was removed while the artifact was being saved"):
        registry.commit(draft)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_registry_that_is_moved_during_a_save(
    registry: LocalRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch, home: Path, when: str
) -> None:
    registry.commit(make.draft("Data", "a"))
    _meanwhile(monkeypatch, when, lambda: home.rename(home.with_name("moved")))
    with pytest.raises(NemotronError, match=r"was moved or removed|can't be written"):
        registry.commit(make.draft("Data", "b"))
    assert not home.exists()  # nothing is begun anew in its old place


def test_a_job_whose_folder_is_gone_saves_nothing(
    make: Maker, home: Path, monkeypatch: pytest.MonkeyPatch, registry: LocalRegistry
) -> None:
    job = home / "runs" / "R" / "jobs" / "0"
    job.mkdir(parents=True)
    monkeypatch.setenv("NEMO_RUN_DIR", str(job))
    monkeypatch.setenv("NEMOTRON_RUN_ID", "R")
    folder = make.folder("m", w="1")
    Artifact(path=folder).save(name="M")
    home.rename(home.with_name("moved"))
    with pytest.raises(NemotronError, match="the folder of this job, was moved or removed"):
        Artifact(path=folder).save(name="M")
    assert not home.exists()


def test_a_run_is_not_removed_under_a_save(registry: LocalRegistry, make: Maker, home: Path) -> None:
    """A version that appears between the first look and the removal stops it, and nothing is lost."""
    run = create_run("20261124-171204-a-b-1f03a7", {}, [{"config.yaml": ""}])
    run.job().finish(0)
    files = run.job().path / "model"
    files.mkdir()
    (files / "w").write_text("1")
    looks: list[list[str]] = []

    def referenced(_: object) -> list[str]:
        looks.append(versions_in(registry, run.path))
        if len(looks) == 1:
            registry.commit(make.draft("M", "1", root=files, path=files))
        return looks[-1]

    with pytest.raises(UserError, match=r"holds the files of M:v0"):
        remove_run(run, referenced_by=referenced)
    assert looks == [[], ["M:v0"]]
    assert registry.resolve("M").path == str(files)


def test_latest_that_is_gone_gets_a_successor(
    registry: LocalRegistry, make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = make.draft("Data", "a"), make.draft("Data", "b")
    for draft in (first, second):
        registry.commit(draft)
    assert registry.commit(first).version == 0  # the newest is whole: latest stays
    shutil.rmtree(second.root)
    assert registry.commit(first).version == 2
    assert "v1, the newest, can't be read" in caplog.text
    assert registry.resolve("Data").path == str(first.root)
    assert registry.commit(first).version == 2
    second.root.mkdir()
    (second.root / "data").write_text("b")
    assert registry.commit(second).version == 1
