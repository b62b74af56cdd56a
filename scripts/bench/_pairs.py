"""Commands timed in turn (A B C A B C …), so that a machine that speeds up or slows down does so for all of them."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def interleaved(
    commands: Mapping[str, Sequence[str]],
    *,
    rounds: int,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    between: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each run of each command, by name, after one warm-up round; `between` is called after each round.

    Raises SystemExit with what was printed if a command exits other than 0.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            done = subprocess.run(
                list(command), cwd=cwd, env={**os.environ, **(env or {})}, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(f"{name}: exit code {done.returncode}\n{done.stderr.decode()[-2000:]}")
            if number:
                seconds[name].append(time.perf_counter() - started)
        between()
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, peer: str) -> float:
    """The median of the ratios, round by round."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[peer], strict=True))


def load() -> str:
    """How busy the machine is, to be read beside a figure."""
    return f"[load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores]"
