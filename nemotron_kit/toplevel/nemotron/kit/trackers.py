"""Trackers, under the name that scripts import. Each is loaded on first use."""

from typing import TYPE_CHECKING

import nemotron_kit
from nemotron_kit.lazy import lend_names

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

__getattr__, __dir__ = lend_names(__name__, nemotron_kit, __all__)
