"""Settings of Hydra's that a single job of the kit has another way for: refused, since they would do nothing."""

from __future__ import annotations

from collections.abc import Sequence

from nemotron_kit.errors import UserError

# Key, or the beginning of one that ends with a dot → what there is in its place.
_INSTEAD = {
    "hydra.run.dir": "A job's folder is jobs/0 of its run's; ${oc.env:NEMO_RUN_DIR} names it in a config.",
    "hydra.output_subdir": "Hydra's files lie in .hydra in the job's folder.",
    "hydra.job.chdir": "Jobs start in the working folder; ${oc.env:NEMO_RUN_DIR} is the job's own folder.",
    "hydra.job.env_set.": "Environment variables of a job are its profile's: env_vars in env.toml.",
    "hydra.job.env_set": "Environment variables of a job are its profile's: env_vars in env.toml.",
    "hydra.callbacks.": "What is to happen around a job belongs into its handler.",
    "hydra.callbacks": "What is to happen around a job belongs into its handler.",
}


def refuse_without_effect(overrides: Sequence[str]) -> None:
    """Raise UserError for the first override that a single job would not notice. In a sweep, Hydra itself obeys."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        found = next(
            (text for name, text in _INSTEAD.items() if key == name or (name[-1] == "." and key.startswith(name))), None
        )
        if found and value not in ("null", "false", "False"):
            raise UserError(f"{override}: has no effect on a single job here.", hint=found)
