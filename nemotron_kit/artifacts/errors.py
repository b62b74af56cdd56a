"""The mistakes about artifacts that the rooms above want to tell apart."""

from __future__ import annotations

from nemotron_kit.errors import UserError

NOT_A_REFERENCE = (
    "Write Name, Name:v3, Name:alias, Name@<sha256 prefix>, Name@run:<run id>, entity/project/Name:v3, "
    "or a path that starts with '/', './', '../' or '~'."
)


class ArtifactNotFoundError(UserError):
    """Nothing is registered under `name`."""

    def __init__(self, name: str, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or f"No artifact is called {name!r}.", hint=hint)
        self.name = name


class ArtifactVersionNotFoundError(ArtifactNotFoundError):
    """`name` is registered, but has no such version, alias, digest or run."""

    def __init__(self, name: str, version: str | int, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(name, message or f"{name} has no {version}.", hint=hint)
        self.version = version


class ArtifactChangedError(UserError):
    """A version's files are no longer those that were saved."""


class DamagedRecordError(UserError):
    """A record (version, alias, metadata.json, …) is truncated or was changed by hand."""
