"""An hour in which Slurm says nothing of a job, on a clock that runs sixty times as fast for whoever watches it.

squeue has forgotten the job, and sacct fails, hangs, or answers with nothing. The watchers are whole processes under
Debian's faketime; an hourglass beside them says when their hour is over.
"""

# ruff: noqa: F811
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from nemotron_kit.errors import Unreachable
from nemotron_kit.executors.base import executor_for
from nemotron_kit.remote.agent import slurm
from nemotron_kit.runs.job import JobFolder

from ..project import NEMOTRON
from .slurm_world import World, run_of, until, world  # noqa: F401
from .test_slurm_faults import only_submission, stop_worker

HOUR = ["faketime", "-f", "+0 x60"]
LATER = ["faketime", "-f", "+3600s x60"]  # the clock of somebody who looks when the hour is over
SACCT = {
    "fails": "echo 'sacct: error: slurmdbd is down' >&2; exit 1",
    "hangs": "exec sleep 10000",
    "says nothing": "exit 0",
}
PATIENT = ("wait", "--patience", "86400")
# What each watcher has found out once the hour is over: nothing yet (None), or that it can't be known.
EXPECTED = {
    ("attach", "fails"): None,
    ("attach", "hangs"): None,
    ("attach", "says nothing"): 3,
    **{(*PATIENT, kind): None for kind in SACCT},
    **{("wait", kind): 3 for kind in SACCT},
}


class Silence:
    """A job that Slurm is silent about, and those who watch it."""

    def __init__(self, world: World) -> None:
        self.world, self.sign, self.meddled = world, world.folder / "silent", world.folder / "meddled"
        cases = "\n".join(f'  "{kind}") {script} ;;' for kind, script in SACCT.items())
        clock = "unset LD_PRELOAD FAKETIME\n"
        world.fake("sacct", f'{clock}[ -e {self.sign} ] && case "$NK_SACCT" in\n{cases}\nesac\nexec $REAL "$@"')
        world.fake("squeue", f'{clock}[ -e {self.sign} ] && exit 0; exec $REAL "$@"')
        for name in ("sbatch", "scancel", "scontrol"):
            world.fake(name, f'{clock}echo "$0 $*" >> {self.meddled}; exec $REAL "$@"')
        self.path = f"{world.folder}/bin:{os.environ['PATH']}"
        self.watchers: dict[tuple[str, ...], subprocess.Popen[str]] = {}

    def watch(self, kind: str, job: JobFolder) -> None:
        for *words, of in EXPECTED:
            if of == kind:
                self.watchers[(*words, of)] = self._begin(HOUR, [*words, job.run_id], of)

    def shown(self, job: JobFolder, kind: str) -> dict[str, str | None]:
        """What `runs show` says when the hour is over."""
        for path in (self.world.home / "runs" / ".seen").glob("*.json"):
            path.unlink(missing_ok=True)
        out, _ = self._begin(LATER, ["show", "--json", job.run_id], kind).communicate(timeout=60)
        found = json.loads(out)
        return {**found, **found["job_records"][0], "state": found["state"]}

    def _begin(self, clock: list[str], words: list[str], kind: str) -> subprocess.Popen[str]:
        env = {"PATH": self.path, "NK_SACCT": kind}
        return self.world.start(*clock, NEMOTRON, "runs", *words, env=env)


@pytest.fixture
def silence(world: World) -> Iterator[Silence]:
    made = Silence(world)
    yield made
    for process in made.watchers.values():
        process.kill()
        process.communicate()


def test_an_hour_of_silence_decides_nothing(silence: Silence) -> None:
    """The jobs have failed, and nobody has heard of it."""
    world = silence.world
    jobs = {kind: world.batch("deaf", "sleep=600") for kind in SACCT}
    for job in jobs.values():
        world.wait(job, "running")
    silence.sign.touch()
    for kind, job in jobs.items():
        silence.watch(kind, job)
        stop_worker(run_of(job))
    subprocess.run([*HOUR, sys.executable, "-c", "import time; time.sleep(3600)"], check=True)
    until(lambda: all(silence.watchers[words].poll() == code for words, code in EXPECTED.items() if code), 60)
    assert {words: process.poll() for words, process in silence.watchers.items()} == EXPECTED
    for kind, job in jobs.items():
        found = silence.shown(job, kind)
        print(f"\nsacct {kind}: {found['state']}, {found['error']}; last known {found.get('last_known')}")
        assert found["state"] == ("unknown" if kind == "says nothing" else "unreachable")
        assert job.exit_record() is None
    silence.sign.unlink()
    for words, code in EXPECTED.items():
        out, err = silence.watchers[words].communicate(timeout=60)
        assert silence.watchers[words].returncode == (code or 1), (words, out, err)
        assert "succeeded" not in out + err
    for kind, job in jobs.items():
        silence.shown(job, kind)
        assert job.state().state == "failed" and "Slurm reports FAILED" in str(job.state().error)
        assert world.jobs_named(only_submission(run_of(job)).name) == 1
    assert not silence.meddled.exists()


def test_a_job_that_ends_well_in_the_silence_is_known_by_its_own_word(silence: Silence) -> None:
    world = silence.world
    jobs = {kind: world.batch("speak", "lines=50", "sleep=0.2") for kind in SACCT}
    silence.sign.touch()
    for kind, job in jobs.items():
        silence.watch(kind, job)
    for job in jobs.values():
        assert world.wait(job) == "succeeded"
    for words, process in silence.watchers.items():
        out, err = process.communicate(timeout=60)
        assert process.returncode in ({0, 3} if EXPECTED[words] else {0}), (words, out, err)
    assert not silence.meddled.exists()


def test_a_job_that_has_run_is_not_submitted_again(world: World) -> None:
    """Nobody heard sbatch's answer, and when somebody asks both squeue and sacct have no job of that name."""
    run, plans = world.planned("speak", "lines=1")
    world.fake("squeue", "exit 1")
    world.fake("sacct", "exit 1")
    with world.seen(**world.fake("sbatch", '$REAL "$@"; exit 1')), pytest.raises(Unreachable):
        executor_for(plans[0].settings).submit(run, plans)
    assert world.wait(run.job()) == "succeeded"
    world.fake("sbatch", 'exec $REAL "$@"')
    world.fake("squeue", "exit 0")
    with world.seen(**world.fake("sacct", "exit 0")):
        executor_for(plans[0].settings).submit(run, plans)
        (run.job().path / "exit.json").unlink()
        submission = only_submission(run)
        slurm.write(run.path, replace(submission, at=submission.at - 3600))
        assert executor_for(plans[0].settings).observe(run, run.jobs())[0].state == "unknown"
    assert world.jobs_named(submission.name) == 1
