"""The names of nemotron_kit, under the name that the reference's recipes import."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import nemotron_kit
from nemotron_kit.lazy import lend_names

if TYPE_CHECKING:
    from nemotron_kit import *  # noqa: F403

__all__ = sorted(nemotron_kit.__all__)


_load, __dir__ = lend_names(__name__, nemotron_kit, __all__)


def __getattr__(name: str) -> Any:
    # The package nemotron.kit.cli is callable.
    return import_module("nemotron.kit.cli") if name == "cli" else _load(name)
