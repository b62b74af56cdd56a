"""The files of a local registry: their layout, and how they are read and written, also on a shared file system.

    artifacts/
    ├── .registry/registry.json          the registry's id
    └── <name>/
        ├── v0/version.json, v1/…        the record of a version, which is never changed
        ├── aliases/                     alias → version
        ├── runs/                        run id → version
        ├── stamps/                      a version → its files' times when the same content was saved again
        └── index/                       digest → version, for equal content; can be made again

version.json: `format` (1), `name`, `version`, `type`, `digest`, `path` (what the artifact points at), `root` (the
folder of its files), `files` (each [path, size, sha256, mtime in ns, ctime in ns, target of a broken link]), `fields`
(the typed fields that belong to the identity), `document` (metadata.json), `created_at`, `producer` (a run id, or
local), `inputs` (pins), `registry` (the registry's id), `commit` (random), `identified_by` (sha256, or size+mtime above
hash_limit), and `sha256` of the record without this key.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.manifest import METADATA, FileEntry, Stamp
from nemotron_kit.artifacts.reference import SLUG, ArtifactVersionNotFoundError, Pin
from nemotron_kit.errors import DamagedRecordError, NemotronError
from nemotron_kit.files import REMOVED, fsync_dir, read_checksummed, read_regular, render_checksummed, write_text
from nemotron_kit.home import former_names, home_names, is_run_id, moved, nemotron_home
from nemotron_kit.lazy import Value

FORMAT = 1
RECORD = "version.json"
# A file to which more links lead than these can't be opened.
_MOST_LINKS = 40

_TEXTS = ("name", "type", "digest", "path", "root", "created_at", "producer", "registry", "commit")
_KINDS: dict[str, type] = {**dict.fromkeys(_TEXTS, str), "version": int, "fields": dict, "document": dict}


@dataclass(frozen=True, eq=False, repr=False)
class Draft(Value):
    """The content of a version that is about to be committed.

    `root` is the folder whose files make up the content, `path` what the artifact points at (the folder, or a file in
    it), `fields` the typed fields that belong to the identity, `document` all of metadata.json. `sums` are the (size,
    sha256) of files in `root` that their writer knows.
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
    sums: Mapping[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class ArtifactVersion(Value):
    """One committed version. It is never changed; `commit` is the random id of the commit that wrote it."""

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
    # What the home was called when the record was written, if the registry lies in it and both have been moved since.
    moved_from: tuple[str, ...] = ()

    @property
    def pin(self) -> Pin:
        """The pin of this version."""
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
        """The record as JSON data, without its checksum."""
        return {
            "format": FORMAT,
            **{name: value for name, value in vars(self).items() if name != "moved_from"},
            "identified_by": self.identified_by,
            "files": [entry.to_list() for entry in self.files],
            "inputs": [pin.to_dict() for pin in self.inputs],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: Path, home: Path | None = None) -> ArtifactVersion:
        """The record that `to_dict` wrote; `where` is named in the DamagedRecordError for anything else. `home` is the
        home that the registry lies in: paths inside it are as they are now."""
        if data.get("format") != FORMAT:
            raise DamagedRecordError(
                f"{where}: this version record has format {data.get('format')!r}, not {FORMAT}.",
                hint="A newer nemotron-kit may have written it: upgrade.",
            )
        try:
            was = _moved_from(data, home) if home else ()
            located = moved({name: data[name] for name in _MOVING}, was, home) if home and was else data
            values = {name: data[name] for name in cls.__dataclass_fields__ if name != "moved_from"}
            values |= {name: located[name] for name in _MOVING} | {"moved_from": was}
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


# Fields of a record that hold paths.
_MOVING = ("path", "root", "fields", "document", "inputs")
_RUN_OF = r"(?P<home>.+)/runs/(?P<run>[^/]+)(?:/|\Z)"


def _moved_from(data: Mapping[str, Any], home: Path) -> tuple[str, ...]:
    """The paths of the home when a record was written, if it has been moved since; (). Records of older versions only
    tell by the path of the run that saved: its files lie in the folder of that name."""
    was, root = data.get("home"), data["root"]
    if was is None and isinstance(root, str) and (match := re.match(_RUN_OF, root)) and is_run_id(match["run"]):
        was = [match["home"]]
    if not isinstance(was, list) or not all(isinstance(name, str) for name in was) or not former_names(was, home):
        return ()
    # If only the registry was moved, the files are still where they were.
    now = moved(root, was, home)
    return () if now == root or (os.path.exists(root) and not os.path.exists(now)) else tuple(was)  # noqa: PTH110


VERSION_FOLDER = re.compile(r"v(0|[1-9][0-9]{0,8})\Z")
# The prefix of a dropped version's folder, which keeps its number from being used again.
DROPPED = "dropped-"
REPAIR_HINT = "`nemotron artifacts gc` repairs it, if its sha256 proves the content, or drops it; see --dry-run."


@dataclass(frozen=True, eq=False, repr=False)
class FileModes(Value):
    """Permissions of a registry's folders and files; `exact` ones are set whatever the umask is."""

    folder: int = 0o700
    file: int = 0o600
    exact: bool = False


# The folders of a name beside its versions.
KINDS = ("aliases", "runs", "stamps", "index")
MODES = {"private": FileModes(), "group": FileModes(0o2770, 0o660, exact=True)}


@dataclass(frozen=True, eq=False, repr=False)
class DamagedVersion(Value):
    """A version whose record can't be read; `error` is the reason."""

    name: str
    version: int
    file: Path
    error: NemotronError

    @property
    def label(self) -> str:
        """`Name:v3`."""
        return f"{self.name}:v{self.version}"

    @property
    def text(self) -> str:
        """The text of the record file, without bytes that are no UTF-8; "" if it can't be read."""
        try:
            return read_regular(self.file).decode("utf-8", "ignore")
        except OSError:
            return ""

    @property
    def root(self) -> str | None:
        """The folder of its files, if the damaged record still names it."""
        match = re.search(r'"root": ("(?:[^"\\]|\\.)*")', self.text)
        try:
            found = json.loads(match[1]) if match else None
        except ValueError:
            return None
        return found if isinstance(found, str) else None


class Store:
    """Reads a registry's files. Reading never writes: a registry that does not exist is an empty one."""

    def __init__(self, root: Path, modes: FileModes) -> None:
        self.root = root
        self.modes = modes
        # The file with the registry's id, in a hidden folder that appears with it.
        self.identity_file = root / ".registry" / "registry.json"
        self._uuid = ""
        # Whether the parent folder of the root existed before the registry.
        self.folder_existed = False
        # What `everything` has read, by name and version, with the stamp of its file; and resolved paths.
        self._read: dict[tuple[str, int], tuple[object, ArtifactVersion]] = {}
        self._resolved: dict[str, str] = {}
        self._linked: dict[tuple[str, int, str], set[str]] = {}

    @cached_property
    def home(self) -> Path | None:
        """The home that the registry lies in: versions whose files lie in it, too, move with it. None for a registry
        elsewhere."""
        home = nemotron_home()
        if self.root.is_relative_to(home):
            return home
        return self.root.parent if self.root.name == "artifacts" and (self.root.parent / "runs").is_dir() else None

    @property
    def uuid(self) -> str:
        """The registry's identity; "" for an empty registry. If registry.json is missing, as in a copy without hidden
        files, it is the one that all versions' records name. Raises DamagedRecordError."""
        if not self._uuid:
            file = self.identity_file
            try:
                found = read_checksummed(file, "registry record").get("uuid")
            except FileNotFoundError:
                self.folder_existed = self.folder_existed or self.root.parent.is_dir()
                if not self.root.exists():
                    return ""
                named = self.recorded_uuids()
                if len(named) > 1:
                    raise DamagedRecordError(f"{file}: this registry record is missing.") from None
                found = next(iter(named), None)
                if found is None:
                    return ""
            except DamagedRecordError as error:
                error.hint = "`nemotron artifacts gc` makes it again from the versions' records; see --dry-run."
                raise
            if not isinstance(found, str) or not found:
                raise DamagedRecordError(f"{file}: this registry record is damaged: no uuid.")
            self._uuid = found
        return self._uuid

    def recorded_uuids(self) -> set[str]:
        """The registries that the readable records of versions name; more than one if versions were copied here."""
        found = set()
        for name in self.names():
            for version in self.versions(name):
                with contextlib.suppress(NemotronError, FileNotFoundError):
                    found.add(read_checksummed(self.folder(name) / f"v{version}" / RECORD, "record").get("registry"))
        return {uuid for uuid in found if isinstance(uuid, str) and uuid}

    def folder(self, name: str) -> Path:
        """The folder of a name's versions, aliases and indexes."""
        return self.root / name

    def entries(self) -> list[str]:
        """Every folder whose name is a valid artifact name, sorted."""
        return sorted(filter(SLUG.match, _listing(self.root)))

    def names(self) -> list[str]:
        """Every name with a version, sorted."""
        return [entry for entry in self.entries() if self.versions(entry)]

    def versions(self, name: str) -> list[int]:
        """The versions of a name, lowest first; [] for an unknown one."""
        return sorted(int(entry[1:]) for entry in _listing(self.folder(name)) if VERSION_FOLDER.match(entry))

    def numbers(self, name: str) -> list[int]:
        """The numbers of all versions that exist, or existed before they were dropped."""
        entries = [entry.removeprefix(DROPPED) for entry in _listing(self.folder(name))]
        return [int(entry[1:]) for entry in entries if VERSION_FOLDER.match(entry)]

    def is_taken(self, name: str, number: int) -> bool:
        """Whether a version has this number, or had it before it was dropped."""
        folder = self.folder(name)
        return (folder / f"v{number}").exists() or (folder / f"{DROPPED}v{number}").exists()

    def record(self, name: str, version: int) -> ArtifactVersion:
        """A version's record. Raises DamagedRecordError if it is truncated, edited, or another version's."""
        folder = self.folder(name) / f"v{version}"
        try:
            data = read_checksummed(folder / RECORD, "version record")
        except FileNotFoundError:
            if not folder.exists():
                raise ArtifactVersionNotFoundError(name, f"v{version}") from None
            raise DamagedRecordError(f"{folder / RECORD}: this version record is missing.", hint=REPAIR_HINT) from None
        except DamagedRecordError as error:
            error.hint = error.hint or REPAIR_HINT
            raise
        record = ArtifactVersion.from_dict(data, folder / RECORD, self.home)
        if (record.name, record.version, record.registry) != (name, version, self.uuid):
            raise DamagedRecordError(
                f"{folder / RECORD}: this is the record of {record.pin.label} of registry {record.registry}, "
                f"not of {name}:v{version} of {self.uuid}.",
                hint="The record was copied or moved; save the artifact again.",
            )
        return record

    def drop(self, name: str, version: int) -> None:
        """Remove a version: its folder gets a name that readers skip, and that keeps its number from being used again.
        The artifact's files are not touched."""
        folder = self.folder(name)
        (folder / f"v{version}").rename(folder / f"{DROPPED}v{version}")
        fsync_dir(folder)

    def write_record(self, file: Path, record: ArtifactVersion) -> None:
        """Write a version's record, durably, into a folder that has not its final name yet."""
        home = {"home": home_names(self.home)} if self.home else {}
        write_checksummed(file, {**record.to_dict(), **home}, self.modes)

    def replace_record(self, record: ArtifactVersion) -> None:
        """Replace the record of a version atomically: with other paths, never with another content."""
        folder = self.folder(record.name)
        with staged(folder, self.modes) as stage:
            self.write_record(stage / RECORD, record)
            os.replace(stage / RECORD, folder / f"v{record.version}" / RECORD)  # noqa: PTH105
            fsync_dir(folder / f"v{record.version}")

    def read_version(self, name: str, version: int) -> ArtifactVersion | DamagedVersion:
        """A version's record, or a DamagedVersion, so that one damaged record does not stop a listing."""
        try:
            return self.record(name, version)
        except ArtifactVersionNotFoundError:
            raise
        except NemotronError as error:
            return DamagedVersion(name, version, self.folder(name) / f"v{version}" / RECORD, error)

    def everything(self) -> Iterator[ArtifactVersion | DamagedVersion]:
        """Every version of every name. A record is read again if its file has changed: whoever removes many runs asks
        before and after each."""
        for name in self.names():
            folder = self.folder(name)
            for version in self.versions(name):
                with contextlib.suppress(ArtifactVersionNotFoundError):  # dropped meanwhile
                    stamp = _stamp(folder / f"v{version}" / RECORD)
                    known, kept = self._read.get((name, version), (None, None))
                    if kept is not None and stamp is not None and stamp == known:
                        yield kept
                        continue
                    record = self.read_version(name, version)
                    if isinstance(record, ArtifactVersion):  # damage may end without a change of the file
                        self._read[name, version] = stamp, record
                    yield record

    def lies_in(self, record: ArtifactVersion, folder: str) -> bool:
        """Whether files of a version are below `folder`, a resolved path, also if only links lead there."""
        below = f"{folder.rstrip('/')}/"
        if any(self._resolve(path).startswith(below) for path in (record.path, record.root)):
            return True
        key = (record.name, record.version, record.root)
        if key not in self._linked:
            root = self._resolve(record.root)
            self._linked[key] = {place for place in self.places(record) if not place.startswith(root)}
        return any(place.startswith(below) for place in self._linked[key])

    def places(self, record: ArtifactVersion, *, follow: bool = True) -> set[str]:
        """Where the files of a version lie, as paths without links to folders. `follow`: for a file that is a link,
        also each place that it leads to, without which it can't be read."""
        names = [entry.path for entry in record.files] + ([METADATA] if "type" in record.document else [])
        found = set()
        for name in names:
            path = f"{record.root}/{name}"
            for _ in range(_MOST_LINKS if "\0" not in path else 0):
                folder, _, last = path.rpartition("/")
                path = f"{self._resolve(folder or '/')}{last}"
                found.add(path)
                try:
                    target = os.readlink(path) if follow else None  # noqa: PTH115 — thousands of files
                except OSError:  # no link
                    break
                if target is None:
                    break
                path = os.path.join(path.rpartition("/")[0], target)  # noqa: PTH118
        return found

    def _resolve(self, path: str) -> str:
        """The path with a slash at its end, without links; resolved once."""
        if path not in self._resolved:
            self._resolved[path] = "" if "\0" in path else f"{os.path.realpath(path).rstrip('/')}/"
        return self._resolved[path]

    def aliases(self, name: str) -> dict[str, int]:
        """A name's aliases and the versions that they refer to, without `latest`; an alias whose file is damaged or
        can't be read is left out."""
        found = {}
        for alias in self.pointers(name, "aliases"):
            with contextlib.suppress(NemotronError, FileNotFoundError):
                found[alias] = self.pointer(name, "aliases", alias)
        return found

    def pointer(self, name: str, kind: str, pointer: str) -> int:
        """The version that an alias or a run id refers to. Raises FileNotFoundError if there is none."""
        file = self.folder(name) / kind / pointer
        data = read_checksummed(file, kind)
        version = data.get("version")
        if not isinstance(version, int) or data.get("name") != f"{name}/{pointer}":
            raise DamagedRecordError(f"{file}: this record is damaged: {data!r}.")
        return version

    def set_pointer(self, name: str, kind: str, pointer: str, version: int) -> None:
        """Make an alias or a run id refer to a version."""
        self._replace(self.folder(name) / kind / pointer, {"name": f"{name}/{pointer}", "version": version})

    def set_run(self, name: str, run: str, version: int) -> None:
        """Make `Name@run:RUN` refer to a version. Does nothing if `run` is no run id."""
        if SLUG.match(run) and run != "local":
            self.set_pointer(name, "runs", run, version)

    def stamps(self, name: str, version: int) -> dict[str, Stamp]:
        """The time stamps of the version's files when the same content was saved again; {} if it was not."""
        try:
            data = read_checksummed(self.folder(name) / "stamps" / f"v{version}", "stamps record")
            return {path: (row[0], row[1], row[2]) for path, row in data["files"].items()}
        # None were recorded; or they are damaged, and without this cache the files are hashed.
        except (FileNotFoundError, NemotronError, LookupError, TypeError, AttributeError):
            return {}

    def set_stamps(self, name: str, version: int, stamps: Mapping[str, Stamp]) -> None:
        """Record the time stamps of a version's files as they are now, its content being the same."""
        rows = {path: list(stamp) for path, stamp in stamps.items()}
        self._replace(self.folder(name) / "stamps" / f"v{version}", {"files": rows})

    def _replace(self, path: Path, document: dict[str, Any]) -> None:
        """Replace the small document at `path` atomically, with its final permissions."""
        make_folder(path.parent, self.modes, below=path.parent.parent)
        with staged(path.parent, self.modes) as stage:
            write_checksummed(stage / path.name, document, self.modes)
            os.replace(stage / path.name, path)  # noqa: PTH105
            fsync_dir(path.parent)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an OSError within the block into a NemotronError that names the registry."""
        try:
            yield
        except OSError as error:
            what = f"{error.strerror or error} ({error.filename or self.root})"
            hint = "Nothing half-written is visible in it. Free some space, or name another folder: [artifacts] root."
            raise NemotronError(f"The artifact registry {self.root} can't be written: {what}.", hint=hint) from error

    def collect_garbage(self, names: Iterable[str], lease_s: float, *, dry_run: bool = False) -> list[Path]:
        """Remove leftovers of killed writers that are older than `lease_s` seconds, of these names and of the registry
        itself; returns their paths."""
        folders, removed = [self.root], []
        for name in names:
            folders += [self.folder(name), *(self.folder(name) / kind for kind in KINDS)]
        for folder in folders:
            for stage in sorted(folder.glob(f"{STAGE}*")) if folder.is_dir() else []:
                with contextlib.suppress(FileNotFoundError):  # its writer was alive after all, and is done
                    begun = stage.name.endswith(REMOVED)  # deleting a file in it makes it young again
                    if not begun and time.time() - stage.stat().st_mtime < lease_s:
                        continue
                    if not begun and not dry_run:
                        stage = stage.rename(f"{stage}{REMOVED}")
                    if dry_run or discard(stage):
                        removed.append(stage.with_name(stage.name.removesuffix(REMOVED)))
        return removed

    def pointers(self, name: str, kind: str) -> list[str]:
        """The names of all pointers of one kind: aliases or runs."""
        return sorted(entry for entry in _listing(self.folder(name) / kind) if SLUG.match(entry))


def _stamp(file: Path) -> object:
    """Inode, size and mtime (ns) of a file; None if there is none."""
    with contextlib.suppress(OSError):
        status = file.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns
    return None


def _listing(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


STAGE = ".tmp-"
_TAKEN = frozenset({errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR})


def make_folder(folder: Path, modes: FileModes, *, below: Path | None = None) -> None:
    """Create `folder` and its missing parents, durably. An existing folder is not changed. Raises FileNotFoundError if
    `below`, a folder above it, is missing, so that a registry that was moved is not recreated at its old path."""
    if folder.is_dir():
        return
    if folder.parent != below:
        make_folder(folder.parent, modes, below=below)
    with contextlib.suppress(FileExistsError):
        _mkdir(folder, modes)
        fsync_dir(folder.parent)


def touch(path: Path, modes: FileModes, text: str = "") -> None:
    """Create a small file whose content readers do not rely on. Another member of the group may have made it: only its
    owner can change its mode."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, modes.file), "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(text)
        if modes.exact and os.fstat(file.fileno()).st_uid == os.geteuid():
            os.fchmod(file.fileno(), modes.file)


@contextlib.contextmanager
def staged(folder: Path, modes: FileModes) -> Iterator[Path]:
    """A new hidden folder inside `folder`, hence on its file system. What remains in it at the end of the block is
    removed."""
    stage = folder / f"{STAGE}{os.urandom(8).hex()}"
    _mkdir(stage, modes)
    try:
        yield stage
    finally:
        discard(stage)


def write_checksummed(path: Path, document: dict[str, Any], modes: FileModes) -> None:
    """Write a JSON document with its checksum, durably."""
    write_text(path, render_checksummed(document), mode=modes.file)
    if modes.exact:
        path.chmod(modes.file)


def publish(stage: Path, target: Path) -> bool:
    """Rename a staged folder to `target`, durably. Returns False if `target` exists already.

    A file server that loses its reply may report a rename as failed that has happened: after False, check who wrote
    `target`.
    """
    try:
        os.rename(stage, target)  # noqa: PTH104
    except OSError as error:
        if error.errno in _TAKEN or (error.errno == errno.ENOENT and target.exists()):
            return False
        raise
    fsync_dir(target.parent)
    return True


def discard(stage: Path) -> bool:
    """Remove a staged folder and the plain files in it. Returns False if that fails."""
    try:
        if not stage.is_dir():
            stage.unlink()
            return True
        for entry in list(stage.iterdir()):
            entry.unlink()
        stage.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # readers ignore it, and gc removes it
    return True


def _mkdir(folder: Path, modes: FileModes) -> None:
    folder.mkdir(mode=modes.folder)
    if modes.exact:
        folder.chmod(modes.folder)
