"""Both things that people import under this name: the package (`nemotron.kit.cli.recipe`) and the function `cli(…)`."""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from nemotron_kit.config_manager import cli

        return cli(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
