"""A job's plan on disk, beside the sweep's own: what its back end needs to know of it, now or on another day."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemotron_kit.files import read_regular
from nemotron_kit.plan.plan import DETACHED, Plan
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.records import read_object

FILE = "launch.json"
# What a plan on record says in fields of its own; the rest is its `extra`.
_PLANS = frozenset(f.name for f in dataclasses.fields(Plan)) | {
    "command_line",
    "captured_at_launch",
    "created_at",
    "job_folder",
}
_OWN = ("mode", "executor", "settings", "place", "extra", "secrets")


class Texts(Mapping[str, str]):
    """Name in a folder → the file's text, read when it is asked for: a sweep may have very many."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, tuple(names)

    def __getitem__(self, name: str) -> str:
        if name not in self._names:
            raise KeyError(name)
        return read_regular(self._folder / name).decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def to_text(plan: Plan) -> str:
    """What of a job's plan its own folder holds."""
    own = {name: getattr(plan, name) for name in _OWN}
    return json.dumps({**own, "secrets": list(plan.secrets), "files": list(plan.files)}) + "\n"


def load_plans(run: RunFolder, numbers: Sequence[int]) -> list[Plan]:
    """The plans of a sweep's jobs, as their back end takes them. Raises DamagedRecord."""
    shared = run.plan()
    return [_load(run, shared, number) for number in numbers]


def load_plan(run: RunFolder, job: JobFolder) -> Plan:
    """The plan of one job of a run, whichever way it was launched. Raises DamagedRecord."""
    shared = run.plan()
    if (job.path / FILE).exists():
        return _load(run, shared, job.number)
    own: dict[str, Any] = {"mode": "local", "executor": "local", "settings": {}, "place": {}, "secrets": []}
    own |= {name: shared[name] for name in own if shared.get(name)}
    own["extra"] = {name: value for name, value in shared.items() if name not in _PLANS}
    own["files"] = list(shared.get("files") or ())
    return _made(run, shared, job, own)


def _load(run: RunFolder, shared: Mapping[str, Any], number: int) -> Plan:
    job = run.job(number)
    return _made(run, shared, job, read_object(job.path / FILE))


def _made(run: RunFolder, shared: Mapping[str, Any], job: JobFolder, own: Mapping[str, Any]) -> Plan:
    return Plan(
        run_id=run.id,
        recipe=str(shared.get("recipe") or ""),
        stage=str(shared.get("stage") or ""),
        folder=str(run.path),
        argv=(),
        hydra=(),
        mode=own["mode"],
        profile=shared.get("profile"),
        executor=own["executor"],
        settings=own["settings"],
        launch=DETACHED,
        config_name="",
        config_file=None,
        config={},
        inputs={},
        references={},
        launch_command=(),
        environment=shared.get("environment") or {},
        secrets=tuple(own["secrets"]),
        captured={},
        files=Texts(job.path, own["files"]),
        job=job.number,
        place=own["place"],
        extra=own["extra"],
    )
