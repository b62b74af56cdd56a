"""How long `nemotron runs` takes with 10 runs and with 10,000, whole processes, in turns on one machine, and
the table of a sweep of as many jobs.

python scripts/bench/runs.py [--rounds 9] [--many 10000]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from _pairs import load

from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.metrics import summary

COMMAND = [sys.executable, "-c", "import sys; from nemotron_kit.cli.main import nemotron; sys.exit(nemotron())"]
LISTINGS = (
    ("runs",),
    # No run is in this state or of this recipe, and none is older: every run is read.
    ("runs", "--state", "cancelled"),
    ("runs", "--recipe", "other"),
    ("runs", "--since", "52w", "--stage", "sft"),
    ("runs", "--since", "52w"),
    ("runs", "--state", "failed", "--recipe", "nano3", "--since", "52w"),
    ("runs", "show", "latest"),
    # Columns of metrics, of the newest and of all.
    ("runs", "--columns", "loss,lr"),
    ("runs", "--sort", "loss", "--top", "20"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--many", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        homes = {count: fill(Path(folder) / str(count), count) for count in (10, options.many)}
        for arguments in LISTINGS:
            if arguments == LISTINGS[1]:  # the first one makes the index
                print(f"{' '.join(arguments)}, no index yet: {once(homes[options.many], arguments):.2f} s")
            if "--sort" in arguments:
                print(f"{' '.join(arguments)}, no results kept yet: {once(homes[options.many], arguments):.2f} s")
            compare(arguments, homes, options.rounds)
        show_sweep(Path(folder) / "sweep", options.many, options.rounds)


def fill(home: Path, count: int) -> Path:
    """A home with `count` finished runs, one in ten of them failed; copies of one that was really made."""
    os.environ["NEMOTRON_HOME"] = str(home)
    now = datetime.now(UTC)
    model: RunFolder | None = None
    for number in range(count):
        run_id = new_run_id("nano3", "pretrain", now=now - timedelta(minutes=number))
        if model is None:
            plan = {"recipe": "nano3", "stage": "pretrain", "config": {f"field_{n}": n for n in range(200)}}
            model = create_run(run_id, plan, [{"config.yaml": "a: 1\n" * 100}])
            model.job().transition("running")
            write_metrics(model)
            model.job().finish(0, **summary(model.job().path))
            continue
        copy = shutil.copytree(model.path, model.path.with_name(run_id))
        if number % 10 == 0:
            record = copy / "jobs" / "0" / "exit.json"
            record.write_text(record.read_text().replace('"code": 0', '"code": 1').replace("succeeded", "failed"))
    return home


def write_metrics(run: RunFolder) -> None:
    """A hundred rows, as a training of a few hours leaves them."""
    rows = ({"step": n, "loss": 3 - n / 100, "lr": 1e-3, "tokens_per_second": 1234.5} for n in range(100))
    (run.job().path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def show_sweep(home: Path, jobs: int, rounds: int) -> None:
    """The table of a sweep, of which each job has ended and measured a hundred rows."""
    os.environ["NEMOTRON_HOME"] = str(home)
    run = create_run(new_run_id("nano3", "pretrain"), {"kind": "sweep"}, [{"config.yaml": "a: 1\n"}])
    run.job().transition("running")
    write_metrics(run)
    run.job().finish(0, **summary(run.job().path))
    for number in range(1, jobs):
        copy = shutil.copytree(run.job().path, run.path / "jobs" / str(number))
        (copy / ".hydra").mkdir()
        (copy / ".hydra" / "overrides.yaml").write_text(json.dumps([f"lr={number}"]))
    arguments = ("runs", "show", "latest", "--sort", "loss")
    first = once(home, arguments)
    repeated = statistics.median(once(home, arguments) for _ in range(rounds))
    print(f"table of a sweep of {jobs} jobs: {repeated:.2f} s (goal 2 s), the first time {first:.2f} s   {load()}")


def once(home: Path, arguments: tuple[str, ...]) -> float:
    """Seconds of one whole process."""
    start = time.perf_counter()
    environment = {**os.environ, "NEMOTRON_HOME": str(home)}
    subprocess.run([*COMMAND, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def compare(arguments: tuple[str, ...], homes: dict[int, Path], rounds: int) -> None:
    times: dict[int, list[float]] = {count: [] for count in homes}
    for _ in range(rounds):
        for count, home in homes.items():
            times[count].append(once(home, arguments))
    few, many = (statistics.median(times[count]) for count in homes)
    each = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
    counts = list(homes)
    print(
        f"{' '.join(arguments)}: {counts[0]} runs {few * 1e3:.0f} ms, {counts[1]} runs {many * 1e3:.0f} ms, "
        f"ratio {each:.2f}x (goal 3x; medians of {rounds})   {load()}"
    )


if __name__ == "__main__":
    main()
