"""The command line. `from nemotron_kit import cli` gives this package; called, it is `cli(…)` of train_script."""

from __future__ import annotations

import sys
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class CallableModule(ModuleType):
    """A module type that can also be called as the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from nemotron_kit.train_script import cli

        return cli(*args, **kwargs)


sys.modules[__name__].__class__ = CallableModule
