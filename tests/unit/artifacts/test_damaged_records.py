"""A damaged record does not affect others: lists show the rest, and a command repairs it or drops it."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from nemotron_kit.artifacts.registry import LocalRegistry
from nemotron_kit.artifacts.store import ArtifactVersion, DamagedVersion
from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.errors import DamagedRecordError, NemotronError, UserError
from nemotron_kit.files import read_checksummed, render_checksummed
from nemotron_kit.remote.agent.operations import versions_in
from nemotron_kit.remote.snapshot import artifact_folders
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.ledger import remove_run

from .conftest import Maker

DAMAGE = {
    "cut": lambda text: text[: len(text) // 3],
    "empty": lambda text: b"",
    "flipped": lambda text: text.replace(b'"type"', b'"tipe"'),
    "a byte behind": lambda text: text + b" ",
    "a byte before": lambda text: b"x" + text,
    "a byte inside": lambda text: text[:150] + b"7" + text[150:],
    "not UTF-8": lambda text: text + b"\xff",
    "two documents": lambda text: text + text,
    "a number": lambda text: b"7",
}
REPAIRED = {"a byte behind", "a byte before", "a byte inside", "not UTF-8", "two documents"}


@pytest.fixture
def filled(registry: LocalRegistry, make: Maker) -> LocalRegistry:
    for content in "abc":
        registry.commit(make.draft("Data", content, producer="run-1"))
    registry.commit(make.draft("Other", "x"))
    return registry


def test_damage_that_ends_without_a_change_of_the_record(filled: LocalRegistry) -> None:
    other = LocalRegistry(filled.root)
    text = other.identity_file.read_text()
    other.identity_file.write_text("x")
    assert all(isinstance(each, DamagedVersion) for each in other.everything())
    other.identity_file.write_text(text)
    assert all(isinstance(each, ArtifactVersion) for each in other.everything())


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_version(filled: LocalRegistry, make: Maker, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = filled.root / "Data" / "v1" / "version.json"
    before = file.read_bytes()
    file.write_bytes(DAMAGE[kind](before))
    for line, others in (([], "Other"), (["Data"], "v0"), (["Data"], "v2")):
        assert run_tool("artifacts", line) == 0
        assert others in capsys.readouterr().out
    assert run_tool("artifacts", ["Data", "--json"]) == 0
    assert [row["files"] for row in json.loads(capsys.readouterr().out)] == ["whole", "damaged", "whole"]
    with pytest.raises(DamagedRecordError) as raised:
        filled.resolve("Data:v1")
    assert "nemotron artifacts gc" in (raised.value.hint or "")
    assert filled.resolve("Data@run:run-1").version == 2
    assert filled.resolve(f"Data@{filled.find('Data:v0').digest[:12]}").version == 0
    assert artifact_folders(str(make.base))
    assert versions_in(filled, make.base / "20261124-171204-a-b-1f03a7") == []
    assert run_tool("artifacts", ["gc", "--dry-run"]) == 0
    remedy = "repaired" if kind in REPAIRED else "dropped"
    assert f"would be {remedy}" in capsys.readouterr().out
    assert file.exists()
    assert run_tool("artifacts", ["gc", "--yes"]) == 0
    if kind in REPAIRED:
        assert file.read_bytes() == before
        assert filled.resolve("Data:v1").path.endswith("Data-b")
    else:
        assert filled.versions("Data") == [0, 2]
        assert (filled.root / "Data" / "dropped-v1" / "version.json").exists()
    assert run_tool("artifacts", ["gc", "--yes"]) == 0
    assert "Nothing to repair" in capsys.readouterr().out.splitlines()[-1]
    assert filled.commit(make.draft("Data", "d")).version == 3


def test_a_dropped_newest_version_gives_its_number_to_nobody(filled: LocalRegistry, make: Maker) -> None:
    (filled.root / "Data" / "v2" / "version.json").write_text("{")
    (finding,) = filled.repair()
    assert (finding.what, finding.remedy) == ("Data:v2", "dropped")
    assert filled.resolve("Data").version == 1
    assert filled.commit(make.draft("Data", "b")).version == 1
    assert filled.commit(make.draft("Data", "c")).version == 3
    shutil.rmtree(filled.root / "Data" / "index")
    assert filled.commit(make.draft("Data", "d")).version == 4


def test_other_records(filled: LocalRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    for alias in ("good", "bad"):
        filled.set_alias("Data", alias, 1)
    own = filled.root / ".registry" / "registry.json"
    uuid = filled.uuid
    for file in (filled.root / "Data" / "aliases" / "bad", filled.root / "Data" / "runs" / "run-1", own):
        file.write_text(file.read_text()[:-9])
    registry = LocalRegistry(filled.root)
    with pytest.raises(DamagedRecordError):
        registry.resolve("Data")
    assert [(each.what, each.remedy) for each in registry.repair()] == [
        ("the registry's record", "repaired"),
        ("Data:bad", "removed"),
        ("Data@run:run-1", "removed"),
    ]
    again = LocalRegistry(filled.root)
    assert (again.uuid, again.aliases("Data")) == (uuid, {"good": 1})
    assert again.resolve("Data@run:run-1").version == 2
    own.write_text("")
    for name in ("Data", "Other"):
        shutil.rmtree(filled.root / name)
    with pytest.raises(UserError, match="can't be made again"):
        LocalRegistry(filled.root).repair()


def test_a_copy_without_hidden_files_is_the_same_registry(filled: LocalRegistry, make: Maker) -> None:
    file, pin = filled.identity_file, filled.resolve("Data:v1")
    for finish in (lambda: filled.repair(), lambda: LocalRegistry(filled.root).commit(make.draft("Data", "a"))):
        shutil.rmtree(file.parent)
        copy = LocalRegistry(filled.root)
        assert copy.resolve("Data:v1") == pin
        assert [(each.what, each.remedy) for each in copy.repair(dry_run=True)] == [
            ("the registry's record", "repaired")
        ]
        finish()
        assert (LocalRegistry(filled.root).uuid, file.exists()) == (pin.registry, True)
    file.unlink()  # the folder is left
    (file.parent / "note").write_text("")
    assert LocalRegistry(filled.root).commit(make.draft("Data", "a")).version == 0 and file.exists()


def test_versions_of_two_registries_do_not_make_a_new_one(filled: LocalRegistry, make: Maker, home: Path) -> None:
    other = LocalRegistry(home / "other")
    other.commit(make.draft("Foreign", "f"))
    shutil.copytree(other.root / "Foreign", filled.root / "Foreign")
    assert filled.repair() == [] and (filled.root / "Foreign" / "v0" / "version.json").exists()
    shutil.rmtree(filled.identity_file.parent)
    with pytest.raises(DamagedRecordError, match="registry record is missing"):
        LocalRegistry(filled.root).commit(make.draft("Data", "new"))
    with pytest.raises(UserError, match="can't be made again"):
        LocalRegistry(filled.root).repair()


def test_an_alias_that_cannot_be_read_stops_no_list(filled: LocalRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    """As one of another user that was written before the registry was the group's."""
    filled.set_alias("Data", "good", 1)
    (filled.root / "Data" / "aliases" / "other").mkdir()
    assert filled.aliases("Data") == {"good": 1} and filled.repair() == []
    assert run_tool("artifacts", ["Data"]) == 0 and "good" in capsys.readouterr().out
    with pytest.raises(NemotronError, match="can't be read"):
        filled.resolve("Data:other")


