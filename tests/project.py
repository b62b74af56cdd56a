"""Commands as a user types them: in a folder with the user's files, with a home of their own, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import warm

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))
_PROGRAMS = {"nemotron": NEMOTRON, "python": sys.executable}
# What a launch, a scheduler or a tracker has set for the tests' own process is not for the processes that they start.
_FOREIGN = ("NEMO", "SLURM_", "WANDB_", "FORCE_COLOR", "COLUMNS", "PWD")


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's variables, without what is not meant for a test, with this $NEMOTRON_HOME and `more`."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(_FOREIGN)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `nemotron` in a line for a shell
    return {**kept, "PATH": path, "NEMOTRON_HOME": str(home), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more}


def start(*line: str, **how: Any) -> subprocess.Popen[str]:
    """A process of `nemotron …`, of `python …` in this environment, or of another program; PWD is as in a shell."""
    env = {**(how.pop("env", None) or os.environ), "PWD": str(how.get("cwd") or Path.cwd())}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([_PROGRAMS.get(line[0], line[0]), *line[1:]], env=env, **{"text": True, **pipes, **how})


def run(
    *line: str, code: int | None = 0, stdin: str | None = None, timeout: float = 120, forked: bool = False, **how: Any
) -> subprocess.CompletedProcess[str]:
    """The same once it has ended, with the exit code `code`; None is for any. One that is `forked` (see warm.py) starts
    with what most commands import: where the process itself is not what is judged."""
    if forked:
        cwd = how.get("cwd") or Path.cwd()
        env = {**(how.get("env") or os.environ), "PWD": str(cwd)}
        done = warm.run([_PROGRAMS[line[0]], *line[1:]], cwd=cwd, env=env, stdin=stdin or "", timeout=timeout)
        told = f"{' '.join(line)}: exit {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, told
        return done
    with start(*line, **(how if stdin is None else {"stdin": subprocess.PIPE, **how})) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        except BaseException:
            process.kill()
            raise
    told = f"{' '.join(line)}: exit {process.returncode}, expected {code}\n{out}\n{err}"
    assert code is None or process.returncode == code, told
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write these texts to files below a folder, with the folders that they need."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files_with(text: str, *folders: Path) -> list[Path]:
    """The files below these folders that hold a text: none, if it is a secret."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


def asleep(process: subprocess.Popen[Any]) -> bool:
    """Whether it waits by the clock: it has started, and is between two looks at what it waits for."""
    assert process.poll() is None, f"it has ended with {process.returncode}"
    return Path(f"/proc/{process.pid}/wchan").read_text() == "hrtimer_nanosleep"


class Project:
    """`project("nemotron", "runs")` runs that line in the folder; records are in `home`."""

    def __init__(
        self, folder: Path, files: Mapping[str, str] | None = None, home: Path | None = None, **env: str
    ) -> None:
        self.folder, self.home = folder, home or folder / "home"
        self.env = environment(self.home, **env)
        folder.mkdir(parents=True, exist_ok=True)
        write_files(folder, files or {})

    def start(self, *line: str, env: Mapping[str, str] | None = None, **how: Any) -> subprocess.Popen[str]:
        return start(*line, cwd=self.folder, env={**self.env, **(env or {})}, **how)

    def __call__(
        self, *line: str, code: int | None = 0, stderr: int = subprocess.PIPE, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return run(*line, code=code, stderr=stderr, cwd=self.folder, env={**self.env, **env})

    def forked(
        self, *line: str, code: int | None = 0, timeout: float = 120, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """The same where the process that the line starts is not judged."""
        return run(*line, code=code, timeout=timeout, cwd=self.folder, env={**self.env, **env}, forked=True)

    def runs(self) -> list[Path]:
        """All of them, the newest last."""
        plans = sorted((self.home / "runs").glob("2*/plan.json"), key=lambda path: path.stat().st_mtime_ns)
        return [plan.parent for plan in plans]

    @property
    def newest(self) -> Path:
        return self.runs()[-1]

    def exits(self) -> list[dict[str, Any]]:
        """How the jobs of the newest run have ended, in order."""
        jobs = sorted((self.newest / "jobs").iterdir(), key=lambda path: int(path.name))
        return [json.loads((job / "exit.json").read_text()) for job in jobs]
