"""Sweeps, whole processes timed in turns: jobs of this machine, and 200 jobs submitted to Slurm.

python scripts/bench/sweep.py local [--jobs 8] [--rounds 5]
python scripts/bench/sweep.py slurm [--jobs 200] [--rounds 3]      (eval "$(scripts/cluster env slurm)" first)
python scripts/bench/sweep.py plan [--jobs 10000]       (NEMOTRON_CLUSTER_MAX_JOBS=12000 scripts/cluster up slurm first)

On Slurm the jobs are submitted held, so that only submitting is measured, and cancelled afterwards. The peers are
NeMo-Run's Experiment with one task a job, detached, and hydra-submitit-launcher up to the point where it has submitted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from _pairs import interleaved, load, ratio

APP = """
import hydra
from dataclasses import dataclass
from hydra.core.config_store import ConfigStore


@dataclass
class Config:
    x: int = 0
    lr: float = 0.1


ConfigStore.instance().store("config", Config)


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    return cfg.x * cfg.lr


if __name__ == "__main__":
    main()
"""

ENV = """
[held]
executor = "slurm"
account = "research"
partition = "batch"
extra = {additional_parameters = {hold = true}}
"""

NEMO_RUN = """
import sys
import nemo_run as run

executor = run.SlurmExecutor(account="research", partition="batch", tunnel=run.LocalTunnel(job_dir=""), mem=None,
                             packager=run.Packager(), additional_parameters={"hold": True}, time="00:10:00",
                             poll_estimated_start_time=False)
with run.Experiment("sweep", log_level="ERROR", clean_mode=True, enable_goodbye_message=False,
                    skip_status_at_exit=True) as experiment:
    for number in range(int(sys.argv[1])):
        experiment.add(run.Script(inline=f"echo x={number}"), executor=executor, name=f"job-{number}")
    experiment.run(detach=True)
"""

# Submitit's launcher always waits for its jobs: what is timed ends where it has submitted them.
SUBMITIT = """
import os, runpy, sys
import submitit

submitted = submitit.AutoExecutor.map_array

def map_array(self, *arguments):
    submitted(self, *arguments)
    os._exit(0)

submitit.AutoExecutor.map_array = map_array
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("local", "slurm", "plan"))
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name, content in {"app.py": APP, "env.toml": ENV, "nemo.py": NEMO_RUN, "submitit_.py": SUBMITIT}.items():
            (folder / name).write_text(content)
        os.environ |= {
            "NEMOTRON_HOME": str(folder / "home"),
            "NEMORUN_HOME": str(folder / "nemo"),
            "OMP_NUM_THREADS": "1",
        }
        {"local": local, "slurm": slurm, "plan": plan}[options.what](folder, options)


def sweep(jobs: int, *arguments: str) -> list[str]:
    return [sys.executable, "app.py", "-m", f"x=range({jobs})", *arguments]


def local(folder: Path, options: argparse.Namespace) -> None:
    jobs = options.jobs or 8
    commands = {
        "hydra's basic launcher, in one process": sweep(jobs),
        "ours, plain processes": sweep(jobs, "hydra/launcher=nemo_run", "hydra.launcher.via=kit"),
        "ours, through NeMo-Run": sweep(jobs, "hydra/launcher=nemo_run", "hydra.launcher.via=nemo_run"),
        "hydra-submitit-launcher": sweep(jobs, "hydra/launcher=submitit_local"),
    }
    seconds = interleaved(commands, rounds=options.rounds, cwd=folder)
    report(f"{jobs} trivial jobs on this machine", seconds)


def slurm(folder: Path, options: argparse.Namespace) -> None:
    jobs = options.jobs or 200
    ours = "ours"
    held = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=batch",
            "+hydra.launcher.additional_parameters={hold: true}"]  # fmt: skip
    commands = {
        ours: sweep(jobs, "hydra/launcher=nemo_run", "hydra.launcher.profile=held", "hydra.launcher.detach=true"),
        "hydra-submitit-launcher": [sys.executable, "submitit_.py", *sweep(jobs, *held)[1:]],
        "NeMo-Run, a task a job": [sys.executable, "nemo.py", str(jobs)],
    }
    try:
        seconds = interleaved(commands, rounds=options.rounds, cwd=folder)
    finally:
        cancel_held()
    report(f"{jobs} jobs submitted to Slurm", seconds)
    for peer in list(commands)[1:]:
        print(f"  {peer} / ours: {1 / ratio(seconds, ours, peer):.1f}x   {load()}")


