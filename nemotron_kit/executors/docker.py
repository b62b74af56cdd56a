"""Docker, on this machine: one container for each job, planned with NeMo-Run's DockerExecutor."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nemotron_kit.errors import NemotronError, Problem, Unreachable, UserError
from nemotron_kit.executors.base import (
    EVERYWHERE,
    HELD,
    SENT,
    SHELL,
    Executor,
    ExecutorPlan,
    Observation,
    PlanContext,
    missing_secrets,
    mounted_folders,
)
from nemotron_kit.executors.nemo_run import MissingExtra, ask, build_executor, build_packager, need
from nemotron_kit.polling import polls
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import TERMINAL, JobFolder, JobState
from nemotron_kit.spec.paths import RemotePaths, sent_paths
from nemotron_kit.spec.plan import Container, Plan
from nemotron_kit.spec.runconfig import RunConfig
from nemotron_kit.worker import worker_command
from nemotron_kit.worker.process import start_detached

RUN_LABEL, JOB_LABEL = "nemotron-kit.run", "nemotron-kit.job"
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}\Z")
# The network that NeMo-Run creates and names by default: a job of ours gets the engine's default network instead.
_NEMO_RUN_NETWORK = "nemo_run"
_UNTRANSLATED = ("additional_kwargs", "healthcheck")
# FOLDER:FOLDER_IN_THE_CONTAINER[:flags]; a volume of Docker's in place of the first folder.
_VOLUME = re.compile(r"(/[^:]*|[A-Za-z0-9][A-Za-z0-9_.-]+):/[^:]*(:[A-Za-z,]+)?\Z")


def container_name(run_id: str, job: int) -> str:
    """The name of a job's container. Names are unique in an engine, so no job is started twice."""
    return f"nk-{run_id}-{job}"


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """The options of `docker run` that NeMo-Run's executor makes of these settings. Called in the NeMo-Run helper
    process."""
    executor = build_executor(RunConfig(**config))
    for name in _UNTRANSLATED:
        if getattr(executor, name):
            what = f"extra: {name} is not passed on: nemotron starts the container itself."
            raise UserError(what, hint="Leave it out.")
    given = {
        "network": executor.network if executor.network != _NEMO_RUN_NETWORK else None,
        "gpus": "all" if executor.num_gpus and executor.num_gpus < 0 else executor.num_gpus,
        "runtime": executor.runtime,
        "ipc": executor.ipc_mode,
        "shm-size": executor.shm_size,
    }
    options = [f"--{name}={value}" for name, value in given.items() if value]
    options += ["--privileged"] if executor.privileged else []
    # NeMo-Run writes `memlock:-1` or `nofile:1024:2048`, Docker `memlock=-1`.
    options += [f"--ulimit={re.sub('[:=]', '=', limit, count=1)}" for limit in executor.ulimits]
    return {"options": options, "volumes": list(executor.volumes), "image": executor.container_image}


def mount(path: str, writable: bool) -> str:
    """The option of `docker run` that mounts a folder at the same path, which may contain any character but a line
    break (UserError). A missing folder is an error, whereas --volume would create it."""
    if "\n" in path:
        raise UserError(f"{path!r}: a folder with a line break in its name can't be mounted.")
    text = io.StringIO()
    fields = ["type=bind", f"source={path}", f"target={path}", *([] if writable else ["readonly"])]
    csv.writer(text, lineterminator="").writerow(fields)
    return f"--mount={text.getvalue()}"


