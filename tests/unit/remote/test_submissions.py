"""The record of what was asked of sbatch."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_kit.errors import NemotronError
from nemotron_kit.remote.agent import slurm
from nemotron_kit.remote.agent.slurm import Submission

INTENT = "0123456789ab"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "slurm").mkdir()
    return tmp_path


def test_a_record_comes_back_as_it_was(run: Path) -> None:
    assert slurm.read(run, INTENT) is None
    record = Submission(INTENT, "nk-x", [4, 7], True, 12.5, job="88")
    slurm.write(run, record)
    assert slurm.read(run, INTENT) == record
    assert record.slurm_id(7) == "88_1" and slurm.submissions_by_job([record])[4] is record


def test_a_job_alone_is_no_task_of_an_array() -> None:
    assert Submission(INTENT, "n", [3], False, 0.0, job="5").slurm_id(3) == "5"
    assert Submission(INTENT, "n", [3], False, 0.0).slurm_id(3) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"intent": 1}', "null"])
def test_a_damaged_record_is_an_error_and_no_absence(run: Path, text: str) -> None:
    slurm.path_of(run, INTENT).write_text(text)
    with pytest.raises(NemotronError, match="damaged"):
        slurm.read(run, INTENT)


@pytest.mark.parametrize("intent", ["", "../../etc/pass", "0123456789AB", "0123456789abc"])
def test_only_an_intent_names_a_record(run: Path, intent: str) -> None:
    with pytest.raises(NemotronError, match="no intent"):
        slurm.read(run, intent)


def test_later_submissions_of_a_job_count(run: Path) -> None:
    slurm.write(run, Submission("0" * 12, "b", [0, 1], True, 20.0, job="2"))
    slurm.write(run, Submission("1" * 12, "a", [1, 2], True, 10.0, job="1"))
    (run / "slurm" / "notes.json").write_text("not ours")
    found = slurm.submissions_by_job(slurm.read_all(run))
    assert {number: record.job for number, record in found.items()} == {0: "2", 1: "2", 2: "1"}
    assert slurm.read_all(run / "nowhere") == []


def test_the_lock_outlives_who_took_it_as_long_as_its_child_lives(run: Path) -> None:
    code = (
        "import subprocess, sys, os\n"
        "from pathlib import Path\n"
        "from nemotron_kit.remote.agent import slurm as submissions\n"
        f"with submissions.locked(Path({str(run)!r}), {INTENT!r}) as fd:\n"
        "    subprocess.Popen(['cat'], pass_fds=(fd,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "    print('held', flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.read() == b"held\n" and holder.wait() == -9
        with slurm.path_of(run, INTENT).with_suffix(".lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Its input is closed: `cat` ends.
    with slurm.locked(run, INTENT):
        pass
