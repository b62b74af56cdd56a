"""nemotron.kit.run: profiles and executors. Each name is loaded from nemotron_kit on first use."""

from importlib import import_module
from typing import Any

_HOMES = {
    "RunConfig": "nemotron_kit.spec.runconfig",
    "build_executor": "nemotron_kit.executors.nemo_run",
    "list_run_profiles": "nemotron_kit.spec.profiles",
    "load_run_profile": "nemotron_kit.spec.profiles",
    "load_wandb_config": "nemotron_kit.spec.profiles",
    "resolve_partition": "nemotron_kit.spec.runconfig",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
