"""The table: which check stands for which snippet. The rows are in rows_cli, rows_nano3 and rows_recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from .world import World

Check = Callable[[World], None]


@dataclass(frozen=True)
class Row:
    """`check` runs a snippet and asserts what came of it; `prepared` gives it nano3's tiny data."""

    id: str
    check: Check
    prepared: bool = False


_ROWS: dict[str, Row] = {}


def row(key: str, *, prepared: bool = False) -> Callable[[Check], Check]:
    """Enter a check into the table. ValueError for a snippet that has one."""

    def enter(check: Check) -> Check:
        if key in _ROWS:
            raise ValueError(f"{key} has two rows.")
        _ROWS[key] = Row(key, check, prepared)
        return check

    return enter


def table() -> dict[str, Row]:
    """Every row by its snippet's id."""
    for module in ("rows_cli", "rows_nano3", "rows_recipe"):
        import_module(f"{__package__}.{module}")
    return dict(_ROWS)
