"""A job's logs, read on from where the reader stopped: many logs in one answer, in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nemotron_kit.files import open_regular

LOG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


class Piece(NamedTuple):
    """Some bytes of a log. `offset`, where they begin, is 0 in a log that was cut, whatever was asked for."""

    name: str
    offset: int
    data: bytes


def names(payload: bytes, *, job: str) -> tuple[list[str], bytes]:
    """The names of a job folder's logs: `job`, `rank-0`, …"""
    del payload
    return sorted(path.stem for path in (Path(job) / "logs").glob("*.log")), b""


def read(
    payload: bytes, *, job: str, offsets: dict[str, int], limit: int, only: bool = False, skip: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], bytes]:
    """Of each log of a job what lies beyond the reader's offset, at most `limit` bytes in all.

    `[{"name", "offset", "size"}, …]`, whose bytes follow one another in the payload. A log that the reader does not
    name is read from its beginning (`only`: is left out), one whose name begins with one of `skip` is not. One that has
    become shorter (it was cut or replaced) is read from its beginning again, and named even where it is empty.
    """
    found: list[dict[str, Any]] = []
    data = bytearray()
    for name in names(payload, job=job)[0]:
        room = limit - len(data)
        unasked = name.startswith(tuple(skip)) or (only and name not in offsets)
        if not LOG_NAME.match(name) or room <= 0 or unasked:
            continue
        with open_regular(Path(job) / "logs" / f"{name}.log") as file:
            size = file.seek(0, 2)
            offset = offsets.get(name, 0)
            offset = offset if offset <= size else 0
            file.seek(offset)
            piece = file.read(room)
        if piece or offset < offsets.get(name, 0):
            found.append({"name": name, "offset": offset, "size": len(piece)})
            data += piece
    return found, bytes(data)


def pieces(found: Sequence[Mapping[str, Any]], data: bytes) -> list[Piece]:
    """An answer of `read`, taken apart."""
    parts: list[Piece] = []
    start = 0
    for entry in found:
        parts.append(Piece(str(entry["name"]), int(entry["offset"]), data[start : start + int(entry["size"])]))
        start += int(entry["size"])
    return parts
