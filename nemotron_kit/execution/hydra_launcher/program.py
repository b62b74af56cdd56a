"""Planning jobs of somebody else's @hydra.main app: the composed config goes along, and Hydra runs the task there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit import __version__
from nemotron_kit.config.freeze import to_yaml
from nemotron_kit.config.secrets import masked_by_name
from nemotron_kit.errors import UserError
from nemotron_kit.execution.hydra_files import plain
from nemotron_kit.execution.hydra_launcher import packet
from nemotron_kit.execution.hydra_launcher.packing import Packer
from nemotron_kit.execution.hydra_launcher.point import Point, overrides_of
from nemotron_kit.execution.hydra_launcher.settings import Settings
from nemotron_kit.execution.reach import reach_for
from nemotron_kit.home import nemotron_home
from nemotron_kit.masking import is_secret_name
from nemotron_kit.plan.auto_mounts import with_repositories
from nemotron_kit.plan.environment import job_environment, references
from nemotron_kit.plan.packaging import NONE
from nemotron_kit.plan.paths import Place, place_of, with_folder
from nemotron_kit.plan.pinning import pin_slots
from nemotron_kit.plan.placing import Placed, import_path, left_out, registry_here, registry_table
from nemotron_kit.plan.plan import DETACHED, Plan
from nemotron_kit.plan.resources import resources_of
from nemotron_kit.plan.runconfig import RunConfig
from nemotron_kit.plan.sbatch import Sbatch, sbatch_for
from nemotron_kit.plan.settings import settings_dict
from nemotron_kit.plan.slurm import command_of

if TYPE_CHECKING:
    from nemotron_kit.artifacts.pin import Pin

MODULE = "nemotron_kit.execution.hydra_launcher.job"


class ProgramPlanner:
    """Makes the points of one launch of an app that is not the kit's."""

    def __init__(
        self, task: Callable[..., Any], callbacks: Any, settings: Settings, run_id: str, earlier: int = 0
    ) -> None:
        """`earlier`: as Packer has it."""
        from nemotron_kit.plan.profiles import effective_profile

        given = dict(settings.env) | ({"max_parallel": settings.max_parallel} if settings.max_parallel else {})
        self.profile, self.run_id = settings.profile, run_id
        self.run = effective_profile(settings.profile, file_env={}, command_line=given).config
        if self.run.dry_run:
            raise UserError(
                f"dry_run is set in the profile {settings.profile}, and a sweep of this program can't be previewed.",
                hint="hydra.launcher.env.dry_run=false starts it.",
            )
        self.run, _ = with_folder(self.run, lambda: reach_for(vars(self.run)).root)
        if self.run.packager is None and self.run.executor == "slurm" and _sees_this_tree(self.run):
            self.run = replace(self.run, packager=NONE)
        self.registry = registry_here(self.run)
        self.fetch: tuple[dict[str, str], ...] = ()
        if self.run.executor != "local":
            root = place_of(self.run, run_id, 0, registry=self.registry).root
            self.run, self.fetch, _ = with_repositories(self.run, root, reach_for)
        self.settings = settings_dict(self.run)
        self.mode = "local" if self.run.executor == "local" else "batch" if settings.detach else "run"
        # One that starts processes by itself would be started many times: torchrun only where it is asked for.
        several = (self.run.nproc_per_node or 1) > 1 or (self.run.nodes or 1) > 1
        self.resources = resources_of(self.run, None if several else False)
        self.packer = Packer(task, callbacks, list(sys.argv), earlier)

    def point(self, config: Any, hydra: Any, number: int) -> Point:
        """The point of one composed job; `hydra` is Hydra's own node."""
        place = place_of(self.run, self.run_id, number, registry=self.registry)
        # In a container, and on another machine, there is no launch folder.
        apart = place.apart or self.run.executor == "docker" or bool(self.run.container_image)
        place = place if apart else _shared_code(place)
        label, overrides = str(hydra.job.name), overrides_of(hydra)
        environment, secrets = self._environment(hydra, place)
        drop_copied(hydra)
        if apart:
            _send_outputs_home(hydra, place)
        packed = self.packer.pack(config, hydra, place.move, import_path(place))
        shown = _shown(config)
        pins = pin_slots(shown, Placed(shown, self.run, place), self.run_id, reach_for)
        recorded = {slot: pin.to_dict() for slot, pin in pins.items()}
        added = self._added(place, pins, number, label)
        spec = self._spec(place, place.cwd if apart else str(Path.cwd()), environment, secrets)
        plan = Plan(
            run_id=self.run_id,
            recipe=label,
            stage="",
            folder=f"{nemotron_home()}/runs/{self.run_id}",
            argv=tuple(sys.argv),
            hydra=tuple(overrides),
            mode=self.mode,
            profile=self.profile,
            executor=self.run.executor,
            settings=self.settings,
            launch=DETACHED,
            config_name=str(hydra.job.config_name),
            config_file=None,
            config=shown,
            inputs=pins,
            references={slot: str(shown["run"][slot]) for slot in pins},
            launch_command=command_of(place.python, place.kit, place.job),
            environment=environment,
            secrets=secrets,
            captured={},
            files={
                "config.yaml": to_yaml(shown),
                "job.json": json.dumps(spec, indent=2) + "\n",
                "artifacts.json": json.dumps({"inputs": recorded, "outputs": []}, indent=2) + "\n",
                packet.FILE: packed.to_text(),
                **({"env.toml": registry_table(place)} if place.names_registry else {}),
            },
            problems=tuple(added.problems),
            notes=(*added.notes, *left_out(place)),
            job=number,
            place=place.to_dict(),
            extra={**added.extra, **({"repositories": list(self.fetch)} if self.fetch else {})},
        )
        return Point(plan, tuple(overrides))

    def _spec(self, place: Place, cwd: str, environment: Mapping[str, str], secrets: Sequence[str]) -> dict[str, Any]:
        return {
            "kit": __version__,
            "command": self.packer.function,
            "handler": "",
            "config_cls": "",
            "script": None,
            "module": MODULE,
            "nproc_per_node": self.resources.processes,
            "executor": self.run.executor,
            "torchrun": self.resources.torchrun,
            "retries": self.run.retries or 0,
            "max_segments": self.run.max_segments,
            "code": place.code,
            # Hydra's folders, and whatever the app names by a relative path, lie where it was launched.
            "cwd": cwd,
            "sys_path": import_path(place),
            "secrets": list(secrets),
            "environment": dict(environment),
            "expand": references(self.run),
        }

    def _added(self, place: Place, pins: Mapping[str, Pin], number: int, label: str) -> Sbatch:
        """What the executor adds to the plan."""
        if self.run.executor == "docker":
            from nemotron_kit.plan.docker import docker_for

            return docker_for(self.run, self.resources, place, pins, run_id=self.run_id, job=number, mode=self.mode)
        if self.run.executor == "slurm":
            asked: dict[str, Any] = {"run_id": self.run_id, "job": number, "label": label, "mode": self.mode}
            return sbatch_for(self.run, self.resources, place, pins, **asked, alone=False)
        return Sbatch()

    def _environment(self, hydra: Any, place: Place) -> tuple[dict[str, str], tuple[str, ...]]:
        """The job's variables, and the names of those that no file may hold."""
        copied = {name: str(hydra.job.env_set[name]) for name in hydra.job.env_copy}
        secret = [name for name in copied if is_secret_name(name)]
        variables = job_environment(self.run_id, place, {}, self.run, ())
        variables |= {name: text for name, text in copied.items() if name not in secret}
        variables["NEMOTRON_EXECUTOR"] = self.run.executor
        return variables, tuple(dict.fromkeys([*(self.run.secrets or ()), *secret]))


