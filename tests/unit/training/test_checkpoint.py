from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.training import checkpoint
from nemotron_kit.training.config_blocks import CheckpointConfig


def fill(folder: Path) -> dict:
    (folder / "model").mkdir()
    (folder / "model/weights").write_bytes(b"weights" * 100)
    (folder / "optimizer").write_bytes(b"moments")
    return {"progress": {"loss": 1.5}}


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path / "save", 12, fill)
    assert path.name == "step-00000012"
    assert checkpoint.latest(tmp_path / "save") == path
    record = checkpoint.read(path, verify=True)
    assert record["step"] == 12 and record["progress"] == {"loss": 1.5}
    assert set(record["files"]) == {"model/weights", "optimizer"}


def test_the_newest_one_counts(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        checkpoint.write(tmp_path, step, fill)
    assert checkpoint.latest(tmp_path).name == "step-00000010"
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, 1, fill)

    def full_disk(folder: Path) -> dict:
        (folder / "part").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(NemotronError, match=r"step-00000002: .* No space left on device"):
        checkpoint.write(tmp_path, 2, full_disk)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_step_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, 1, fill)
    checkpoint.write(tmp_path, 1, lambda folder: pytest.fail("written again"))


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.write(tmp_path, step, fill)
    (tmp_path / "model-00000005").mkdir()
    checkpoint.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-00000005", "step-00000004", "step-00000005"]


def test_only_old_debris_is_removed(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, 1, fill)
    for name, age in (("old", 7200), ("new", 10)):
        debris = tmp_path / f".step-00000002.{name}.tmp"
        debris.mkdir()
        os.utime(debris, (time.time() - age,) * 2)
    checkpoint.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step-00000002.new.tmp", "step-00000001"]
    assert checkpoint.latest(tmp_path).name == "step-00000001"


@pytest.mark.parametrize("name", ["model/weights", "optimizer"])
def test_any_damage_is_named(tmp_path: Path, name: str) -> None:
    older, path = checkpoint.write(tmp_path, 1, fill), checkpoint.write(tmp_path, 2, fill)
    whole = (path / name).read_bytes()
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    for damaged in (whole[:-1], whole + b"x", b"", flipped):
        (path / name).write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{name}: the file is missing, or not what was saved[\s\S]*{older.name}"):
            checkpoint.read(path, verify=True)
    (path / name).unlink()
    with pytest.raises(UserError, match=name):
        checkpoint.read(path, verify=False)


def test_a_record_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, 1, fill)
    record = path / "checkpoint.json"
    whole = record.read_bytes()
    for length in range(len(whole.rstrip())):
        record.write_bytes(whole[:length])
        with pytest.raises(
            UserError, match=r"checkpoint\.json: the checkpoint's record can't be read[\s\S]*start anew"
        ):
            checkpoint.read(path, verify=True)
    record.write_text(json.dumps([1]))
    with pytest.raises(UserError, match="can't be read"):
        checkpoint.read(path, verify=True)
    record.unlink()
    with pytest.raises(UserError, match="can't be read"):
        checkpoint.read(path, verify=True)


def edited(path: Path, **changes: object) -> None:
    record = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps({**record, **changes}, indent=1))


@pytest.mark.parametrize(
    "changes",
    [{"step": 3}, {"step": -5}, {"files": {}}, {"progress": {"loss": 2.5}}, {"more": 1}, {"sha256": "0" * 64}],
)
def test_a_record_that_was_changed_is_refused(tmp_path: Path, changes: dict) -> None:
    path = checkpoint.write(tmp_path, 6, fill)
    edited(path, **changes)
    for unchecked in (False, True):
        with pytest.raises(UserError, match=r"the checkpoint's record can't be read \(this record is"):
            checkpoint.read(path, verify=False, allow_unchecked=unchecked)


def test_a_record_of_an_earlier_version_is_taken_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.write(tmp_path, 6, fill)
    record = json.loads((path / "checkpoint.json").read_text())
    old = {key: value for key, value in record.items() if key not in ("sha256", "sealed_by")}
    (path / "checkpoint.json").write_text(json.dumps(old))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_intact", pytest.fail)  # no large file is read for what is refused anyway
        with pytest.raises(
            UserError, match=r"has no checksum: it is of an earlier[\s\S]*may_differ=\[checkpoint\.record\]"
        ):
            checkpoint.read(path, verify=True)
    assert checkpoint.read(path, verify=True, allow_unchecked=True) == {**old, "unchecked": True}
    (path / "checkpoint.json").write_text(json.dumps({**old, "step": 2}))
    with pytest.raises(UserError, match="it is of step 2"):
        checkpoint.read(path, verify=True, allow_unchecked=True)


def test_what_can_not_be_removed_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(1, 4):
        checkpoint.write(tmp_path, step, fill)
    unlink = Path.unlink

    def busy(path: Path, missing_ok: bool = False) -> None:
        if path.name == "optimizer":
            raise OSError(16, "Device or resource busy")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", busy)
        problems = checkpoint.prune(tmp_path, 1)
        assert len(problems) == 2 and all("optimizer: Device or resource busy" in problem for problem in problems)
        assert checkpoint.prune(tmp_path, 1) == problems
    assert checkpoint.latest(tmp_path).name == "step-00000003"
    assert not list(tmp_path.glob(".*/model/weights"))  # as much went as could
    assert checkpoint.prune(tmp_path, 1) == []
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"save_interval": 0}, r"checkpoint\.save_interval is 0"),
        ({"most_recent_k": 0}, r"checkpoint\.most_recent_k is 0"),
        ({"finetune": True}, "nothing to start from"),
        ({"load": "a", "pretrained_checkpoint": "b"}, "both set"),
    ],
)
def test_a_wrong_value_is_named(fields: dict, error: str) -> None:
    with pytest.raises(UserError, match=error):
        CheckpointConfig(**fields).check()
