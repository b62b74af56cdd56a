"""Questions about what starts the jobs of a target: Slurm with its partitions and containers, a Docker engine."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron_kit.execution.checks_common import OK, WRONG, Finding, Target
from nemotron_kit.plan.runconfig import RunConfig, resolve_partition


def slurm(target: Target) -> Iterator[Finding]:
    """Slurm's commands, its queue and its accounting."""
    facts = target.ask("slurm_facts")
    missing = [tool for tool, path in facts["tools"].items() if not path]
    if missing:
        yield Finding("slurm", WRONG, f"{', '.join(missing)}: not on the PATH there. Is that a login node?")
        return
    yield Finding("slurm", OK, facts["version"])
    for tool, what in (("squeue", "the queue"), ("sacct", "accounting")):
        said = facts[tool]
        yield Finding(tool, WRONG if said else OK, said or f"{what} answers")


def partitions(target: Target) -> Iterator[Finding]:
    """Whether sbatch would take a job of this profile, for --run and for --batch."""
    config = target.config
    chosen = {resolve_partition(config, is_launch=False): "--run", resolve_partition(config, is_launch=True): "--batch"}
    if not config.account or None in chosen:
        yield Finding("account", WRONG, "A Slurm profile needs account and partition.")
        return
    for partition in chosen:
        said = target.ask("slurm_accepts", options=_options(config, str(partition)))
        what = f"account {config.account}, partition {partition}"
        yield Finding(f"partition {partition}", WRONG if said else OK, said or f"{what}: a job would be accepted")


def image(target: Target) -> Iterator[Finding]:
    """Slurm's container, as far as that can be seen without starting one."""
    name = target.config.container_image
    if not name:
        return
    if not target.ask("slurm_facts").get("pyxis"):
        yield Finding("container", WRONG, "srun has no --container-image there: Pyxis is not installed.")
    if name.startswith("/"):
        (there,) = target.ask("exist", paths=[name])
        yield Finding("image", OK if there else WRONG, name if there else f"{name}: no such file there")
    else:
        yield Finding("image", OK, f"{name}: pulled when the job starts")


def mounts(target: Target) -> Iterator[Finding]:
    """What a container is to see of the machine."""
    sources = [mount.partition(":")[0] for mount in target.config.mounts or () if mount.startswith("/")]
    for source, there in zip(sources, target.ask("exist", paths=sources) if sources else [], strict=True):
        yield Finding("mounts", OK if there else WRONG, source if there else f"{source}: no such folder there")


def docker(target: Target) -> Iterator[Finding]:
    """The engine, and whether it has the image already."""
    name = target.config.container_image
    facts = target.ask("docker_facts", image=name)
    if "error" in facts:
        yield Finding("docker", WRONG, facts["error"])
        return
    yield Finding("docker", OK, f"engine {facts['version']}")
    if not name:
        yield Finding("image", WRONG, "A Docker profile needs container_image.")
    else:
        yield Finding("image", OK, f"{name}: {'there' if facts['has_image'] else 'pulled when the job starts'}")


def _options(config: RunConfig, partition: str) -> list[str]:
    """sbatch's options for a job of this profile: words of an argument list, never a shell's."""
    given = {
        "account": config.account,
        "partition": partition,
        "nodes": config.nodes or 1,
        "ntasks-per-node": 1,
        "time": config.time,
        "qos": config.qos,
        "constraint": config.constraint,
        "exclude": config.exclude,
        "gres": config.gres,
        "gpus-per-node": config.gpus_per_node,
        "mem": config.mem,
        "mem-per-cpu": config.mem_per_cpu,
        "cpus-per-task": config.cpus_per_task,
    }
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*words, *(["--exclusive"] if config.exclusive else [])]
