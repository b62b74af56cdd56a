"""Settings of Hydra's that a single job of the kit has another way for: refused, since they would do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron_kit.errors import UserError

# conf/config.yaml's own.
_FOLDER = "${nemotron.run_dir:}/jobs/0"
# Key, or the beginning of one that ends with a dot → what there is in its place.
_INSTEAD = {
    "hydra.run.dir": "A job's folder is jobs/0 of its run's; ${oc.env:NEMO_RUN_DIR} names it in a config.",
    "hydra.output_subdir": "Hydra's files lie in .hydra in the job's folder.",
    "hydra.job.chdir": "Jobs start in the working folder; ${oc.env:NEMO_RUN_DIR} is the job's own folder.",
    "hydra.job.env_set.": "Environment variables of a job are its profile's: env_vars in env.toml.",
    "hydra.job.env_set": "Environment variables of a job are its profile's: env_vars in env.toml.",
    "hydra.mode": "A sweep is asked for on the command line: -m.",
}

# What is about many jobs: alone, a job would go where it would have gone anyway.
_SWEEPS = ("hydra/launcher", "hydra/sweeper", "hydra.launcher.", "hydra.sweeper.", "hydra.sweep.")
_SWEEP = "Add -m for a sweep (-m key=1,2); one job is sent elsewhere by --run PROFILE or --batch PROFILE."


def refuse_without_effect(overrides: Sequence[str]) -> None:
    """Raise UserError for the first override that a single job would not notice. In a sweep, Hydra itself obeys."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key.startswith(_SWEEPS):
            raise UserError(f"{override}: has no effect on a single job.", hint=_SWEEP)
        found = next(
            (text for name, text in _INSTEAD.items() if key == name or (name[-1] == "." and key.startswith(name))), None
        )
        if found and value not in ("null", "false", "False"):
            raise UserError(f"{override}: has no effect on a single job here.", hint=found)


def refuse_settings_in_files(hydra: Any) -> None:
    """The same for what a config file sets; `hydra` is Hydra's composed node."""
    from omegaconf import OmegaConf

    run: Any = OmegaConf.to_container(hydra.run, resolve=False)
    job = hydra.job
    found = {
        "hydra.run.dir": run.get("dir") != _FOLDER,
        "hydra.output_subdir": hydra.output_subdir is not None,
        "hydra.job.chdir": bool(job.chdir),
        "hydra.job.env_set": bool(job.env_set),
        "hydra.mode": str(hydra.mode).endswith("MULTIRUN"),
    }
    for key, is_set in found.items():
        if is_set:
            raise UserError(f"{key}: has no effect on a single job here.", hint=_INSTEAD[key])
