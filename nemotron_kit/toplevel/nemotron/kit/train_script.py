"""What scripts import: see nemotron_kit.train_script."""

from nemotron_kit.train_script import (
    apply_hydra_overrides,
    init_wandb_from_env,
    load_omegaconf_yaml,
    omegaconf_to_dataclass,
    parse_config_and_overrides,
)

__all__ = [
    "apply_hydra_overrides",
    "init_wandb_from_env",
    "load_omegaconf_yaml",
    "omegaconf_to_dataclass",
    "parse_config_and_overrides",
]
