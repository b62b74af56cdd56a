"""Whatever goes wrong while a job is submitted, and whoever tries again: one job, and the ledger knows it.

`NEMOTRON_FAULTS` says how many submissions there are for each fault (2 unless told otherwise). The jobs are held: they
are counted and cancelled, and never run.
"""

# ruff: noqa: F811
from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.errors import NemotronError, Unreachable
from nemotron_kit.executors.base import executor_for
from nemotron_kit.remote.agent import slurm
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.spec.plan import Plan, stored_plan

from .slurm_world import World, until, world  # noqa: F401

ROUNDS = int(os.environ.get("NEMOTRON_FAULTS", "2"))
HELD = "\n[held]\nextends = 'C'\nextra = { additional_parameters = { hold = true } }\n"
FAR = """
[far]
extends = "held"
tunnel = "ssh"
host = "nk-plain"
user = "root"
python = "PYTHON"
remote_job_dir = "ROOT"
packager = "none"
"""
# Between the launch and Slurm, in sbatch's place: what each of them leaves behind is known by the real one only.
CLIENT_KILLED = {
    "before sbatch": "kill -9 $PPID; exit 1",
    "while sbatch goes on": 'kill -9 $PPID; sleep 0.3; exec $REAL "$@"',
    "after sbatch": '$REAL "$@"; kill -9 $PPID',
}
REPLY_LOST = {
    "a time-out": '$REAL "$@" >&2; echo "sbatch: error: Batch job submission failed: Socket timed out" >&2; exit 1',
    "no answer": '$REAL "$@" > /dev/null',
    "half an answer": '$REAL "$@" | tr -d "[:digit:]"',
}
AWAY = 'echo "error: Unable to contact slurm controller (connect failure)" >&2; exit 1'


@pytest.fixture
def held(world: World) -> World:
    with (world.folder / "env.toml").open("a") as env:
        env.write(HELD)
    return world


def each_round(world: World, profile: str = "held") -> Iterator[tuple[RunFolder, list[Plan]]]:
    """A new run as often as wanted; after each one there is one job, and the run's record has it."""
    done: list[RunFolder] = []
    for _ in range(ROUNDS):
        run, plans = world.planned("speak", profile=profile)
        yield run, plans
        done.append(run)
    queue = world.slurm.run("squeue", "-h", "-t", "all", "-o", "%A %j").splitlines()
    for run in done:
        (record,) = slurm.read_all(_there(run))
        assert [line.split()[0] for line in queue if line.endswith(record.name)] == [record.job]
        world.slurm.run("scancel", str(record.job))
    print(f"\n{len(done)} submissions, {len(done)} jobs")


def submit(run: RunFolder, plans: list[Plan]) -> None:
    executor_for(plans[0].settings).submit(run, plans)


def in_a_child(run: RunFolder, plans: list[Plan]) -> int:
    """Submit in a process of its own; its process id."""
    child = os.fork()
    if child == 0:  # no test goes on in here
        code = 1
        with contextlib.suppress(BaseException):
            submit(run, plans)
            code = 0
        os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("script", CLIENT_KILLED.values(), ids=CLIENT_KILLED.keys())
def test_the_client_is_killed(held: World, script: str) -> None:
    for run, plans in each_round(held):
        with held.seen(**held.fake("sbatch", script)):
            assert ended(in_a_child(run, plans)) == -signal.SIGKILL
        with held.seen():
            submit(run, plans)


@pytest.mark.parametrize("script", REPLY_LOST.values(), ids=REPLY_LOST.keys())
def test_the_reply_is_lost(held: World, script: str) -> None:
    for run, plans in each_round(held):
        with held.seen(**held.fake("sbatch", script)):
            submit(run, plans)
        with held.seen():
            submit(run, plans)


def test_two_clients_at_once(held: World) -> None:
    for run, plans in each_round(held):
        with held.seen(**held.fake("sbatch", 'sleep 0.2; exec $REAL "$@"')):
            children = [in_a_child(run, plans) for _ in range(2)]
            assert [ended(child) for child in children] == [0, 0]


@pytest.mark.parametrize("queued", [False, True])
def test_the_controller_is_away(held: World, queued: bool) -> None:
    """Nobody knows whether the job is queued; once somebody answers it is found, or submitted."""
    for run, plans in each_round(held):
        held.fake("sbatch", f"{'$REAL $@ >&2; ' if queued else ''}{AWAY}")
        held.fake("sacct", AWAY)
        with held.seen(**held.fake("squeue", AWAY)):
            for _ in range(2):
                with pytest.raises(Unreachable, match="isn't known whether"):
                    submit(run, plans)
                held.fake("sbatch", "touch $0-again; exit 1")
        assert not (held.folder / "bin" / "sbatch-again").exists(), "it was not asked again"
        with held.seen():
            submit(run, plans)


def test_the_connection_is_cut(world: World, sshd: Any, tmp_path: Path) -> None:
    far = FAR.replace("PYTHON", sys.executable).replace("ROOT", str(tmp_path / "far"))
    with (world.folder / "env.toml").open("a") as env:
        env.write(HELD + far)
    source, cuts = random.Random(5), 0
    with world.seen(NEMOTRON_SSH_CONFIG=str(sshd.facts["config"])):
        for run, plans in each_round(world, "far"):
            backend: Any = executor_for(plans[0].settings)
            cutter = threading.Timer(source.choice([0, 0.002, 0.005, 0.01, 0.02]), _cut)
            backend.transport = Starting(backend.transport, "slurm_submit", cutter.start)
            try:
                backend.submit(run, plans)
            except NemotronError:
                cuts += 1
            cutter.cancel()
            until(lambda run=run, plans=plans: _tried(run, plans), 60)
        _cut()
    print(f"{cuts} times the connection was cut before the answer came")


class Starting:
    """A way to a machine that begins something when an operation is asked for."""

    def __init__(self, transport: Any, op: str, begin: Callable[[], None]) -> None:
        self.transport, self.op, self.begin = transport, op, begin

    def call(self, op: str, payload: bytes = b"", **args: Any) -> Any:
        if op == self.op:
            self.begin()
        return self.transport.call(op, payload, **args)


def _tried(run: RunFolder, plans: list[Plan]) -> bool:
    with contextlib.suppress(Unreachable):
        submit(run, plans)
        return True
    time.sleep(0.2)
    return False


def _cut() -> None:
    """Every ssh that this process has started is gone, as with its network."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = entry.read_text().partition("(")[2].rpartition(")")
            if name == "ssh" and int(rest.split()[1]) == os.getpid():
                os.kill(int(entry.parent.name), signal.SIGKILL)


def _there(run: RunFolder) -> Path:
    return Path(stored_plan(run).paths.run)
