"""A small recipe, an env.toml and a home of its own, launched on the real Slurm of scripts/cluster."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.app import load_object
from nemotron_kit.config.compose import compose
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import read_env_file
from nemotron_kit.home import new_run_id
from nemotron_kit.launch.plan import build_plan
from nemotron_kit.remote.agent import slurm as slurm_agent
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.runs.job import TERMINAL, JobFolder
from nemotron_kit.spec.plan import Plan

from ..conftest import until
from ..programs import WORK
from ..project import Project

ENV = """
[C]
executor = "slurm"
account = "research"
partition = "batch"
time = "00:10:00"

[here]
executor = "local"

[two]
extends = "C"
nodes = 2
nproc_per_node = 2

[preempt]
extends = "C"
partition = "preempt"

[short]
extends = "C"
partition = "short"

[secret]
extends = "C"
secrets = ["WORK_TOKEN"]

[retry]
extends = "C"
retries = 2

[undo]
extends = "C"
cancel_on_interrupt = true
"""


class World(Project):
    """A project in `place` with the recipe, these profiles, and the environment of a back end (`slurm`, whichever it
    is); `run("speak", "--run", "C")` is `python work.py speak --run C`, however that ends."""

    def __init__(self, place: Path, profiles: str, slurm: Any, **env: str) -> None:
        files = {"work.py": WORK, "env.toml": profiles}
        super().__init__(place / "app", files, place / "home", **slurm.env, **env)
        self.home.mkdir(mode=0o700)
        self.slurm = slurm

    def run(self, *words: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        return self.forked("python", "work.py", *words, code=None, timeout=timeout, **env)

    def batch(self, *words: str, profile: str = "C", **env: str) -> JobFolder:
        """Submit; job 0 of the run."""
        done = self.run(*words, "--batch", profile, **env)
        assert done.returncode == 0, done.stderr
        return self.job(done.stderr)

    def gated(self, *words: str, profile: str = "C") -> tuple[JobFolder, Path]:
        """A job that goes on once that file is there: whatever is launched until then waits for it."""
        gate = self.folder.parent / "gate"
        return self.batch("speak", f"gate='{gate}'", *words, profile=profile), gate

    def job(self, stderr: str, number: int = 0) -> JobFolder:
        match = re.search(r"\d{8}-\d{6}-[\w.-]+-[0-9a-f]{6}", stderr)
        assert match, stderr
        return RunFolder(self.home / "runs" / match[0]).job(number)

    def only_run(self) -> RunFolder:
        (folder,) = (path for path in (self.home / "runs").iterdir() if not path.name.startswith("."))
        return RunFolder(folder)

    def wait(self, job: JobFolder, *states: str, timeout: float = 120) -> str:
        """Until the job's own record says one of `states` (any end, if none is named)."""
        wanted = states or tuple(TERMINAL)
        return until(
            lambda: job.state().state if job.state().state in wanted else "", timeout, lambda: str(job.state())
        )

    def slurm_ids(self, run: RunFolder) -> list[str]:
        return [found.job for found in slurm_agent.read_all(run.path) if found.job]

    def planned(self, *words: str, profile: str = "C", run_id: str | None = None) -> tuple[RunFolder, list[Plan]]:
        """The run's folder and the plan of `python work.py <words> --batch C`, made in this process, not submitted."""
        with self.seen():
            plan = self.plan(*words, profile=profile, run_id=run_id)
            return create_run(plan.run_id, plan.to_dict(), [plan.files]), [plan]

    def plan(self, *words: str, profile: str = "C", run_id: str | None = None, job: int = 0) -> Plan:
        """The plan alone; inside `seen()`."""
        before = Path.cwd()
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))  # as `python work.py` has it, and so its jobs
        try:
            tree = Tree(apps={"work": load_object("work.py:app")})
            command = [f"recipe=work stage={words[0]}".split(), f"run.profile={profile} run.mode=batch".split()]
            composed = compose(tree, [*command[0], *command[1], *words[1:]], read_env_file())
            run_id = run_id or new_run_id("work", words[0])
            return build_plan(composed, tree.apps["work"], run_id=run_id, argv=["work.py", *words], job=job)
        finally:
            sys.path.remove(str(self.folder))
            os.chdir(before)

    @contextmanager
    def seen(self, **env: str) -> Iterator[None]:
        """Within the block this process stands where the launches do: for asking a back end directly."""
        with pytest.MonkeyPatch.context() as patch:
            for name, text in {**self.slurm.env, "NEMOTRON_HOME": str(self.home), **env}.items():
                patch.setenv(name, text)
            yield

    def queue(self, *words: str) -> list[str]:
        return self.slurm.run("squeue", "-h", *words).split("\n")[:-1]

    def jobs_named(self, name: str) -> int:
        """How many jobs Slurm's accounting or queue has of this name."""
        listed = self.slurm.run("squeue", "-h", "-t", "all", f"--name={name}", "-o", "%A").split()
        accounted = self.slurm.run(
            "sacct", "-n", "-X", "-P", f"--name={name}", "-S", "now-1hour", "-o", "JobIDRaw"
        ).split()
        return len({*listed, *accounted})

    def fake(self, program: str, script: str) -> dict[str, str]:
        """A PATH on which `program` is `script` ($REAL is the real one)."""
        bin_folder = self.folder / "bin"
        bin_folder.mkdir(exist_ok=True)
        path = bin_folder / program
        path.write_text(f"#!/bin/bash\nREAL=/usr/bin/{program}\n{script}\n")
        path.chmod(0o755)
        return {"PATH": f"{bin_folder}:{os.environ['PATH']}"}


