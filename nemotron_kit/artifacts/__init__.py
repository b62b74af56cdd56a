"""Typed artifacts, references to them, the registry, lineage. Names load on first use: importing this costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemotron_kit.lazy import load_names

if TYPE_CHECKING:
    from nemotron_kit.artifacts.compat import ArtifactEntry, ArtifactRegistry, FileTracker
    from nemotron_kit.artifacts.datasets import InputDatasetInfo, apply_scale, to_wandb_uri, tokenizer_to_uri
    from nemotron_kit.artifacts.lineage import (
        LineageTracker,
        NoOpTracker,
        get_lineage_tracker,
        inputs,
        record_input,
        record_output,
        set_lineage_tracker,
    )
    from nemotron_kit.artifacts.models import (
        DataBlendsArtifact,
        EvalArtifact,
        ModelArtifact,
        PretrainBlendsArtifact,
        PretrainDataArtifact,
        SFTDataArtifact,
        SplitJsonlDataArtifact,
    )
    from nemotron_kit.artifacts.pipe import parse_piped, pick, piped_pin, print_step_complete
    from nemotron_kit.artifacts.reference import (
        ArtifactChangedError,
        ArtifactNotFoundError,
        ArtifactVersionNotFoundError,
        DamagedRecordError,
        Pin,
        Reference,
        parse_override,
        registry_name,
    )
    from nemotron_kit.artifacts.registry import (
        KitConfig,
        LocalRegistry,
        Registry,
        artifact_field,
        get_config,
        init,
        is_initialized,
        open_registry,
    )
    from nemotron_kit.artifacts.saving import Artifact, TrackingInfo
    from nemotron_kit.artifacts.store import ArtifactVersion, Draft
    from nemotron_kit.artifacts.wandb import (
        WandbConfig,
        WandbTracker,
        add_run_tags,
        add_wandb_tags,
        finish_wandb,
        init_wandb_if_configured,
        wandb_config_from_env_file,
        wandb_config_from_environ,
    )

_HOMES = {
    "compat": "ArtifactEntry ArtifactRegistry FileTracker",
    "datasets": "apply_scale InputDatasetInfo to_wandb_uri tokenizer_to_uri",
    "lineage": ("get_lineage_tracker inputs LineageTracker NoOpTracker record_input record_output set_lineage_tracker"),
    "models": (
        "DataBlendsArtifact EvalArtifact ModelArtifact PretrainBlendsArtifact PretrainDataArtifact SFTDataArtifact "
        "SplitJsonlDataArtifact"
    ),
    "pipe": "parse_piped pick piped_pin print_step_complete",
    "reference": (
        "ArtifactChangedError ArtifactNotFoundError ArtifactVersionNotFoundError DamagedRecordError "
        "parse_override Pin Reference registry_name"
    ),
    "registry": "artifact_field get_config init is_initialized KitConfig LocalRegistry open_registry Registry",
    "saving": "Artifact TrackingInfo",
    "store": "ArtifactVersion Draft",
    "wandb": (
        "add_run_tags add_wandb_tags finish_wandb init_wandb_if_configured "
        "wandb_config_from_env_file wandb_config_from_environ WandbConfig WandbTracker"
    ),
}

__all__ = [
    "Artifact",
    "ArtifactChangedError",
    "ArtifactEntry",
    "ArtifactNotFoundError",
    "ArtifactRegistry",
    "ArtifactVersion",
    "ArtifactVersionNotFoundError",
    "DamagedRecordError",
    "DataBlendsArtifact",
    "Draft",
    "EvalArtifact",
    "FileTracker",
    "InputDatasetInfo",
    "KitConfig",
    "LineageTracker",
    "LocalRegistry",
    "ModelArtifact",
    "NoOpTracker",
    "Pin",
    "PretrainBlendsArtifact",
    "PretrainDataArtifact",
    "Reference",
    "Registry",
    "SFTDataArtifact",
    "SplitJsonlDataArtifact",
    "TrackingInfo",
    "WandbConfig",
    "WandbTracker",
    "add_run_tags",
    "add_wandb_tags",
    "apply_scale",
    "artifact_field",
    "finish_wandb",
    "get_config",
    "get_lineage_tracker",
    "init",
    "init_wandb_if_configured",
    "inputs",
    "is_initialized",
    "open_registry",
    "parse_override",
    "parse_piped",
    "pick",
    "piped_pin",
    "print_step_complete",
    "record_input",
    "record_output",
    "registry_name",
    "set_lineage_tracker",
    "to_wandb_uri",
    "tokenizer_to_uri",
    "wandb_config_from_env_file",
    "wandb_config_from_environ",
]

__getattr__, __dir__ = load_names(__name__, __all__, _HOMES)
