"""From `--batch` to the prompt back, beside NeMo-Run's own minimal script for the same job, and many jobs at once.

    eval "$(scripts/cluster env slurm)"; python scripts/bench/submit.py [--rounds 5] [--jobs 200]

Both submit the same command to the Slurm that is configured here, from the same Python, one after the other; the jobs
are cancelled afterwards. Ratios are of medians, taken in this one run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
import sys
import nemo_run as run

count = int(sys.argv[1])
executor = run.SlurmExecutor(
    account="research", partition="batch", time="00:10:00", tunnel=run.LocalTunnel(job_dir=""),
    packager=run.Packager(), poll_estimated_start_time=False,
)
with run.Experiment("bench") as experiment:
    for n in range(count):
        experiment.add(run.Script(inline=f"echo hello {n}"), executor=executor.clone(), name=f"hello-{n}")
    experiment.run(detach=True)
"""

SWEEP = """
import os, sys
from nemotron_kit.app import load_object
from nemotron_kit.config.compose import compose
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import read_env_file
from nemotron_kit.execution.backends.base import backend_for
from nemotron_kit.plan.build import build_plan
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.ids import new_run_id

tree, env, run_id = Tree(apps={"bench": load_object("app.py:app")}), read_env_file(), new_run_id("bench", "many")
words = ["recipe=bench", "stage=hello", "run.profile=C", "run.mode=batch"]
plans = [
    build_plan(compose(tree, [*words, f"n={n}"], env), tree.apps["bench"], run_id=run_id, argv=[], job=n, alone=False)
    for n in range(int(sys.argv[1]))
]
run = create_run(run_id, plans[0].to_dict(), [plan.files for plan in plans])
backend_for(plans[0]).submit(run, plans)
"""


def timed(words: list[str], folder: Path, env: dict[str, str]) -> float:
    began = time.monotonic()
    done = subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    took = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{words} exited {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return took


def cancel() -> None:
    """Whatever of ours is still there."""
    listed = subprocess.run(["squeue", "-h", "-o", "%A %j"], capture_output=True, text=True, check=True).stdout
    ids = [line.split()[0] for line in listed.splitlines() if "bench" in line]
    if ids:
        subprocess.run(["scancel", *set(ids)], check=True)
    time.sleep(2)


def compare(name: str, ours: list[str], theirs: list[str], folder: Path, env: dict[str, str], rounds: int) -> None:
    pairs = []
    for _ in range(rounds):
        pairs.append((timed(ours, folder, env), timed(theirs, folder, env)))
        cancel()
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    shown = "  ".join(f"{a:.2f}/{b:.2f}" for a, b in pairs)
    print(f"{name}: {mine:.2f} s, NeMo-Run {other:.2f} s: {mine / other:.2f}x   (each round: {shown})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for file, text in (("app.py", APP), ("env.toml", ENV), ("minimal.py", MINIMAL), ("sweep.py", SWEEP)):
            (folder / file).write_text(text)
        env = {**os.environ, "NEMOTRON_HOME": f"{place}/home", "NEMORUN_HOME": f"{place}/nemo"}
        python = sys.executable
        one = [python, "app.py", "hello", "--batch", "C"]
        compare("one job", one, [python, "minimal.py", "1"], folder, env, options.rounds)
        many, count = [python, "sweep.py", str(options.jobs)], str(options.jobs)
        compare(f"{count} jobs", many, [python, "minimal.py", count], folder, env, max(1, options.rounds // 4))


if __name__ == "__main__":
    main()
