"""Damaged records: every place in a JSON document, with every kind of value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "minus": -1,
    "huge": 10**400,
    "nan": float("nan"),
    "1e300": 1e300,
    "empty": "",
    "escape": "\x1b[31mred\x1b[0m\n\x00",
    "year": "9999-12-31T23:59:59.999999+00:00",
    "list": [["x"]],
    "object": {"a": {"b": []}},
    "gone": None,  # without the key
    "torn": None,  # half of the file
}


def keys(value: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where something stands in a document, outermost first; () is the document itself."""
    yield above
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from keys(item, (*above, key))


def changed(value: Any, at: tuple[str | int, ...], kind: str) -> Any:
    """The document with a value of that kind at that place."""
    if not at:
        return VALUES[kind]
    copy = dict(value) if isinstance(value, dict) else list(value)
    if kind == "gone" and len(at) == 1:
        del copy[at[0]]
    else:
        copy[at[0]] = changed(copy[at[0]], at[1:], kind)
    return copy
