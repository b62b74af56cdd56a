"""The Slurm executor, on this machine or through ssh: submits NeMo-Run's script once; observes jobs by the worker's
record, squeue and sacct."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

from nemotron_kit.errors import NotSent, Problem, Unreachable, UserError
from nemotron_kit.executors.base import (
    EVERYWHERE,
    HELD,
    SENT,
    SHELL,
    Executor,
    ExecutorPlan,
    Observation,
    PlanContext,
    executor_for,
    mounted_folders,
    run_on_target,
)
from nemotron_kit.executors.nemo_run import (
    MissingExtra,
    build_packager,
    missing,
    shell_lines,
    shell_quoted,
    start,
    tunnel,
)
from nemotron_kit.executors.slurm import apptainer
from nemotron_kit.executors.slurm import script as scripts
from nemotron_kit.masking import is_secret_name
from nemotron_kit.remote.agent.slurm_commands import time_seconds
from nemotron_kit.remote.ssh import ssh_command
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder, JobState
from nemotron_kit.spec.paths import RemotePaths, sent_paths
from nemotron_kit.spec.plan import Plan
from nemotron_kit.spec.resources import Resources, label_of, resources_of
from nemotron_kit.spec.runconfig import ProfileError, resolve_partition
from nemotron_kit.worker import worker_command

MOST_PER_ARRAY = 1000
# Withheld from jobs: they would make the image's or environment's Python load packages of another one.
_OF_THIS_PYTHON = ["PYTHONHOME", "PYTHONPATH"]


@dataclass(frozen=True)
class Call:
    """The plans of one run that one sbatch call submits: their scripts are equal."""

    intent: str
    name: str
    plans: tuple[Plan, ...]
    array: bool
    script: str
    text: str
    sent: bool = True  # whether the script is among the files that `prepare` sends


class Slurm(Executor):
    """The Slurm executor. The agent's operations, through one Transport, run Slurm's commands where these are
    installed."""

    reads = EVERYWHERE | SENT | HELD | SHELL | {
        *("mounts", "account", "partition", "run_partition", "batch_partition", "time", "job_name", "ntasks_per_node"),
        *("mem", "exclusive", "cpus_per_task", "cpus_per_gpu", "gpus_per_task", "mem_per_gpu", "mem_per_cpu", "qos"),
        *("constraint", "exclude", "gres", "array", "host", "user", "identity", "max_segments"),
        *("modules", "conda", "nodelist", "reservation", "segment", "comment", "mail_user", "mail_type", "signal_lead"),
        *("container_runtime", "chain"),
    }  # fmt: skip
    over_ssh = True
    by_nemo_run = True
    client = "sbatch"
    # Submitting a few at a time would make very many arrays.
    least = 250
    holds_back = True
    joins_nodes = True

    def _paths(self, run_id: str, job: int, registry: str | None) -> RemotePaths:
        """The job's paths. With `conda` its Python runs the job, unless the profile names another."""
        if self.settings.container_image or not self.settings.conda or self.settings.python:
            return super()._paths(run_id, job, registry)
        return sent_paths(self.settings, run_id, job, registry=registry, other_python=True)

    def resources(self, torchrun: bool | None) -> Resources:
        return resources_of(self.settings, torchrun, gres=True)

    def variables(self) -> dict[str, str]:
        limit = time_seconds(self.settings.time)
        if limit is None:
            return {}
        lead = scripts.lead_seconds(limit, self.settings.signal_lead)
        return {"NEMOTRON_TIME_LIMIT": str(limit), "NEMOTRON_SIGNAL_LEAD": str(lead)}

    def segments(self) -> int | None:
        return self.settings.chain or self.settings.max_segments

    def plan(self, context: PlanContext) -> ExecutorPlan:
        """The script of one job. The jobs of a sweep share a script, which is rendered at submission."""
        config, paths, resources = self.settings, context.paths, context.resources
        found = mounted_folders(paths, context.inputs) if config.container_image else []
        mounts = [path for path in found if not any(path.startswith(f"{other}/") for other in found)]
        notes = [*resources.notes]
        if config.chain:
            notes.append(
                f"chain={config.chain}: {config.chain} jobs of one name are submitted; each continues where the one "
                "before it stopped, and those that are left are cancelled once the job has ended."
            )
        if resolve_partition(config, is_launch=context.mode == "batch") is None:
            notes.append("partition: not set, so the job goes to the cluster's default partition.")
        planned = ExecutorPlan(notes=tuple(notes), resources=resources, mounts=(*mounts, *context.folders))
        problems = tuple(scripts.problems_of(config, resources, context.mode, context.secrets))
        if config.chain and not context.single:
            what = "the jobs of a sweep share an array, whose tasks would wait for each other."
            problems += (Problem(what, field=f"chain={config.chain}", hint="Leave it out: run.env.chain=null"),)
        if problems or not context.single:
            return replace(planned, problems=problems or tuple(missing()))
        intent = scripts.intent_of(context.run_id, [context.job])
        inside = scripts.inside_of(config, paths.run, planned.mounts or ())
        command = (*inside, *worker_command(paths.python, paths.package, paths.job))
        name = scripts.job_name(intent, context.label)
        script = scripts.Script(name, paths.run, command, mounts=planned.mounts or ())
        try:
            text = scripts.render(config, resources, script, batch=context.mode == "batch")
        except MissingExtra as error:
            return replace(planned, problems=(Problem(error.message, hint=error.hint),))
        return replace(planned, files={scripts.FILE: text})

    def without_effect(self, given: Collection[str], launch: str) -> Iterator[str]:
        yield from super().without_effect(given, launch)
        if "mounts" in given and not self.settings.container_image:
            yield "mounts: no effect without container_image: a job on Slurm sees the node's folders."
        if "conda" in given and self.settings.container_image:
            yield "conda: no effect with container_image: the image's Python is used."
        if "container_runtime" in given and not self.settings.container_image:
            yield "container_runtime: no effect without container_image."
        if "segment" in given and (self.settings.nodes or 1) == 1:
            yield "segment: no effect on a job of one node."
        if "mail_user" in given and not self.settings.mail_type:
            yield "mail_user: no effect without mail_type: Slurm then sends nothing."

    def nemo_run(self, run: Any, env: Mapping[str, str]) -> Any:
        config = self.settings
        partition = resolve_partition(config, is_launch=bool(config.detach))
        extra = scripts.checked_extra(config)
        flags = {name: value for name in _SAME_NAME if (value := getattr(config, name)) is not None}
        flags |= {"signal": f"USR1@{config.signal_lead}"} if config.signal_lead else {}
        more = {name: value for name in _WITHOUT_FIELD if (value := getattr(config, name)) is not None}
        added = {name.replace("-", "_"): value for name, value in extra.pop("additional_parameters", {}).items()}
        for source, names in (("extra", flags.keys() & extra), ("extra.additional_parameters", more.keys() & added)):
            if twice := sorted("signal_lead" if name == "signal" and config.signal_lead else name for name in names):
                raise ProfileError(f"{', '.join(twice)}: {source} sets the same.", hint="Leave one of the two out.")
        # NeMo-Run writes every name in capitals, so others are exported in the script's setup lines.
        capitals = {name: shell_quoted(value) for name, value in env.items() if name == name.upper()}
        others = [f"export {name}={shell_quoted(value)}" for name, value in env.items() if name != name.upper()]
        return run.SlurmExecutor(
            account=config.account,
            partition=partition,
            job_name_prefix=f"{config.job_name}.",
            nodes=config.nodes or 1,
            ntasks_per_node=config.ntasks_per_node or 1,
            torchrun_nproc_per_node=config.nproc_per_node,
            container_mounts=list(config.mounts or ()),
            setup_lines="\n".join([*others, *scripts.environment_lines(config), *shell_lines(config)]) or None,
            tunnel=tunnel(run, config),
            packager=build_packager(run, config),
            env_vars=capitals,
            additional_parameters={**added, **more} or None,
            # Otherwise a thread of NeMo-Run's prints into our output.
            poll_estimated_start_time=False,
            **flags,
            **extra,
        )

    @classmethod
    def warm_up(cls) -> None:
        """Start the helper process that imports NeMo-Run for rendering scripts."""
        if find_spec("nemo_run"):
            start()

    def prepare(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        with _nothing_sent():
            super().prepare(run, plans)

    def submit(self, run: RunFolder, plans: Sequence[Plan]) -> None:
        paths = plans[0].paths
        self.prepare(run, plans)
        partition = resolve_partition(plans[0].settings, is_launch=plans[0].mode == "batch")
        with _nothing_sent():
            limits, _ = self.transport.call("slurm_limits", partition=partition or "")
        # Where there are no arrays (0), sbatch says so.
        most = max(1, min(MOST_PER_ARRAY, int(limits["max_array_size"]) - 1))
        for call in _calls(plans, most):
            scripts.check_syntax(call.text)
            self._submit(paths.run, call, limits["time"])

    def capacity(self, running: int) -> int:
        """How many more jobs the controller accepts now, keeping a twentieth of its limit for other users."""
        del running
        limits, _ = self.transport.call("slurm_limits", count=True)
        return max(0, int(limits["max_job_count"] * 0.95) - int(limits["queued"]))

    def observe_many(self, runs: Sequence[tuple[RunFolder, Sequence[JobFolder]]]) -> dict[str, dict[int, Observation]]:
        """Run id → job number → its current state, in at most one squeue and one sacct. A job of which Slurm reports
        nothing is `unreachable`. Raises Unreachable if the target does not answer."""
        folders = {run.id: run_on_target(run) for run, _ in runs}
        asked = {folders[run.id]: [job.number for job in jobs] for run, jobs in runs}
        found, _ = self.transport.call("slurm_observe", runs=asked)
        return {
            run_id: {int(number): _observation(values) for number, values in found[paths].items()}
            for run_id, paths in folders.items()
        }

    def cancel(self, run: RunFolder, jobs: Sequence[JobFolder]) -> None:
        self.transport.call("slurm_cancel", folder=run_on_target(run), jobs=[job.number for job in jobs])

    def dependency_id(self, facts: Mapping[str, Any]) -> str | None:
        """The scheduler's job id; for a task of an array, the array's id."""
        number = str((facts.get("scheduler") or {}).get("job") or "").partition("_")[0]
        return number if number.isdecimal() else None

    def shell(self, plan: Plan, job: JobFolder, state: JobState, command: list[str], node: str | None) -> list[str]:
        """An `srun` command into the job's allocation, run on the machine that has srun."""
        number = str((state.facts.get("scheduler") or {}).get("job") or "")
        if not number.replace("_", "").isdecimal():
            raise UserError(f"{job.run_id}: job {job.number}: its number in Slurm isn't known yet.")
        folder, settings = f"{plan.paths.run}/jobs/{job.number}", plan.settings
        if "_" in number:  # a task of an array, which srun knows by the number that it has besides
            number = self._step(folder).partition(".")[0]
        if not settings.container_image or apptainer.runs_in(settings):
            where = [f"--chdir={folder}"]
        else:  # Pyxis: the command starts in the container of the job
            given = [str(argument) for argument in (settings.extra or {}).get("srun_args") or ()]
            named = [each.split("=", 1)[1].partition(":")[0] for each in given if each.startswith("--container-name=")]
            name = named[-1] if named else self._step(folder)
            where = [f"--container-name={name}:exec", f"--container-workdir={folder}"]
        srun = ["srun", f"--jobid={number}", "--overlap", "--nodes=1", "--ntasks=1", *where]
        srun += [f"--nodelist={node}"] if node else []
        srun += ["--pty"] if sys.stdin.isatty() else []
        command = command or (["/bin/sh"] if settings.container_image else ["/bin/bash", "-l"])
        srun += scripts.with_modules(settings, [*scripts.inside_of(settings, folder, plan.mounts or ()), *command])
        if settings.tunnel != "ssh":
            return srun
        terminal = ["-o", "RequestTTY=force"] if sys.stdin.isatty() else []
        connect = ssh_command(str(settings.host), settings.user, settings.identity, *terminal)
        return [*(argument for argument in connect if not (terminal and argument == "-T")), shlex.join(srun)]

    def _step(self, folder: str) -> str:
        """The number (`1` of `17.1`) of the step that runs the job's worker: Pyxis names the container after it."""
        (record,), _ = self.transport.call("job_records", jobs=[folder])
        schedulers = [entry.get("scheduler") or {} for entry in record["history"]]
        steps = [str(scheduler["step"]) for scheduler in schedulers if scheduler.get("step")]
        if not steps or not steps[-1].replace(".", "").isdecimal():
            what = f"{folder}: the job's worker has not begun yet."
            raise UserError(what, hint="nemotron runs logs -f waits for it.")
        return steps[-1]

    def checks(self) -> Sequence[str]:
        return ("connection", "slurm", "partitions", "python", "image", "mounts", "storage", "registry", "secrets")

    def _submit(self, folder: str, call: Call, limit: str | None) -> None:
        first = call.plans[0]
        names = dict.fromkeys(name for plan in call.plans for name in plan.secrets)
        for name in names:
            if name not in os.environ:
                raise UserError(
                    f"The profile's secrets name {name}, which is not set in this environment.",
                    hint=f"export {name}=…",
                )
        secrets = {name: os.environ[name] for name in names}
        # It starts after others have succeeded, and is dropped if one of them fails.
        ids = first.dependency
        kinds = [*([f"afterok:{':'.join(ids)}"] if ids else []), *(["singleton"] if first.settings.chain else [])]
        options = scripts.time_limit_options(first.settings, limit)
        options += [f"--dependency={','.join(kinds)}"] if kinds else []
        options += ["--kill-on-invalid-dep=yes"] if ids else []
        hidden = [name for name in os.environ if is_secret_name(name) and name not in secrets]
        hidden += _OF_THIS_PYTHON if self.settings.container_image or self.settings.conda else []
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
            options=options,
            links=first.settings.chain or 1,
            hidden=hidden,
        )


