"""Artifact classes and what goes with them, under the name that scripts import. Each is loaded on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemotron_kit.app import ArtifactInput
    from nemotron_kit.artifacts import (
        Artifact,
        DataBlendsArtifact,
        ModelArtifact,
        PretrainBlendsArtifact,
        PretrainDataArtifact,
        SFTDataArtifact,
        SplitJsonlDataArtifact,
        TrackingInfo,
        apply_scale,
        print_step_complete,
    )

__all__ = [
    "Artifact",
    "ArtifactInput",
    "DataBlendsArtifact",
    "ModelArtifact",
    "PretrainBlendsArtifact",
    "PretrainDataArtifact",
    "SFTDataArtifact",
    "SplitJsonlDataArtifact",
    "TrackingInfo",
    "apply_scale",
    "print_step_complete",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "nemotron_kit.app" if name == "ArtifactInput" else "nemotron_kit.artifacts"
    return getattr(import_module(home), name)
