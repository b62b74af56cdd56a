"""Sweeps, whole processes timed in turns: jobs of this machine, and 200 jobs submitted to Slurm.

python scripts/bench/sweep.py local [--jobs 8] [--rounds 5]
python scripts/bench/sweep.py slurm [--jobs 200] [--rounds 3]      (eval "$(scripts/cluster env slurm)" first)
python scripts/bench/sweep.py plan [--jobs 10000]

On Slurm the jobs are submitted held, so that only submitting is measured, and cancelled afterwards. The peers are
NeMo-Run's Experiment with one task a job, detached, and hydra-submitit-launcher up to the point where it has submitted.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _pairs import interleaved, ratio

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


def sweep(jobs: int, *words: str) -> list[str]:
    return [sys.executable, "app.py", "-m", f"x=range({jobs})", *words]


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
        print(f"  {peer} / ours: {1 / ratio(seconds, ours, peer):.1f}x")


def cancel_held() -> None:
    """The jobs that this benchmark left: nobody else's are held."""
    listed = subprocess.run(["squeue", "-h", "-t", "PD", "-o", "%A %r"], capture_output=True, text=True, check=True)
    ids = {line.split()[0] for line in listed.stdout.splitlines() if line.endswith("JobHeldUser")}
    if ids:
        subprocess.run(["scancel", *sorted(ids)], check=True)


def plan(folder: Path, options: argparse.Namespace) -> None:
    """A sweep of many points up to its submission: time and the memory of the launching process."""
    jobs = options.jobs or 10_000
    words = ["hydra/launcher=nemo_run", "hydra.launcher.profile=held", "hydra.launcher.detach=true"]
    started = time.perf_counter()
    subprocess.run(sweep(jobs, *words), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{jobs} points planned and submitted: {time.perf_counter() - started:.1f} s, {peak:.0f} MB")


def report(title: str, seconds: dict[str, list[float]]) -> None:
    print(title)
    for name, values in seconds.items():
        print(f"  {name}: {statistics.median(values):.2f} s")


if __name__ == "__main__":
    main()
