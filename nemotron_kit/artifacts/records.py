"""A version's record, as it stands in `v<N>/version.json`, and a name's versions together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.errors import DamagedRecordError
from nemotron_kit.artifacts.manifest import FileEntry
from nemotron_kit.artifacts.pin import Pin

FORMAT = 1
RECORD = "version.json"

_TEXTS = ("name", "type", "digest", "path", "root", "created_at", "producer", "registry", "commit")
_KINDS: dict[str, type] = {**dict.fromkeys(_TEXTS, str), "version": int, "fields": dict, "document": dict}


@dataclass(frozen=True)
class Draft:
    """What is to become a version.

    `root` is the folder whose files make up the content, `path` what the artifact points at (the folder, or a file in
    it), `fields` the typed fields that belong to the identity, `document` all of metadata.json.
    """

    name: str
    type: str
    path: Path
    root: Path
    fields: Mapping[str, Any]
    document: Mapping[str, Any]
    created_at: str
    producer: str = "local"
    inputs: tuple[Pin, ...] = ()


@dataclass(frozen=True)
class ArtifactVersion:
    """One committed version. It never changes; `commit` is the random mark of the commit that wrote it."""

    name: str
    version: int
    type: str
    digest: str
    path: str
    root: str
    files: tuple[FileEntry, ...]
    fields: dict[str, Any]
    document: dict[str, Any]
    created_at: str
    producer: str
    inputs: tuple[Pin, ...]
    registry: str
    commit: str

    @property
    def pin(self) -> Pin:
        return Pin(self.name, self.version, self.digest, self.type, self.path, self.registry)

    @property
    def metadata(self) -> dict[str, Any]:
        """The free metadata and the typed fields, as metadata.json has them under `metadata`."""
        found = self.document.get("metadata", {})
        return found if isinstance(found, dict) else {}

    @property
    def identified_by(self) -> str:
        """`sha256`, or `size+mtime` where files above the hash limit were not read."""
        unread = any(entry.sha256 is None and entry.link is None for entry in self.files)
        return "size+mtime" if unread else "sha256"

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON, without its seal."""
        return {
            "format": FORMAT,
            **vars(self),
            "identified_by": self.identified_by,
            "files": [entry.to_list() for entry in self.files],
            "inputs": [pin.to_dict() for pin in self.inputs],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: Path) -> ArtifactVersion:
        """The record that `to_dict` wrote; `where` is named in the DamagedRecordError for anything else."""
        if data.get("format") != FORMAT:
            raise DamagedRecordError(
                f"{where}: this version record has format {data.get('format')!r}, not {FORMAT}.",
                hint="A newer nemotron-kit may have written it: upgrade.",
            )
        try:
            values = {name: data[name] for name in cls.__dataclass_fields__}
            values["files"] = tuple(FileEntry.from_list(row) for row in values["files"])
            values["inputs"] = tuple(Pin.from_dict(pin) for pin in values["inputs"])
            for name, kind in _KINDS.items():
                if not isinstance(values[name], kind) or isinstance(values[name], bool):
                    raise TypeError(f"{name} is {values[name]!r}")
            if "\0" in values["path"] + values["root"]:
                raise TypeError(f"root is {values['root']!r}")
            return cls(**values)
        except (KeyError, TypeError, DamagedRecordError) as error:
            raise DamagedRecordError(f"{where}: this version record is damaged: {error}.") from error
