"""The names that recipes are written against. Each is loaded from nemotron_kit on first use."""

from importlib import import_module
from typing import Any

# Home module → the names that it lends. A name is the very object of its home: `A is B` holds.
_HOMES = {
    "nemotron_kit.app": ("App", "ArtifactInput", "Command", "Group"),
    "nemotron_kit.artifacts": (
        "Artifact",
        "ArtifactEntry",
        "ArtifactNotFoundError",
        "ArtifactRegistry",
        "ArtifactVersion",
        "ArtifactVersionNotFoundError",
        "DataBlendsArtifact",
        "FileTracker",
        "InputDatasetInfo",
        "LineageTracker",
        "ModelArtifact",
        "NoOpTracker",
        "PretrainBlendsArtifact",
        "PretrainDataArtifact",
        "SFTDataArtifact",
        "SplitJsonlDataArtifact",
        "TrackingInfo",
        "WandbConfig",
        "WandbTracker",
        "add_run_tags",
        "add_wandb_tags",
        "apply_scale",
        "finish_wandb",
        "get_config",
        "get_lineage_tracker",
        "init",
        "init_wandb_if_configured",
        "is_initialized",
        "print_step_complete",
        "set_lineage_tracker",
        "to_wandb_uri",
        "tokenizer_to_uri",
    ),
    "nemotron_kit.config.store": ("register_recipes",),
    "nemotron_kit.config_manager": ("ConfigManager",),
    "nemotron_kit.executors.nemo_run": ("build_executor",),
    "nemotron_kit.spec.profiles": (
        "list_run_profiles",
        "load_run_profile",
        "load_wandb_config",
        "resolve_partition",
    ),
    "nemotron_kit.spec.runconfig": ("RunConfig",),
    "nemotron_kit.train_script": (
        "apply_hydra_overrides",
        "init_wandb_from_env",
        "load_omegaconf_yaml",
        "omegaconf_to_dataclass",
        "parse_config_and_overrides",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted([*_HOME, "cli"])


def __getattr__(name: str) -> Any:
    if name == "cli":  # the package nemotron.kit.cli is callable
        return import_module("nemotron.kit.cli")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
