"""A package (`nemotron.kit.cli.recipe`) that can also be called: `from nemotron.kit import cli; cli(MyConfig)`."""

import sys

from nemotron_kit.cli import CallableModule

sys.modules[__name__].__class__ = CallableModule
