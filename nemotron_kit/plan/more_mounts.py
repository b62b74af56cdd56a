"""More folders for a job's container, once it is planned: `--after` learns only then whose files it will read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nemotron_kit.plan.plan import Plan


def with_folders(plan: Plan, folders: Sequence[str]) -> Plan:
    """The plan of a job that finds `folders` at the same paths; as it is where that needs no mount."""
    if not folders or plan.problems or not plan.settings.get("container_image"):
        return plan
    if plan.executor == "docker" and "container" in plan.extra:
        return _docker(plan, folders)
    return _slurm(plan, folders) if plan.executor == "slurm" else plan


def _docker(plan: Plan, folders: Sequence[str]) -> Plan:
    from nemotron_kit.plan.docker import mount

    container = plan.extra["container"]
    words = list(container["words"])
    at = words.index("--entrypoint=")
    words[at:at] = [word for folder in folders for word in mount(folder, writable=False)]
    return replace(plan, extra={**plan.extra, "container": {**container, "words": words}})


def _slurm(plan: Plan, folders: Sequence[str]) -> Plan:
    from nemotron_kit.plan import sbatch, slurm
    from nemotron_kit.plan.effects import label_of
    from nemotron_kit.plan.resources import Resources
    from nemotron_kit.plan.runconfig import RunConfig

    mounts = [*plan.extra["mounts"], *folders]
    extra = {**plan.extra, "mounts": mounts}
    if sbatch.FILE not in plan.files:
        return replace(plan, extra=extra)
    intent, place = slurm.intent_of(plan.run_id, [plan.job]), plan.place
    script = slurm.Script(
        slurm.job_name(intent, label_of(plan.settings, plan.recipe, plan.stage)),
        place["run"],
        slurm.command_of(place["python"], place["kit"], place["job"]),
        mounts=tuple(mounts),
    )
    resources = Resources(**plan.extra["resources"])
    text = slurm.render(RunConfig(**plan.settings), resources, script, batch=plan.mode == "batch")
    return replace(plan, extra=extra, files={**plan.files, sbatch.FILE: text})