def run_of(job: JobFolder) -> RunFolder:
    return RunFolder(job.path.parent.parent)


def log(job: JobFolder) -> str:
    """What the job has printed; nothing, as long as it has no log."""
    path = job.path / "logs" / "job.log"
    return path.read_text() if path.exists() else ""


def interrupt(process: subprocess.Popen[str], sent: signal.Signals = signal.SIGINT) -> float:
    """Ctrl-C, or another signal; the seconds until it had ended."""
    began = time.monotonic()
    process.send_signal(sent)
    process.wait(30)
    return time.monotonic() - began


@pytest.fixture
def world(slurm: Any, tmp_path: Path) -> Iterator[World]:
    """An empty world; whatever it left in the queue is cancelled afterwards."""
    with made_world(slurm, tmp_path) as made:
        yield made


@contextmanager
def made_world(slurm: Any, place: Path) -> Iterator[World]:
    pytest.importorskip("nemo_run", reason="the nemo-run extra is not installed")
    made = World(place, ENV, slurm)
    yield made
    for run in (made.home / "runs").glob("2*"):
        for record in slurm_agent.read_all(run):
            slurm.run("scancel", f"--name={record.name}", check=False)


def fields(text: str) -> Mapping[str, str]:
    """`scontrol show` output as a mapping."""
    return dict(part.split("=", 1) for part in text.split() if "=" in part)


def escaped(text: str) -> str:
    """Text in which `${` is no reference of OmegaConf's: a backslash before it, and those in front of that doubled."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)


def hydra(value: object) -> str:
    """A value in Hydra's override grammar: quoted text, lists and mappings of it."""
    if isinstance(value, list):
        return "[" + ",".join(map(hydra, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{hydra(key)}:{hydra(item)}" for key, item in value.items()) + "}"
    text = escaped(str(value))
    if text.isascii() and text.isidentifier() and text.lower() not in ("null", "true", "false", "inf", "nan"):
        return text
    # A backslash counts only before a quote: doubled there, and at the end.
    quoted, run = [], 0
    for character in text:
        if character == "\\":
            run += 1
            continue
        quoted.append("\\" * (run * 2 + 1 if character == "'" else run) + character)
        run = 0
    return "'" + "".join(quoted) + "\\" * (run * 2) + "'"
