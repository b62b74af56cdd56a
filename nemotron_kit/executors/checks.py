"""`nemotron profiles check`: the checks of a profile's target."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nemotron_kit.errors import NemotronError, Unreachable
from nemotron_kit.executors.base import executor_for
from nemotron_kit.executors.slurm import apptainer, script
from nemotron_kit.quoting import shell_path
from nemotron_kit.remote.agent.inspect import ENGINES, OLDEST, PROBE
from nemotron_kit.remote.ssh import Transport, transport_for
from nemotron_kit.spec.paths import RemotePaths, with_folder
from nemotron_kit.spec.runconfig import RunConfig, env_dict, resolve_partition

OK, WARNING, WRONG, UNREACHABLE = "ok", "warning", "wrong", "unreachable"
# Munge accepts a difference of five minutes; states are sorted by their times, in seconds.
_SKEW_WARNING, _SKEW_WRONG = 5.0, 240.0
_FREE_WARNING = 10e9


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was checked, its status, and what was found or should be changed."""

    what: str
    state: str
    detail: str


@dataclass(frozen=True)
class Target:
    """A profile, the paths of its jobs and the transport to its machine."""

    config: RunConfig
    paths: RemotePaths
    transport: Transport

    def ask(self, op: str, **args: Any) -> Any:
        """The result of an operation of the agent. Raises NemotronError, Unreachable if the machine does not answer."""
        return self.transport.call(op, **args)[0]


def connection(target: Target) -> Iterator[Finding]:
    """The connection, and the difference between the two clocks."""
    began = time.monotonic()
    facts = target.ask("hello")
    seconds = time.monotonic() - began
    asked = time.time()
    remote_time = target.ask("hello")["time"]
    skew = remote_time - (asked + time.time()) / 2
    where = f"{facts['user']} on {facts['host']}"
    yield Finding("connection", OK, f"{where}, {seconds:.1f} s" if target.paths.is_remote else f"this machine: {where}")
    if target.paths.is_remote:
        state = WRONG if abs(skew) > _SKEW_WRONG else WARNING if abs(skew) > _SKEW_WARNING else OK
        yield Finding("clock", state, f"{'the same' if state == OK else f'differs by {skew:+.1f} s'}")


def python(target: Target) -> Iterator[Finding]:
    """The worker's Python: the profile's, where it names one."""
    config = target.config
    if config.container_image:
        more = ": --node checks it" if config.executor == "slurm" else ""
        yield Finding("python", OK, f"{target.paths.python} of the image, not checked here{more}")
        return
    if config.conda and not config.python:
        yield Finding("python", WARNING, f"that of conda's {config.conda}, on the node: not checked (--node does)")
        return
    yield from _judged("python", target.ask("python_facts", python=config.python), config)


def _judged(what: str, facts: Mapping[str, Any], config: RunConfig) -> Iterator[Finding]:
    """Whether the worker can run with a Python of these facts."""
    if "error" in facts:
        yield Finding(what, WRONG, facts["error"])
        return
    modules = facts["modules"]
    has = ", ".join(f"{name} {version}" for name, version in modules.items()) or "none of the packages that jobs use"
    too_old = tuple(map(int, re.findall(r"\d+", facts["version"])[:2])) < OLDEST
    needs = f"; {OLDEST[0]}.{OLDEST[1]} or newer is needed" if too_old else ""
    yield Finding(what, WRONG if too_old else OK, f"{facts['version']} ({facts['executable']}): {has}{needs}")
    for name in ("omegaconf", "yaml"):
        if name in modules:
            continue
        where = "It has to be in the image" if config.container_image else f"{facts['executable']} -m pip install"
        package = {"yaml": "pyyaml"}.get(name, name)
        fix = f"{where}{'' if config.container_image else ' ' + package}, or name another in the profile: python = …"
        yield Finding(name, WRONG, f"The worker needs it: {facts['broken'].get(name) or fix}")