def test_a_record_of_a_newer_version_is_left_as_it_is(filled: LocalRegistry) -> None:
    file = filled.root / "Data" / "v1" / "version.json"
    text = render_checksummed({**read_checksummed(file, "record"), "format": 2})
    file.write_text(text)
    assert filled.repair() == [] and file.read_text() == text


def test_what_a_damaged_record_says_of_a_run_still_counts(registry: LocalRegistry, make: Maker) -> None:
    runs = [create_run(f"20261124-17120{n}-a-b-1f03a{n}", {}, [{"config.yaml": ""}]) for n in range(2)]
    for run in runs:
        run.job().finish(0)
    files = runs[0].job().path / "model"
    files.mkdir()
    (files / "w").write_text("1")
    registry.commit(make.draft("M", "1", root=files, path=files))
    record = registry.root / "M" / "v0" / "version.json"
    text = record.read_text()

    def held(run: RunFolder) -> list[str]:
        return versions_in(registry, run.path)

    record.write_text(text + " ")
    assert held(runs[0]) == ["M:v0 (its record is damaged)"]
    remove_run(runs[1], referenced_by=held)
    record.write_text("")  # nothing is left of it but what the job noted
    assert held(runs[0]) == []
    pin = {"name": "M", "version": 0, "path": str(files)}
    (runs[0].job().path / "artifacts.json").write_text(json.dumps({"outputs": [pin, {"name": [], "version": {}}]}))
    assert held(runs[0]) == ["M:v0 (its record is damaged)"]
    with pytest.raises(UserError, match="holds the files of M:v0"):
        remove_run(runs[0], referenced_by=held)


