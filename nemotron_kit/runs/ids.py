"""Run ids: readable, safe everywhere, and sorted by time, so that the newest runs are found without opening any."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta

RUN_ID = re.compile(r"\d{8}-\d{6}-[A-Za-z0-9._-]{1,41}-[0-9a-f]{6}\Z")
_UNSAFE = re.compile(r"[^A-Za-z0-9]+")
_TIME = "%Y%m%d-%H%M%S"
# date-time (15) and the random part (6), each with its dash, leave 41 of a slug's 64 characters.
_MIDDLE = 41


def new_run_id(recipe: str, stage: str, *, now: datetime | None = None) -> str:
    """`20261124-171204-nano3-pretrain-1f03a7`, in UTC.

    The first five of the six hex digits are the microsecond: two launches in the same second still sort by time.
    """
    now = (now or datetime.now(UTC)).astimezone(UTC)
    middle = "-".join(filter(None, (_slug(recipe), _slug(stage)))) or "run"
    return f"{now.strftime(_TIME)}-{middle[:_MIDDLE].rstrip('-')}-{now.microsecond:05x}{os.urandom(1)[0] & 15:x}"


def is_run_id(text: str) -> bool:
    return bool(RUN_ID.match(text)) and ".." not in text


def sort_key(run_id: str) -> tuple[str, str]:
    """Time to the microsecond: the stamp in front, then the hex digits at the end."""
    return run_id[:15], run_id[-6:]


def started_at(run_id: str) -> datetime | None:
    """The UTC time in a run id, whole seconds; None when its digits are no time."""
    try:
        return datetime.strptime(run_id[:15], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def first_id_since(age: timedelta) -> str:
    """The stamp that every run id of the last `age` sorts at or after."""
    return (datetime.now(UTC) - age).strftime(_TIME)


def _slug(text: str) -> str:
    return _UNSAFE.sub("-", text).strip("-")
