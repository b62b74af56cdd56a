"""Questions about any profile's target, one function each: the way there, Python, folders, registry, secrets."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nemotron_kit.execution.reach import Reach
from nemotron_kit.plan.paths import Place
from nemotron_kit.plan.runconfig import RunConfig

OK, WARNING, WRONG, UNREACHABLE = "ok", "warning", "wrong", "unreachable"
# Slurm's and munge's own limit is five minutes; states are sorted by seconds.
_SKEW_WARNING, _SKEW_WRONG = 5.0, 240.0
_FREE_WARNING = 10e9


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, and what was seen or what would be right."""

    what: str
    state: str
    detail: str


@dataclass(frozen=True)
class Target:
    """A profile, its place and the way there."""

    config: RunConfig
    place: Place
    reach: Reach

    def ask(self, op: str, **args: Any) -> Any:
        return self.reach.call(op, **args)[0]


def connection(target: Target) -> Iterator[Finding]:
    """The way there, and the two clocks."""
    began = time.monotonic()
    facts = target.ask("hello")
    seconds = time.monotonic() - began
    asked = time.time()
    there = target.ask("hello")["time"]
    skew = there - (asked + time.time()) / 2
    where = f"{facts['user']} on {facts['host']}"
    yield Finding("connection", OK, f"{where}, {seconds:.1f} s" if target.place.apart else f"this machine: {where}")
    if target.place.apart:
        state = WRONG if abs(skew) > _SKEW_WRONG else WARNING if abs(skew) > _SKEW_WARNING else OK
        yield Finding("clock", state, f"{'the same' if state == OK else f'differs by {skew:+.1f} s'}")


def python(target: Target) -> Iterator[Finding]:
    """The worker's Python, unless a container brings its own."""
    facts = target.ask("python_facts")
    if "error" in facts:
        yield Finding("python", WRONG, facts["error"])
        return
    modules = facts["modules"]
    has = ", ".join(f"{name} {version}" for name, version in modules.items()) or "no package that matters"
    own = "; the container has its own" if target.config.container_image else ""
    yield Finding("python", OK, f"{facts['version']} ({facts['executable']}): {has}{own}")
    if "omegaconf" not in modules and not target.config.container_image:
        fix = f"{facts['executable']} -m pip install omegaconf, or name another in the profile: python = …"
        yield Finding("omegaconf", WRONG, f"The worker needs it: {fix}")


def storage(target: Target) -> Iterator[Finding]:
    """The folder for jobs: whether it can be written to, and the space that is left."""
    facts = target.ask("writable", folder=target.place.root)
    where = target.place.root
    if "error" in facts:
        yield Finding("job folder", WRONG, f"{facts['nearest']}: {facts['error']} (remote_job_dir = {where})")
        return
    made = "" if facts["exists"] else ", made at the first launch"
    yield Finding("job folder", OK, f"{where}{made}")
    free, total = facts["free"] / 1e9, facts["total"] / 1e9
    yield Finding("free space", WARNING if facts["free"] < _FREE_WARNING else OK, f"{free:,.0f} of {total:,.0f} GB")


def registry(target: Target) -> Iterator[Finding]:
    """The artifact registry that references are resolved in."""
    facts = target.ask("registry_facts", root=target.place.artifacts)
    count = f"{facts['names']} name{'' if facts['names'] == 1 else 's'}, {facts['uuid']}" if facts["uuid"] else "empty"
    yield Finding("registry", OK, f"{target.place.artifacts}: {count}")


def secrets(target: Target) -> Iterator[Finding]:
    """The secrets that the profile names are carried from this environment."""
    missing = [name for name in target.config.secrets or () if name not in os.environ]
    if missing:
        yield Finding("secrets", WRONG, f"{', '.join(missing)}: not set in this environment")
    elif target.config.secrets:
        yield Finding("secrets", OK, f"{', '.join(target.config.secrets)}: set here")


def elsewhere(target: Target) -> Iterator[Finding]:
    """A service with its own client: only a launch talks to it."""
    yield Finding("target", WARNING, f"{target.config.executor} is not asked: NeMo-Run talks to it at the launch")
