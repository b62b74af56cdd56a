"""What a job on Slurm adds to its plan: the sbatch script, how its resources were understood, what would stop it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.plan.paths import Place
from nemotron_kit.plan.resources import Resources
from nemotron_kit.plan.runconfig import RunConfig, resolve_partition

if TYPE_CHECKING:
    from nemotron_kit.artifacts.pin import Pin

FILE = "sbatch.sh"


@dataclass(frozen=True)
class Sbatch:
    """`files` join the job folder's; `extra` the plan's."""

    files: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def sbatch_for(
    config: RunConfig,
    resources: Resources,
    place: Place,
    inputs: Mapping[str, Pin | None],
    *,
    run_id: str,
    job: int,
    label: str,
    mode: str,
    alone: bool,
) -> Sbatch:
    """The script of a job that is submitted `alone` (the jobs of a sweep share one, which is rendered for them all)."""
    problems = list(_problems(config, mode))
    mounts = _mounts(place, inputs) if config.container_image else []
    extra = {"resources": asdict(resources), "mounts": mounts}
    if problems or not alone:
        return Sbatch({}, tuple(problems), resources.notes, extra)
    from nemotron_kit.plan import slurm
    from nemotron_kit.plan.nemo_run import MissingExtra

    intent = slurm.intent_of(run_id, [job])
    command = slurm.command_of(place.python, place.kit, place.job)
    script = slurm.Script(slurm.job_name(intent, label), place.run, command, mounts=tuple(mounts))
    try:
        text = slurm.render(config, resources, script, batch=mode == "batch")
    except MissingExtra as error:
        return Sbatch({}, (f"{error.message} {error.hint or ''}".strip(),), resources.notes, extra)
    return Sbatch({FILE: text}, (), resources.notes, extra)


def _problems(config: RunConfig, mode: str) -> Iterator[str]:
    if mode == "local":
        yield "this profile's executor is slurm: launch with --run or --batch."
    needed = {"account": config.account, "partition": resolve_partition(config, is_launch=mode == "batch")}
    missing = [name for name, value in needed.items() if not value]
    if missing:
        lines = "\n".join(f'{name} = "…"' for name in missing)
        yield f"executor 'slurm' needs {' and '.join(missing)}. Add to the profile in env.toml:\n{lines}"
    if config.array:
        yield "array: many jobs are a sweep (-m key=1,2,3); the kit makes the array itself."
    for name in config.secrets or ():
        if name not in os.environ:
            yield f"secrets: {name} is not set in this environment. export {name}=…"


def _mounts(place: Place, inputs: Mapping[str, Pin | None]) -> list[str]:
    """Folders that the job finds at the same path in its container: its run, the registry, the kit, its inputs."""
    found = [place.run, place.artifacts, f"{place.root}/code", *filter(None, [place.kit])]
    found += [pin.path if place.apart else folder_of(pin.path) for pin in inputs.values() if pin is not None]
    return [path for path in dict.fromkeys(found) if not any(path.startswith(f"{other}/") for other in found)]


def folder_of(path: str) -> str:
    """The folder that a container needs for an input of this machine: what describes a file lies beside it."""
    return str(Path(path).parent) if Path(path).is_file() else path
