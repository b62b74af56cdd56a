"""Profiles and executors, under the name that scripts import. Each is loaded on first use."""

from typing import TYPE_CHECKING

import nemotron_kit
from nemotron_kit.lazy import lend_names

if TYPE_CHECKING:
    from nemotron_kit import (
        RunConfig,
        build_executor,
        list_run_profiles,
        load_run_profile,
        load_wandb_config,
        resolve_partition,
    )

__all__ = [
    "RunConfig",
    "build_executor",
    "list_run_profiles",
    "load_run_profile",
    "load_wandb_config",
    "resolve_partition",
]

__getattr__, __dir__ = lend_names(__name__, nemotron_kit, __all__)
