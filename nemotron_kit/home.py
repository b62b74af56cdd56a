"""Where the kit keeps its records on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def nemotron_home() -> Path:
    """`$NEMOTRON_HOME`, or `~/.nemotron` when it is unset. Not created here."""
    return Path(os.environ.get("NEMOTRON_HOME") or "~/.nemotron").expanduser().absolute()
