"""nemotron_kit: a Hydra-native launcher for LLM training recipes.

The public names of recipes and programs. Each is loaded on first use and identical to the object in its home module;
`nemotron.kit` has the same names. Importing this package imports nothing else, since help and the worker import it too.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nemotron_kit.app import App, ArtifactInput, Command, Group, Pipeline
    from nemotron_kit.artifacts import (
        Artifact,
        ArtifactEntry,
        ArtifactNotFoundError,
        ArtifactRegistry,
        ArtifactVersion,
        ArtifactVersionNotFoundError,
        DataBlendsArtifact,
        EvalArtifact,
        FileTracker,
        InputDatasetInfo,
        LineageTracker,
        ModelArtifact,
        NoOpTracker,
        PretrainBlendsArtifact,
        PretrainDataArtifact,
        SFTDataArtifact,
        SplitJsonlDataArtifact,
        TrackingInfo,
        WandbConfig,
        WandbTracker,
        add_run_tags,
        add_wandb_tags,
        apply_scale,
        finish_wandb,
        get_config,
        get_lineage_tracker,
        init,
        init_wandb_if_configured,
        is_initialized,
        print_step_complete,
        set_lineage_tracker,
        to_wandb_uri,
        tokenizer_to_uri,
    )
    from nemotron_kit.config.registration import register_recipes
    from nemotron_kit.executors.nemo_run import build_executor
    from nemotron_kit.runs.metrics import log_metrics
    from nemotron_kit.spec.profiles import list_run_profiles, load_run_profile, load_wandb_config, resolve_partition
    from nemotron_kit.spec.runconfig import RunConfig
    from nemotron_kit.train_script import (
        ConfigManager,
        apply_hydra_overrides,
        cli,
        init_wandb_from_env,
        load_omegaconf_yaml,
        omegaconf_to_dataclass,
        parse_config_and_overrides,
    )

__version__ = "0.1.0"

# Home module → its names. All others in __all__ are of nemotron_kit.artifacts.
_HOMES = {
    "app": "App ArtifactInput Command Group Pipeline",
    "config.registration": "register_recipes",
    "executors.nemo_run": "build_executor",
    "runs.metrics": "log_metrics",
    "spec.profiles": "list_run_profiles load_run_profile load_wandb_config resolve_partition",
    "spec.runconfig": "RunConfig",
    "train_script": (
        "ConfigManager apply_hydra_overrides init_wandb_from_env load_omegaconf_yaml omegaconf_to_dataclass "
        "parse_config_and_overrides"
    ),
}

__all__ = [
    "App",
    "Artifact",
    "ArtifactEntry",
    "ArtifactInput",
    "ArtifactNotFoundError",
    "ArtifactRegistry",
    "ArtifactVersion",
    "ArtifactVersionNotFoundError",
    "Command",
    "ConfigManager",
    "DataBlendsArtifact",
    "EvalArtifact",
    "FileTracker",
    "Group",
    "InputDatasetInfo",
    "LineageTracker",
    "ModelArtifact",
    "NoOpTracker",
    "Pipeline",
    "PretrainBlendsArtifact",
    "PretrainDataArtifact",
    "RunConfig",
    "SFTDataArtifact",
    "SplitJsonlDataArtifact",
    "TrackingInfo",
    "WandbConfig",
    "WandbTracker",
    "add_run_tags",
    "add_wandb_tags",
    "apply_hydra_overrides",
    "apply_scale",
    "build_executor",
    "cli",
    "finish_wandb",
    "get_config",
    "get_lineage_tracker",
    "init",
    "init_wandb_from_env",
    "init_wandb_if_configured",
    "is_initialized",
    "list_run_profiles",
    "load_omegaconf_yaml",
    "load_run_profile",
    "load_wandb_config",
    "log_metrics",
    "omegaconf_to_dataclass",
    "parse_config_and_overrides",
    "print_step_complete",
    "register_recipes",
    "resolve_partition",
    "set_lineage_tracker",
    "to_wandb_uri",
    "tokenizer_to_uri",
]


def __getattr__(name: str) -> Any:
    if name == "cli":  # this package's own command line, which is callable: it is found so once it is imported, too
        from importlib import import_module

        return import_module("nemotron_kit.cli")
    from nemotron_kit.lazy import load_names

    return load_names(__name__, __all__, _HOMES, rest="artifacts")[0](name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