def node(target: Target) -> Iterator[Finding]:
    """On a node of the profile's partition: modules, conda, startup_commands, setup, then the Python of the jobs, in
    their container if they have one. Waits a minute for a node, which it has for five at most."""
    config = target.config
    if config.executor != "slurm":
        yield Finding("node", WRONG, f"--node is for Slurm; this profile's executor is {config.executor}")
        return
    asked = replace(config, nodes=1, time="00:05:00", nodelist=None, segment=None)
    found_options = _options(asked, batch=False)
    options = [*(o for o in found_options if o.partition("=")[0] not in _SBATCH_ONLY), "--job-name=nemotron-check"]
    program = target.paths.python
    text = script.check_text(config, shell_path(program), PROBE)
    image = None
    if config.container_image and not apptainer.runs_in(config):
        mounted = [f"--container-mounts={','.join(config.mounts)}"] if config.mounts else []
        image = [f"--container-image={config.container_image}", *mounted]
    began = time.monotonic()
    facts, _ = target.transport.call("slurm_on_node", text.encode(), options=options, image=image, python=program)
    if facts["host"] is None:
        yield Finding("node", WRONG, f"none within a minute: {facts['message'] or 'srun printed nothing'}")
        return
    yield Finding("node", OK, f"{facts['host']}, {time.monotonic() - began:.0f} s")
    if facts["stopped"]:
        yield Finding("setup", WRONG, f"{facts['stopped']}{': ' if facts['message'] else ''}{facts['message']}")
        return
    names = [name for name in ("modules", "conda", "startup_commands", "setup") if getattr(config, name)]
    if names:
        yield Finding("setup", OK, f"{', '.join(names)}: done there")
    what = "python of image" if config.container_image else "python of node"
    found = facts["python"] or {"error": f"{program}: {facts['message'] or facts['code']}"}
    yield from _judged(what, found, config)
    if "error" not in found:
        yield engines(found)


def engines(facts: Mapping[str, Any]) -> Finding:
    """Which training engines a Python of these facts (those that PROBE prints) has. Having none is a warning only: not
    every job trains."""
    modules, broken = facts["modules"], facts["broken"]
    found = []
    for name, module in ENGINES.items():
        needed = (module, "torch") if name == "hf" else (module,)
        lacking = [each for each in needed if each not in modules]
        found.append(
            f"{name} {modules[module]}" if not lacking else f"no {name} ({broken.get(lacking[0], lacking[0])})"
        )
    has_one = any(not text.startswith("no ") for text in found)
    return Finding("engines", OK if has_one else WARNING, ", ".join(found))


def storage(target: Target) -> Iterator[Finding]:
    """The folder for jobs: whether it is writable, and the free space."""
    facts = target.ask("writable", folder=target.paths.root)
    where = target.paths.root
    if "error" in facts:
        yield Finding("job folder", WRONG, f"{facts['nearest']}: {facts['error']} (remote_job_dir = {where})")
        return
    made = "" if facts["exists"] else ", made at the first launch"
    yield Finding("job folder", OK, f"{where}{made}")
    free, total = facts["free"] / 1e9, facts["total"] / 1e9
    yield Finding("free space", WARNING if facts["free"] < _FREE_WARNING else OK, f"{free:,.0f} of {total:,.0f} GB")


def registry(target: Target) -> Iterator[Finding]:
    """The artifact registry in which references are resolved."""
    facts = target.ask("registry_facts", root=target.paths.artifacts)
    count = f"{facts['names']} name{'' if facts['names'] == 1 else 's'}, {facts['uuid']}" if facts["uuid"] else "empty"
    yield Finding("registry", OK, f"{target.paths.artifacts}: {count}")


def secrets(target: Target) -> Iterator[Finding]:
    """Whether this environment has the secrets that the profile names."""
    missing = [name for name in target.config.secrets or () if name not in os.environ]
    if missing:
        yield Finding("secrets", WRONG, f"{', '.join(missing)}: not set in this environment")
    elif target.config.secrets:
        yield Finding("secrets", OK, f"{', '.join(target.config.secrets)}: set here")


def service(target: Target) -> Iterator[Finding]:
    """A cloud service: only a launch contacts it."""
    yield Finding("target", WARNING, f"{target.config.executor} is not queried here, only by NeMo-Run at launch")


def slurm(target: Target) -> Iterator[Finding]:
    """Slurm's commands, its queue and its accounting."""
    facts = target.ask("slurm_facts")
    missing = [tool for tool, path in facts["tools"].items() if not path]
    if missing:
        yield Finding("slurm", WRONG, f"{', '.join(missing)}: not on the PATH there. Is that a login node?")
        return
    yield Finding("slurm", OK, facts["version"])
    for tool, what in (("squeue", "the queue"), ("sacct", "accounting")):
        error = facts[tool]
        yield Finding(tool, WRONG if error else OK, error or f"{what} answers")


