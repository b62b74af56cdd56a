"""A worker whose Python lacks what it needs: an image's, as a rule."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_kit.errors import NemotronError
from nemotron_kit.runs.job import NODES, SLURM_STEP, JobFolder, read_object_if_any
from nemotron_kit.runs.metrics import Measured, summarized
from nemotron_kit.worker import distributed, elastic, ray_cluster
from nemotron_kit.worker.distributed import Node
from nemotron_kit.worker.process import Outcome, Terminated, run_child, supervise, term_raises


@pytest.mark.parametrize("rank", [0, 1])
def test_a_module_that_is_missing_is_on_record_with_the_python_that_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    def broken(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'yaml'", name="yaml")

    monkeypatch.chdir(tmp_path)
    for name in ("ignore_usr1", "_print_to", "read_config"):
        monkeypatch.setattr(distributed, name, lambda *_: None)
    monkeypatch.setattr(distributed, "captured", lambda *_, **__: nullcontext())
    monkeypatch.setattr(distributed, "_lead", broken)
    monkeypatch.setattr(distributed, "_join", broken)
    job, spec = JobFolder(tmp_path), SimpleNamespace(code=None, secrets=[], cwd=str(Path.cwd()))
    with pytest.raises(NemotronError, match="has no module 'yaml'"):
        distributed.run_scheduled(job, spec, Node(rank=rank, count=2))  # type: ignore[arg-type]
    # Node 0 takes an other node's end for the reason of the TERM that srun then sends it.
    record = job.exit_record() if rank == 0 else read_object_if_any(job.path / NODES / "0-1.json")
    assert record is not None and record["state"] == "failed" and "has no module 'yaml'" in str(record["error"])


def test_a_term_while_the_end_is_recorded_does_not_prevent_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun sends it when another node has failed, too."""

    def record(job: JobFolder, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        job.finish(1, "failed")

    for name, value in (("verified_inputs", {}), ("skip_unchanged", None), ("_rank_logs", nullcontext())):
        monkeypatch.setattr(distributed, name, lambda *_, value=value: value)
    monkeypatch.setattr(distributed, "supervise", lambda *_, **__: Outcome(1, "failed", "exit code 1"))
    monkeypatch.setattr(distributed, "record", record)
    spec: Any = SimpleNamespace(
        nproc_per_node=1, executor="slurm", environment={}, expand=[], module="x", cwd="/", ray=False, torchrun=False
    )
    with term_raises():  # where TERM is not expected
        distributed._lead(JobFolder(tmp_path), spec, Node())
        assert JobFolder(tmp_path).exit_record()
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("code", "state"), [(0, "succeeded"), (75, "preempted")])
def test_the_exit_record_has_what_the_job_measured(tmp_path: Path, code: int, state: str) -> None:
    """In a container and on Slurm, too, where large sweeps run."""
    job, spec = JobFolder(tmp_path / "run" / "jobs" / "0"), SimpleNamespace(code=None, retries=0)
    job.path.mkdir(parents=True)
    (job.path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 3.0}\n')
    distributed.record(job, spec, Node(), Outcome(code, state), set())  # type: ignore[arg-type]
    assert summarized(job.path, job.exit_record() or {}) == {"loss": Measured(3.0, 2, 2.5, 1)}


@pytest.mark.parametrize("step", [None, "7.0"])
def test_a_local_job_inside_an_allocation_is_no_step_of_slurms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: str | None
) -> None:
    """Its torchrun passes signals on, and its Ray cluster has one node, though SLURM_JOB_ID is set."""
    for name, text in {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_NODEID": "1", SLURM_STEP: step or ""}.items():
        monkeypatch.setenv(name, text)
    if step is None:
        monkeypatch.delenv(SLURM_STEP)
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(elastic.signal, "signal", handlers.__setitem__)
    for name in ("OMP_NUM_THREADS", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setitem(sys.modules, "torch.distributed.run", SimpleNamespace(parse_args=exit))
    with pytest.raises(SystemExit):
        elastic.main([])
    assert handlers[signal.SIGTERM] is (elastic._stay if step else elastic._pass_on)

    def fails(_: Any, node: Node, *__: Any) -> int:
        raise NemotronError(f"{node.rank} of {node.count}")

    for name in ("adopt_orphans", "stop_orphans"):
        monkeypatch.setattr(ray_cluster, name, lambda *_: None)
    monkeypatch.setattr(ray_cluster, "open_job", JobFolder)
    monkeypatch.setattr(ray_cluster, "noted", lambda *_: nullcontext())
    monkeypatch.setattr(ray_cluster.ctypes, "CDLL", lambda _: None)
    monkeypatch.setattr(ray_cluster, "read_spec", lambda _: None)
    monkeypatch.setattr(ray_cluster, "_join", fails)
    monkeypatch.setattr(ray_cluster, "_lead", lambda job, _, node, *__: fails(job, node))
    assert ray_cluster.main(str(tmp_path)) == 1
    assert capsys.readouterr().err == f"error: {'1 of 2' if step else '0 of 1'}\n"


def test_the_signal_of_the_time_limit_reaches_a_program_also_where_it_was_blocked(tmp_path: Path) -> None:
    blocked = "import signal, sys; sys.exit(signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        assert supervise([sys.executable, "-c", blocked], str(tmp_path), set(), slurm=True).state == "succeeded"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_job_that_a_job_launches_is_none_of_its_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SLURM_STEP, elastic.NODES_FOLDER):
        monkeypatch.setenv(name, "outer")
    job = JobFolder(tmp_path)
    assert run_child(["env"], "/", job).state == "succeeded"
    printed = job.log_path().read_text()
    assert "PATH=" in printed and "outer" not in printed
