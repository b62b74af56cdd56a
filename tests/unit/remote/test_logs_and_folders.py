"""Logs read on from an offset, and a run's folder made from what a launch sent."""

from __future__ import annotations

import json
import stat
import zlib
from pathlib import Path

import pytest

from nemotron_kit.errors import NemotronError
from nemotron_kit.remote.agent import operations


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def read(job: Path, offsets: dict[str, int], limit: int = 1 << 16) -> list[tuple[str, int, bytes]]:
    return operations.pieces(*operations.read(job=str(job), offsets=offsets, limit=limit))


def test_every_log_is_read_from_where_the_reader_is(job: Path) -> None:
    (job / "logs" / "job.log").write_bytes(b"one\ntwo\n")
    (job / "logs" / "node-1.log").write_bytes(b"far\n")
    assert read(job, {}) == [("job", 0, b"one\ntwo\n"), ("node-1", 0, b"far\n")]
    assert read(job, {"job": 4, "node-1": 4}) == [("job", 4, b"two\n")]
    assert read(job, {"job": 8, "node-1": 4}) == []


def test_no_more_than_asked_for_and_nothing_twice(job: Path) -> None:
    data = bytes(range(256)) * 400
    (job / "logs" / "job.log").write_bytes(data)
    at, seen = 0, b""
    while pieces := read(job, {"job": at}, 1000):
        ((_, offset, piece),) = pieces
        assert offset == at and len(piece) <= 1000
        at, seen = at + len(piece), seen + piece
    assert seen == data


def test_a_log_that_was_cut_is_read_from_its_beginning(job: Path) -> None:
    (job / "logs" / "job.log").write_bytes(b"new")
    assert read(job, {"job": 100}) == [("job", 0, b"new")]


def test_no_logs_yet(tmp_path: Path) -> None:
    assert read(tmp_path / "nowhere", {}) == []


RUN = "20261124-171204-nano3-pretrain-1f03a7"


def make(root: Path, texts: dict[str, str], name: str = RUN) -> int:
    return operations.make_run(folder=str(root / "runs" / name), payload=operations.packed(texts))


def test_a_runs_files_are_written_once_and_for_the_user_alone(tmp_path: Path) -> None:
    assert make(tmp_path, {"jobs/0/config.yaml": "a: 1\n", "code.json": "{}"}) == 2
    config = tmp_path / "runs" / RUN / "jobs" / "0" / "config.yaml"
    assert config.read_text() == "a: 1\n"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700
    assert make(tmp_path, {"jobs/0/config.yaml": "a: 2\n", "jobs/1/config.yaml": "b"}) == 1
    assert config.read_text() == "a: 1\n", "what a job may have written stays"


@pytest.mark.parametrize("name", ["../x", "/etc/x", "jobs/../../x", "", "."])
def test_only_files_of_the_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(NemotronError):
        make(tmp_path, {name: "x"})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["x", "..", "a/b"])
def test_only_the_folder_of_a_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(NemotronError, match="no folder of a run"):
        make(tmp_path, {"f": "x"}, name)


def test_the_payload_is_compressed_json() -> None:
    assert json.loads(zlib.decompress(operations.packed({"a": "b"}))) == {"a": "b"}
