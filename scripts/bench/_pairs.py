"""Commands timed in turn (A B C A B C …), so that a machine that speeds up or slows down does so for all of them."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


def interleaved(
    commands: Mapping[str, Sequence[str]], *, rounds: int, cwd: Path, env: Mapping[str, str] | None = None
) -> dict[str, list[float]]:
    """Seconds of each run of each command, by name, after one warm-up round. Raises if one exits other than 0."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(
                list(command), cwd=cwd, env={**os.environ, **(env or {})}, check=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, peer: str) -> float:
    """The median of the ratios, round by round."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[peer], strict=True))
