"""The registry of artifacts: resolves references, verifies versions, sets aliases; which registry a job uses."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit import artifacts
from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.manifest import (
    METADATA,
    absolute,
    file_entry,
    first_change,
    folder_of,
    located_in,
    path_pin,
    read_document,
    relative_to,
    walk,
)
from nemotron_kit.artifacts.reference import (
    LATEST,
    ArtifactChangedError,
    ArtifactNotFoundError,
    ArtifactVersionNotFoundError,
    Pin,
    Reference,
    check_alias,
    check_public,
    check_slug,
    registry_name,
)
from nemotron_kit.artifacts.store import (
    DROPPED,
    MODES,
    ArtifactVersion,
    Draft,
    Store,
)
from nemotron_kit.envfile import EnvFile, Lines, read_env_file, reserved_table
from nemotron_kit.errors import DamagedRecordError, UserError, listed, near, nearest
from nemotron_kit.files import DAY_S, canonical
from nemotron_kit.home import expand_user, moved, nemotron_home

if TYPE_CHECKING:
    from nemotron_kit.artifacts.repair import DamageFinding


# The largest file (bytes) that a listing reads to find out whether it is unchanged.
_LARGE = 64 << 20


class LocalRegistry(Store):
    """Versions, aliases and lineage in plain files below `root` (see the module `store` for which).

    `mode` is "private" (0700/0600) or "group". Files of more than `hash_limit` bytes are identified by size and mtime.
    """

    def __init__(self, root: str | Path, *, mode: str = "private", hash_limit: int | None = None) -> None:
        if mode not in MODES:
            raise UserError(f"{mode!r} is no registry mode.", hint=near(mode, MODES))
        super().__init__(absolute(root), MODES[mode])
        self.hash_limit = hash_limit

    def resolve(self, reference: Reference | str, *, check: bool = True) -> Pin:
        """The version that a reference resolves to now. With `check`, its files are compared with the saved ones.

        Raises ArtifactNotFoundError, ArtifactVersionNotFoundError (both list what exists), ArtifactChangedError,
        DamagedRecordError.
        """
        ref = Reference.parse(reference) if isinstance(reference, str) else reference
        if ref.path is not None:
            return path_pin(ref.path)
        record = self.find(ref)
        if check:
            self.require_unchanged(record)
        return record.pin

    def find(self, reference: Reference | str) -> ArtifactVersion:
        """The record that a name's reference resolves to; its files are not checked.

        Raises ArtifactNotFoundError and ArtifactVersionNotFoundError (both list what exists), UserError for a digest
        prefix that two contents share, DamagedRecordError.
        """
        ref = Reference.parse(reference) if isinstance(reference, str) else reference
        versions = self.versions(ref.slug)
        found = self._choose(ref, versions) if versions else -1
        if found not in versions:
            raise self._not_found(ref, versions)
        return self.record(ref.slug, found)

    def _choose(self, ref: Reference, versions: list[int]) -> int:
        """The version that a reference names, whether it exists or not; -1 if none fits."""
        if ref.version is not None:
            return ref.version
        if ref.alias == LATEST:
            return versions[-1]
        if ref.digest is None:
            with contextlib.suppress(FileNotFoundError):
                return self.pointer(ref.slug, "runs" if ref.run else "aliases", ref.run or ref.alias or "")
        records = [self.read_version(ref.slug, version) for version in versions if ref.alias is None]
        known = [record for record in records if isinstance(record, ArtifactVersion)]
        if ref.digest is None:  # a run that was killed before it wrote the pointer is named in the version's record
            return max((record.version for record in known if record.producer == ref.run), default=-1)
        fitting = {record.version: record.digest for record in known if record.digest.startswith(ref.digest)}
        if len(set(fitting.values())) > 1:
            which = ", ".join(f"v{version} ({digest[:12]}…)" for version, digest in fitting.items())
            raise UserError(f"{ref} is ambiguous: {which}.", hint="Give more digits.")
        return max(fitting, default=-1)

    def _not_found(self, ref: Reference, versions: list[int]) -> ArtifactNotFoundError:
        """The error for a reference to a name that has no versions, or not this one."""
        if not versions:
            message = f"No artifact is called {ref.slug!r} in the registry {self.root}"
            hint = near(ref.slug, self.names()) or "Nothing has been saved in it yet."
            if ref.entity:
                message = f"{message}, and {ref}, as W&B's entity/project/Name, needs W&B"
                hint = f"Local names have no entity: {ref.name}. {hint}"
            return ArtifactNotFoundError(ref.slug, f"{message}.", hint=hint)
        aliases = self.aliases(ref.slug)
        if len(versions) > 2 and versions == list(range(versions[0], versions[-1] + 1)):
            known = f"v{versions[0]} to v{versions[-1]}"
        else:
            known = ("… and " if len(versions) > 12 else "") + ", ".join(f"v{version}" for version in versions[-12:])
        named = ", ".join(f"{alias} (v{version})" for alias, version in sorted(aliases.items()))
        hint = f"It has {known}; aliases: {named}." if named else f"It has {known}, and no alias but latest."
        close = nearest(ref.alias, [*aliases, LATEST]) if ref.alias else ""
        if close.startswith("did you mean"):
            hint = f"{close[0].upper()}{close[1:]} {hint}"
        what = ref.selector.lstrip(":")
        message = f"The run {ref.run} has saved no {ref.slug}." if ref.run else f"{ref.slug} has no {what}."
        return ArtifactVersionNotFoundError(ref.slug, what, message, hint=hint)

    def verify(self, pin: Pin, *, deep: bool = False) -> ArtifactVersion | None:
        """The record of a pin, if it belongs to this registry, has the same content, and its files are unchanged;
        `deep` reads every file. Returns None for a plain path that exists. Raises UserError that says which condition
        fails."""
        if pin.version is None:
            path_pin(pin.path)
            return None
        record = self.record_of(pin)
        self.require_unchanged(record, deep=deep)
        return record

    def record_of(self, pin: Pin) -> ArtifactVersion:
        """The record of a pin, if it belongs to this registry and has the same content; its files are not checked."""
        if pin.version is None:
            raise UserError(f"{pin.path} is not registered: there is nothing to compare it with.")
        if pin.registry != self.uuid:
            uuid = self.uuid or "still empty"
            raise UserError(
                f"{pin.label} was pinned in registry {pin.registry}, but the one at {self.root} is {uuid}.",
                hint="Run with the registry in which it was pinned, or resolve the name again.",
            )
        record = self.record(pin.name, pin.version)
        if record.digest != pin.digest:
            raise ArtifactChangedError(f"{pin.label} is {record.digest[:12]}, but was pinned as {pin.digest}.")
        return record

    def require_unchanged(self, record: ArtifactVersion, *, deep: bool = False) -> None:
        """Raise ArtifactChangedError, naming the first such file, if a file of the version differs from the saved one.

        Raises DamagedRecordError if metadata.json is truncated or was edited by hand. Files whose size and times are
        the recorded ones are read only with `deep`.
        """
        stamps = {} if deep else self.stamps(record.name, record.version)
        change = first_change(Path(record.root), record.files, stamps=stamps, deep=deep)
        if change is None and "type" in record.document:
            change = self._metadata_change(record)
        if change is not None:
            what, hint = self._explain_change(record)
            raise ArtifactChangedError(f"{record.pin.label}'s files {what}: {change} (in {record.root}).", hint=hint)

    def files_status(self, record: ArtifactVersion) -> str:
        """The state of a version's files for a listing: "" if they are unchanged, else `gone`, `changed`, or `other
        times`: a large file has the recorded size but another mtime, so only reading it (`--verify`) can decide."""
        root = Path(record.root)
        if not root.exists():
            return "gone"
        stamps = self.stamps(record.name, record.version)
        large = {entry.path: (entry.stamp, stamps.get(entry.path)) for entry in record.files if entry.size > _LARGE}
        if first_change(root, record.files, stamps=stamps, unread=large) is not None:
            return "changed" if all((root / entry.path).exists() for entry in record.files) else "gone"
        try:
            if "type" in record.document and self._metadata_change(record) is not None:
                return "changed"
        except DamagedRecordError:
            return "changed"
        found = {path: file_entry(str(root / path), path) for path in large}
        return "other times" if any(now and now.stamp not in large[path] for path, now in found.items()) else ""

    def _metadata_change(self, record: ArtifactVersion) -> str | None:
        root = Path(record.root)
        document = read_document(root)
        if document is None:
            return f"{METADATA} is missing"
        if self.home:
            document = moved(document, record.moved_from, self.home)
        located, recorded = located_in(root, document), located_in(root, record.document)
        for key in ("type", *record.fields):
            now, then = located.get(key), recorded.get(key)
            if now != then and canonical(now) != canonical(then):  # NaN differs from itself
                return f"{METADATA} has {key} {_short(now)}, not {_short(then)}"
        return None

    def _explain_change(self, record: ArtifactVersion) -> tuple[str, str]:
        """(what happened to the files, hint), found by comparing with a later version in the same folder, else with its
        metadata.json."""
        for version in reversed(self.versions(record.name)):
            later = self.read_version(record.name, version) if version > record.version else None
            if isinstance(later, ArtifactVersion) and later.root == record.root:
                what = f"were overwritten by {_run(later.producer)} (as v{version})"
                return what, f"Use {later.pin.label}, or save again."
        try:
            document = read_document(Path(record.root)) or {}
        except DamagedRecordError:
            document = {}
        wrote = (document.get("created_at"), document.get("producer"))
        if wrote in ((None, None), (record.created_at, record.producer)):
            return "were changed since they were saved", "Make the artifact again."
        return f"were overwritten by {_run(document.get('producer'))}", "Make the artifact again."

    def commit(self, draft: Draft) -> Pin:
        """Register a version; identical content (files, type, typed fields) gives the existing one."""
        _ = self.uuid  # read first: a registry that is moved meanwhile must not be created again
        check_slug(draft.name, "artifact name")
        from nemotron_kit.artifacts.commit import commit  # most commands save nothing

        return commit(self, draft, self.hash_limit).pin

    def note_run(self, pin: Pin, run: str) -> None:
        """Make `Name@run:RUN` refer to a version that another run saved, for a run that was skipped because of it.
        Does nothing if `run` is no run id."""
        record = self.record_of(pin)
        with self.writing():
            self.set_run(record.name, run, record.version)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Make `name:alias` refer to a version. An alias can be moved at any time; `latest` is maintained by the
        registry."""
        if check_public(check_alias(alias), "alias").lower() == LATEST:
            raise UserError(f"{alias!r} is always the newest version and can't be set.", hint="Use another alias.")
        record = self.find(Reference(registry_name(name), version=version))
        with self.writing():
            self.set_pointer(record.name, "aliases", alias, version)

    def check_removable(
        self, reference: Reference | str, *, force: bool = False, without: Collection[str] = ()
    ) -> ArtifactVersion:
        """The record of a version that can be removed. Raises UserError if another version was made from it, or an
        alias names it; versions in `without` (labels) are ignored, and with `force` all are."""
        record = self.find(reference)
        pin = record.pin
        if not force:
            made = [
                each.pin.label
                for each in self.everything()
                if isinstance(each, ArtifactVersion)
                and each.pin.label not in without
                and any((i.registry, i.name, i.version) == (pin.registry, pin.name, pin.version) for i in each.inputs)
            ]
            aliases = [alias for alias, version in self.aliases(pin.name).items() if version == pin.version]
            if made:
                verb = "was" if len(made) == 1 else "were"
                raise UserError(f"{listed(made, 6)} {verb} made from {pin.label}.", hint=_FORCE)
            if aliases:
                raise UserError(f"The alias {', '.join(aliases)} names {pin.label}.", hint=_FORCE)
        return record

    def remove(self, reference: Reference | str, *, force: bool = False) -> ArtifactVersion:
        """Remove a version and its aliases from the registry; its files are kept, and its number is not used again.
        Raises the errors of `check_removable`. If it is killed, it can be called again."""
        record = self.check_removable(reference, force=force)
        with self.writing():
            self.drop(record.name, record.version)
            self.remove_dangling(record.name)
        return record

    def remove_dangling(self, name: str, *, dry_run: bool = False) -> list[str]:
        """Remove the aliases of a name that refer to versions which were removed; returns them."""
        folder, gone = self.folder(name), []
        with self.writing():
            for alias, version in self.aliases(name).items():
                if self.was_removed(name, version):
                    gone.append(alias)
                    if not dry_run:
                        (folder / "aliases" / alias).unlink(missing_ok=True)
        return gone

    def relocate(self, record: ArtifactVersion, root: str, *, dry_run: bool = False) -> str | None:
        """Let a version's record, in which other paths may be new, name `root` as the folder of its files. Returns
        what is wrong with the files there, which are all read; None if they are those that were saved."""
        change = first_change(Path(root), record.files, deep=True)
        if change is not None or dry_run:
            return change
        # As they are now: a copy has other times than the files that were saved.
        stamps = {path: entry.stamp for path, entry in walk(Path(root)).items()}
        here = {record.root: root}
        changed = replace(
            record,
            root=root,
            path=relative_to(record.path, here),
            document=relative_to(record.document, here),
        )
        with self.writing():
            self.set_stamps(record.name, record.version, stamps)
            self.replace_record(changed)
        return None

    def was_removed(self, name: str, version: int) -> bool:
        """Whether a version existed and was removed."""
        folder = self.folder(name)
        return (folder / f"{DROPPED}v{version}").exists() and not (folder / f"v{version}").exists()

    def gc(self, lease_s: float = DAY_S, *, dry_run: bool = False) -> list[Path]:
        """Remove the leftovers of writers that were killed more than `lease_s` seconds ago; returns their paths."""
        names = sorted(entry.name for entry in self.root.iterdir()) if self.root.is_dir() else []
        with self.writing():
            return self.collect_garbage(names, lease_s, dry_run=dry_run)

    def repair(self, *, dry_run: bool = False) -> list[DamageFinding]:
        """Repair damaged records, or drop them; returns what was done, or with `dry_run` what would be done."""
        from nemotron_kit.artifacts.repair import findings  # no launch repairs

        done: list[DamageFinding] = []
        with self.writing():
            while True:  # the versions can only be checked after registry.json is repaired
                found = [each for each in findings(self) if each.file not in {known.file for known in done}]
                for each in [] if dry_run else found:
                    each.apply()
                done += found
                if dry_run or not found:
                    return done


def _run(producer: Any) -> str:
    return f"run {producer}" if isinstance(producer, str) and producer != "local" else "a local run"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


_FORCE = "--force removes it nevertheless."
_SIZE = r"(?i)([0-9]+)\s*([kMGT]?i?)B?\Z"
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


# The name of the interface in annotations: versions in plain files are its one implementation.
Registry = LocalRegistry


def open_registry(root: str | Path | None = None, *, env: EnvFile | None = None) -> LocalRegistry:
    """The registry at `root`; without one, at the root given to `init()`, else at `[artifacts] root` of env.toml, else
    at $NEMOTRON_HOME/artifacts. Opening creates nothing."""
    settings = artifact_settings(env if env is not None else read_env_file())
    if root is None and _config is not None:
        root = _config.root
    return LocalRegistry(
        local_root(root) if root is not None else settings["root"],
        mode=settings["mode"],
        hash_limit=settings["hash_limit"],
    )


def artifact_settings(env: EnvFile) -> dict[str, Any]:
    """`[artifacts]` of env.toml, checked: backend, root (a Path), mode, hash_limit (bytes or None)."""
    settings = {"backend": "file", "mode": "private", "hash_limit": None, **reserved_table(env, "artifacts")}
    if (root := settings.get("root")) == "":
        raise UserError(f"{Lines(env).where('artifacts', 'root')}: it is '', not a folder's path.")
    settings["root"] = env.folder / local_root(root) if root else nemotron_home() / "artifacts"
    limit = settings["hash_limit"]
    if isinstance(limit, str) and (match := re.match(_SIZE, limit)):
        unit = match[2].lower()
        limit = int(match[1]) * int((1024 if unit.endswith("i") else 1000) ** _POWERS[unit.rstrip("i")])
    if isinstance(limit, str) or (limit is not None and limit < 0):
        where = Lines(env).where("artifacts", "hash_limit")
        raise UserError(f"{where}: it is {limit!r}.", hint='Give bytes, as a number or as in "50GB".')
    return {**settings, "hash_limit": limit}


def local_root(root: str | Path) -> Path:
    """`root` as a path; a URL of a remote store is a UserError."""
    text = str(root).removeprefix("file://")
    # Path() makes one slash of two.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise UserError(
            f"An artifact registry at {root} is not supported: it must be a folder.",
            hint="Give a folder that all nodes share: [artifacts] root in env.toml, or init(root=…).",
        )
    return expand_user(text)


# The reference implementation calls plain folders "fsspec".
_SPELLINGS = {"fsspec": "file", "file": "file", "local": "file", "wandb": "wandb"}


@dataclass(frozen=True)
class KitConfig:
    """The arguments of `init()`; with `root` None, env.toml and $NEMOTRON_HOME decide."""

    backend: str = "fsspec"
    root: Path | None = None
    wandb_project: str | None = None
    wandb_entity: str | None = None


_config: KitConfig | None = None


def init(
    backend: str = "fsspec",
    root: str | Path | None = None,
    wandb_project: str | None = None,
    wandb_entity: str | None = None,
    *,
    registry_path: str | Path | None = None,
) -> None:
    """Register artifacts below `root` (also spelled `registry_path`); with backend "wandb" also log them to the active
    W&B run.

    Without this call, a named save uses the registry configured in env.toml. Raises UserError for an unknown backend,
    for a root that is no folder of this machine, and for "wandb" if it is not installed.
    """
    global _config
    if backend not in _SPELLINGS:
        raise UserError(f"{backend!r} is no artifact backend.", hint=near(backend, _SPELLINGS))
    if root is not None and registry_path is not None and Path(root) != Path(registry_path):
        raise UserError(
            f"init(): root is {root} and registry_path {registry_path}.", hint="They are one thing: give one."
        )
    chosen = root if root is not None else registry_path
    folder = local_root(chosen).absolute() if chosen is not None else None
    if _SPELLINGS[backend] == "wandb":
        lineage.set_lineage_tracker(artifacts.WandbTracker())  # loaded only here
    _config = KitConfig(backend, folder, wandb_project, wandb_entity)


def get_config() -> KitConfig | None:
    """The arguments of `init()`; None before it was called."""
    return _config


def is_initialized() -> bool:
    """Whether `init()` was called."""
    return _config is not None


def reset() -> None:
    """Forget `init()` and the tracker (for tests, and between jobs in one process)."""
    global _config
    _config = None
    lineage.set_lineage_tracker(None)


def artifact_field(pin: Pin, field: str = "path", *, registry: Registry | None = None) -> Any:
    """`path` (also ""), `version` (int), `name`, `type`, `qualified_name`, `iteration` (else the step), any field of
    metadata.json, or `metadata.F` for a free one.

    A registered version's fields come from its record in `registry` (the default one if None), which must be the one
    that the pin was made in. UserError for an unknown field, with the nearest names.
    """
    key = field.strip() or "path"
    if key in ("path", "qualified_name"):
        return pin.path if key == "path" else pin.label
    if key == "version":
        if pin.version is None:
            raise UserError(
                f"{pin.path} has no version: it was given as a path.", hint="Name a registered artifact instead."
            )
        return pin.version
    if pin.version is not None:
        document = (registry or open_registry()).record_of(pin).document
    else:
        folder = folder_of(absolute(Path(pin.path)))
        found = read_document(folder)
        document = located_in(folder, found) if found else {}
    if key in ("name", "type") and (getattr(pin, key) or key not in document):
        return getattr(pin, key)
    metadata = document.get("metadata", {})
    if key.startswith("metadata."):
        return _lookup(metadata, key.removeprefix("metadata."), pin, prefix="metadata.")
    if key == "iteration" and document.get(key, metadata.get(key)) is None:
        key = "step"
    return _lookup({**metadata, **document}, key, pin, asked=field)


def _lookup(values: dict[str, Any], key: str, pin: Pin, *, prefix: str = "", asked: str | None = None) -> Any:
    if key in values:
        return values[key]
    head, _, rest = key.partition(".")
    if rest and isinstance(values.get(head), dict):
        return _lookup(values[head], rest, pin, prefix=f"{prefix}{head}.")
    known = [prefix + name for name in values] + ([] if prefix else ["path", "version", "qualified_name"])
    raise UserError(
        f"{pin.label} ({pin.type or 'untyped'}) has no field {asked or prefix + key!r}.",
        hint=near(prefix + key, known),
    )