@contextmanager
def _nothing_sent() -> Iterator[None]:
    """Within the block no job has been submitted yet: a lost connection is raised as NotSent."""
    try:
        yield
    except Unreachable as error:
        raise NotSent(f"Nothing was submitted: {error.message}", hint=error.hint) from error


def _calls(plans: Sequence[Plan], most: int) -> Iterator[Call]:
    if len(plans) == 1 and scripts.FILE in plans[0].files:
        plan, text = plans[0], plans[0].files[scripts.FILE]
        intent = scripts.intent_of(plan.run_id, [plan.job], plan.attempt)
        name, script, sent = _name(intent, plan), f"jobs/{plan.job}/{scripts.FILE}", True
        if plan.attempt:  # another attempt has another intent, hence another name and script
            text = text.replace(_name(scripts.intent_of(plan.run_id, [plan.job]), plan), name)
            script, sent = f"{scripts.SUBFOLDER}/{intent}.sh", False
        yield Call(intent, name, (plan,), False, script, text, sent)
        return
    alike: dict[str, list[Plan]] = {}
    for plan in plans:
        alike.setdefault(repr((replace(plan.settings, env_vars=None), plan.resources)), []).append(plan)
    for group in alike.values():
        for at in range(0, len(group), most):
            yield _array(group[at : at + most])