def _problems(config: RunConfig, context: PlanContext) -> Iterator[Problem]:
    if context.mode == "local":
        yield Problem("this profile's executor is docker: launch with --run or --batch.")
    if not config.container_image:
        add = 'Add to the profile in env.toml:\ncontainer_image = "…"'
        yield Problem("executor 'docker' needs container_image.", hint=add)
    elif not _IMAGE.match(config.container_image):
        yield Problem(f"{config.container_image!r} is not a name of an image.", field="container_image")
    if context.resources.nodes > 1:
        more = "Use nproc_per_node for more processes."
        yield Problem("the docker executor has one node, this machine.", field=f"nodes={config.nodes}", hint=more)
    for volume in config.mounts or ():
        if not _VOLUME.match(volume):  # of one folder Docker would make an empty volume
            hint = "Write /FOLDER:/FOLDER_IN_THE_CONTAINER, or the same with :ro."
            yield Problem("Docker mounts no folder for this.", field=f"mounts={volume}", hint=hint)
    for field in ("startup_commands", "setup"):
        if getattr(config, field):
            yield Problem(
                "has no effect on Docker: no shell runs before the job. Make it part of the image.", field=field
            )
    if ":" in context.paths.root:  # PYTHONPATH separates by it
        needs = "a job in a container needs a NEMOTRON_HOME, or remote_job_dir, without a colon."
        yield Problem(needs, field=repr(context.paths.root))
    yield from missing_secrets(context.secrets)


START_SECONDS, ASK_SECONDS = 30.0, 20.0
GRACE = 10
_STARTED_AT_ONCE = 16
_LOST = ("cannot connect to the docker daemon", "error during connect", "permission denied while trying to connect")
# Exit codes of `docker run` itself; any other is the worker's.
_NOT_STARTED = (125, 126, 127)


