"""A FIFO in the place of a record or a log: opening it would wait for a writer for ever. Each is one error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.config.config_files import load_mapping
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import DamagedRecordError, NemotronError
from nemotron_kit.files import read_checksummed, read_json
from nemotron_kit.remote.agent.slurm import path_of
from nemotron_kit.remote.agent.slurm import read as read_submission
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import DamagedRunRecord, JobFolder, read_object, tail
from nemotron_kit.runs.logs import last_lines, read_from
from nemotron_kit.spec.plan import read_spec

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a record": ("exit.json", read_object),
    "metrics": ("metrics.jsonl", lambda path: tail(path, 3)),
    "a log": ("logs/job.log", lambda path: list(read_from(path, 0))),
    "a log's end": ("logs/job.log", lambda path: last_lines(path, 3)),
    "a log to write": ("logs/job.log", lambda path: JobFolder(path.parent.parent).open_log()),
    "a job's spec": ("job.json", lambda path: read_spec(path.parent)),
    "a sealed document": ("version.json", lambda path: read_checksummed(path, "record")),
    "a job's artifacts": ("artifacts.json", lambda path: read_json(path, "list")),
    "a config": ("x.yaml", load_mapping),
    "env.toml": ("env.toml", read_env_file),
    "a submission": ("slurm/0123456789ab.json", lambda path: read_submission(path.parents[1], "0123456789ab")),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", READERS)
def test_a_fifo_is_one_error(what: str, tmp_path: Path) -> None:
    name, read = READERS[what]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if what == "a submission":
        assert path == path_of(tmp_path, "0123456789ab")
    os.mkfifo(path, 0o600)
    with pytest.raises(
        (NemotronError, DamagedRunRecord, DamagedRecordError, OSError), match=r"is a FIFO|is not a file"
    ):
        read(path)


@pytest.mark.timeout(20)
def test_a_fifo_in_place_of_why_a_launch_failed_is_no_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "unfinished", 0o600)
    (tmp_path / "plan.json").write_text("{}")
    assert RunFolder(tmp_path).state_of(["succeeded"]) == "running"
