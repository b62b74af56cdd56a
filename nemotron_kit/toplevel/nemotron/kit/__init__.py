"""The names of nemotron_kit, under the name that the reference's recipes import."""

from typing import TYPE_CHECKING

import nemotron_kit
from nemotron_kit.lazy import lend_names

if TYPE_CHECKING:
    from nemotron_kit import *  # noqa: F403

__all__ = sorted(nemotron_kit.__all__)

# The package nemotron.kit.cli is callable.
__getattr__, __dir__ = lend_names(__name__, nemotron_kit, __all__, own=("cli",))
