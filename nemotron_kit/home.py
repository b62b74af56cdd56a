"""The folder of this machine's records, which may be moved as a whole, and run ids."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.files import read_regular


def nemotron_home() -> Path:
    """`$NEMOTRON_HOME`, or `~/.nemotron` when it is unset. Does not create it. UserError where `~` can't be
    resolved."""
    named = os.environ.get("NEMOTRON_HOME") or "~/.nemotron"
    if named.startswith("~/") or named == "~":
        check_home()
    home = expand_user(named).absolute()
    there = home
    while not os.path.isdir(there) and there != there.parent:  # noqa: PTH112 — asked often
        if os.path.exists(there):  # noqa: PTH110
            what = "is not a folder" if there == home else f"can't be made: {there} is not a folder"
            raise UserError(
                f"{home}, the folder for runs and artifacts, {what}.",
                hint="Name another one: export NEMOTRON_HOME=…",
            )
        there = there.parent
    if "${" in str(home):
        raise UserError(
            f"{home}, the folder for runs and artifacts, has ${{ in its name, which Hydra would resolve.",
            hint="Name another one: export NEMOTRON_HOME=…",
        )
    check_text(home, "The folder for runs and artifacts", "Name another one: export NEMOTRON_HOME=/path/to/nemotron")
    return home


def expand_user(path: str | os.PathLike[str]) -> Path:
    """`path` with a leading `~` or `~user` replaced by that user's home folder. UserError for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{os.fspath(path)!r}: {Path(path).parts[0]} is no user's home folder on this machine.",
            hint="Write the whole path; a folder whose name begins so is ./~….",
        ) from None


def check_text(path: Path, what: str, hint: str) -> None:
    """Raise UserError for a path whose bytes are no UTF-8 text: records name it, and they are JSON."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{what}, {os.fsencode(path)!r}, has a name that is not UTF-8 text.", hint=hint) from None


def check_home() -> None:
    """Raise UserError if there is no `~`."""
    if user_folder() is None:
        named = os.environ.get("HOME")
        why = "not set, and the system has no entry for this user" if named is None else f"{named!r}, no folder's path"
        raise UserError(
            f"HOME is {why}, so there is no ~ to keep runs and artifacts in.",
            hint="Set HOME, or name a folder for them: export NEMOTRON_HOME=/path/to/nemotron",
        )


def user_folder() -> Path | None:
    """The user's home folder; None if HOME is no absolute path (`~/.nemotron` would be `/.nemotron`), or is not set and
    the user is not in the system's table, as in a container that runs under any number."""
    # Path raises an exception where there is none, and expanduser takes an empty HOME for the root folder.
    folder = os.environ.get("HOME", os.path.expanduser("~"))  # noqa: PTH111
    return Path(folder) if os.path.isabs(folder) else None  # noqa: PTH117


# An environment variable: the job's metrics are also written to TensorBoard's event files.
TENSORBOARD = "NEMOTRON_TENSORBOARD"
RUN_ID = r"\d{8}-\d{6}-[A-Za-z0-9._-]{1,41}-[0-9a-f]{6}\Z"
_UNSAFE = re.compile(r"[^A-Za-z0-9]+")
_TIME = "%Y%m%d-%H%M%S"
# date-time (15) and the random part (6), each with its dash, leave 41 of a slug's 64 characters.
_MIDDLE = 41


def new_run_id(recipe: str, stage: str, *, now: datetime | None = None) -> str:
    """`20261124-171204-nano3-pretrain-1f03a7`, in UTC.

    The first five of the six hex digits are the microsecond: two launches in the same second still sort by time.
    """
    now = (now or datetime.now(UTC)).astimezone(UTC)
    middle = _UNSAFE.sub("-", f"{recipe}-{stage}").strip("-") or "run"
    return f"{now.strftime(_TIME)}-{middle[:_MIDDLE].rstrip('-')}-{now.microsecond:05x}{os.urandom(1)[0] & 15:x}"


def is_run_id(text: str) -> bool:
    """Whether a text has the form of a run id, so that it can be a folder's name."""
    return bool(re.match(RUN_ID, text)) and ".." not in text


def sort_key(run_id: str) -> tuple[str, str]:
    """A key that sorts run ids by launch time: the time stamp, then the last digits, which contain the microseconds."""
    return run_id[:15], run_id[-6:]