def _array(plans: list[Plan]) -> Call:
    first = plans[0]
    intent = scripts.intent_of(first.run_id, [plan.job for plan in plans], first.attempt)
    name, paths, config = _name(intent, first), first.paths, first.settings
    record = f"{paths.run}/{scripts.SUBFOLDER}/{intent}.json"
    throttle = f"%{config.max_parallel}" if config.max_parallel else ""
    mounts = first.mounts or ()
    inside = scripts.inside_of(config, paths.run, mounts)
    command = (*inside, *worker_command(paths.python, paths.package, "--array", record))
    script = scripts.Script(name, paths.run, command, array=f"0-{len(plans) - 1}{throttle}", mounts=mounts)
    resources = first.resources or executor_for(config).resources(None)
    text = scripts.render(config, resources, script, batch=first.mode == "batch")
    return Call(intent, name, tuple(plans), True, f"{scripts.SUBFOLDER}/{intent}.sh", text, sent=False)


def _name(intent: str, plan: Plan) -> str:
    return scripts.job_name(intent, label_of(plan.settings, plan.recipe, plan.stage))


_SAME_NAME = (
    *("gpus_per_node", "cpus_per_task", "cpus_per_gpu", "gpus_per_task", "mem", "mem_per_gpu", "mem_per_cpu", "gres"),
    *("qos", "constraint", "exclude", "exclusive", "array", "time", "container_image", "segment", "comment"),
)
# Flags of sbatch for which NeMo-Run's executor has no field.
_WITHOUT_FIELD = ("nodelist", "reservation", "mail_user", "mail_type")


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
