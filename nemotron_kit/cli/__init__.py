"""The command line. The package can also be called: `from nemotron_kit import cli; cli(MyConfig)` is train_script's
`cli`."""

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
