"""Many copies of one config: pickled once in this process, so that each costs a quarter of a deepcopy."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any


class Copies:
    """`make()` gives a new copy of what it was made from, types, flags and parents included."""

    def __init__(self, original: Any) -> None:
        self._original, self._types = original, list[type]()
        buffer = io.BytesIO()
        self._data: bytes | None = None
        try:
            _Pickler(buffer, self._types).dump(original)
            self._data = buffer.getvalue()
        # A config may hold any object of the user's.
        except Exception:  # noqa: BLE001
            return

    def make(self) -> Any:
        if self._data is None:
            return copy.deepcopy(self._original)
        return _Unpickler(io.BytesIO(self._data), self._types).load()


class _Pickler(pickle.Pickler):
    """Types stay what they are: those of schemas are made on the fly, and have no name to be found by."""

    def __init__(self, file: io.BytesIO, types: list[type]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._types, self._numbers = types, dict[type, int]()

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, type):
            return None
        if obj not in self._numbers:
            self._numbers[obj] = len(self._types)
            self._types.append(obj)
        return self._numbers[obj]


class _Unpickler(pickle.Unpickler):
    """What this process has just pickled."""

    def __init__(self, file: io.BytesIO, types: list[type]) -> None:
        super().__init__(file)
        self._types = types

    def persistent_load(self, number: int) -> type:
        return self._types[number]
