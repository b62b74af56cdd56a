"""A job's container: the words of `docker run`, from NeMo-Run's DockerExecutor.

They are constant but for slugs, paths and what the profile says; all else that a user gave travels in the job's folder.
Folders are mounted under the names that they have here, so that every path of the plan means the same inside.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError
from nemotron_kit.plan.paths import Place
from nemotron_kit.plan.resources import Resources
from nemotron_kit.plan.runconfig import RunConfig
from nemotron_kit.plan.sbatch import Sbatch, folder_of

if TYPE_CHECKING:
    from nemotron_kit.artifacts.pin import Pin

RUN_LABEL, JOB_LABEL = "nemotron-kit.run", "nemotron-kit.job"
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}\Z")
# NeMo-Run's own network, which it would first have to make; without a name of its own a job gets the engine's default.
_NEMO_RUN_NETWORK = "nemo_run"
_UNTRANSLATED = ("additional_kwargs", "healthcheck")


def container_name(run_id: str, job: int) -> str:
    """The name of a job's container: an engine has one of each name, so that no job is started twice."""
    return f"nk-{run_id}-{job}"


def docker_for(
    config: RunConfig,
    resources: Resources,
    place: Place,
    inputs: Mapping[str, Pin | None],
    *,
    run_id: str,
    job: int,
    mode: str,
) -> Sbatch:
    """What a Docker job adds to its plan: `extra["container"]`, with its name, its image and all words of its start."""
    from nemotron_kit.plan.nemo_run import MissingExtra, build_executor

    problems = list(_problems(config, resources, mode, place))
    notes = list(resources.notes)
    if config.retries or config.max_segments:
        notes.append("retries, max_segments: no scheduler would start the job again; on Docker it runs once.")
    extra: dict[str, Any] = {"resources": asdict(resources)}
    if problems:
        return Sbatch({}, tuple(problems), tuple(notes), extra)
    try:
        executor = build_executor(config)
    except MissingExtra as error:
        return Sbatch({}, (f"{error.message} {error.hint or ''}".strip(),), tuple(notes), extra)
    name = container_name(run_id, job)
    words = [
        *("docker", "run", "--rm", "--init", "--pull=never", f"--name={name}"),
        *(f"--label={RUN_LABEL}={run_id}", f"--label={JOB_LABEL}={job}"),
        *_user(os.getuid(), os.getgid()),
        *_options(executor),
        *(word for path, writable in mounts(place, inputs) for word in mount(path, writable)),
        *(f"--volume={volume}" for volume in executor.volumes),
        *(f"--env={secret}" for secret in config.secrets or ()),
        "--entrypoint=",
        executor.container_image,
        *(place.python, str(place.kit), place.job),
    ]
    extra["container"] = {"name": name, "image": executor.container_image, "words": words}
    return Sbatch({}, (), tuple(notes), extra)


def mounts(place: Place, inputs: Mapping[str, Pin | None]) -> list[tuple[str, bool]]:
    """(folder, whether the job may write there), none of them inside another that it may write to."""
    found = {place.run: True, place.artifacts: True, f"{place.root}/code": False}
    for path in (place.kit, *(folder_of(pin.path) for pin in inputs.values() if pin is not None)):
        if path:
            found.setdefault(path, False)
    open_ones = [path for path, writable in found.items() if writable]
    return [(p, w) for p, w in found.items() if not any(p.startswith(f"{other}/") for other in open_ones)]


def mount(path: str, writable: bool) -> list[str]:
    """docker's words for a folder at its own path: any path but one with a line break. Where there is none, none is
    made, as --volume would."""
    if "\n" in path:
        raise UserError(f"{path!r}: a folder with a line break in its name can't be mounted.")
    text = io.StringIO()
    fields = ["type=bind", f"source={path}", f"target={path}", *([] if writable else ["readonly"])]
    csv.writer(text, lineterminator="").writerow(fields)
    return [f"--mount={text.getvalue()}"]


def _user(uid: int, gid: int) -> list[str]:
    """Whoever launches, so that what the job writes is theirs. A user whom the image does not know gets a name and a
    home that can be written to."""
    words = [f"--user={uid}:{gid}"]
    return words if uid == 0 else [*words, "--env=HOME=/tmp", f"--env=LOGNAME=uid{uid}"]


def _options(executor: Any) -> Iterator[str]:
    for name in _UNTRANSLATED:
        if getattr(executor, name):
            raise UserError(
                f"extra: {name} is not passed on: the kit starts the container itself.", hint="Leave it out."
            )
    if executor.network != _NEMO_RUN_NETWORK:
        yield f"--network={executor.network}"
    if executor.num_gpus:
        yield f"--gpus={'all' if executor.num_gpus < 0 else executor.num_gpus}"
    for option, value in (
        ("runtime", executor.runtime),
        ("ipc", executor.ipc_mode),
        ("shm-size", executor.shm_size),
    ):
        if value:
            yield f"--{option}={value}"
    if executor.privileged:
        yield "--privileged"
    yield from (f"--ulimit={_limit(text)}" for text in executor.ulimits)


def _limit(text: str) -> str:
    """NeMo-Run writes `memlock:-1` or `nofile:1024:2048`, Docker `memlock=-1`."""
    name, _, rest = text.replace("=", ":", 1).partition(":")
    return f"{name}={rest}"


def _problems(config: RunConfig, resources: Resources, mode: str, place: Place) -> Iterator[str]:
    if mode == "local":
        yield "this profile's executor is docker: launch with --run or --batch."
    if not config.container_image:
        yield "executor 'docker' needs container_image. Add to the profile in env.toml:\ncontainer_image = \"…\""
    elif not _IMAGE.match(config.container_image):
        yield f"container_image: {config.container_image!r} is no name of an image."
    if resources.nodes > 1:
        yield f"nodes={config.nodes}: Docker has this machine only. Use nproc_per_node for more processes."
    for field in ("startup_commands", "setup"):
        if getattr(config, field):
            yield f"{field}: a container has no shell before the job; make it part of the image."
    if ":" in place.root:  # PYTHONPATH separates by it
        yield f"{place.root!r}: a job in a container needs a NEMOTRON_HOME, or remote_job_dir, without a colon."
    yield from missing_secrets(config.secrets or ())


def missing_secrets(names: Sequence[str]) -> Iterator[str]:
    """A sentence for each name that the launch's environment lacks."""
    for name in names:
        if name not in os.environ:
            yield f"secrets: {name} is not set in this environment. export {name}=…"
