"""From `--batch` to the prompt back, beside NeMo-Run's own minimal script for the same job. Sweeps: see sweep.py.

    eval "$(scripts/cluster env slurm)"; python scripts/bench/submit.py [--rounds 5]

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
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for file, text in (("app.py", APP), ("env.toml", ENV), ("minimal.py", MINIMAL)):
            (folder / file).write_text(text)
        env = {**os.environ, "NEMOTRON_HOME": f"{place}/home", "NEMORUN_HOME": f"{place}/nemo"}
        python = sys.executable
        one = [python, "app.py", "hello", "--batch", "C"]
        compare("one job", one, [python, "minimal.py", "1"], folder, env, options.rounds)


if __name__ == "__main__":
    main()
