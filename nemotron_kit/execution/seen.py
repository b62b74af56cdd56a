"""What a target said a moment ago, for the next command that asks: a cache, one file a target."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from nemotron_kit import files
from nemotron_kit.execution.backends.base import Observation
from nemotron_kit.runs.folder import runs_root
from nemotron_kit.runs.records import DamagedRecord, read_object

# An answer is good for this long, for longer where it took long: a busy scheduler is asked less often.
SHORTEST, LONGEST = 3.0, 60.0
_TIMES = 5.0
_FIELDS = tuple(field.name for field in fields(Observation))

Known = tuple[float, dict[int, Observation], str | None]


class Seen:
    """The file of the target that `key` names. Damaged, unreadable or unwritable, it is as if there were none."""

    def __init__(self, key: str) -> None:
        self.path = runs_root() / ".seen" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"

    def fresh(self, wanted: Mapping[str, Sequence[int]]) -> dict[str, Known] | None:
        """Run id → (when, observations, why nobody answered), if all that is wanted was seen lately; else None."""
        now, runs = time.time(), self._read()
        if any(not _covers(runs.get(run_id), numbers, now) for run_id, numbers in wanted.items()):
            return None
        with contextlib.suppress(TypeError, KeyError, ValueError):  # another version's: as if there were none
            return {run_id: _known(runs[run_id]) for run_id in wanted}
        return None

    def keep(
        self,
        at: float,
        took: float,
        found: Mapping[str, Mapping[int, Observation]],
        lost: str | None,
        asked: Sequence[str],
    ) -> None:
        """Remember an answer, and how long it is good for. What others have asked lately stays."""
        now = time.time()
        until = now + min(LONGEST, max(SHORTEST, _TIMES * took))
        runs = {run_id: entry for run_id, entry in self._read().items() if entry.get("until", 0) > now}
        for run_id in asked:
            jobs = {str(number): asdict(o) for number, o in found.get(run_id, {}).items()}
            runs[run_id] = {"at": at, "until": until, "lost": lost, "jobs": jobs}
        with contextlib.suppress(OSError):  # a cache that can't be written is no reason to fail
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            files.write_json(self.path, {"runs": runs})

    def _read(self) -> dict[str, Any]:
        try:
            runs = read_object(self.path).get("runs")
        except (FileNotFoundError, DamagedRecord):
            return {}
        return {k: v for k, v in runs.items() if isinstance(v, dict)} if isinstance(runs, dict) else {}


def _covers(entry: Mapping[str, Any] | None, numbers: Sequence[int], now: float) -> bool:
    # A clock that was set back must not keep an answer alive.
    if entry is None or not now - LONGEST <= entry.get("at", 0) <= now < entry.get("until", 0):
        return False
    return bool(entry.get("lost")) or all(str(number) in entry.get("jobs", {}) for number in numbers)


def _known(entry: Mapping[str, Any]) -> Known:
    jobs = {
        int(number): Observation(**{name: values[name] for name in _FIELDS}) for number, values in entry["jobs"].items()
    }
    return float(entry["at"]), jobs, entry["lost"]
