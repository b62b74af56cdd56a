"""`nemotron runs shell ID`: a shell where a run is: in its allocation, in its container, in its folder."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_kit.cli.toolargs import ToolParser, at_least
from nemotron_kit.errors import UserError
from nemotron_kit.execution.mirror import folder_there
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import open_run
from nemotron_kit.runs.states import JobState


def shell(argv: list[str]) -> int:
    """Become a shell, or the command behind `--`, beside a job. Raises UserError where there is nothing to enter."""
    words, command = _split(argv)
    parser = ToolParser("nemotron runs shell", "A shell where a run is, or the command behind --.")
    parser.add_argument("id", metavar="ID", help="a run's id, the start of one, its last six digits, or latest")
    parser.add_argument("--job", type=at_least(0), default=0, metavar="N", help="of a run with many jobs: this one")
    parser.add_argument("--node", metavar="NAME", help="of a job on many nodes: this one")
    options = parser.parse(words)
    if options is None:
        return 0
    run = open_run(options.id)
    job = run.job(options.job)
    return _become(_line(run, job, command, options.node))


def _become(line: list[str]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(line[0], line)  # noqa: S606 — the user asked for exactly that
    except OSError as error:
        raise UserError(f"{line[0]} can't be started: {error.strerror}.") from error


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    at = list(argv).index("--") if "--" in argv else len(argv)
    return list(argv[:at]), list(argv[at + 1 :])


def _line(run: RunFolder, job: JobFolder, command: list[str], node: str | None) -> list[str]:
    plan = run.plan()
    executor = str(plan.get("executor") or "local")
    if executor == "local":
        return _here(job, command)
    state = _running(run, job)
    if executor == "slurm":
        return slurm_line(plan, job, state, command, node)
    container = state.facts.get("container")
    if executor == "docker" and container:
        folder = f"{folder_there(run, plan)}/jobs/{job.number}"
        inside = ["docker", "exec", "--interactive", *_terminal("--tty"), f"--workdir={folder}", str(container)]
        return [*inside, *(command or ["/bin/sh"])]
    raise UserError(f"{run.id} runs through {executor}, into which the kit knows no way.")


def _here(job: JobFolder, command: list[str]) -> list[str]:
    """In the job's folder, with the job's variables."""
    os.chdir(job.path)
    os.environ.update({"NEMO_RUN_DIR": str(job.path), "NEMOTRON_RUN_ID": job.run_id})
    return command or [os.environ.get("SHELL") or "/bin/sh"]


def _running(run: RunFolder, job: JobFolder) -> JobState:
    """The job's state as it is now; UserError for one that holds no allocation."""
    from nemotron_kit.execution.ledger import refresh, standing

    sight = refresh([run]).get(run.id)
    state = standing(job, sight)
    seen = sight.observed.get(job.number) if sight else None
    if state.state != "running":
        why = f": {state.error}" if state.error else ""
        where = f" Its folder: {job.path}" if state.terminal else ""
        raise UserError(f"{run.id}: job {job.number} is {state.state}{why}; there is nothing to enter.{where}")
    return JobState(state.state, facts={**state.facts, **(seen.facts if seen else {})})


def slurm_line(
    plan: Mapping[str, Any], job: JobFolder, state: JobState, command: list[str], node: str | None
) -> list[str]:
    """`srun` into the job's allocation, on the machine where srun is."""
    number = str((state.facts.get("scheduler") or {}).get("job") or "")
    if not number.replace("_", "").isdecimal():
        raise UserError(f"{job.run_id}: job {job.number}: its number in Slurm isn't known yet.")
    folder = f"{folder_there(RunFolder(job.path.parent.parent), plan)}/jobs/{job.number}"
    settings = plan.get("settings") or {}
    if "_" in number:  # a task of an array, which srun knows by the number that it has besides
        number = _step(settings, folder).partition(".")[0]
    srun = ["srun", f"--jobid={number}", "--overlap", "--nodes=1", "--ntasks=1", *_inside(settings, folder)]
    srun += [f"--nodelist={node}"] if node else []
    srun += _terminal("--pty")
    srun += command or (["/bin/sh"] if settings.get("container_image") else ["/bin/bash", "-l"])
    if settings.get("tunnel") != "ssh":
        return srun
    from nemotron_kit.execution.ssh_options import ssh_command

    terminal = ["-o", "RequestTTY=force"] if sys.stdin.isatty() else []
    return [
        *_ssh(ssh_command(settings["host"], settings.get("user"), settings.get("identity"), *terminal)),
        shlex.join(srun),
    ]


def _inside(settings: Mapping[str, Any], folder: str) -> list[str]:
    """srun's words for a job's folder: in its container, where it has one."""
    if not settings.get("container_image"):
        return [f"--chdir={folder}"]
    given = [str(word) for word in (settings.get("extra") or {}).get("srun_args") or ()]
    named = [word.split("=", 1)[1].partition(":")[0] for word in given if word.startswith("--container-name=")]
    name = named[-1] if named else _step(settings, folder)
    return [f"--container-name={name}:exec", f"--container-workdir={folder}"]


def _step(settings: Mapping[str, Any], folder: str) -> str:
    """The number of the step that runs the job's worker, as in 17.1: Pyxis calls the container after it."""
    from nemotron_kit.execution.reach import reach_for

    (record,), _ = reach_for(settings).call("job_records", jobs=[folder])
    schedulers = [entry.get("scheduler") or {} for entry in record["history"]]
    steps = [str(scheduler["step"]) for scheduler in schedulers if scheduler.get("step")]
    if not steps or not steps[-1].replace(".", "").isdecimal():
        raise UserError(f"{folder}: the job's worker has not begun yet.", hint="nemotron runs logs -f waits for it.")
    return steps[-1]


def _ssh(words: list[str]) -> list[str]:
    """With a terminal over there where there is one here."""
    return [word for word in words if word != "-T"] if sys.stdin.isatty() else words


def _terminal(*options: str) -> list[str]:
    return list(options) if sys.stdin.isatty() else []
