"""Saves at the same time as other saves, or as the removal of the saved files; and the cost of saves."""

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
from nemotron_kit.artifacts.registry import LocalRegistry, open_registry
from nemotron_kit.artifacts.store import Store
from nemotron_kit.cli.runs.remove import artifacts_in
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.remote.agent.operations import versions_in
from nemotron_kit.runs.folder import RunFolder, create_run, open_job
from nemotron_kit.runs.ledger import remove_run

from ...file_calls import acting_at, stepping_in
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
    monkeypatch.setattr(commit_room, "_PAUSES", (0.01, 0.02, 0.05, 30.0))
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is not there is not waited for."""
    monkeypatch.setattr(commit_room, "_PAUSES", (0.0,))


class World:
    """A home with a job in it, which saves a model: into its own folder, or elsewhere."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch, *, within: bool, begun: bool) -> None:
        self.home, self.moved, self._patch = top / "home", top / "moved", monkeypatch
        monkeypatch.setenv("NEMOTRON_HOME", str(self.home))
        self.run = create_run("20261124-171204-a-b-1f03a7", {}, [{"config.yaml": ""}])
        self.run.job().finish(0)
        monkeypatch.setenv("NEMO_RUN_DIR", str(self.run.job().path))
        monkeypatch.setenv("NEMOTRON_RUN_ID", self.run.id)
        if begun:
            (top / "first").mkdir()
            Artifact(path=top / "first").save(name="First")
        self.files = self.run.job().path / "model" if within else top / "model"
        self.files.mkdir()
        (self.files / "w").write_text("1")

    def move(self) -> None:
        self.home.rename(self.moved)

    def remove(self, after_the_look: Callable[[], object] = lambda: None) -> bool:
        """`runs rm`; whether it went. `after_the_look`: what happens while it is between its last look and the end."""

        def looked(run: RunFolder) -> list[str]:
            found = artifacts_in(run)
            if not run.path.exists():
                after_the_look()
            return found

        try:
            remove_run(self.run, referenced_by=looked)
        except UserError as error:
            assert "holds the files of" in str(error)
            return False
        return True

    def check(self, act: Callable[[], object]) -> bool:
        """Whether the save was acknowledged; then it can be loaded whole from where the home is now. Where it was not,
        nothing is listed whose files are gone."""
        try:
            act()
            saved = True
        except (NemotronError, UserError):
            saved = False
        if self.moved.exists():
            assert not self.home.exists(), "it is not begun anew in its old place"
            self._patch.setenv("NEMOTRON_HOME", str(self.moved))
        registry = open_registry()
        if saved:
            registry.verify(registry.resolve("M:v0"), deep=True)
        return saved


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("within", "begun"), [(True, True), (False, True), (False, False)])
def test_a_home_that_is_renamed_at_any_call_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: bool, begun: bool
) -> None:
    k, failed, made = 0, 0, [""]
    while len(made) >= k:  # the last one is through before anything happens
        k += 1
        (tmp_path / str(k)).mkdir()
        world = World(tmp_path / str(k), monkeypatch, within=within, begun=begun)

        def save(world: World = world, k: int = k) -> None:
            nonlocal made
            with stepping_in(acting_at(k, world.move)) as made:
                Artifact(path=world.files).save(name="M")

        failed += not world.check(save)
    assert k > 30
    assert failed == k - 1, "moved in the middle, it is not acknowledged"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("paused", [False, True])
def test_a_run_that_is_removed_at_any_call_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    """All of the removal at once; and with the rest of the save between the removal's last look and its end."""
    k, ends, made = 0, set(), [""]
    while len(made) >= k:
        k += 1
        (tmp_path / str(k)).mkdir()
        world = World(tmp_path / str(k), monkeypatch, within=True, begun=True)
        looked, saved, went = threading.Event(), threading.Event(), [False]

        def between(looked: threading.Event = looked, saved: threading.Event = saved) -> None:
            looked.set()
            assert saved.wait(20)

        def remove(world: World = world, looked: threading.Event = looked, went: list[bool] = went) -> None:
            went[0] = world.remove(between if paused else lambda: None)
            looked.set()

        remover = threading.Thread(target=remove)

        def begin(remover: threading.Thread = remover, looked: threading.Event = looked) -> None:
            remover.start()
            assert looked.wait(20)

        def save(world: World = world, k: int = k) -> None:
            nonlocal made
            with stepping_in(acting_at(k, begin)) as made:
                Artifact(path=world.files).save(name="M")

        acknowledged = False
        try:
            acknowledged = world.check(save)
        finally:
            saved.set()
            if remover.ident:
                remover.join()
        assert went[0] is not acknowledged or not remover.ident
        listed = open_registry().versions("M")
        assert bool(listed) is acknowledged or world.files.exists(), "no version is left whose files are gone"
        ends.add((acknowledged, went[0]))
    assert ends >= {(True, False), (False, True)}
