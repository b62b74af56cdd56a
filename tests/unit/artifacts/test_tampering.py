"""Records that were cut off or changed are named, never read as good, and stand in nobody's way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.artifacts.registry import LocalRegistry
from nemotron_kit.errors import DamagedRecordError

from .conftest import Maker


@pytest.fixture
def pin(registry: LocalRegistry, make: Maker) -> Pin:
    registry.commit(make.draft("Data", "a", fields={"word": "é", "n": 1e-05}, producer="run-1"))
    registry.set_alias("Data", "prod", 0)
    return registry.resolve("Data:v0")


FILES = {
    "Data/v0/version.json": "Data:v0",
    "Data/aliases/prod": "Data:prod",
    "Data/runs/run-1": "Data@run:run-1",
    ".registry/registry.json": "Data:v0",
}


@pytest.mark.parametrize(("name", "reference"), FILES.items())
def test_every_cut(registry: LocalRegistry, pin: Pin, name: str, reference: str) -> None:
    file = registry.root / name
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(DamagedRecordError) as error:
            LocalRegistry(registry.root).resolve(reference)
        assert str(file) in error.value.message
    file.write_bytes(whole)
    assert LocalRegistry(registry.root).resolve(reference) == pin


@pytest.mark.parametrize(("name", "reference"), FILES.items())
def test_every_flipped_bit(registry: LocalRegistry, pin: Pin, name: str, reference: str) -> None:
    file = registry.root / name
    whole = file.read_bytes()
    for position in range(len(whole)):
        flipped = bytes([whole[position] ^ (1 << position % 8)])
        file.write_bytes(whole[:position] + flipped + whole[position + 1 :])
        with pytest.raises(DamagedRecordError) as error:
            LocalRegistry(registry.root).resolve(reference)
        assert str(file) in error.value.message


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", "\x00" * 300, "[" * 100_000, '{"a": NaN', "\ufeff{}", "9" * 9999]
)
@pytest.mark.parametrize(("name", "reference"), FILES.items())
def test_odd_content(registry: LocalRegistry, pin: Pin, name: str, reference: str, text: str) -> None:
    (registry.root / name).write_text(text)
    with pytest.raises(DamagedRecordError):
        LocalRegistry(registry.root).resolve(reference)


def test_a_missing_record_and_an_exchanged_one(registry: LocalRegistry, pin: Pin, make: Maker) -> None:
    registry.commit(make.draft("Data", "b"))
    first, second = (registry.root / "Data" / f"v{n}" / "version.json" for n in (0, 1))
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(DamagedRecordError, match=r"this is the record of Data:v0"):
        registry.resolve("Data")
    second.unlink()
    with pytest.raises(DamagedRecordError, match="is missing"):
        registry.resolve("Data:latest")
    second.write_bytes(kept)
    assert registry.resolve("Data").version == 1


def test_a_damaged_version_blocks_no_save(
    registry: LocalRegistry, pin: Pin, make: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    (registry.root / "Data" / "v0" / "version.json").write_text("{")
    assert registry.commit(make.draft("Data", "b")).version == 1
    assert registry.resolve("Data").version == 1
    assert registry.commit(make.draft("Data", "a", fields={"word": "é", "n": 1e-05}, producer="run-1")).version == 2
    assert "It is not changed, and a new version is made." in caplog.text  # said to who would have got that version


def test_a_record_that_leads_out_of_its_folder(registry: LocalRegistry, pin: Pin) -> None:
    from nemotron_kit.files import read_checksummed, render_checksummed

    file = registry.root / "Data" / "v0" / "version.json"
    document = read_checksummed(file, "record")
    for path in ("/etc/passwd", "../x", "a/../../x"):
        document["files"][0][0] = path
        file.write_text(render_checksummed(document))
        with pytest.raises(DamagedRecordError, match="leads out of its folder"):
            registry.resolve("Data")
    file.write_text(render_checksummed({**document, "format": 2}))
    with pytest.raises(DamagedRecordError, match="has format 2, not 1"):
        registry.resolve("Data")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"inputs": []}', '{"outputs": {}}', '{"inputs": {"data": {}}}', '{"inputs": {"data": {"path": 3}}}'],
)
def test_a_damaged_list_of_a_jobs_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "artifacts.json").write_text(text)
    monkeypatch.setenv("NEMO_RUN_DIR", str(tmp_path))
    with pytest.raises(DamagedRecordError):
        lineage.inputs()


def test_pins_are_read_strictly() -> None:
    good = Pin("A", 1, "ab", "T", "/x", "r").to_dict()
    assert Pin.from_dict(json.loads(json.dumps(good))).label == "A:v1"
    for wrong in ({"version": "1"}, {"version": True}, {"version": -1}, {"path": ""}, {"digest": 3}, {"type": None}):
        with pytest.raises(DamagedRecordError, match="Not a pin"):
            Pin.from_dict({**good, **wrong})
