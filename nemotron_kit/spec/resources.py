"""The settings of a job's profile with all overrides, and what they request: nodes, processes, CPUs, GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemotron_kit.errors import Note, UserError
from nemotron_kit.files import map_leaves
from nemotron_kit.lazy import Value
from nemotron_kit.quoting import omegaconf_unescaped
from nemotron_kit.spec.runconfig import DEFAULTS, RunConfig, field_name, with_overrides

MODES = ("local", "run", "batch")


def effective_settings(
    run: Mapping[str, Any], overrides: Sequence[str], recorded: RunConfig | None = None, resources: str | None = None
) -> RunConfig:
    """The RunConfig of a composed `run` section. Raises UserError for a wrong mode, profile, field or type.

    `recorded` are the settings of an earlier launch of the same job, used instead of the profile. `resources` is the
    class of the job, for which a profile may have other values.
    """
    mode, profile = run.get("mode"), run.get("profile")
    if mode not in MODES:
        raise UserError(f"run.mode: expected one of {', '.join(MODES)}, got {mode!r}.")
    if mode != "local" and not profile:
        option = "--run" if mode == "run" else "--batch"
        raise UserError(f"run.mode={mode} needs a profile.", hint=f"Give run.profile=NAME, or {option} NAME.")
    environment = map_leaves(  # in a frozen text `\${` means a literal `${`
        run.get("env") or {}, lambda each: omegaconf_unescaped(each) if isinstance(each, str) else each
    )
    given = {key for key in environment if _on_command_line(key, overrides)}
    if recorded is not None:
        typed = {key: value for key, value in environment.items() if key in given}
        return with_overrides(recorded, typed, prefix="run.env.")
    if not profile and not environment:
        return RunConfig()
    from nemotron_kit.spec.profiles import effective_profile

    return effective_profile(
        profile,
        file_env={key: value for key, value in environment.items() if key not in given},
        command_line={key: value for key, value in environment.items() if key in given},
        resources=resources,
    ).config


def _on_command_line(key: str, overrides: Sequence[str]) -> bool:
    given = (override.lstrip("+") for override in overrides)
    # A block (`run.env={nodes: 2}`) has its keys in Hydra's grammar, in which a name is followed by a colon.
    name = re.compile(rf"[{{,]\s*['\"]?{re.escape(key)}['\"]?\s*:")
    return any(
        each.startswith((f"run.env.{key}=", f"run.env.{key}."))
        or (each.startswith(("run.env={", "run={")) and name.search(each) is not None)
        for each in given
    )


@dataclass(frozen=True, eq=False, repr=False)
class Resources(Value):
    """`processes` are those on one node; with more than one, or more than one node, torchrun starts them. With `ray`
    they are Ray's to start, and one worker a node starts Ray. `notes` describe settings that are applied differently
    than written."""

    nodes: int
    processes: int
    torchrun: bool
    cpus_per_task: int | None = None
    gpus_per_task: int | None = None
    notes: tuple[str, ...] = ()
    ray: bool = False

    def on_ray(self) -> Resources:
        """The same nodes and CPUs for a job that runs on its own Ray cluster: one worker a node."""
        what = f"{self.nodes} nodes: node 0 is its head" if self.nodes > 1 else "this one node"
        note = f"Ray: a cluster for this job, {what}; the program runs on the head, and Ray ends with it."
        return replace(self, processes=1, torchrun=False, ray=True, notes=(note,))


def gpus_of(gres: str | None) -> int | None:
    """How many GPUs a node `--gres` asks for: of all types together, one where an entry has no count; None for none."""
    entries = [re.split("[:=]", entry.removeprefix("gres:")) for entry in (gres or "").split(",")]
    counts = [int(parts[-1]) if parts[-1].isdecimal() else 1 for parts in entries if parts[0] == "gpu"]
    return sum(counts) if counts else None


def resources_of(config: RunConfig, torchrun: bool | None, *, gres: bool = False) -> Resources:
    """The resources that a job of a profile requests. `torchrun` is the command's setting; without one (None) torchrun
    is used for more than one process or node. With `gres`, its GPUs count where gpus_per_node is not set."""
    nodes, tasks = config.nodes or 1, config.ntasks_per_node or 1
    in_gres = gpus_of(config.gres) if gres and config.gpus_per_node is None else None
    processes = config.nproc_per_node or (tasks if tasks > 1 else (config.gpus_per_node or in_gres or 1))
    if torchrun is False:
        return _plain(config, nodes, tasks, processes, in_gres or 1)
    notes = []
    if processes > 1 and not config.nproc_per_node:
        name = "ntasks_per_node" if tasks > 1 else "gpus_per_node"
        if name == "gpus_per_node" and in_gres:
            notes.append(
                f"gres={config.gres}: {in_gres} GPUs a node: one torchrun a node, which starts {processes} processes."
            )
        else:
            notes.append(f"{name}={processes}: one torchrun a node, which starts {processes} processes.")
    return Resources(
        nodes=nodes,
        processes=processes,
        torchrun=processes > 1 or nodes > 1,
        cpus_per_task=_cpus(config, processes if not config.nproc_per_node or tasks > 1 else 1),
        gpus_per_task=config.gpus_per_task * tasks if config.gpus_per_task else None,
        notes=tuple(notes),
    )


def _plain(config: RunConfig, nodes: int, tasks: int, processes: int, in_gres: int) -> Resources:
    asked = {"nodes": nodes, "ntasks_per_node": tasks, "nproc_per_node": config.nproc_per_node or 1}
    if processes == config.gpus_per_node:
        asked["gpus_per_node"] = processes
    requested = [f"{name}={count}" for name, count in asked.items() if count > 1]
    requested += [f"gres={config.gres}"] if in_gres > 1 else []
    field = "nodes" if nodes > 1 else ""
    text = f"{', '.join(requested)}: this command is one process on one node."
    notes = [Note(text, field=field)] if requested else []
    return Resources(
        nodes=1,
        processes=1,
        torchrun=False,
        cpus_per_task=_cpus(config, tasks),
        gpus_per_task=config.gpus_per_task,
        notes=tuple(notes),
    )


def _cpus(config: RunConfig, tasks: int) -> int | None:
    """--cpus-per-task of the one task that starts `tasks` processes; None where nothing is requested, and for exclusive
    nodes, of which the job gets all CPUs anyway."""
    if config.cpus_per_task is None and (config.exclusive or config.cpus_per_gpu is not None):
        return None
    count = (config.cpus_per_task or 1) * max(1, tasks)
    return count if count > 1 else config.cpus_per_task


def label_of(settings: RunConfig, recipe: str, stage: str) -> str:
    """The job's name on a cluster, beside the mark that nemotron_kit adds: the profile's `job_name`, else the
    command."""
    return settings.job_name if settings.job_name != DEFAULTS["job_name"] else f"{recipe}-{stage}"


def fields_given(settings: RunConfig, run: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """The fields that the profile and the command line set. What a config file gives in `run.env` is for whichever
    executor has a use for it."""
    given = {name for name, default in DEFAULTS.items() if getattr(settings, name) not in (default, [], {})}
    from_file = {field_name(key, key) for key in run.get("env") or {} if not _on_command_line(key, overrides)}
    return sorted(given - from_file)


# GPUs by name: memory in GB, of what has two sizes the larger one; and the peak of dense bf16 (V100, T4: fp16) in
# TFLOPS, of what comes in several forms the fastest. Both as their vendor counts.
_GPUS: dict[str, tuple[int, int]] = {
    "t4": (16, 65),
    "a10": (24, 125),
    "a10g": (24, 70),
    "a30": (24, 165),
    "l4": (24, 121),
    "v100": (32, 125),
    "a40": (48, 150),
    "a6000": (48, 155),
    "l40": (48, 181),
    "l40s": (48, 362),
    "a100": (80, 312),
    "h100": (80, 989),
    "h20": (96, 148),
    "gh200": (96, 989),
    "h200": (141, 989),
    "b200": (180, 2250),
    "gb200": (186, 2500),
    "b300": (270, 2250),
    "gb300": (279, 2500),
}
_TWO_SIZES = {"a100": "40 or 80", "v100": "16 or 32"}
# Instance types of the clouds whose names don't contain their GPU.
_INSTANCES = {
    **dict.fromkeys(("p4d.", "a2-highgpu", "a2-megagpu", "nd96asr"), ("a100", 40)),
    **dict.fromkeys(("p4de.", "a2-ultragpu", "nd96amsr"), ("a100", 80)),
    **dict.fromkeys(("p5.", "a3-highgpu", "a3-megagpu", "a3-edgegpu"), ("h100", 80)),
    **dict.fromkeys(("p5e.", "p5en.", "a3-ultragpu"), ("h200", 141)),
    "a4-highgpu": ("b200", 180),
    "g5.": ("a10g", 24),
    "g6.": ("l4", 24),
    "g6e.": ("l40s", 48),
}
_GPU = rf"(?<![a-z0-9])(?:[0-9]+x)?({'|'.join(_GPUS)})(?![a-z0-9])"
_SIZE = r"(?<![a-z0-9])([0-9]{2,3})gi?b?(?![a-z0-9])"
_NAMING_GPUS = ("gres", "gpus", "resource_shape", "node_group", "constraint")


@dataclass(frozen=True, eq=False, repr=False)
class Gpu(Value):
    """A kind of GPU: what it is called in messages, and its memory in bytes. `unsure`: of which sizes it may be;
    `flops`: the peak of its dense bf16, in operations a second, where its kind is known."""

    name: str
    memory: int
    unsure: str | None = None
    flops: float | None = None


def gpu_of(config: RunConfig) -> Gpu | None:
    """The GPUs that a profile's jobs get: by its gpu_memory, else by a name that it gives them in another field. None
    where it gives none that is known."""
    texts = [getattr(config, name) for name in _NAMING_GPUS]
    texts += [value for value in (config.extra or {}).values() if isinstance(value, str)]
    named = next(filter(None, (_gpu_in(text.lower()) for text in texts if text)), None)
    if config.gpu_memory:
        size = float(config.gpu_memory.rstrip("GiB "))
        called = f"a GPU of this profile ({config.gpu_memory})"
        return Gpu(called, int(size * 2**30), flops=named.flops if named else None)
    return named


def _gpu_in(text: str) -> Gpu | None:
    instance = next(
        (given for name, given in _INSTANCES.items() if re.search(rf"(^|[^a-z0-9]){re.escape(name)}", text)), None
    )
    if instance:
        name, size = instance
        return Gpu(f"an {name.upper()} with {size} GB", size << 30, flops=_GPUS[name][1] * 1e12)
    found = re.search(_GPU, text)
    if found is None:
        return None
    name, given = found[1], re.search(_SIZE, text[found.end() :])
    gigabytes, tera = _GPUS[name]
    gigabytes = int(given[1]) if given else gigabytes
    article = "an" if name[0] in "ahl" else "a"
    unsure = None if given else _TWO_SIZES.get(name)
    return Gpu(f"{article} {name.upper()} with {gigabytes} GB", gigabytes << 30, unsure, tera * 1e12)
