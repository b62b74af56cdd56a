"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

from nemotron_kit.errors import UserError

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)I?B?\s*\Z", re.IGNORECASE)
_FACTORS = {unit: 1024**power for power, unit in enumerate(("", "K", "M", "G", "T", "P"))}


def parse_size(size: str | int, *, field: str = "shard_size") -> int:
    """ "256MB", "1G", "500MiB" or a number of bytes, in powers of 1024. Raises UserError naming `field`."""
    match = _SIZE.match(str(size))
    count = int(float(match[1]) * _FACTORS[match[2].upper()]) if match else 0
    if count < 1:
        raise UserError(f"{field}={size!r} is not a size.", hint='Write it like "256MB", "1G" or "500MiB".')
    return count


def show_size(count: float) -> str:
    """A number of bytes for people: 37.2 TB, 512 B (decimal units, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
