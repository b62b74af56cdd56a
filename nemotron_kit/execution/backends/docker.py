"""Docker, on this machine: one container a job, which runs the worker; what the worker writes is the truth.

NeMo-Run's own way (its Experiment) is not taken: it pulls an image that is there, pastes the job's words into a shell
line, and keeps only the exit code.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_kit.errors import NemotronError, Unreachable, UserError
from nemotron_kit.execution.backends.base import Observation
from nemotron_kit.execution.reach import Reach, reach_for
from nemotron_kit.execution.repositories import fetch_repositories, make_mounted
from nemotron_kit.execution.snapshot import code_there, place_kit
from nemotron_kit.plan.docker import container_name
from nemotron_kit.plan.plan import Plan
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.states import TERMINAL
from nemotron_kit.target import logs
from nemotron_kit.target.folders import packed

START_SECONDS, ASK_SECONDS = 30.0, 20.0
GRACE = 10
_AT_ONCE = 16
_LOST = ("cannot connect to the docker daemon", "error during connect", "permission denied while trying to connect")
# What `docker run` itself ends with; anything else is the worker's.
_NOT_STARTED = (125, 126, 127)


class Docker:
    """Containers of the engine that the docker command reaches."""

    def __init__(self, reach: Reach, settings: Mapping[str, Any]) -> None:
        self.reach, self.settings = reach, settings

    def prepare(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        self._send(run, plans, plans[0].place)

    def submit(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        if any("container" not in plan.extra for plan in plans):
            raise UserError("This kind of job can't be started in a container by this version: only recipes' jobs can.")
        rootless = "rootless" in _docker("info", "--format={{json .SecurityOptions}}")
        for image in {plan.extra["container"]["image"] for plan in plans}:
            _have_image(image)
        self._send(run, plans, plans[0].place)
        left = [plan for plan in plans if _is_pending(_job(run.job(plan.job)))]
        for at in range(0, len(left), _AT_ONCE):
            group = left[at : at + _AT_ONCE]
            started = [(plan, self._start(run, plan, rootless)) for plan in group]
            for plan, client in started:
                _heard(_job(run.job(plan.job)), client)

    def observe(self, run: RunFolder, jobs: Sequence[JobFolder]) -> dict[int, Observation]:
        return self.observe_many([(run, jobs)])[run.id]

    def observe_many(self, runs: Sequence[tuple[RunFolder, Sequence[JobFolder]]]) -> dict[str, dict[int, Observation]]:
        """Run id → job number → what is known of it, in one question to the engine. Raises Unreachable when it does
        not answer and a job has not ended by its own word."""
        ended: dict[str, dict[int, Observation]] = {
            run.id: {job.number: end for job in jobs if (end := _ended(_job(job)))} for run, jobs in runs
        }
        left = [(run.id, job) for run, jobs in runs for job in jobs if job.number not in ended[run.id]]
        there = _containers([container_name(run_id, job.number) for run_id, job in left]) if left else {}
        for run_id, job in left:
            name = container_name(run_id, job.number)
            ended[run_id][job.number] = _seen(_job(job), name, there.get(name))
        return ended

    def cancel(self, run: RunFolder, jobs: Sequence[JobFolder]) -> None:
        for job in jobs:
            for folder in {job.path, _job(job).path}:
                JobFolder(folder).request_cancel()
        names = [container_name(run.id, job.number) for job in jobs]
        there = [name for name in names if name in _containers(names)]
        if there:
            _docker("stop", f"--time={GRACE}", *there, seconds=GRACE + ASK_SECONDS, missing_is_fine=True)

    def read_logs(
        self, job: JobFolder, offsets: Mapping[str, int], limit: int, *, only: bool = False, skip: Sequence[str] = ()
    ) -> list[logs.Piece]:
        asked: dict[str, Any] = {"job": str(_job(job).path), "offsets": dict(offsets), "limit": limit}
        return logs.pieces(*self.reach.call("read_logs", **asked, only=only, skip=list(skip)))

    def _send(self, run: RunFolder, plans: Sequence[Plan], place: Mapping[str, Any]) -> None:
        """Code, kit, and the jobs' folders where they are not the record's own; then all that is mounted is there."""
        texts = code_there(self.reach, place, self.settings)
        if place["run"] != str(run.path):
            for plan in plans:
                texts.update({f"jobs/{plan.job}/{name}": text for name, text in plan.files.items()})
        fetch_repositories(self.reach, plans)
        self.reach.call("make_run", packed(texts), folder=place["run"])
        place_kit(place["kit"])
        make_mounted(self.reach, place)

    def _start(self, run: RunFolder, plan: Plan, rootless: bool) -> subprocess.Popen[bytes]:
        """The client that stands for the container, in a session of its own; what the worker says goes to its log. The
        container outlives it."""
        words = plan.extra["container"]["words"]
        if rootless:  # whoever launches is the container's root
            words = [word for word in words if not word.startswith("--user=")]
        with _job(run.job(plan.job)).open_log("worker") as log:
            return subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )


def make(settings: Mapping[str, Any]) -> Docker:
    """The back end of executor "docker"."""
    return Docker(reach_for(settings), settings)


def _heard(job: JobFolder, client: subprocess.Popen[bytes]) -> None:
    """Return once the worker says that it runs. Raises NemotronError for a container that did not get so far."""
    deadline = time.monotonic() + START_SECONDS
    while _is_pending(job) and time.monotonic() < deadline:
        code = client.poll()
        if code is not None and _is_pending(job):
            said = _last_words(job)
            if "is already in use by container" in said:
                return  # an earlier attempt to submit got that far
            what = "Docker did not start the container" if code in _NOT_STARTED else "the worker did not start"
            _raise_if_lost(said)
            raise NemotronError(f"{what} (exit code {code}): {said}", hint=f"All of it: {job.log_path('worker')}")
        time.sleep(0.05)


def _last_words(job: JobFolder) -> str:
    lines = job.log_path("worker").read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
    telling = [line for line in lines if line.strip() and not line.startswith("See 'docker")]
    return " ".join(telling[-3:]) or "it said nothing"


def _have_image(image: str) -> None:
    """Pull an image that isn't there. UserError when that fails, too."""
    if _docker("image", "inspect", "--format={{.Id}}", image, missing_is_fine=True).strip():
        return
    sys.stderr.write(f"{image} is not here; pulling it\n")
    pulled = subprocess.run(
        ["docker", "pull", "--quiet", image], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if pulled.returncode != 0:
        said = pulled.stderr.decode(errors="replace").strip()
        _raise_if_lost(said)
        raise UserError(
            f"The image {image} is not on this machine, and can't be pulled: {said}",
            hint="Check container_image; docker images lists what is here.",
        )


def _is_pending(job: JobFolder) -> bool:
    """Whether its worker has not said anything yet; a folder elsewhere than the record has no states before that."""
    return job.state().state == "pending" or (not job.history() and job.exit_record() is None)


def _ended(job: JobFolder) -> Observation | None:
    """How a job ended by its own word; None while it has not said."""
    state = job.state()
    if state.state in TERMINAL:
        return Observation(state.state, state.code, state.error)
    if job.exit_record() is not None:  # it stopped with a checkpoint, and nothing starts it again
        return Observation("failed", state.code, state.error)
    return None


def _seen(job: JobFolder, container: str, engine: str | None) -> Observation:
    """A job that had not ended when it was looked at before the engine was asked."""
    if engine in ("created", "running", "paused", "restarting"):
        now = job.state()
        facts = {"container": container}
        return _ended(job) or Observation("running" if now.state == "running" else "pending", facts=facts)
    last = _ended(job)
    if last is not None:
        return last
    if job.cancel_requested:
        return Observation("cancelled", 128 + 9, "cancelled")
    if _is_pending(job) and (waits := _not_yet(job.log_path("worker"))):
        return Observation("pending", reason=waits)
    error = f"the container {container} is gone and left no record: it was killed, or out of memory"
    return Observation("failed", 1, error)


def _not_yet(log: Path) -> str | None:
    """Why there need be no container yet: another process may be on the way between its log and its container."""
    try:
        age = time.time() - log.stat().st_mtime
    except FileNotFoundError:
        return "not submitted yet"
    return "it is being started" if age < START_SECONDS else None


def _containers(names: Sequence[str]) -> dict[str, str]:
    """Container → the engine's word for its state, of those that are there."""
    text = _docker("container", "inspect", "--format={{.Name}} {{.State.Status}}", *names, missing_is_fine=True)
    pairs = (line.strip().removeprefix("/").partition(" ") for line in text.splitlines())
    return {name: state for name, _, state in pairs if name in names}


def _job(job: JobFolder) -> JobFolder:
    """The folder that the job itself writes: elsewhere than the record's where the profile has a remote_job_dir."""
    place = RunFolder(job.path.parent.parent).plan().get("place") or {}
    return JobFolder(Path(place["run"]) / "jobs" / str(job.number)) if place.get("run") else job


def _docker(*words: str, seconds: float = ASK_SECONDS, missing_is_fine: bool = False) -> str:
    """What a docker command prints. Raises Unreachable when no engine answers."""
    try:
        done = subprocess.run(
            ["docker", *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except FileNotFoundError as error:
        raise UserError("There is no docker command on this machine.", hint="Install Docker's client.") from error
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"The Docker engine did not answer within {seconds:.0f} s.", hint=_hint()) from error
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode != 0:
        _raise_if_lost(said)
        if not missing_is_fine or any("no such" not in line.lower() for line in _errors(said)):
            raise Unreachable(f"docker {words[0]}: {said}", hint=_hint())
    return done.stdout.decode(errors="replace")


def _errors(said: str) -> Iterator[str]:
    return (line for line in said.splitlines() if line.strip())


def _raise_if_lost(said: str) -> None:
    if any(text in said.lower() for text in _LOST):
        raise Unreachable(f"The Docker engine does not answer: {said}", hint=_hint())


def _hint() -> str:
    return f"DOCKER_HOST is {os.environ.get('DOCKER_HOST', 'not set')}; see docker info."
