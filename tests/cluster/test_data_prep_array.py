"""Data prep as an array on the real Slurm: eight tasks on two nodes, of which two are tried again and one is resumed,
and the bytes are those of one machine."""

# ruff: noqa: F811
from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import list_runs

from ..conftest import until
from .docker_world import tool
from .slurm_world import World, world  # noqa: F401

WORDS = ["over", "the", "lazy", "dog", "a", "quick", "fox", "jumps"]


def sources(folder: Path) -> None:
    for name, count in (("a", 6), ("b", 3)):
        (folder / name).mkdir()
        for number in range(count):
            lines = [json.dumps({"text": f"{name} {number} {n} {WORDS[n % 8]} {n * n}"}) for n in range(400)]
            (folder / name / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    entries = [{"name": name, "path": str(folder / name), "weight": 1.0} for name in ("a", "b")]
    (folder / "blend.json").write_text(json.dumps({"datasets": entries}))


def shards(folder: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in folder.glob("*/shard_*.*")}


def prep(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    more = [f"blend_path={world.folder}/blend.json", "num_shards=14", "num_workers=1", *words]
    done = tool(world, "nano3", "data", "prep", "pretrain", "-c", "tiny", *more)
    assert done.returncode == 0, done.stderr
    return done


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def process_of(job: JobFolder) -> int:
    """The process that does the job's work; 0 while there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().endswith(f"\0--rank\0{job.path}\0".encode()):
                return int(folder.name)
    return 0


@pytest.mark.timeout(200)
def test_eight_tasks_on_two_nodes_three_killed(world: World) -> None:
    sources(world.folder)
    prep(world, f"output_dir={world.folder}/alone", "config_name=alone")
    array = ["--batch", "C", "output_dir=out", "run.env.nodes=8", "run.env.cpus_per_task=4", "config_name=array"]
    array += ["run.env.retries=1"]
    shown = prep(world, *array, "--dry-run").stdout
    assert "10 jobs of one run" in shown and "task 7" in shown
    submitted = prep(world, *array)
    run = RunFolder(world.home / "runs" / list_runs(stage="data/prep/pretrain", root=world.home / "runs")[0].id)
    assert run.id in submitted.stderr and len(run.jobs()) == 10
    failing, orphan, victim = run.job(2), run.job(3), run.job(5)
    until(lambda: process_of(failing), 60, lambda: str(failing.state()))
    os.kill(process_of(failing), signal.SIGKILL)  # as the kernel does where memory is short: its worker tries again
    until(lambda: process_of(orphan), 60, lambda: str(orphan.state()))
    os.kill(parent_of(process_of(orphan)), signal.SIGKILL)  # or the worker itself: nobody is left to say so
    until(lambda: victim.state().state == "running", 60, lambda: str(victim.state()))
    world.slurm.run("scancel", "--signal=KILL", victim.state().facts["scheduler"]["job"], check=False)
    waited = tool(world, "runs", "wait", run.id)
    for job in (failing, orphan):
        assert sum(bool(entry.get("retry")) for entry in job.history()) == 1, job.history()
        assert job.state().state == "succeeded"
    states = [job.state().state for job in run.jobs()]
    if waited.returncode:  # it was killed before it had ended
        assert states[5] in ("failed", "cancelled") and states[9] == "cancelled" and states[0] == "succeeded", states
        again = tool(world, "runs", "resume", run.id)
        assert "2 jobs submitted" in again.stdout
        tool(world, "runs", "wait", run.id)
    assert {job.state().state for job in run.jobs()} == {"succeeded"}
    assert shards(run.job(0).path / "code" / "out") == shards(world.folder / "alone")
    assert {job.state().facts["scheduler"]["node"] for job in run.jobs()} == {"n1", "n2"}
    saved = run.job(9).artifacts()["outputs"]
    assert [pin["name"] for pin in saved] == ["PretrainBlendsArtifact-array"]
