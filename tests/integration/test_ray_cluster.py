"""A job on a Ray cluster of its own, on this machine: told to stop, it saves, and nothing of Ray's stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..conftest import until

PROGRAM = """
import os, signal, time
from dataclasses import dataclass
from nemotron.kit import App


@dataclass
class Config:
    n: int = 1


def work(cfg: Config) -> int:
    import ray

    told = []
    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    signal.signal(signal.SIGTERM, lambda *_: told.append("TERM"))

    @ray.remote(num_cpus=0)
    def square(n):
        return n * n

    print("ready", len(ray.nodes()), os.getcwd(), flush=True)
    while not told:
        time.sleep(0.05)
    print("Ray still answers:", ray.get(square.remote(7)), flush=True)
    return 75


app = App("work")
app.command("spread", Config, work, ray=True)
if __name__ == "__main__":
    app.run()
"""


def of_the_job(home: Path) -> list[str]:
    """The command lines of the processes that have this home in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(home).encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in found if line]


def test_one_node_saves_at_term_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    home = tmp_path / "home"
    (tmp_path / "work.py").write_text(PROGRAM)
    (tmp_path / "env.toml").touch()
    environment = {**os.environ, "NEMOTRON_HOME": str(home), "NEMOTRON_ENV_FILE": str(tmp_path / "env.toml")}
    launch = subprocess.Popen(
        [sys.executable, "work.py", "spread", f"run.env.ray_working_dir={home}"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert launch.stdout is not None
    lines = []
    for line in launch.stdout:
        lines.append(line.rstrip())
        if line.startswith("ready"):
            assert any("raylet" in each for each in of_the_job(home))
            launch.send_signal(signal.SIGTERM)
    assert launch.wait(60) == 75, launch.stderr and launch.stderr.read()
    assert lines[-2:] == [f"ready 1 {home}", "Ray still answers: 49"]
    until(lambda: not of_the_job(home), 10, lambda: str(of_the_job(home)))
    assert not list(home.glob("runs/*/jobs/0/nodes/*.token"))
