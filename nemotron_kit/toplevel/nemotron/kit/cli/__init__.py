"""Both things that people import under this name: the package (`nemotron.kit.cli.recipe`) and the function `cli(…)`."""

import sys

from nemotron_kit.cli import CallableModule

sys.modules[__name__].__class__ = CallableModule
