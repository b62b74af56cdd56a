"""NeMo-Run's packagers, by the names that a profile uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nemotron_kit.plan.runconfig import ProfileError, RunConfig


def build_packager(run: Any, config: RunConfig) -> Any:
    """Ours, `worktree` (the default), carries the code itself: NeMo-Run then packs nothing."""
    return _PACKAGERS[config.packager or "worktree"](run, config)


def git_packager(run: Any, config: RunConfig) -> Any:
    return run.GitArchivePackager(
        subpath=config.subpath or "",
        include_submodules=config.include_submodules is not False,
        include_pattern=list(config.packager_include_pattern or [""]),
        include_pattern_relative_path=["" for _ in config.packager_include_pattern or [""]],
    )


def _pattern(run: Any, config: RunConfig) -> Any:
    if not config.packager_include_pattern:
        raise ProfileError("packager 'pattern' needs packager_include_pattern.")
    patterns = list(config.packager_include_pattern)
    return run.PatternPackager(include_pattern=patterns, relative_path=[str(Path.cwd())] * len(patterns))


def _hybrid(run: Any, config: RunConfig) -> Any:
    plain_git = git_packager(run, replace(config, packager_include_pattern=None))
    return run.HybridPackager(sub_packagers={"git": plain_git, "pattern": _pattern(run, config)}, extract_at_root=True)


def _nothing(run: Any, _: RunConfig) -> Any:
    return run.Packager()


_PACKAGERS = {"worktree": _nothing, "none": _nothing, "git": git_packager, "pattern": _pattern, "hybrid": _hybrid}
