"""The files of a local registry: where each stands, how it is read. Safe on a shared file system without any lock.

    <root>/.registry/registry.json     the registry's uuid
    <root>/<Name>/v<N>/version.json    a version's record
    <root>/<Name>/aliases/<alias>      {"version": N}; `latest` is not stored: it is the highest version
    <root>/<Name>/runs/<run id>        {"version": N}: what that run saved last under the name
    <root>/<Name>/stamps/v<N>          how equal content looked later (a cache; it may be deleted)
    <root>/<Name>/index/               which version has which content (see `contents`; it may be deleted)
    <root>/<Name>/dropped-v<N>/        a version whose record was damaged, out of the way of readers

Nothing is changed in place: whole folders and files are renamed to these names. Whatever starts with a dot below a
name is a writer at work, or its debris.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.errors import ArtifactVersionNotFoundError, DamagedRecordError
from nemotron_kit.artifacts.records import RECORD, ArtifactVersion
from nemotron_kit.artifacts.reference import SLUG
from nemotron_kit.artifacts.sealed import read_sealed
from nemotron_kit.artifacts.walk import Stamp
from nemotron_kit.errors import NemotronError
from nemotron_kit.files import read_regular

VERSION_FOLDER = re.compile(r"v(0|[1-9][0-9]{0,8})\Z")
# What is left of a version whose record was damaged: its number is not given again.
DROPPED = "dropped-"
MEND = "`nemotron artifacts gc` repairs it, if its own sha256 proves what it was, or drops it; --dry-run tells."


@dataclass(frozen=True)
class Modes:
    """Permissions of a registry's folders and files; `exact` ones are set whatever the umask says."""

    folder: int = 0o700
    file: int = 0o600
    exact: bool = False


# The folders of a name beside its versions.
KINDS = ("aliases", "runs", "stamps", "index")
MODES = {"private": Modes(), "group": Modes(0o2770, 0o660, exact=True)}


@dataclass(frozen=True)
class Damaged:
    """A version whose record can't be read as what it was."""

    name: str
    version: int
    file: Path
    error: NemotronError

    @property
    def label(self) -> str:
        return f"{self.name}:v{self.version}"

    @property
    def text(self) -> str:
        """What is in the file, bytes that are no text left out; "" where it can't be read at all."""
        try:
            return read_regular(self.file).decode("utf-8", "ignore")
        except OSError:
            return ""

    @property
    def root(self) -> str | None:
        """The folder of its files, as far as the file still says so."""
        match = re.search(r'"root": ("(?:[^"\\]|\\.)*")', self.text)
        try:
            found = json.loads(match[1]) if match else None
        except ValueError:
            return None
        return found if isinstance(found, str) else None


