"""Slurm, on this machine or through ssh: NeMo-Run's script, submitted once; the worker's record, squeue, sacct."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from nemotron_kit.errors import Unreachable, UserError
from nemotron_kit.executors.base import Observation, fetch_repositories, make_mounted
from nemotron_kit.executors.slurm import script as scripts
from nemotron_kit.executors.slurm import script as slurm_script
from nemotron_kit.masking import is_secret_name
from nemotron_kit.remote.agent import operations
from nemotron_kit.remote.agent.operations import packed
from nemotron_kit.remote.snapshot import code_there, place_package
from nemotron_kit.remote.ssh import NotSent, Transport, transport_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.spec.paths import RemotePaths
from nemotron_kit.spec.plan import Plan, stored_plan
from nemotron_kit.spec.resources import label_of, resources_of
from nemotron_kit.spec.runconfig import RunConfig, resolve_partition

MOST_PER_ARRAY = 1000
# They lead to the packages of another Python than an image's own.
_OF_THIS_PYTHON = ["PYTHONHOME", "PYTHONPATH"]


@dataclass(frozen=True)
class Call:
    """One sbatch call: these plans of one run, whose script differs in nothing."""

    intent: str
    name: str
    plans: tuple[Plan, ...]
    array: bool
    script: str
    text: str
    sent: bool = True  # whether the script's file is there by now


class Slurm:
    """Slurm's back end: the agent's operations, through one Transport, do the work where Slurm's commands are."""

    def __init__(self, transport: Transport, settings: RunConfig) -> None:
        self.transport, self.settings = transport, settings

    def prepare(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        with _nothing_sent():
            self._send(run, plans, plans[0].place)

    def submit(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        place = plans[0].place
        self.prepare(run, plans)
        with _nothing_sent():
            limits, _ = self.transport.call("slurm_limits", partition=_partition(plans[0]))
        most = min(MOST_PER_ARRAY, int(limits["max_array_size"]) - 1)
        for call in _calls(plans, most):
            scripts.check_syntax(call.text)
            self._submit(place.run, call, limits["time"])

    def room(self) -> int:
        """How many more jobs the controller takes now, a twentieth left for others."""
        limits, _ = self.transport.call("slurm_limits", count=True)
        return max(0, int(limits["max_job_count"] * 0.95) - int(limits["queued"]))

    def observe(self, run: RunFolder, jobs: Sequence[JobFolder]) -> dict[int, Observation]:
        seen = self.observe_many([(run, jobs)])[run.id]
        lost = [o.error for o in seen.values() if o.state == "unreachable"]
        if lost and len(lost) == len(seen):
            raise Unreachable(str(lost[0]))
        return seen

    def observe_many(self, runs: Sequence[tuple[RunFolder, Sequence[JobFolder]]]) -> dict[str, dict[int, Observation]]:
        """Run id → job number → what is known of it, in one squeue and one sacct at most. A job that Slurm was not
        able to say anything of is `unreachable`. Raises Unreachable when the target does not answer."""
        places = {run.id: _target(run) for run, _ in runs}
        asked = {places[run.id]: [job.number for job in jobs] for run, jobs in runs}
        found, _ = self.transport.call("slurm_observe", runs=asked)
        return {
            run_id: {int(number): _observation(values) for number, values in found[place].items()}
            for run_id, place in places.items()
        }

    def cancel(self, run: RunFolder, jobs: Sequence[JobFolder]) -> None:
        self.transport.call("slurm_cancel", folder=_target(run), jobs=[job.number for job in jobs])

    def read_logs(
        self, job: JobFolder, offsets: Mapping[str, int], limit: int, *, only: bool = False, skip: Sequence[str] = ()
    ) -> list[operations.Piece]:
        asked: dict[str, Any] = {"job": _job(job), "offsets": dict(offsets), "limit": limit}
        return operations.pieces(*self.transport.call("read_logs", **asked, only=only, skip=list(skip)))

    def _send(self, run: RunFolder, plans: Sequence[Plan], place: RemotePaths) -> None:
        """Code, and the jobs' folders where the target's are not the record's own."""
        texts = code_there(self.transport, place, self.settings)
        if place.package and not place.is_remote:  # over ssh it is sent with the first question
            place_package(place.package)
        if plans[0].is_apart:
            for plan in plans:
                texts.update({f"jobs/{plan.job}/{name}": text for name, text in plan.files.items()})
        fetch_repositories(self.transport, plans)
        self.transport.call("make_run", packed(texts), folder=place.run)
        if self.settings.container_image:
            make_mounted(self.transport, place)

    def _submit(self, folder: str, call: Call, limit: str | None) -> None:
        first = call.plans[0]
        secrets = {name: _secret(name) for plan in call.plans for name in plan.secrets}
        hidden = [name for name in os.environ if is_secret_name(name) and name not in secrets]
        hidden += _OF_THIS_PYTHON if self.settings.container_image else []
        payload = {"script": None if call.sent else call.text, "secrets": secrets}
        self.transport.call(
            "slurm_submit",
            json.dumps(payload).encode(),
            folder=folder,
            intent=call.intent,
            name=call.name,
            jobs=[plan.job for plan in call.plans],
            array=call.array,
            script=call.script,
            options=[*_within(first.settings.time, limit), *_after(first)],
            hidden=hidden,
        )


@contextmanager
def _nothing_sent() -> Iterator[None]:
    """Within the block nobody has asked for a job yet, so that losing sight leaves no doubt."""
    try:
        yield
    except Unreachable as error:
        raise NotSent(f"Nothing was submitted: {error.message}", hint=error.hint) from error


def make(settings: RunConfig) -> Slurm:
    """The back end of executor "slurm"."""
    return Slurm(transport_for(settings), settings)


def _calls(plans: Sequence[Plan], most: int) -> Iterator[Call]:
    if len(plans) == 1 and slurm_script.FILE in plans[0].files:
        yield _single(plans[0])
        return
    alike: dict[str, list[Plan]] = {}
    for plan in plans:
        alike.setdefault(repr((replace(plan.settings, env_vars=None), plan.resources)), []).append(plan)
    for group in alike.values():
        for start in range(0, len(group), most):
            yield _array(group[start : start + most])


def _single(plan: Plan) -> Call:
    """The plan's own script. Another attempt has another intent, so another name, and is a script of its own."""
    text, first = plan.files[slurm_script.FILE], scripts.intent_of(plan.run_id, [plan.job])
    if not plan.attempt:
        return Call(first, _name(first, plan), (plan,), False, f"jobs/{plan.job}/{slurm_script.FILE}", text)
    intent = scripts.intent_of(plan.run_id, [plan.job], plan.attempt)
    name = _name(intent, plan)
    text = text.replace(_name(first, plan), name)
    return Call(intent, name, (plan,), False, f"{scripts.SUBFOLDER}/{intent}.sh", text, sent=False)


def _array(plans: list[Plan]) -> Call:
    first = plans[0]
    intent = scripts.intent_of(first.run_id, [plan.job for plan in plans], first.attempt)
    name, place, config = _name(intent, first), first.place, first.settings
    record = f"{place.run}/{scripts.SUBFOLDER}/{intent}.json"
    throttle = f"%{config.max_parallel}" if config.max_parallel else ""
    script = scripts.Script(
        name,
        place.run,
        scripts.command_of(place.python, place.package, record, array=True),
        array=f"0-{len(plans) - 1}{throttle}",
        mounts=first.mounts or (),
    )
    resources = first.resources or resources_of(config, None)
    text = scripts.render(config, resources, script, batch=first.mode == "batch")
    return Call(intent, name, tuple(plans), True, f"{scripts.SUBFOLDER}/{intent}.sh", text, sent=False)


def _name(intent: str, plan: Plan) -> str:
    return scripts.job_name(intent, label_of(plan.settings, plan.recipe, plan.stage))


def _partition(plan: Plan) -> str | None:
    return resolve_partition(plan.settings, is_launch=plan.mode == "batch")


@lru_cache
def _target(run: RunFolder) -> str:
    """The run's folder on the target; asked for with every piece of a log, and never another."""
    return stored_plan(run).place.run


def _job(job: JobFolder) -> str:
    """The job's folder on the target."""
    return f"{_target(RunFolder(job.path.parent.parent))}/jobs/{job.number}"


def _secret(name: str) -> str:
    if name not in os.environ:
        raise UserError(
            f"The profile's secrets name {name}, which is not set in this environment.", hint=f"export {name}=…"
        )
    return os.environ[name]


def _within(asked: str, limit: str | None) -> list[str]:
    """sbatch's options where the partition's limit is shorter than what the profile asks for: Slurm would leave the job
    waiting for ever. It goes on by itself in another segment."""
    allowed = scripts.time_seconds(limit) if limit else None
    wanted = scripts.time_seconds(asked)
    if allowed is None or (wanted is not None and wanted <= allowed):
        return []
    return [f"--time={limit}", f"--signal=USR1@{scripts.lead_seconds(allowed)}"]


def _after(plan: Plan) -> list[str]:
    """sbatch's options for a job that starts when others have succeeded, and is dropped when one of them has not."""
    ids = plan.dependency
    return [f"--dependency=afterok:{':'.join(ids)}", "--kill-on-invalid-dep=yes"] if ids else []


def _observation(values: Mapping[str, Any]) -> Observation:
    facts = {"scheduler": {"kind": "slurm", "job": values["slurm_id"]}} if values.get("slurm_id") else {}
    return Observation(
        state=str(values["state"]),
        code=values.get("code"),
        error=values.get("error"),
        reason=values.get("reason"),
        estimated_start=values.get("start") if values["state"] == "pending" else None,
        facts=facts,
    )
