"""A run's folder on the target: made from what the launch sent, whole files only, and never over what a job wrote."""

from __future__ import annotations

import json
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import NemotronError
from nemotron_kit.runs.ids import is_run_id

CODE = "code.json"


def packed(texts: dict[str, str]) -> bytes:
    """The payload of `make_run`."""
    return zlib.compress(json.dumps(texts).encode(), 1)


def make_run(payload: bytes, *, folder: str) -> tuple[int, bytes]:
    """Write the run's files (path below `folder` → text), but for those that are there; how many were new.

    `folder` is `<root>/runs/<run id>`; it and what is below are the user's alone.
    """
    run = Path(folder)
    if run.parent.name != "runs" or not is_run_id(run.name):
        raise NemotronError(f"{folder} is no folder of a run.")
    texts: dict[str, Any] = json.loads(zlib.decompress(payload))
    new = 0
    for name, text in texts.items():
        path = _inside(run, name)
        if not path.exists():
            files.write_text(path, text)
            new += 1
    return new, b""


def _inside(run: Path, name: str) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts:
        raise NemotronError(f"{name!r} is no file of a run.")
    folder = run
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for part in parts[:-1]:
        folder = folder / part
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder / parts[-1]
