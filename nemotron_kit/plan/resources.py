"""What a profile asks for, as a job with one worker a node understands it: nodes, processes, CPUs and GPUs a node."""

from __future__ import annotations

from dataclasses import dataclass

from nemotron_kit.plan.runconfig import RunConfig


@dataclass(frozen=True)
class Resources:
    """`processes` are those on one node; more than one, or more than one node, is torchrun. `notes` say what was
    understood, where it isn't what was written."""

    nodes: int
    processes: int
    torchrun: bool
    cpus_per_task: int | None = None
    gpus_per_task: int | None = None
    notes: tuple[str, ...] = ()


def resources_of(config: RunConfig, torchrun: bool | None) -> Resources:
    """`torchrun` is what the command says of itself; None where it says nothing: then the numbers decide."""
    nodes, tasks = config.nodes or 1, config.ntasks_per_node or 1
    processes = config.nproc_per_node or (tasks if tasks > 1 else (config.gpus_per_node or 1))
    if torchrun is False:
        return _plain(config, nodes, tasks, processes)
    if config.executor == "local":  # this machine, whatever a scheduler would be asked for
        processes = config.nproc_per_node or 1
        return Resources(nodes=1, processes=processes, torchrun=processes > 1)
    notes = []
    if processes > 1 and not config.nproc_per_node:
        name = "ntasks_per_node" if tasks > 1 else "gpus_per_node"
        notes.append(f"{name}={processes}: one torchrun a node, which starts {processes} processes.")
    return Resources(
        nodes=nodes,
        processes=processes,
        torchrun=processes > 1 or nodes > 1,
        cpus_per_task=_cpus(config, processes if not config.nproc_per_node or tasks > 1 else 1),
        gpus_per_task=config.gpus_per_task * tasks if config.gpus_per_task else None,
        notes=tuple(notes),
    )


def _plain(config: RunConfig, nodes: int, tasks: int, processes: int) -> Resources:
    asked = {"nodes": nodes, "ntasks_per_node": tasks, "nproc_per_node": config.nproc_per_node or 1}
    if config.executor != "local" and processes == config.gpus_per_node:
        asked["gpus_per_node"] = processes
    said = [f"{name}={count}" for name, count in asked.items() if count > 1]
    notes = [f"{', '.join(said)}: this command is one process on one node."] if said else []
    return Resources(
        nodes=1,
        processes=1,
        torchrun=False,
        cpus_per_task=_cpus(config, tasks),
        gpus_per_task=config.gpus_per_task,
        notes=tuple(notes),
    )


def _cpus(config: RunConfig, tasks: int) -> int | None:
    """The CPUs of `tasks` tasks for the one that stands for them. Whole nodes have all of theirs anyhow."""
    if config.exclusive and config.cpus_per_task is None:
        return None
    if config.cpus_per_gpu is not None and config.cpus_per_task is None:
        return None
    count = (config.cpus_per_task or 1) * max(1, tasks)
    return count if count > 1 else config.cpus_per_task
