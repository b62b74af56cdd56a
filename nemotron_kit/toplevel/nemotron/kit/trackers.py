"""Trackers, under the name that scripts import. Each is loaded on first use."""

from typing import TYPE_CHECKING, Any

import nemotron_kit

if TYPE_CHECKING:
    from nemotron_kit import (
        FileTracker,
        InputDatasetInfo,
        LineageTracker,
        NoOpTracker,
        WandbTracker,
        get_lineage_tracker,
        set_lineage_tracker,
        to_wandb_uri,
        tokenizer_to_uri,
    )

__all__ = [
    "FileTracker",
    "InputDatasetInfo",
    "LineageTracker",
    "NoOpTracker",
    "WandbTracker",
    "get_lineage_tracker",
    "set_lineage_tracker",
    "to_wandb_uri",
    "tokenizer_to_uri",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(nemotron_kit, name)
