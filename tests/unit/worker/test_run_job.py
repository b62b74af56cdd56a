"""What `run_job` says of a job and what its record says are one thing, also where the disk refuses."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemotron_kit import files, log_metrics
from nemotron_kit.home import new_run_id
from nemotron_kit.masking import MaskedStream
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.metrics import Measured, summarized
from nemotron_kit.worker.__main__ import main
from nemotron_kit.worker.pump import Pump, Source
from nemotron_kit.worker.result import decode_value
from nemotron_kit.worker.run import run_job

SPEC = {
    "kit": "0",
    "command": "x y",
    "handler": "nowhere:nothing",
    "config_cls": "builtins:dict",
    "script": None,
    "nproc_per_node": 1,
    "cwd": "/",
    "sys_path": [],
    "environment": {},
}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobFolder:
    monkeypatch.setenv("NEMOTRON_HOME", str(tmp_path))
    texts = {"config.yaml": "{}\n", "job.json": json.dumps(SPEC)}
    return create_run(new_run_id("x", "y"), {}, [texts], attached=True).job()


def ends(job: JobFolder, code: Any = 0) -> tuple[int, str, str]:
    """(the command's exit code, how it says that the job ended, what the record says)."""
    outcome = run_job(job, lambda _: code() if callable(code) else code, dict)
    return outcome.code, outcome.state, job.state().state


def test_a_job_is_no_rank_of_the_job_whose_shell_launched_it(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited for the other ranks, torchrun (PET_NNODES) for the other nodes. A profile's own variables count."""
    left = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "PET_NNODES": "3", "TORCHELASTIC_RUN_ID": "x"}
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, text in left.items():
        monkeypatch.setenv(name, text)
    (job.path / "job.json").write_text(json.dumps({**SPEC, "environment": {"PET_RDZV_BACKEND": "c10d"}}))
    assert ends(job, lambda: int(any(name in os.environ for name in left) or "PET_RDZV_BACKEND" not in os.environ)) == (
        0, "succeeded", "succeeded",
    )  # fmt: skip
    assert left.items() <= os.environ.items()


@pytest.mark.parametrize(("within", "is_rank"), [({}, True), ({"NEMOTRON_RUN_ID": "another"}, False)])
def test_a_job_that_torchrun_starts_by_hand_is_a_rank(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch, within: dict[str, str], is_rank: bool
) -> None:
    monkeypatch.delenv("NEMOTRON_RUN_ID", raising=False)
    for name, text in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
        **within,
    }.items():
        monkeypatch.setenv(name, text)
    assert ends(job, lambda: int(("RANK" in os.environ) is not is_rank)) == (0, "succeeded", "succeeded")


@pytest.mark.parametrize("early", [False, True])
def test_term_ends_a_job_also_where_its_parent_had_blocked_it(job: JobFolder, early: bool) -> None:
    """It ran on, until KILL, without a checkpoint. `early`: TERM comes before the job begins."""

    def told() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    before, handler = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]), signal.getsignal(signal.SIGTERM)
    if early:
        signal.raise_signal(signal.SIGTERM)  # to this thread: another one of the tests' process may not block it
    try:
        assert ends(job, told) == (143, "cancelled", "cancelled")
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("value", ["\udcff", {"\udcff": [Path("\udcff/x")]}])
def test_what_is_not_utf_8_is_on_record(job: JobFolder, value: Any) -> None:
    """As the names of files may be that a job lists."""
    assert ends(job, value) == (0, "succeeded", "succeeded")
    record = job.exit_record() or {}
    assert decode_value(record["value"], record.get("types", {})) == value


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, refused: Callable[[Path], bool]) -> None:
    real: Any = getattr(files, name)

    def maybe(path: Path, *args: Any, **more: Any) -> Any:
        if refused(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *args, **more)

    monkeypatch.setattr(files, name, maybe)


def test_the_record_is_there_though_its_last_step_failed(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "fsync_dir", lambda path: (path / "exit.json").exists())
    assert ends(job) == (0, "succeeded", "succeeded")


@pytest.mark.parametrize("code", [0, 3])
def test_a_record_that_cannot_be_written_is_no_success(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse(monkeypatch, "write_json", lambda path: path.name == "exit.json")
    said, state, recorded = ends(job, code)
    assert (said, state) == (code or 1, "failed") and recorded != "succeeded"


def test_a_folder_that_refuses_what_the_job_needs_is_the_jobs_failure(
    job: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "write_text", lambda path: path.name == "resolved.yaml")
    assert ends(job) == (1, "failed", "failed")
    assert "resolved.yaml: No space left on device" in str(job.state().error)


@pytest.mark.parametrize(("code", "own"), [(75, 75), (1, 1), (256, 1), (np.int64(7), 7)])
def test_one_that_ends_after_it_was_cancelled_is_cancelled(job: JobFolder, code: int, own: int) -> None:
    def cancelled() -> int:
        job.request_cancel()
        return code

    assert ends(job, cancelled) == (4, "cancelled", "cancelled")
    assert job.state().code == own


def test_the_resolved_config_holds_no_secret_by_value(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact's field may hold what was no secret where it was saved."""
    (job.path / "config.yaml").write_text("a: [{b: see canary-5f31-text}]\n")
    monkeypatch.setenv("SOME_API_KEY", "canary-5f31-text")
    assert ends(job) == (0, "succeeded", "succeeded")
    assert (job.path / "resolved.yaml").read_text() == "a:\n- b: see ***\n"


def test_the_exit_record_has_what_the_job_measured(job: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_RUN_DIR", str(job.path))

    def measures() -> int:
        for step, loss in enumerate([3.0, 1.5, 2.0]):
            log_metrics({"loss": loss}, step=step)
        return 0

    assert ends(job, measures)[1] == "succeeded"
    assert summarized(job.path, job.exit_record() or {}) == {"loss": Measured(2.0, 2, 1.5, 1)}


def test_a_folder_that_is_gone_is_on_record(job: JobFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (job.path / "job.json").write_text(json.dumps({**SPEC, "cwd": str(tmp_path / "gone")}))
    assert main([str(job.path)]) == 1
    assert "gone, the folder that it was launched in: No such file" in str(job.state().error)
    assert job.state().state == "failed" and "Traceback" not in capsys.readouterr().err


def test_a_log_goes_on_once_the_disk_has_room_again(tmp_path: Path) -> None:
    log, full = (os.open(path, os.O_WRONLY | os.O_CREAT) for path in (tmp_path / "job.log", "/dev/full"))
    shown = os.open(tmp_path / "shown", os.O_WRONLY | os.O_CREAT)
    source: Any = Source(-1, os.dup(log), shown, MaskedStream())
    for text in (b"one\n", b"lost\n", b"lost, too\n", b"two\n", b"three\n"):
        os.dup2(full if b"lost" in text else log, source.log)
        Pump._write(None, source, text)  # type: ignore[arg-type]
    note = "\n[nemotron: 15 bytes of output could not be written here]\n"
    assert (tmp_path / "job.log").read_text() == f"one\n{note}two\nthree\n"
    printed = (tmp_path / "shown").read_text()
    assert printed.count("the log can't be written: No space left") == 1 and "lost, too\n" in printed