def _sees_this_tree(run: RunConfig) -> bool:
    """Whether jobs find the launch's own files where they are. Then they run there, as Hydra's other launchers have it:
    a program that looks for its project by its own path reads and writes in that. A packager named in the profile sends
    a copy."""
    return run.tunnel != "ssh" and run.container_image is None


def _shared_code(place: Place) -> Place:
    """The sweep's jobs on this machine's file system share one copy of the code: they start where they were launched,
    and so write nothing into it."""
    if place.apart or not place.code:
        return place
    code = f"{place.run}/code"
    moves = tuple((here, code + there[len(place.code) :]) for here, there in place.moves)
    return replace(place, code=code, moves=moves)


def _send_outputs_home(hydra: Any, place: Place) -> None:
    """On another machine Hydra's sweep folder lies in the run's: the launch folder is not there."""
    from omegaconf import open_dict, read_write

    with read_write(hydra), open_dict(hydra):
        hydra.sweep.dir = f"{place.run}/sweep"
        hydra.runtime.cwd = place.cwd


def _shown(config: Any) -> dict[str, Any]:
    """The job's config as config.yaml shows it to people."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    shown: dict[str, Any] = masked_by_name(plain(values))
    return shown


def drop_copied(hydra: Any) -> None:
    """Take out the values of hydra.job.env_copy, which Hydra would write into files in clear."""
    from omegaconf import open_dict, read_write

    variables = hydra.job.env_set
    with read_write(variables), open_dict(variables):
        for name in hydra.job.env_copy:
            variables.pop(name, None)
