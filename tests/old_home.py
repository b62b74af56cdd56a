"""A folder with the records of an older version: `old_home.tar.gz`, unpacked where a test wants it.

It was made by commit 2650dbd, on a machine where it lay in /home/ada/lab: `home` is $NEMOTRON_HOME, `work` the launch
folder with the recipe `letters`. What started processes of its own (the runs of the profile `here`) was made by the
commit before, whose records are the same. The runs on `box` (Docker) and `cluster` (Slurm) never ran: they are plans of
dry-runs, recorded as done. `work/model` is a checkpoint at step 2.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.artifacts import registry

WAS = "/home/ada/lab"


def unpack(folder: Path) -> Path:
    """Unpack it into `folder`: each record names its files where they lie now, and has its checksum over that."""
    with tarfile.open(Path(__file__).with_name("old_home.tar.gz")) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 has it
        archive.extractall(folder)  # noqa: S202 — an archive of our own
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in (".bin", ".idx", ".safetensors"):
            text = path.read_text()
            if WAS in text:
                path.write_text(_sealed(text.replace(WAS, str(folder))))
    return folder


def _sealed(text: str) -> str:
    """The text with the checksum of what it says now, as that version calculated it, where it had one."""
    try:
        document: Any = json.loads(text)
    except ValueError:
        return text
    if not isinstance(document, dict) or document.pop("sha256", None) is None:
        return text
    body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**document, "sha256": hashlib.sha256(body).hexdigest()}, indent=1)


def move_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str = "elsewhere/home") -> Path:
    """Rename the home of `tmp_path`; where it is now is $NEMOTRON_HOME."""
    new = tmp_path / to
    new.parent.mkdir(exist_ok=True)
    (tmp_path / "home").rename(new)
    monkeypatch.setenv("NEMOTRON_HOME", str(new))
    registry.reset()
    return new
