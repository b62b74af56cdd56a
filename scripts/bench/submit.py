"""One job on its way to Slurm, whole processes timed in turns. Sweeps: see sweep.py.

    eval "$(scripts/cluster env slurm)"; python scripts/bench/submit.py [--rounds 5]

From `--batch` to the prompt back, beside NeMo-Run's own minimal script for the same job, from the same Python; the jobs
are cancelled afterwards. And a dry-run for a Slurm profile, its script included, beside a local dry-run and what
`import nemo_run` takes. Ratios are medians of the rounds' ratios, taken in this one run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _pairs import interleaved, load, ratio

APP = """
from dataclasses import dataclass
from nemotron.kit import App


@dataclass
class Config:
    n: int = 1


def main(cfg: Config) -> None:
    print("hello", cfg.n)


app = App("bench")
app.command("hello", Config, main)
if __name__ == "__main__":
    app.run()
"""

ENV = """
[C]
executor = "slurm"
account = "research"
partition = "batch"
time = "00:10:00"
"""

MINIMAL = """
import nemo_run as run

executor = run.SlurmExecutor(
    account="research", partition="batch", time="00:10:00", tunnel=run.LocalTunnel(job_dir=""),
    packager=run.Packager(), poll_estimated_start_time=False,
)
with run.Experiment("bench") as experiment:
    experiment.add(run.Script(inline="echo hello 1"), executor=executor, name="hello")
    experiment.run(detach=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        for file, text in (("app.py", APP), ("env.toml", ENV), ("minimal.py", MINIMAL)):
            (folder / file).write_text(text)
        env = {"NEMOTRON_HOME": f"{directory}/home", "NEMORUN_HOME": f"{directory}/nemo"}
        for measure in (submit, dry_run):
            measure(folder, env, options.rounds)


def submit(folder: Path, env: dict[str, str], rounds: int) -> None:
    hello = [sys.executable, "app.py", "hello"]
    commands = {"ours": [*hello, "--batch", "C"], "NeMo-Run": [sys.executable, "minimal.py"]}
    seconds = interleaved(commands, rounds=rounds, cwd=folder, env=env, between=cancel)
    report("--batch, prompt to prompt", seconds)
    print(f"  ours / NeMo-Run: {ratio(seconds, 'ours', 'NeMo-Run'):.2f}x (goal 1.15x)   {load()}")


def dry_run(folder: Path, env: dict[str, str], rounds: int) -> None:
    hello = [sys.executable, "app.py", "hello", "--dry-run"]
    commands = {
        "Slurm": [*hello, "--batch", "C"],
        "local": hello,
        "import nemo_run": [sys.executable, "-c", "import os, nemo_run; os._exit(0)"],  # not its taking apart
        "pass": [sys.executable, "-c", "pass"],
    }
    seconds = interleaved(commands, rounds=rounds, cwd=folder, env=env)
    report("dry-run", seconds)
    together = zip(seconds["local"], seconds["import nemo_run"], seconds["pass"], strict=True)
    seconds["both"] = [local + imported - nothing for local, imported, nothing in together]
    print(f"  Slurm / (local + import nemo_run): {ratio(seconds, 'Slurm', 'both'):.2f}x (goal 1.2x)   {load()}")


def cancel() -> None:
    """Whatever of ours is still there."""
    listed = subprocess.run(["squeue", "-h", "-o", "%A %j"], capture_output=True, text=True, check=True).stdout
    ids = {line.split()[0] for line in listed.splitlines() if "bench" in line}
    if ids:
        subprocess.run(["scancel", *ids], check=True)
        time.sleep(1)


def report(title: str, seconds: dict[str, list[float]]) -> None:
    print(title)
    for name, values in seconds.items():
        print(f"  {name}: {statistics.median(values):.2f} s")


if __name__ == "__main__":
    main()
