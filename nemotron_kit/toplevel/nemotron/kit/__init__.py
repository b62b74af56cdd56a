"""The names of nemotron_kit, under the name that the reference's recipes import."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import nemotron_kit

if TYPE_CHECKING:
    from nemotron_kit import *  # noqa: F403

__all__ = sorted(nemotron_kit.__all__)


def __getattr__(name: str) -> Any:
    if name == "cli":  # the package nemotron.kit.cli is callable
        return import_module("nemotron.kit.cli")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(nemotron_kit, name)


def __dir__() -> list[str]:
    return __all__