def cancel_held() -> None:
    """The jobs that this benchmark left: nobody else's are held."""
    listed = subprocess.run(["squeue", "-h", "-t", "PD", "-o", "%A %r"], capture_output=True, text=True, check=True)
    ids = {line.split()[0] for line in listed.stdout.splitlines() if line.endswith("JobHeldUser")}
    if ids:
        subprocess.run(["scancel", *sorted(ids)], check=True)


def plan(folder: Path, options: argparse.Namespace) -> None:
    """A sweep of many points: planned and submitted; asked about; and launches that are killed, resumed and counted."""
    jobs = options.jobs or 10_000
    try:
        begun = time.perf_counter()
        launched(folder, jobs, slurm_with(folder))
        took, peak = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"{jobs} points planned and submitted: {took:.1f} s, {peak:.0f} MB (goal 60 s, 500 MB)   {load()}")
        status(folder, jobs)
        cancel_held()
        for when, script in KILLED.items():
            launched(folder, jobs, slurm_with(folder, script), killed=True)
            output = nemotron(folder, "runs", "resume", "latest").strip()
            print(f"killed {when}: {output}; in Slurm: {count(folder)}")
            cancel_held()
    finally:
        cancel_held()


# What the n-th sbatch does to the launch, $PPID.
KILLED = {
    "before the first sbatch": "kill -9 $PPID; exit 1",
    "after the second, unheard": '[ $n = 2 ] && { out=$("$REAL" "$@"); kill -9 $PPID; echo "$out"; exit; }',
    "after the second": "[ $n = 3 ] && { kill -9 $PPID; exit 1; }",
}


def launched(folder: Path, jobs: int, path: str, *, killed: bool = False) -> None:
    arguments = ["hydra/launcher=nemo_run", "hydra.launcher.profile=held", "hydra.launcher.detach=true"]
    done = subprocess.run(
        sweep(jobs, *arguments), cwd=folder, env={**os.environ, "PATH": path}, stdout=subprocess.DEVNULL
    )
    if (done.returncode != 0) != killed:
        raise SystemExit(f"the launch ended with {done.returncode}")


def slurm_with(folder: Path, script: str = "") -> str:
    """A PATH on which Slurm's commands write a line each into calls.txt; `script` stands before sbatch."""
    wrappers = Path(tempfile.mkdtemp(dir=folder))
    for name in ("squeue", "sacct", "scontrol", "sinfo", "sbatch"):
        counting = f"echo {name} >> {wrappers}/calls.txt\nn=$(grep -c {name} {wrappers}/calls.txt)\n"
        before = f"{counting}REAL={shutil.which(name)}\n"
        text = f'#!/bin/bash\n{before}{script if name == "sbatch" else ""}\nexec "$REAL" "$@"\n'
        (wrappers / name).write_text(text)
        (wrappers / name).chmod(0o755)
    return f"{wrappers}:{os.environ['PATH']}"


def status(folder: Path, jobs: int) -> None:
    """How all of them stand, asked of Slurm anew."""
    path = slurm_with(folder)
    begun = time.perf_counter()
    output = nemotron(folder, "runs", "show", "latest", "--json", PATH=path)
    took = time.perf_counter() - begun
    states = Counter(job["state"] for job in json.loads(output)["job_records"])
    calls = (Path(path.partition(":")[0]) / "calls.txt").read_text().split()
    print(
        f"status of {jobs}: {took:.1f} s, {len(calls)} scheduler calls (goal 5 s, 3 calls): {dict(states)}   {load()}"
    )


def nemotron(folder: Path, *arguments: str, **env: str) -> str:
    command = [sys.executable, "-c", "import sys; from nemotron_kit.cli.main import nemotron; sys.exit(nemotron())"]
    done = subprocess.run([*command, *arguments], cwd=folder, env={**os.environ, **env}, capture_output=True, text=True)
    return done.stdout + done.stderr * bool(done.returncode)


def count(folder: Path) -> str:
    """The jobs that Slurm has of the latest run, by the names of its arrays."""
    run = max((folder / "home" / "runs").glob("2*"))
    names = {json.loads(path.read_text())["name"] for path in (run / "slurm").glob("*.json")}
    listed = subprocess.run(["squeue", "-h", "-r", "-o", "%j %i"], capture_output=True, text=True, check=True).stdout
    ids = [line.split()[1] for line in listed.splitlines() if line.split()[0] in names]
    return f"{len(set(ids))} jobs in {len(names)} arrays, {len(listed.splitlines())} in all"


def report(title: str, seconds: dict[str, list[float]]) -> None:
    print(title)
    for name, values in seconds.items():
        print(f"  {name}: {statistics.median(values):.2f} s")


if __name__ == "__main__":
    main()
