"""What keeps importing cheap: packages whose names are loaded on first use, and a base for frozen dataclasses.

Such a package has `__all__`, a table of the modules that its names are in, and for type checkers the imports
themselves; a test holds the three to each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar


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


class Value:
    """What a frozen dataclass inherits in place of methods of its own: comparison, hash and text by its fields.

    `@dataclass(frozen=True, eq=False, repr=False) class X(Value)` is `@dataclass(frozen=True)`, made in 60 % of the
    time: dataclass compiles each method for each class, and a launch loads forty of them.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        values = zip(self.__dataclass_fields__, self._fields(), strict=True)
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in values)})"

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)
