"""The folders that every container is given."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from nemotron_kit.remote.agent.operations import perform


@pytest.mark.parametrize(("mode", "bits"), [("private", 0o700), ("group", 0o2770)])
def test_they_are_made_where_they_are_missing(tmp_path: Path, mode: str, bits: int) -> None:
    root, registry = tmp_path / "home", tmp_path / "shared" / "artifacts"
    for _ in range(2):
        perform("make_mounted", b"", {"root": str(root), "registry": str(registry), "mode": mode})
    assert stat.S_IMODE((root / "code").stat().st_mode) == 0o700
    assert stat.S_IMODE(registry.stat().st_mode) == bits
    assert list(registry.iterdir()) == []
