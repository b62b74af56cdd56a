"""Profiles and executors, under the name that scripts import. Each is loaded on first use."""

from typing import TYPE_CHECKING, Any

import nemotron_kit

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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(nemotron_kit, name)


def __dir__() -> list[str]:
    return __all__
