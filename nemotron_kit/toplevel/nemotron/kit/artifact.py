"""Artifact classes and what goes with them, under the name that scripts import. Each is loaded on first use."""

from typing import TYPE_CHECKING

import nemotron_kit
from nemotron_kit.lazy import lend_names

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

__getattr__, __dir__ = lend_names(__name__, nemotron_kit, __all__)