def started_at(run_id: str) -> datetime | None:
    """The UTC time in a run id, in whole seconds; None if its digits are no valid time."""
    try:
        return datetime.strptime(run_id[:15], _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


def first_id_since(age: timedelta) -> str:
    """The time stamp at or after which all run ids of the last `age` sort; at the earliest that of 1970."""
    # Years before 1000 have three digits, which sort wrongly, and those before 1 raise OverflowError.
    now, earliest = datetime.now(UTC), datetime(1970, 1, 1, tzinfo=UTC)
    return (now - min(age, now - earliest)).strftime(_TIME)


def runs_root() -> Path:
    """`$NEMOTRON_HOME/runs`; it may not exist."""
    return nemotron_home() / "runs"


def home_names(home: Path) -> list[str]:
    """The paths of a home: the given one, and the real one where that differs. Records hold them as `home`; readers
    pass them to `moved`."""
    return list(dict.fromkeys([str(home), os.path.realpath(home)]))


def former_names(was: Sequence[str], home: Path) -> list[str]:
    """Those of a home's recorded paths by which it is not found any more; [] if it has not been moved."""
    if str(home) != next(iter(was), ""):
        return [name for name in was if name.rstrip("/")]
    # Of the same name: a link to it leads elsewhere now. What is there still is left as it is: a container may have
    # mounted folders in it by the real path.
    return [name for name in was[1:] if name != str(home) and not os.path.isdir(name)]  # noqa: PTH112 — any text


def moved(value: Any, was: Sequence[str], home: Path) -> Any:
    """`value`, from a record that was written when the home was called `was`, with paths inside the home as they are
    now that it is `home`: in keys, texts and parts of texts. The value itself if the home has not been moved."""
    old = former_names(was, home)
    if not old:
        return value
    names = "|".join(re.escape(name) for name in sorted(old, key=len, reverse=True))
    # "/home/ada/lab" is part of neither "/home/ada/lab2" nor "/mnt/home/ada/lab"; a path of now may begin with it.
    end = r"(?![\w.~-])"
    return _moved(value, re.compile(rf"(?<![\w.~-])(?!{re.escape(str(home))}{end})(?:{names}){end}"), str(home))


def _moved(value: Any, was: re.Pattern[str], home: str) -> Any:
    if isinstance(value, str):
        return was.sub(lambda _: home, value)
    if isinstance(value, Mapping):
        return {_moved(key, was, home): _moved(item, was, home) for key, item in value.items()}
    return [_moved(item, was, home) for item in value] if isinstance(value, list) else value


_RUN = r"(?P<home>.+)/runs/[^/]+(?:/jobs/[0-9]+)?\Z"


def home_in(plan: Mapping[str, Any], run: Path) -> list[str]:
    """The paths of the home in which a run's plan was written; [] if the jobs have folders on another machine, whose
    paths the record holds, and for an unknown home. Records of older versions only tell by their folder's path."""
    found: object = plan.get("home")
    if found is None and isinstance(named := plan.get("job_folder"), str) and (own := re.match(_RUN, named)):
        found = [own["home"]]
    place: Any = plan.get("place")
    place = place if isinstance(place, Mapping) else {}
    if found is None and plan.get("executor") == "local":  # a sweep's record
        found = [place.get("root")]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return []
    there = place.get("run")
    return found if there is None or there in [f"{name}/runs/{run.name}" for name in found] else []


def located(value: Any, run: Path) -> Any:
    """`value`, from a record in the folder of a run, with paths inside the home as they are now (see `moved`)."""
    return moved(value, _home_of(run), run.parent.parent)


@lru_cache(maxsize=4096)
def _home_of(run: Path) -> tuple[str, ...]:
    if own := home_in(_record(run / "plan.json"), run):
        return tuple(own)
    # A pipeline's record of an older version: the home is in the records of its stages.
    for file in sorted(run.glob("stages/[0-9]*.json")):
        stage = _record(file).get("run")
        if isinstance(stage, str) and is_run_id(stage) and (found := _home_of(run.with_name(stage))):
            return found
    return ()


def _record(file: Path) -> dict[str, Any]:
    """A record; {} if there is none, or a damaged one, which its own reader reports."""
    try:
        found = json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
