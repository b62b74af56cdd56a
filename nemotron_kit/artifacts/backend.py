"""`init()`: choose where artifacts are registered and tracked, from code instead of env.toml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemotron_kit.errors import UserError, nearest, sentence

# The reference implementation calls plain folders "fsspec".
_BACKENDS = {"fsspec": "file", "file": "file", "local": "file", "wandb": "wandb"}


@dataclass(frozen=True)
class KitConfig:
    """What `init()` was told; `root` is None where env.toml and $NEMOTRON_HOME decide."""

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
    """Register artifacts below `root` (also spelled `registry_path`); with backend "wandb" also log them to W&B's run.

    Without a call, a named save goes to the registry of env.toml all the same. Raises UserError for an unknown backend,
    for a root that is no folder here, and for "wandb" where it isn't installed.
    """
    global _config
    from nemotron_kit.artifacts.registry import local_root
    from nemotron_kit.artifacts.trackers import WandbTracker, set_lineage_tracker

    if backend not in _BACKENDS:
        raise UserError(f"{backend!r} is no artifact backend.", hint=sentence(nearest(backend, _BACKENDS)))
    if root is not None and registry_path is not None and Path(root) != Path(registry_path):
        raise UserError(
            f"init(): root is {root} and registry_path {registry_path}.", hint="They are one thing: give one."
        )
    chosen = root if root is not None else registry_path
    folder = local_root(chosen).absolute() if chosen is not None else None
    if _BACKENDS[backend] == "wandb":
        set_lineage_tracker(WandbTracker())
    _config = KitConfig(backend, folder, wandb_project, wandb_entity)


def get_config() -> KitConfig | None:
    """What `init()` was told; None before it was called."""
    return _config


def is_initialized() -> bool:
    """Whether `init()` was called."""
    return _config is not None


def reset() -> None:
    """Forget `init()` and the tracker (for tests, and between jobs in one process)."""
    global _config
    from nemotron_kit.artifacts.trackers import set_lineage_tracker

    _config = None
    set_lineage_tracker(None)
