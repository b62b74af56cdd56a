"""Typed artifacts, references to them, the registry, lineage. Names load on first use: importing this costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemotron_kit.artifacts.backend import KitConfig, get_config, init, is_initialized
    from nemotron_kit.artifacts.compat import ArtifactEntry, ArtifactRegistry
    from nemotron_kit.artifacts.datasets import InputDatasetInfo, apply_scale, to_wandb_uri, tokenizer_to_uri
    from nemotron_kit.artifacts.errors import (
        ArtifactChangedError,
        ArtifactNotFoundError,
        ArtifactVersionNotFoundError,
        DamagedRecordError,
    )
    from nemotron_kit.artifacts.fields import artifact_field
    from nemotron_kit.artifacts.kinds import (
        DataBlendsArtifact,
        ModelArtifact,
        PretrainBlendsArtifact,
        PretrainDataArtifact,
        SFTDataArtifact,
        SplitJsonlDataArtifact,
    )
    from nemotron_kit.artifacts.lineage import inputs, record_input, record_output
    from nemotron_kit.artifacts.local import LocalRegistry
    from nemotron_kit.artifacts.models import Artifact, TrackingInfo
    from nemotron_kit.artifacts.override import parse_override
    from nemotron_kit.artifacts.pin import Pin
    from nemotron_kit.artifacts.piped import parse_piped, pick, piped_pin
    from nemotron_kit.artifacts.records import ArtifactVersion, Draft
    from nemotron_kit.artifacts.reference import Reference, registry_name
    from nemotron_kit.artifacts.registry import Registry, open_registry
    from nemotron_kit.artifacts.step import print_step_complete
    from nemotron_kit.artifacts.trackers import (
        FileTracker,
        LineageTracker,
        NoOpTracker,
        get_lineage_tracker,
        set_lineage_tracker,
    )
    from nemotron_kit.artifacts.wandb import (
        WandbConfig,
        add_run_tags,
        add_wandb_tags,
        finish_wandb,
        init_wandb_if_configured,
        wandb_config_from_env_file,
        wandb_config_from_environ,
    )
    from nemotron_kit.artifacts.wandb_tracker import WandbTracker

_HOMES = {
    "backend": "KitConfig get_config init is_initialized",
    "compat": "ArtifactEntry ArtifactRegistry",
    "datasets": "InputDatasetInfo apply_scale to_wandb_uri tokenizer_to_uri",
    "errors": "ArtifactChangedError ArtifactNotFoundError ArtifactVersionNotFoundError DamagedRecordError",
    "fields": "artifact_field",
    "kinds": (
        "DataBlendsArtifact ModelArtifact PretrainBlendsArtifact PretrainDataArtifact SFTDataArtifact "
        "SplitJsonlDataArtifact"
    ),
    "lineage": "inputs record_input record_output",
    "local": "LocalRegistry",
    "models": "Artifact TrackingInfo",
    "override": "parse_override",
    "pin": "Pin",
    "piped": "parse_piped pick piped_pin",
    "records": "ArtifactVersion Draft",
    "reference": "Reference registry_name",
    "registry": "Registry open_registry",
    "step": "print_step_complete",
    "trackers": "FileTracker LineageTracker NoOpTracker get_lineage_tracker set_lineage_tracker",
    "wandb": (
        "WandbConfig add_run_tags add_wandb_tags finish_wandb init_wandb_if_configured "
        "wandb_config_from_env_file wandb_config_from_environ"
    ),
    "wandb_tracker": "WandbTracker",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

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


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