class Docker(Executor):
    """Containers of the engine that the docker command uses."""

    reads = EVERYWHERE | SENT | HELD | SHELL | {"mounts", "runtime", "ipc_mode", "shm_size", "ntasks_per_node"}
    reads |= {"max_segments"}
    client = "docker"
    by_nemo_run = True

    def _written(self, job: JobFolder) -> JobFolder:
        """The job's folder on the target."""
        return JobFolder(Path(self.job_folder(job)))

    def _paths(self, run_id: str, job: int, registry: str | None) -> RemotePaths:
        return sent_paths(self.settings, run_id, job, registry=registry, image=True)

    def plan(self, context: PlanContext) -> ExecutorPlan:
        """The container: its name, its image and the command line that starts it."""
        config, paths, resources = self.settings, context.paths, context.resources
        notes = list(resources.notes)
        # With torchrun, that starts the processes again.
        retries = None if resources.torchrun else config.retries
        given = [name for name, value in (("retries", retries), ("max_segments", config.max_segments)) if value]
        if given:
            notes.append(f"{', '.join(given)}: no effect on Docker, where no scheduler starts the job again.")
        planned = ExecutorPlan(notes=tuple(notes), resources=resources)
        if problems := tuple(_problems(config, context)):
            return replace(planned, problems=problems)
        try:
            options = ask(__name__, asdict(config)) or answer(asdict(config))
        except MissingExtra as error:
            return replace(planned, problems=(Problem(error.message, hint=error.hint),))
        name = container_name(context.run_id, context.job)
        # As the launching user, so that the job's files belong to that user; one that the image does not know gets a
        # name and a writable home folder.
        user = [f"--user={os.getuid()}:{os.getgid()}"]
        if os.getuid() != 0:
            user += ["--env=HOME=/tmp", f"--env=LOGNAME=uid{os.getuid()}"]
        writable = (paths.run, paths.artifacts)
        inside = tuple(f"{folder}/" for folder in writable)
        mounted = mounted_folders(paths, context.inputs)
        arguments = [
            *("docker", "run", "--rm", "--init", "--pull=never", f"--name={name}"),
            *(f"--label={RUN_LABEL}={context.run_id}", f"--label={JOB_LABEL}={context.job}"),
            *user,
            *options["options"],
            *(mount(path, path in writable) for path in mounted if not path.startswith(inside)),
            *(f"--volume={volume}" for volume in options["volumes"]),
            *(f"--env={secret}" for secret in context.secrets),
            *(mount(path, False) for path in context.folders),
            "--entrypoint=",
            options["image"],
            *worker_command(paths.python, paths.package, paths.job),
        ]
        return replace(planned, container=Container(name, options["image"], tuple(arguments)))

    def nemo_run(self, run: Any, env: Mapping[str, str]) -> Any:
        config = self.settings
        need(config, "container_image")
        gpus = config.gpus_per_node
        return run.DockerExecutor(
            container_image=config.container_image,
            ntasks_per_node=config.nproc_per_node or 1,
            num_gpus=config.nproc_per_node if gpus is None and config.runtime == "nvidia" else gpus,
            runtime=config.runtime,
            ipc_mode=config.ipc_mode,
            shm_size=config.shm_size,
            volumes=list(config.mounts or ()),
            packager=build_packager(run, config),
            env_vars=env,
            **(config.extra or {}),
        )

    def submit(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        images = {plan.container.image for plan in plans if plan.container}
        if any(plan.container is None for plan in plans):
            raise UserError("This kind of job can't be started in a container by this version: only recipes' jobs can.")
        rootless = "rootless" in _docker("info", "--format={{json .SecurityOptions}}")
        for image in images:
            _pull_if_missing(image)
        self.prepare(run, plans)
        for source in {mount.partition(":")[0] for mount in self.settings.mounts or () if mount.startswith("/")}:
            if not Path(source).exists():
                raise UserError(
                    f"mounts: {source} does not exist: Docker would make an empty folder of that name.",
                    hint="Make it, or correct the profile.",
                )
        left = [plan for plan in plans if _is_pending(self._written(run.job(plan.job)))]
        for at in range(0, len(left), _STARTED_AT_ONCE):
            group = left[at : at + _STARTED_AT_ONCE]
            started = []
            for plan in group:
                arguments = list(plan.container.arguments if plan.container else ())
                if rootless:  # the launching user is root inside the container
                    arguments = [argument for argument in arguments if not argument.startswith("--user=")]
                # The container outlives the client, in a session of its own, whose log gets what the worker prints
                # outside of the job.
                job = self._written(run.job(plan.job))
                with job.open_log("worker") as log:
                    started.append((job, start_detached(arguments, log)))
            for job, client in started:
                _wait_until_running(job, client)

    def observe_many(self, runs: Sequence[tuple[RunFolder, Sequence[JobFolder]]]) -> dict[str, dict[int, Observation]]:
        """Run id → job number → its current state, with one query to the engine. Raises Unreachable if the engine does
        not answer and a job has no exit record."""
        ended: dict[str, dict[int, Observation]] = {
            run.id: {job.number: end for job in jobs if (end := _ended(self._written(job)))} for run, jobs in runs
        }
        left = [(run.id, job) for run, jobs in runs for job in jobs if job.number not in ended[run.id]]
        existing = _containers([container_name(run_id, job.number) for run_id, job in left]) if left else {}
        for run_id, job in left:
            name = container_name(run_id, job.number)
            ended[run_id][job.number] = _observation(self._written(job), name, existing.get(name))
        return ended

    def cancel(self, run: RunFolder, jobs: Sequence[JobFolder]) -> None:
        for job in jobs:
            for folder in {job.path, self._written(job).path}:
                JobFolder(folder).request_cancel()
        existing = _containers([container_name(run.id, job.number) for job in jobs]) if jobs else {}
        if existing:
            _docker("stop", f"--time={GRACE}", *existing, seconds=GRACE + ASK_SECONDS, missing_ok=True)

    def capacity(self, running: int) -> int:
        """How many more containers to start: the profile's `max_parallel`, else one for each core, minus those that
        run. The engine itself has no limit."""
        return max(0, (self.settings.max_parallel or os.cpu_count() or 1) - running)

    def shell(self, plan: Plan, job: JobFolder, state: JobState, command: list[str], node: str | None) -> list[str]:
        del state, node
        terminal = ["--tty"] if sys.stdin.isatty() else []
        inside = ["docker", "exec", "--interactive", *terminal, f"--workdir={plan.paths.run}/jobs/{job.number}"]
        return [*inside, container_name(job.run_id, job.number), *(command or ["/bin/sh"])]

    def checks(self) -> Sequence[str]:
        return ("connection", "docker", "mounts", "storage", "registry", "secrets")


def _wait_until_running(job: JobFolder, client: subprocess.Popen[bytes]) -> None:
    """Return once the worker has recorded that it runs. Raises NemotronError for a container that ends before that."""
    for _ in polls(0.05, within=START_SECONDS):
        code = client.poll()
        if not _is_pending(job):
            return
        if code is not None:
            lines = job.log_path("worker").read_bytes()[-4000:].decode(errors="replace").strip().splitlines()
            lines = [line for line in lines if line.strip() and not line.startswith("See 'docker")]
            output = " ".join(lines[-3:]) or "no output"
            if "is already in use by container" in output:
                return  # an earlier attempt to submit has started it
            what = "Docker did not start the container" if code in _NOT_STARTED else "the worker did not start"
            _raise_if_lost(output)
            raise NemotronError(f"{what} (exit code {code}): {output}", hint=f"All of it: {job.log_path('worker')}")


def _pull_if_missing(image: str) -> None:
    """Pull an image that is missing. Raises UserError if that fails."""
    if _docker("image", "inspect", "--format={{.Id}}", image, missing_ok=True).strip():
        return
    sys.stderr.write(f"{image} is not on this machine; pulling it\n")
    pulled = subprocess.run(
        ["docker", "pull", "--quiet", image], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if pulled.returncode != 0:
        output = pulled.stderr.decode(errors="replace").strip()
        _raise_if_lost(output)
        raise UserError(
            f"The image {image} is not on this machine, and can't be pulled: {output}",
            hint="Check container_image; docker images lists what is here.",
        )


def _is_pending(job: JobFolder) -> bool:
    """Whether the worker has written no state yet. A job folder outside of the record has no states before that."""
    return job.state().state == "pending" or (not job.history() and job.exit_record() is None)


def _ended(job: JobFolder) -> Observation | None:
    """How a job ended, from the exit record that it wrote; None if there is none."""
    state = job.state()
    if state.state in TERMINAL:
        return Observation(state.state, state.code, state.error)
    if job.exit_record() is not None:  # it stopped with a checkpoint, and nothing starts it again
        return Observation("failed", state.code, state.error)
    return None


def _observation(job: JobFolder, container: str, engine: str | None) -> Observation:
    """The observation of a job that had not ended when its folder was read, before the engine was queried."""
    if engine in ("created", "running", "paused", "restarting"):
        now = job.state()
        facts = {"container": container}
        return _ended(job) or Observation("running" if now.state == "running" else "pending", facts=facts)
    last = _ended(job)
    if last is not None:
        return last
    if job.cancel_requested:
        return Observation("cancelled", 128 + 9, "cancelled")
    if _is_pending(job):
        # Its start may be in progress between the creation of its log and of its container.
        try:
            if time.time() - job.log_path("worker").stat().st_mtime < START_SECONDS:
                return Observation("pending", reason="it is being started")
        except FileNotFoundError:
            return Observation("pending", reason="not submitted yet")
    error = f"the container {container} is gone and left no record: it was killed, or out of memory"
    return Observation("failed", 1, error)


def _containers(names: Sequence[str]) -> dict[str, str]:
    """Container name → its state as the engine names it, for those that exist."""
    text = _docker("container", "inspect", "--format={{.Name}} {{.State.Status}}", *names, missing_ok=True)
    pairs = (line.strip().removeprefix("/").partition(" ") for line in text.splitlines())
    return {name: state for name, _, state in pairs if name in names}


def _docker(*arguments: str, seconds: float = ASK_SECONDS, missing_ok: bool = False) -> str:
    """The output of a docker command. Raises Unreachable if no engine answers."""
    try:
        done = subprocess.run(
            ["docker", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except FileNotFoundError as error:
        raise UserError("There is no docker command on this machine.", hint="Install Docker's client.") from error
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"The Docker engine did not answer within {seconds:.0f} s.", hint=_hint()) from error
    output = done.stderr.decode(errors="replace").strip()
    if done.returncode != 0:
        _raise_if_lost(output)
        if not missing_ok or any("no such" not in line.lower() for line in output.splitlines() if line.strip()):
            raise Unreachable(f"docker {arguments[0]}: {output}", hint=_hint())
    return done.stdout.decode(errors="replace")


def _raise_if_lost(output: str) -> None:
    if any(text in output.lower() for text in _LOST):
        raise Unreachable(f"The Docker engine does not answer: {output}", hint=_hint())


def _hint() -> str:
    return f"DOCKER_HOST is {os.environ.get('DOCKER_HOST', 'not set')}; see docker info."
