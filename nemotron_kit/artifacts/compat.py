"""Other interfaces to LocalRegistry: `ArtifactRegistry`, that of the reference implementation (names and versions in,
paths out), and `FileTracker`, that of a tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.manifest import absolute, folder_of
from nemotron_kit.artifacts.reference import LATEST, Reference, registry_name
from nemotron_kit.artifacts.registry import LocalRegistry, Registry, open_registry
from nemotron_kit.artifacts.store import ArtifactVersion, Draft
from nemotron_kit.artifacts.wandb import require_wandb

if TYPE_CHECKING:
    from nemotron_kit.artifacts.saving import Artifact


@dataclass(frozen=True)
class ArtifactEntry:
    """A name with its versions, oldest first, and its aliases (`latest` among them)."""

    name: str
    versions: list[ArtifactVersion] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)

    def latest_version(self) -> ArtifactVersion | None:
        """The newest version; None if there are none."""
        return max(self.versions, key=lambda record: record.version, default=None)

    def get_version(self, version: int) -> ArtifactVersion | None:
        """Version `version`; None if it does not exist."""
        return next((record for record in self.versions if record.version == version), None)


class ArtifactRegistry:
    """Publishes folders and resolves names to paths. With backend "wandb", saves are also logged to W&B."""

    def __init__(
        self,
        backend: str = "fsspec",
        root: str | Path | None = None,
        wandb_project: str | None = None,
        wandb_entity: str | None = None,
    ) -> None:
        if backend == "wandb":
            require_wandb()
        self.backend = backend
        self.local: LocalRegistry = open_registry(root)
        self.root = self.local.root
        self.wandb_project = wandb_project
        self.wandb_entity = wandb_entity

    def publish(self, name: str, source_path: str | Path, metadata: Mapping[str, Any] | None = None) -> ArtifactVersion:
        """Register a folder (or file) in place, without an artifact class; `metadata` may hold any JSON values."""
        path = absolute(source_path)
        document = {"metadata": dict(metadata)} if metadata else {}
        now = datetime.now().astimezone().isoformat()
        draft = Draft(registry_name(name), "artifact", path, folder_of(path), {}, document, now)
        return self.local.record_of(self.local.commit(draft))

    def resolve(self, name: str, version: int | str | None = None) -> Path:
        """The path of a version (number, alias, None for the latest), after checking that its files are as
        published."""
        slug = registry_name(name)
        if version is None or isinstance(version, str):
            return Path(self.local.resolve(f"{slug}:{version or LATEST}").path)
        return Path(self.local.resolve(Reference(slug, version=version)).path)

    def get(self, name: str) -> ArtifactEntry | None:
        """A name with all its versions and aliases; None for an unknown one."""
        slug = registry_name(name)
        versions = self.local.versions(slug)
        if not versions:
            return None
        aliases = {LATEST: versions[-1], **self.local.aliases(slug)}
        return ArtifactEntry(slug, [self.local.record(slug, version) for version in versions], aliases)

    def alias(self, name: str, alias: str, version: int) -> None:
        """Make an alias refer to a version."""
        self.local.set_alias(name, alias, version)

    def list(self) -> list[str]:
        """Every name."""
        return self.local.names()


class FileTracker:
    """A tracker on top of the local registry, for scripts that use the tracker interface only."""

    def __init__(self, registry: Registry | None = None) -> None:
        self._registry = registry

    @property
    def registry(self) -> Registry:
        """The registry given to the constructor, else the one configured in env.toml."""
        return self._registry or open_registry()

    def is_active(self) -> bool:
        """Always True."""
        return True

    def use_artifact(self, ref: str, artifact_type: str) -> Path:
        """The path of a reference, recorded as an input. Raises the errors of `LocalRegistry.resolve`."""
        pin = self.registry.resolve(ref)
        lineage.record_input(pin)
        return Path(pin.path)

    def log_artifact(
        self, artifact: Artifact, name: str, used_refs: Sequence[str] = (), *, used_artifacts: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Register the artifact under `name`, unless `save(name)` has registered it already."""
        pin = artifact._pin
        if pin is None or pin.version is None or pin.registry != self.registry.uuid:
            pin = self.registry.commit(artifact._draft(name, artifact._document(), lineage.inputs()))
        return lineage.tracked(artifact, used_refs or used_artifacts, artifact_id=pin.label, run_id=self.get_run_id())

    def get_run_id(self) -> str | None:
        """$NEMOTRON_RUN_ID, else `local`."""
        return lineage.run_id() or "local"
