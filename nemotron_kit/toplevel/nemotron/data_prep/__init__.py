"""Data preparation, under the name that recipes are written against. Each name is loaded on first use."""

from typing import Any

from nemotron_kit import artifacts as _artifacts
from nemotron_kit import data_prep as _home


def __getattr__(name: str) -> Any:
    # DataBlendsArtifact is defined in nemotron_kit.artifacts; the reference implementation exports it here, too.
    if name in ("DataBlendsArtifact", "PretrainBlendsArtifact"):
        return getattr(_artifacts, name)
    if name in _home.__all__:
        return getattr(_home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*_home.__all__, "DataBlendsArtifact", "PretrainBlendsArtifact"]
