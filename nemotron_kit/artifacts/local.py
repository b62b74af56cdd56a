"""The registry on this machine's file system: resolve, commit, alias, verify, collect garbage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_kit.artifacts.checking import require_unchanged
from nemotron_kit.artifacts.errors import ArtifactChangedError
from nemotron_kit.artifacts.lookup import find_version
from nemotron_kit.artifacts.metadata import absolute, path_pin
from nemotron_kit.artifacts.pin import Pin
from nemotron_kit.artifacts.records import ArtifactVersion, Draft
from nemotron_kit.artifacts.reference import LATEST, Reference, check_alias, check_slug, registry_name
from nemotron_kit.artifacts.store import KINDS, MODES, Store, pointer_document
from nemotron_kit.errors import UserError, nearest, sentence
from nemotron_kit.files import DAY_S

if TYPE_CHECKING:
    from nemotron_kit.artifacts.mending import Finding


class LocalRegistry(Store):
    """Versions, aliases and lineage in plain files below `root` (see the module `store` for which).

    `mode` is "private" (0700/0600) or "group". Files of more than `hash_limit` bytes are identified by size and mtime.
    """

    def __init__(self, root: str | Path, *, mode: str = "private", hash_limit: int | None = None) -> None:
        if mode not in MODES:
            raise UserError(f"{mode!r} is no registry mode.", hint=sentence(nearest(mode, MODES)))
        super().__init__(absolute(root), MODES[mode])
        self.hash_limit = hash_limit

    def resolve(self, reference: Reference | str, *, check: bool = True) -> Pin:
        """What a reference stands for now. `check` also makes sure that the version's files are still as saved.

        Raises ArtifactNotFoundError, ArtifactVersionNotFoundError (they say what there is), ArtifactChangedError,
        DamagedRecordError.
        """
        ref = Reference.parse(reference) if isinstance(reference, str) else reference
        if ref.path is not None:
            return path_pin(ref.path)
        record = self.find(ref)
        if check:
            require_unchanged(self, record)
        return record.pin

    def find(self, reference: Reference | str) -> ArtifactVersion:
        """The record that a name's reference stands for; its files are not looked at."""
        ref = Reference.parse(reference) if isinstance(reference, str) else reference
        return self.record(ref.slug, find_version(self, ref))

    def verify(self, pin: Pin, *, deep: bool = False) -> ArtifactVersion | None:
        """The record behind a pin, if it is this registry's, the same content, and unchanged on disk; `deep` reads
        every file. None for a plain path that is there. Otherwise a UserError that says what does not hold."""
        if pin.version is None:
            path_pin(pin.path)
            return None
        record = self.record_of(pin)
        require_unchanged(self, record, deep=deep)
        return record

    def record_of(self, pin: Pin) -> ArtifactVersion:
        """The record behind a pin, if it is this registry's and the same content; its files are not looked at."""
        if pin.version is None:
            raise UserError(f"{pin.path} is not registered: there is nothing to compare it with.")
        if pin.registry != self.uuid:
            here = self.uuid or "still empty"
            raise UserError(
                f"{pin.label} was pinned in registry {pin.registry}, but the one at {self.root} is {here}.",
                hint="Run where it was pinned, or resolve the name again here.",
            )
        record = self.record(pin.name, pin.version)
        if record.digest != pin.digest:
            raise ArtifactChangedError(f"{pin.label} is {record.digest[:12]} here, but was pinned as {pin.digest}.")
        return record

    def commit(self, draft: Draft) -> Pin:
        """Register a version; identical content (files, type, typed fields) gives the existing one."""
        _ = self.uuid  # known before the files are read: a registry that is moved away meanwhile is not begun anew
        from nemotron_kit.artifacts.commit import commit

        check_slug(draft.name, "artifact name")
        return commit(self, draft, self.hash_limit).pin

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Make `name:alias` stand for a version; an alias can be moved at any time, `latest` moves by itself."""
        from nemotron_kit.artifacts.staging import replace_sealed, writing_to

        if check_alias(alias) == LATEST:
            raise UserError("'latest' is always the newest version and can't be set.", hint="Use another alias.")
        record = self.find(Reference(registry_name(name), version=version))
        with writing_to(self.root):
            file = self.folder(record.name) / "aliases" / alias
            replace_sealed(file, pointer_document(record.name, alias, version), self.modes)

    def remove_alias(self, name: str, alias: str) -> None:
        """Take an alias away; ArtifactVersionNotFoundError if there is none."""
        from nemotron_kit.artifacts.staging import writing_to

        slug = registry_name(name)
        find_version(self, Reference(slug, alias=check_alias(alias)))
        with writing_to(self.root):
            (self.folder(slug) / "aliases" / alias).unlink(missing_ok=True)

    def gc(self, lease_s: float = DAY_S, *, dry_run: bool = False) -> list[Path]:
        """Remove what writers that were killed more than `lease_s` seconds ago left behind; returns what went."""
        from nemotron_kit.artifacts.staging import collect_garbage, writing_to

        folders = [self.root]
        for name in sorted(self.root.iterdir()) if self.root.is_dir() else []:
            folders += [name, *(name / kind for kind in KINDS)]
        with writing_to(self.root):
            return [gone for folder in folders for gone in collect_garbage(folder, lease_s, dry_run=dry_run)]

    def mend(self, *, dry_run: bool = False) -> list[Finding]:
        """Repair damaged records, or put them aside; returns what was, or with `dry_run` would be, done."""
        from nemotron_kit.artifacts.mending import findings
        from nemotron_kit.artifacts.staging import writing_to

        done: list[Finding] = []
        with writing_to(self.root):
            while True:  # what is wrong with the versions is known once the registry's own record is whole
                found = [each for each in findings(self) if each.file not in {known.file for known in done}]
                for each in [] if dry_run else found:
                    each.apply()
                done += found
                if dry_run or not found:
                    return done
