"""`nemotron profiles check`: which questions a profile's target is asked, and what comes of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nemotron_kit.errors import NemotronError, Unreachable
from nemotron_kit.execution.checks_common import (
    UNREACHABLE,
    WRONG,
    Finding,
    Target,
    connection,
    elsewhere,
    python,
    registry,
    secrets,
    storage,
)
from nemotron_kit.execution.checks_engines import docker, image, mounts, partitions, slurm
from nemotron_kit.execution.reach import reach_for
from nemotron_kit.plan.paths import place_of, with_folder
from nemotron_kit.plan.runconfig import RunConfig

_ANY_RUN = "20000101-000000-check-000000"

Check = Callable[[Target], Iterator[Finding]]
CHECKS: dict[str, tuple[Check, ...]] = {
    "local": (connection, python, storage, registry, secrets),
    "slurm": (connection, slurm, partitions, python, image, mounts, storage, registry, secrets),
    "docker": (connection, docker, mounts, storage, registry, secrets),
}


def check_profile(config: RunConfig) -> Iterator[Finding]:
    """Look at the target of a profile. A machine that can't be reached ends it; nothing is submitted or left behind."""
    try:
        config, _ = with_folder(config, lambda: reach_for(vars(config)).root)
    except NemotronError as error:
        yield Finding(_name(connection), UNREACHABLE if isinstance(error, Unreachable) else WRONG, str(error))
        return
    target = Target(config, place_of(config, _ANY_RUN, 0), reach_for(vars(config)))
    for check in CHECKS.get(config.executor, (elsewhere, secrets)):
        try:
            yield from check(target)
        except Unreachable as error:
            yield Finding(_name(check), UNREACHABLE, str(error))
            if check is connection:
                return
        except NemotronError as error:
            yield Finding(_name(check), WRONG, str(error))
            if check is connection:
                return


def _name(check: Check) -> str:
    return str(getattr(check, "__name__", "check"))
