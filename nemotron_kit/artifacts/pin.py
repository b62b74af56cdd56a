"""A pin: what a reference stood for when it was resolved. It is a value, written to JSON and carried to jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemotron_kit.artifacts.errors import DamagedRecordError


@dataclass(frozen=True)
class Pin:
    """`name:vN` with digest and registry; for a plain path, `version` and `digest` are None and `registry` is ""."""

    name: str
    version: int | None
    digest: str | None
    type: str
    path: str
    registry: str = ""

    @property
    def label(self) -> str:
        """`Name:v3`, or the path of something that is not registered."""
        return self.path if self.version is None else f"{self.name}:v{self.version}"

    @property
    def uri(self) -> str:
        """How a later step names it: `art://Name:v3`, or `art://` and the path."""
        return f"art://{self.label}"

    def __fspath__(self) -> str:
        return self.path

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one a field."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, data: Any) -> Pin:
        """The pin that `to_dict` wrote; DamagedRecordError for anything else."""
        if not isinstance(data, dict):
            raise DamagedRecordError(f"Not a pin: {data!r}.")
        pin = cls(
            name=_text(data, "name"),
            version=data.get("version"),
            digest=data.get("digest"),
            type=_text(data, "type"),
            path=_text(data, "path"),
            registry=_text(data, "registry"),
        )
        if not pin.path or not _is_version(pin.version) or not isinstance(pin.digest, str | None):
            raise DamagedRecordError(f"Not a pin: {data!r}.")
        return pin


def _text(data: dict[str, Any], key: str) -> str:
    value = data.get(key, "")
    if not isinstance(value, str):
        raise DamagedRecordError(f"Not a pin: {key} is {value!r}.")
    return value


def _is_version(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