def test_lists_mark_what_is_gone_or_changed(
    filled: LocalRegistry, make: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("artifacts", ["Data"]) == 0
    assert "FILES" not in capsys.readouterr().out
    shutil.rmtree(make.base / "Data-a")
    (make.base / "Data-b" / "data").write_text("other")
    os.utime(make.base / "Data-c" / "data")  # equal content, another time: read, and as saved
    assert run_tool("artifacts", ["Data"]) == 0
    lines = capsys.readouterr().out.splitlines()
    marks = {line.split()[0]: {"gone", "changed"} & set(line.split()) for line in lines[1:]}
    assert marks == {"v0": {"gone"}, "v1": {"changed"}, "v2": set()}
    assert run_tool("artifacts", ["--json"]) == 0
    assert {row["name"]: row["files"] for row in json.loads(capsys.readouterr().out)} == {
        "Data": "whole",
        "Other": "whole",
    }


def test_leftovers_of_killed_saves(filled: LocalRegistry, capsys: pytest.CaptureFixture[str]) -> None:
    stage = filled.root / "Data" / ".tmp-0123"
    stage.mkdir()
    (filled.root / "Data" / "index" / ".tmp-4567").write_text("1")
    for left in (stage, filled.root / "Data" / "index" / ".tmp-4567"):
        os.utime(left, (time.time() - 90_000,) * 2)
    assert run_tool("artifacts", ["gc", "--dry-run", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["leftovers"]) == 2
    assert stage.exists()
    assert run_tool("artifacts", ["gc", "--yes"]) == 0
    assert not list(filled.root.rglob(".tmp-*"))


@pytest.mark.parametrize("line", [["--dry-run"], ["gc", "--verify"], ["gc", "--alias", "x"]])
def test_wrong_lines(line: list[str]) -> None:
    with pytest.raises(UserError):
        run_tool("artifacts", line)


def test_a_save_collects_what_killed_ones_left(filled: LocalRegistry, make: Maker) -> None:
    from nemotron_kit.artifacts import Artifact

    folder = make.folder("mine", w="1")
    names = (".metadata.json.999999999.0123abcd.tmp", ".metadata.json.999999999.4567abcd.tmp", ".mine.tmp")
    for name in names:
        (folder / name).write_text("x")
    stage = filled.root / "Data" / ".tmp-0123"
    stage.mkdir()
    for left in (folder / names[0], folder / names[2], stage):
        os.utime(left, (time.time() - 90_000,) * 2)
    Artifact(path=folder).save(name="Mine")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names[1:], "metadata.json", "w"])
    filled.commit(make.draft("Data", "again"))
    assert stage.exists()  # this name was looked through today
    os.utime(filled.root / "Data" / "index" / "collected", (time.time() - 90_000,) * 2)
    filled.commit(make.draft("Data", "and again"))
    assert not stage.exists()


ODD = (None, True, -1, 10**400, float("nan"), 1e300, "", "\x1b[31m\x00", [["x"]], {"a": {"b": []}})


@pytest.mark.parametrize("name", ["v1/version.json", "aliases/good", "runs/run-1", "stamps/v1"])
def test_whole_records_with_values_of_other_types(
    filled: LocalRegistry, make: Maker, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sealed as ours are, so nothing but their types is wrong: one error, or as if it were not there."""
    filled.set_alias("Data", "good", 1)
    os.utime(make.base / "Data-b" / "data")
    filled.commit(make.draft("Data", "b"))
    file = filled.root / "Data" / name
    before = file.read_text()
    document = read_checksummed(file, "record")
    places = [(key,) for key in document]
    places += [(key, inner) for key, value in document.items() if isinstance(value, dict) for inner in value]
    lines = ([], ["Data"], ["Data", "--json"], ["Data:v1"], ["Data:good"], ["Data@run:run-1"], ["Data:v1", "--verify"])
    every = 1 if os.environ.get("NEMOTRON_FUZZ") == "all" else 3
    for number, place in enumerate(places):
        for odd in ODD[number % every :: every]:
            changed = json.loads(json.dumps(document))
            block = changed if len(place) == 1 else changed[place[0]]
            block[place[-1]] = odd
            file.write_text(render_checksummed(changed))
            for line in (*lines, ["gc", "--dry-run"]):
                try:
                    run_tool("artifacts", [*line])
                except NemotronError as error:
                    assert error.message
            assert "\x1b" not in "".join(capsys.readouterr())
    file.write_text(before)
