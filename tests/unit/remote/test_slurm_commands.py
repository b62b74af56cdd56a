"""What Slurm's commands print, parsed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemotron_kit.errors import NemotronError, Unreachable
from nemotron_kit.remote.agent import slurm_commands as commands


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """`program("squeue", "echo …")` puts a command on the PATH."""

    def make(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")

    return make


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("1001\n", ("1001", None)),
        ("1001;clusterA\n", ("1001", "clusterA")),
        ("Welcome!\n1001\n\n", ("1001", None)),
        ("1001\nBye\n", None),
        ("Submitted batch job 1001\n", None),
        ("1001 \n", ("1001", None)),
        ("", None),
        ("10a\n", None),
    ],
)
def test_the_id_is_on_the_last_line_or_nowhere(output: str, found: object) -> None:
    assert commands.job_id(output) == found


def test_squeue_gives_states_reasons_and_starts(program: object) -> None:
    program(  # type: ignore[operator]
        "squeue",
        "cat <<'X'\nCLUSTER: nk\n12|PENDING|2026-11-24T20:00:00|nk-a|Resources\n13_4|RUNNING|N/A|nk-b|None\n"
        "14|PENDING|N/A|nk-c|Dependency, or a|pipe\nnonsense\nX",
    )
    found = commands.queued()
    assert found["12"] == commands.Entry("12", "PENDING", "nk-a", "Resources", "2026-11-24T20:00:00")
    assert found["13_4"] == commands.Entry("13_4", "RUNNING", "nk-b", None, None)
    assert found["14"].reason == "Dependency, or a|pipe"
    assert len(found) == 3


def test_sacct_gives_states_and_exit_codes_and_arrays_one_by_one(program: object) -> None:
    program(  # type: ignore[operator]
        "sacct",
        "cat <<'X'\n12|CANCELLED by 0|None|nk-a|0:15|0:0\n"
        "13_[1-3,7%2]|PENDING|Unknown|nk-b|0:0|0:0\n13_0|FAILED|x|nk-b|3:0|0:0\nX",
    )
    found = commands.accounted(["12", "13"])
    assert (found["12"].state, found["12"].code) == ("CANCELLED", 143)
    assert sorted(found) == ["12", "13_0", "13_1", "13_2", "13_3", "13_7"]
    assert commands.entry_of(found, "13_7").state == "PENDING"  # type: ignore[union-attr]
    assert commands.entry_of(found, "12_5").state == "CANCELLED"  # type: ignore[union-attr]
    assert commands.entry_of(found, "99") is None


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"),
        ("sacct", "echo 'sacct: error: slurm_persist_conn_open: failed' >&2; exit 1"),
        ("sacct", "echo 'sacct: error: Problem talking to the database' >&2; exit 0"),
        ("sacct", "exit 1"),
    ],
)
def test_no_answer_is_unreachable_never_empty(program: object, name: str, script: str) -> None:
    program(name, script)  # type: ignore[operator]
    with pytest.raises(Unreachable):
        commands.queued() if name == "squeue" else commands.accounted(["1"])


def test_a_command_that_hangs_or_is_not_there(program: object, monkeypatch: pytest.MonkeyPatch) -> None:
    program("squeue", "sleep 20")  # type: ignore[operator]
    with pytest.raises(Unreachable, match="has not answered"):
        commands.run(["squeue"], seconds=0.2)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NemotronError, match="not installed"):
        commands.queued()


def test_the_users_own_formats_do_not_count(program: object, monkeypatch: pytest.MonkeyPatch) -> None:
    program("squeue", 'echo "1|${SQUEUE_FORMAT:-clean}|N/A|n|None"')  # type: ignore[operator]
    monkeypatch.setenv("SQUEUE_FORMAT", "%A")
    assert commands.queued()["1"].state == "clean"


def test_a_user_without_a_name_is_named_by_number(program: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 1 << 30)
    assert commands.user_name() == str(1 << 30)
