"""kill -9 while runs are made: what is listed is whole, and the next launch is not in the way of the debris."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import create_run
from nemotron_kit.runs.ledger import list_runs, open_run

LAUNCHES = """
import sys
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import create_run
print("up", flush=True)
plan = {"recipe": "nano3", "stage": "pretrain"}
while True:
    run = create_run(new_run_id("nano3", "pretrain"), plan, [{"config.yaml": "a: 1\\n"}] * 3)
    for job in run.jobs():
        job.transition("running")
        job.finish(0)
    print(run.id, flush=True)
"""


def test_killed_at_random_moments(home: Path) -> None:
    acknowledged: list[str] = []
    for seed in range(15):
        launcher = subprocess.Popen([sys.executable, "-c", LAUNCHES], stdout=subprocess.PIPE, text=True)
        assert launcher.stdout is not None and launcher.stdout.readline() == "up\n"
        if seed % 3 == 0:  # one launch at least: on a busy disk, none may be done by then
            acknowledged.append(launcher.stdout.readline().strip())
        time.sleep(random.Random(seed).uniform(0, 0.2))  # the moment of the kill
        launcher.send_signal(signal.SIGKILL)
        acknowledged += [line.strip() for line in launcher.stdout if line.endswith("\n")]
        assert launcher.wait(10) == -signal.SIGKILL
    found = {run.id: run for run in list_runs()}
    assert set(acknowledged) <= set(found) and acknowledged
    for run_id in acknowledged:
        assert found[run_id].state == "succeeded"
    for run in found.values():
        assert run.state in ("succeeded", "failed", "pending") and run.jobs == 3, run
        assert all(job.config_path.read_text() == "a: 1\n" for job in open_run(run.id).jobs())
    create_run(new_run_id("nano3", "pretrain"), {}, [{}])
