"""Lineage trackers: the interface by which saves and loads are reported, and `init()`, which chooses one from code."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from nemotron_kit import artifacts
from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.registry import local_root, open_registry
from nemotron_kit.errors import UserError, nearest, sentence

if TYPE_CHECKING:
    from nemotron_kit.artifacts.registry import Registry
    from nemotron_kit.artifacts.saving import Artifact


logger = logging.getLogger(__name__)


@runtime_checkable
class LineageTracker(Protocol):
    """The interface of a tracking system: four methods."""

    def is_active(self) -> bool:
        """Whether a run is open to log to."""

    def use_artifact(self, ref: str, artifact_type: str) -> Path:
        """Record that the run reads `ref`, and return the artifact's folder on this machine."""

    def log_artifact(self, artifact: Artifact, name: str, used_refs: Sequence[str]) -> dict[str, Any]:
        """Log a saved artifact; returns artifact_id, artifact_type, run_id, url, used_artifacts."""

    def get_run_id(self) -> str | None:
        """The id of the run, None without one."""


class NoOpTracker:
    """Tracks nothing."""

    def is_active(self) -> bool:
        """Always False."""
        return False

    def use_artifact(self, ref: str, artifact_type: str) -> Path:
        """Always raises UserError: nothing can be fetched without a tracker."""
        raise UserError(f"{ref} can't be fetched: tracking is off.", hint="set_lineage_tracker(…) chooses a tracker.")

    def log_artifact(
        self, artifact: Artifact, name: str, used_refs: Sequence[str] = (), *, used_artifacts: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Logs nothing; every id is None."""
        return tracked(artifact, used_refs or used_artifacts)

    def get_run_id(self) -> str | None:
        """None."""
        return None


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
        return tracked(artifact, used_refs or used_artifacts, artifact_id=pin.label, run_id=self.get_run_id())

    def get_run_id(self) -> str | None:
        """$NEMOTRON_RUN_ID, else `local`."""
        return lineage.run_id() or "local"


def tracked(artifact: Artifact, used: Sequence[str], **found: str | None) -> dict[str, Any]:
    """What `log_artifact` returns."""
    ids = {"artifact_id": None, "run_id": None, "url": None, **found}
    return {**ids, "artifact_type": artifact.type, "used_artifacts": list(used)}


_tracker: LineageTracker = NoOpTracker()


def set_lineage_tracker(tracker: LineageTracker | None) -> None:
    """Set the tracker to which saves and loads are reported; None turns tracking off."""
    global _tracker
    _tracker = tracker if tracker is not None else NoOpTracker()


def get_lineage_tracker() -> LineageTracker:
    """The tracker in use; a NoOpTracker where none was set."""
    return _tracker


# The reference implementation calls plain folders "fsspec".
_BACKENDS = {"fsspec": "file", "file": "file", "local": "file", "wandb": "wandb"}


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

    if backend not in _BACKENDS:
        raise UserError(f"{backend!r} is no artifact backend.", hint=sentence(nearest(backend, _BACKENDS)))
    if root is not None and registry_path is not None and Path(root) != Path(registry_path):
        raise UserError(
            f"init(): root is {root} and registry_path {registry_path}.", hint="They are one thing: give one."
        )
    chosen = root if root is not None else registry_path
    folder = local_root(chosen).absolute() if chosen is not None else None
    if _BACKENDS[backend] == "wandb":
        set_lineage_tracker(artifacts.WandbTracker())  # loaded only here
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
    set_lineage_tracker(None)