class Store:
    """Reads a registry's files. Reading never writes: a registry that isn't there is an empty one."""

    def __init__(self, root: Path, modes: Modes) -> None:
        self.root = root
        self.modes = modes
        self._uuid = ""

    @property
    def identity_folder(self) -> Path:
        return self.root / ".registry"

    @property
    def uuid(self) -> str:
        """The registry's own name; "" for one to which nothing was ever saved."""
        if not self._uuid:
            file = self.identity_folder / "registry.json"
            try:
                self._uuid = read_text_field(file, "registry record", "uuid")
            except FileNotFoundError:
                return ""
        return self._uuid

    def folder(self, name: str) -> Path:
        return self.root / name

    def entries(self) -> list[str]:
        """Every folder that is called like a name, sorted."""
        return sorted(filter(SLUG.match, _listing(self.root)))

    def names(self) -> list[str]:
        """Every name with a version, sorted."""
        return [entry for entry in self.entries() if self.versions(entry)]

    def versions(self, name: str) -> list[int]:
        """The versions of a name, lowest first; [] for an unknown one."""
        return sorted(int(entry[1:]) for entry in _listing(self.folder(name)) if VERSION_FOLDER.match(entry))

    def numbers(self, name: str) -> list[int]:
        """The numbers of all versions that there are, or were before they were dropped."""
        entries = [entry.removeprefix(DROPPED) for entry in _listing(self.folder(name))]
        return [int(entry[1:]) for entry in entries if VERSION_FOLDER.match(entry)]

    def is_taken(self, name: str, number: int) -> bool:
        """Whether a version has this number, or had it before it was dropped."""
        folder = self.folder(name)
        return (folder / f"v{number}").exists() or (folder / f"{DROPPED}v{number}").exists()

    def record(self, name: str, version: int) -> ArtifactVersion:
        """A version's record; DamagedRecordError if it is cut off, changed, or another version's."""
        folder = self.folder(name) / f"v{version}"
        try:
            data = read_sealed(folder / RECORD, "version record")
        except FileNotFoundError:
            if not folder.exists():
                raise ArtifactVersionNotFoundError(name, f"v{version}") from None
            raise DamagedRecordError(f"{folder / RECORD}: this version record is missing.", hint=MEND) from None
        except DamagedRecordError as error:
            error.hint = error.hint or MEND
            raise
        record = ArtifactVersion.from_dict(data, folder / RECORD)
        if (record.name, record.version, record.registry) != (name, version, self.uuid):
            raise DamagedRecordError(
                f"{folder / RECORD}: this is the record of {record.pin.label} of registry {record.registry}, "
                f"not of {name}:v{version} of {self.uuid}.",
                hint="It was copied or moved here; save the artifact itself again.",
            )
        return record

    def look(self, name: str, version: int) -> ArtifactVersion | Damaged:
        """A version's record, or that it is damaged: for who shows or judges many, of which one must not stop it."""
        try:
            return self.record(name, version)
        except ArtifactVersionNotFoundError:
            raise
        except NemotronError as error:
            return Damaged(name, version, self.folder(name) / f"v{version}" / RECORD, error)

    def everything(self) -> Iterator[ArtifactVersion | Damaged]:
        """Every version of every name."""
        for name in self.names():
            for version in self.versions(name):
                with contextlib.suppress(ArtifactVersionNotFoundError):  # dropped meanwhile
                    yield self.look(name, version)

    def aliases(self, name: str) -> dict[str, int]:
        """A name's aliases and the versions they stand for, without `latest`; one whose file is damaged is left out."""
        found = {}
        for alias in self.pointers(name, "aliases"):
            with contextlib.suppress(DamagedRecordError, FileNotFoundError):
                found[alias] = self.pointer(name, "aliases", alias)
        return found

    def pointer(self, name: str, kind: str, word: str) -> int:
        """The version that an alias or a run id stands for; FileNotFoundError if there is none."""
        file = self.folder(name) / kind / word
        data = read_sealed(file, kind)
        version = data.get("version")
        if not isinstance(version, int) or data.get("name") != f"{name}/{word}":
            raise DamagedRecordError(f"{file}: this record is damaged: {data!r}.")
        return version

    def stamps(self, name: str, version: int) -> dict[str, Stamp]:
        """How the version's unchanged files looked when they were saved once more; {} if they never were."""
        try:
            data = read_sealed(self.folder(name) / "stamps" / f"v{version}", "stamps record")
            return {path: (row[0], row[1], row[2]) for path, row in data["files"].items()}
        except FileNotFoundError:
            return {}
        except (NemotronError, LookupError, TypeError, AttributeError):  # a cache: without it, the files are hashed
            return {}

    def pointers(self, name: str, kind: str) -> list[str]:
        """The words of one kind of pointer, aliases or runs."""
        return sorted(entry for entry in _listing(self.folder(name) / kind) if SLUG.match(entry))


def pointer_document(name: str, word: str, version: int) -> dict[str, Any]:
    """What an alias file or a run file holds."""
    return {"name": f"{name}/{word}", "version": version}


def read_text_field(file: Path, what: str, key: str) -> str:
    """One text field of a sealed document."""
    value = read_sealed(file, what).get(key)
    if not isinstance(value, str) or not value:
        raise DamagedRecordError(f"{file}: this {what} is damaged: no {key}.")
    return value


def _listing(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
