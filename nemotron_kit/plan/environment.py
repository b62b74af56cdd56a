"""The environment variables that a job gets besides those that it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nemotron_kit.config.environment import refers
from nemotron_kit.envfile import find_env_file
from nemotron_kit.errors import UserError
from nemotron_kit.masking import is_secret_name, secret_in
from nemotron_kit.plan.paths import Place
from nemotron_kit.plan.placing import import_path
from nemotron_kit.plan.tables import check_run_wandb

if TYPE_CHECKING:
    from nemotron_kit.plan.runconfig import RunConfig

WANDB_VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "run_name": "WANDB_NAME",
    "notes": "WANDB_NOTES",
}


def job_environment(
    run_id: str,
    place: Place,
    run: Mapping[str, Any],
    settings: RunConfig,
    overrides: Sequence[str],
    config_name: str | None = None,
) -> dict[str, str]:
    # A job's Python programs print as they go: its log holds both streams in order, and a kill costs no line.
    variables = {"PYTHONUNBUFFERED": "1", **_env_vars(settings)}
    check_run_wandb(run.get("wandb") or {})
    wandb = {key: value for key, value in (run.get("wandb") or {}).items() if value not in (None, "", [])}
    if wandb.get("project") and wandb.get("enabled", True):
        variables |= {WANDB_VARIABLES[key]: str(value) for key, value in wandb.items() if key in WANDB_VARIABLES}
        if wandb.get("tags"):
            variables["WANDB_TAGS"] = ",".join(str(tag) for tag in wandb["tags"])
    env_file = f"{place.job}/env.toml" if place.names_registry else find_env_file()
    if env_file:
        # A job in another working folder must find the same registry.
        variables["NEMOTRON_ENV_FILE"] = str(env_file)
    if place.kit:
        variables["NEMOTRON_HOME"] = place.root
    if place.code or place.kit:
        # For whatever the job starts; its own processes find the rest by job.json's sys_path, behind the library.
        paths = [entry for entry in import_path(place, harmless=True) if place.is_there(entry)]
        variables["PYTHONPATH"] = ":".join([*paths, *filter(None, [variables.get("PYTHONPATH")])])
    added = [o[1:].lstrip("+").partition("=")[0] for o in overrides if o.startswith("+")]
    if added:
        variables["NEMOTRON_ADDED_KEYS"] = ",".join(added)
    if config_name:
        variables["NEMOTRON_CONFIG_NAME"] = config_name
    return {**variables, "NEMO_RUN_DIR": place.job, "NEMOTRON_RUN_ID": run_id}


def references(settings: RunConfig) -> list[str]:
    """The variables of the profile whose values refer to others: the job itself, where it runs, puts those in."""
    from nemotron_kit.plan.runconfig import env_dict

    return [name for name, text in env_dict(settings).items() if refers(text)]


def _env_vars(settings: RunConfig) -> dict[str, str]:
    from nemotron_kit.plan.runconfig import env_dict

    variables = env_dict(settings)
    for name, value in variables.items():
        variable = name if is_secret_name(name) else secret_in(str(value))
        if variable:
            what = f"{name}, a secret by its name" if variable == name else f"the value of {variable}, a secret"
            raise UserError(
                f"env_vars holds {what}: it would stand in every record of the job.",
                hint=f'Export it where you launch, and name it in the profile: secrets = ["{variable}"].',
            )
    return variables
