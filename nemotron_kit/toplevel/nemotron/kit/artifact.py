"""Artifact classes and what goes with them, under the name that scripts import. Each is loaded on first use."""

from typing import TYPE_CHECKING, Any

import nemotron_kit

if TYPE_CHECKING:
    from nemotron_kit import (
        Artifact,
        ArtifactInput,
        DataBlendsArtifact,
        EvalArtifact,
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
    "EvalArtifact",
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
    return getattr(nemotron_kit, name)
