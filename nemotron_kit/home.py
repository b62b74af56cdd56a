"""The folder of nemotron_kit's records on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from nemotron_kit.errors import UserError


def nemotron_home() -> Path:
    """`$NEMOTRON_HOME`, or `~/.nemotron` when it is unset. Does not create it. UserError where `~` can't be
    resolved."""
    named = os.environ.get("NEMOTRON_HOME") or "~/.nemotron"
    if named.startswith("~/") or named == "~":
        check_home()
    home = Path(named).expanduser().absolute()
    check_text(home, "The folder for runs and artifacts", "Name another one: export NEMOTRON_HOME=/path/to/nemotron")
    return home


def check_text(path: Path, what: str, hint: str) -> None:
    """Raise UserError for a path whose bytes are no UTF-8 text: records name it, and they are JSON."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{what}, {os.fsencode(path)!r}, has a name that is not UTF-8 text.", hint=hint) from None


def check_home() -> None:
    """Raise UserError where HOME is set to what is no absolute path: `~/.nemotron` would then be `/.nemotron`."""
    if user_folder() is None:
        raise UserError(
            f"HOME is {os.environ['HOME']!r}, no folder's path, so there is no ~ to keep runs and artifacts in.",
            hint="Set HOME, or name a folder for them: export NEMOTRON_HOME=/path/to/nemotron",
        )


def user_folder() -> Path | None:
    """The user's home folder; None where HOME names none."""
    named = os.environ.get("HOME")
    return None if named is not None and not os.path.isabs(named) else Path("~").expanduser()  # noqa: PTH117