def partitions(target: Target) -> Iterator[Finding]:
    """Whether sbatch would accept a job of this profile, with the options of a launch by --run and by --batch."""
    config = target.config
    for partition, batch in {resolve_partition(config, is_launch=batch): batch for batch in (False, True)}.items():
        limit = target.ask("slurm_limits", partition=partition or "")["time"]
        options = [*_options(config, batch=batch), *script.time_limit_options(config, limit)]
        objection = target.ask("slurm_accepts", options=options)
        name = f"partition {partition}" if partition else "default partition"
        what = f"account {config.account}, {name}" if config.account else name
        yield Finding(name, WRONG if objection else OK, objection or f"{what}: a job would be accepted")


def image(target: Target) -> Iterator[Finding]:
    """Slurm's container image, as far as it can be checked without starting a container."""
    name = target.config.container_image
    if not name:
        return
    for problem in apptainer.problems_of(target.config):
        yield Finding("container", WRONG, " ".join(filter(None, (str(problem), problem.hint))))
    facts = target.ask("slurm_facts")
    if target.config.container_runtime == apptainer.APPTAINER:
        if facts.get("apptainer"):
            yield Finding("container", OK, facts["apptainer"])
        else:
            reason = "apptainer is not on the PATH there; --node checks it on a node, with the profile's modules"
            yield Finding("container", WARNING, reason)
    elif not facts.get("pyxis"):
        yield Finding("container", WRONG, "srun has no --container-image there: Pyxis is not installed.")
    if name.startswith("/"):
        (exists,) = target.ask("exist", paths=[name])
        yield Finding("image", OK if exists else WRONG, name if exists else f"{name}: no such file there")
        return
    plain = "APPTAINER_NOHTTPS" in env_dict(target.config)
    answer = target.ask("image_in_registry", image=name, **({"plain": True} if plain else {}))
    state = {"found": OK, "missing": WRONG}.get(answer["state"], WARNING)
    yield Finding("image", state, f"{name}: {answer['message']}")


def mounts(target: Target) -> Iterator[Finding]:
    """The folders that are mounted into a container."""
    sources = [mount.partition(":")[0] for mount in target.config.mounts or () if mount.startswith("/")]
    for source, exists in zip(sources, target.ask("exist", paths=sources) if sources else [], strict=True):
        yield Finding("mounts", OK if exists else WRONG, source if exists else f"{source}: no such folder there")


def docker(target: Target) -> Iterator[Finding]:
    """The Docker engine, and whether it has the image already."""
    name = target.config.container_image
    facts = target.ask("docker_facts", image=name)
    if "error" in facts:
        yield Finding("docker", WRONG, facts["error"])
        return
    yield Finding("docker", OK, f"engine {facts['version']}")
    if not name:
        yield Finding("image", WRONG, "A Docker profile needs container_image.")
    else:
        yield Finding(
            "image", OK, f"{name}: {'already pulled' if facts['has_image'] else 'pulled when the job starts'}"
        )


# What sbatch takes and srun does not, or what a check of a few minutes must not have.
_SBATCH_ONLY = (
    *("--requeue", "--no-requeue", "--open-mode", "--signal", "--dependency", "--mail-type", "--mail-user"),
    *("--wait", "--wait-all-nodes", "--get-user-env", "--hold"),
)


def _options(config: RunConfig, *, batch: bool) -> list[str]:
    """The options of sbatch in the script of a job of this profile."""
    return script.sbatch_options(config, executor_for(config).resources(None), batch=batch)


_ANY_RUN = "20000101-000000-check-000000"

Check = Callable[[Target], Iterator[Finding]]


def check_profile(config: RunConfig, *, on_node: bool = False) -> Iterator[Finding]:
    """Check the target of a profile. The check ends if the machine can't be reached; no file remains on the target, and
    nothing is submitted, but for a job of a minute with `on_node`."""
    try:
        config, _ = with_folder(config, lambda: transport_for(config).root)
    except NemotronError as error:
        yield Finding("connection", UNREACHABLE if isinstance(error, Unreachable) else WRONG, str(error))
        return
    executor = executor_for(config)
    target = Target(config, executor.paths(_ANY_RUN, 0), executor.transport)
    for named in (*executor.checks(), *(["node"] if on_node else [])):
        check: Check = globals()[named] if isinstance(named, str) else named
        try:
            yield from check(target)
        except NemotronError as error:
            state = UNREACHABLE if isinstance(error, Unreachable) else WRONG
            yield Finding(str(getattr(check, "__name__", "check")), state, str(error))
            if check is connection:
                return
