"""Makes the plan of one job from what was composed. Reads env.toml and a registry on this machine; writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import App, Command
from nemotron_kit.config import job as job_config
from nemotron_kit.config.compose import Composed
from nemotron_kit.config.freeze import launch_environment
from nemotron_kit.errors import Note
from nemotron_kit.home import nemotron_home
from nemotron_kit.plan.effects import label_of, without_effect
from nemotron_kit.plan.environment import job_environment
from nemotron_kit.plan.inputs import Inputs, resolve_inputs
from nemotron_kit.plan.launching import job_files, job_spec, launch_command, launch_kind
from nemotron_kit.plan.paths import Place
from nemotron_kit.plan.pinning import look_up_for
from nemotron_kit.plan.placing import Reach, left_out, place_job, still_behind
from nemotron_kit.plan.plan import Plan
from nemotron_kit.plan.problems import missing_value, preflight, problems_of
from nemotron_kit.plan.resources import Resources, resources_of
from nemotron_kit.plan.sbatch import Sbatch, sbatch_for
from nemotron_kit.plan.settings import settings_dict

if TYPE_CHECKING:
    from nemotron_kit.plan.runconfig import RunConfig


_PREVIEW = "dry_run is set in the profile: a sweep's jobs are shown by -m … --dry-run, or set --run.dry_run false."


def build_plan(
    composed: Composed,
    app: App,
    *,
    run_id: str,
    argv: Sequence[str],
    job: int = 0,
    connect: bool = True,
    reach: Reach | None = None,
    recorded: RunConfig | None = None,
    alone: bool = True,
) -> Plan:
    """The plan of one composed job.

    `reach` gives the way to another machine (execution.reach.reach_for), whose registry is then asked; without it, and
    with `connect=False` (a dry-run), no connection is opened. What would stop the job is listed in `problems`; what
    makes the command itself wrong is raised as UserError. `recorded`: the settings of an earlier launch, which stand in
    the profile's place. `alone`: not one of a sweep's jobs, which share a script.
    """
    command = composed.command
    reach = reach if connect else None
    placed = place_job(composed, run_id, job, recorded, reach)
    frozen, settings, place = placed.config, placed.settings, placed.place
    missing = job_config.check(frozen, command.load_config_cls())
    inputs = resolve_inputs(command, frozen, app, composed, look_up_for(placed, run_id, reach))
    detached = list(_detached(frozen, settings, alone))
    resources = resources_of(settings, command.torchrun)
    launch = launch_kind(frozen["run"]["mode"], settings, resources)
    sbatch = _of_executor(command, settings, resources, place, inputs, run_id, job, frozen["run"]["mode"], alone)
    environment = job_environment(run_id, place, frozen["run"], settings, composed.overrides, composed.config_name)
    problems = [
        *(missing_value(key, command) for key in missing),
        *inputs.problems,
        *still_behind(placed, reach),
        *sbatch.problems,
        *([_PREVIEW] if settings.dry_run and connect and not alone else []),
        *problems_of(command, launch, settings, frozen, environment),
    ]
    found = preflight(command, frozen, inputs, place, connect, settings.executor == "local") if not missing else []
    problems += [problem for problem in found if not isinstance(problem, Note)]
    unjudged = [str(note) for note in found if isinstance(note, Note)]
    spec = job_spec(command, settings, place, resources)
    return Plan(
        run_id=run_id,
        recipe=command.recipe,
        stage=command.stage,
        folder=f"{nemotron_home()}/runs/{run_id}",
        argv=tuple(argv),
        hydra=tuple(composed.overrides),
        mode=frozen["run"]["mode"],
        profile=frozen["run"]["profile"],
        executor=settings.executor,
        settings=settings_dict(settings),
        launch=launch,
        config_name=composed.config_name,
        config_file=str(composed.config_file) if composed.config_file else None,
        config=frozen,
        inputs=inputs.pins,
        references=inputs.references,
        launch_command=tuple(launch_command(command, launch, settings, place, resources)),
        environment=environment,
        secrets=tuple(settings.secrets or ()),
        captured=_captured(composed, place),
        files={**job_files(frozen, spec, inputs, environment, place), **sbatch.files},
        problems=tuple(problems),
        notes=(
            *composed.notes,
            *detached,
            *inputs.notes,
            *sbatch.notes,
            *placed.notes,
            *left_out(place),
            *unjudged,
            *without_effect(settings, launch, frozen["run"], composed.overrides),
        ),
        job=job,
        place=place.to_dict(),
        extra={**sbatch.extra, **({"repositories": list(placed.fetch)} if placed.fetch else {})},
    )


def _detached(frozen: dict[str, Any], settings: RunConfig, alone: bool) -> Iterator[str]:
    """`detach = true` in a profile makes of --run what --batch is; a note says so."""
    if not settings.detach or frozen["run"]["mode"] != "run":
        return
    if not alone:
        yield "detach: no effect on a sweep; --batch detaches it."
        return
    frozen["run"]["mode"] = "batch"
    yield "detach is set in the profile: the job is submitted and left to itself, as with --batch."


def _captured(composed: Composed, place: Place) -> dict[str, str]:
    """The variables whose values at launch went into the config; PWD as the job's, where it has a copy of the code."""
    found = launch_environment(composed.config)
    return {name: place.environment["PWD"] if name == "PWD" and place.code else text for name, text in found.items()}


def _of_executor(
    command: Command,
    settings: RunConfig,
    resources: Resources,
    place: Place,
    inputs: Inputs,
    run_id: str,
    job: int,
    mode: str,
    alone: bool,
) -> Sbatch:
    if settings.executor == "local":
        return Sbatch(notes=resources.notes)
    if settings.executor == "docker":
        from nemotron_kit.plan.docker import docker_for

        return docker_for(settings, resources, place, inputs.pins, run_id=run_id, job=job, mode=mode)
    if settings.executor != "slurm":
        from nemotron_kit.plan.cloud import cloud_for

        return cloud_for(settings, run_id=run_id, job=job, mode=mode)
    label = label_of(settings, command.recipe, command.stage)
    return sbatch_for(
        settings, resources, place, inputs.pins, run_id=run_id, job=job, label=label, mode=mode, alone=alone
    )
