"""Packages whose names are loaded on first use, so that importing one costs nothing.

Each has `__all__`, a table of the modules that its names are in, and for type checkers the imports themselves; a test
holds the three to each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


def load_names(
    package: str, names: Sequence[str], homes: Mapping[str, str], rest: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package. `homes`: a module below it → its names; a name that is in none belongs
    to `rest`."""
    home_of = {name: home for home, held in homes.items() for name in held.split()}

    def load(name: str) -> Any:
        home = home_of.get(name, rest)
        if name not in names or home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home}"), name)

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return load, listed


def lend_names(
    module: str, lender: ModuleType, names: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a module that has `names` of another, which loads them on first use."""

    def load(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(lender, name)

    return load, lambda: list(names)
