"""An attached launch that is interrupted, frozen, killed and taken up again from other processes: what was shown is the
log, byte for byte, and the job does not notice.

`NEMOTRON_CUTS` says how often (6 unless told otherwise).
"""

# ruff: noqa: F811
from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import pytest

from nemotron_kit.runs.job import JobFolder

from ..project import NEMOTRON
from .slurm_world import World, interrupt, until, world  # noqa: F401

CUTS = int(os.environ.get("NEMOTRON_CUTS", "6"))
# Lines of every length and kind, one without an end; no escape sequences, which are not shown as they are.
PROGRAM = """
import os, random, sys, time
from dataclasses import dataclass

from nemotron.kit import App


@dataclass
class Config:
    seconds: float = 10.0


def speak(cfg: Config) -> None:
    source, end = random.Random(3), time.monotonic() + cfg.seconds
    number = 0
    while time.monotonic() < end:
        text = "".join(source.choices("abc défg 漢字🦆", k=source.choice([0, 3, 40, 3000])))
        sys.stdout.buffer.write(f"{number} {text}{source.choice([chr(10), ''])}".encode())
        sys.stdout.buffer.flush()
        number += 1
        time.sleep(source.choice([0, 0.001, 0.05]))
    print("the last line", end="")


app = App("work")
app.command("speak", Config, speak)

if __name__ == "__main__":
    app.run()
"""


class Terminal:
    """What all the processes of one user have shown, in a file; nobody waits for a reader."""

    def __init__(self, world: World, job: JobFolder) -> None:
        self.world, self.job, self.path = world, job, world.folder / "terminal"
        self.path.touch()

    def attach(self) -> subprocess.Popen[str]:
        """A process that has shown something by now, or has ended."""
        before = self.path.stat().st_size
        with self.path.open("ab") as out:
            process = subprocess.Popen(
                [NEMOTRON, "runs", "attach", self.job.run_id],
                cwd=self.world.folder,
                env=self.world.env,
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
            )
        until(lambda: self.path.stat().st_size > before or process.poll() is not None, 30)
        return process

    def to_the_end(self) -> None:
        """What is left; then all that was ever shown is the log."""
        _, said = self.attach().communicate(timeout=120)
        assert "succeeded" in said, said
        shown, log = self.path.read_bytes(), self.job.log_path().read_bytes()
        same = next((n for n, (a, b) in enumerate(zip(shown, log, strict=False)) if a != b), min(len(shown), len(log)))
        assert shown == log, f"{len(shown)} bytes shown of {len(log)}, the first {same} of them the same"


@pytest.fixture
def terminal(world: World) -> Terminal:
    """Attached to a job that talks for as long as a test needs."""
    (world.folder / "work.py").write_text(PROGRAM)
    job = world.batch("speak", f"seconds={CUTS * 2 + 4}")
    until(lambda: (job.path / "logs" / "job.log").exists(), 60)
    return Terminal(world, job)


def test_ctrl_c_detaches_within_two_seconds_as_often_as_one_likes(terminal: Terminal) -> None:
    source, took = random.Random(1), []
    for _ in range(CUTS):
        process = terminal.attach()
        assert process.stderr is not None
        time.sleep(source.uniform(0.0, 0.4))  # the moment
        took.append(interrupt(process))
        said = process.stderr.read()
        assert process.returncode == 130, said
        for command in ("attach", "cancel"):
            assert f"nemotron runs {command} {terminal.job.run_id}" in said
    print(f"\n{CUTS} times, the slowest {max(took):.2f} s")
    assert max(took) <= 2.0
    terminal.to_the_end()


def test_frozen_and_taken_up_by_another_process(terminal: Terminal) -> None:
    """A laptop that sleeps: it wakes and goes on, or never does, and another one takes over."""
    source = random.Random(2)
    for n in range(CUTS):
        process = terminal.attach()
        time.sleep(source.uniform(0.0, 0.4))  # the moment
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # it is frozen for
        if n % 2:
            process.send_signal(signal.SIGCONT)
            time.sleep(0.3)  # and goes on for
            interrupt(process)
        else:
            process.kill()
            process.wait()
    terminal.to_the_end()
