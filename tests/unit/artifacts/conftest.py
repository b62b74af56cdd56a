"""Every test has a home, a working folder and an environment of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nemotron_kit.artifacts import manifest
from nemotron_kit.artifacts.registry import LocalRegistry
from nemotron_kit.artifacts.store import Draft

_CLOCK_REALTIME_COARSE = 5  # of <linux/time.h>; Python has no name for it
VARIABLES = (
    "NEMO_RUN_DIR NEMOTRON_RUN_ID NEMOTRON_ENV_FILE RANK WANDB_MODE WANDB_PROJECT WANDB_ENTITY WANDB_NAME WANDB_TAGS "
    "WANDB_NOTES WANDB_API_KEY WANDB_BASE_URL"
)


@pytest.fixture(autouse=True)
def alone(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES.split():
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # nobody cuts the power; calls of it are counted all the same
    # After a tick of the kernel's coarse clock a change has another time stamp; the package waits for slower disks.
    tick = time.clock_getres(_CLOCK_REALTIME_COARSE)
    monkeypatch.setattr(manifest, "_SETTLE_NS", int((tick + 0.001) * 1e9))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(work)


@pytest.fixture
def registry(home: Path) -> LocalRegistry:
    return LocalRegistry(home / "artifacts")


def made(folder: Path) -> Path:
    """An artifact's folder, for tests that need nothing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Maker:
    """Makes folders with content and drafts of them."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def folder(self, name: str, **files: str) -> Path:
        folder = self.base / name
        for path, text in files.items():
            file = folder / path.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        folder.mkdir(exist_ok=True, parents=True)
        return folder

    def draft(self, name: str, content: str, **given: object) -> Draft:
        folder = self.folder(f"{name}-{content}", data=content)
        values = {"type": "T", "path": folder, "root": folder, "fields": {}, "document": {}, "created_at": "2026-01-01"}
        return Draft(name=name, **{**values, **given})  # type: ignore[arg-type]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "made")
