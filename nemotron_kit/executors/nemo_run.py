"""A profile as NeMo-Run's own executor and packager. NeMo-Run is imported here, and only when one is asked for.

Importing it takes seconds, most of them for torch and for the clouds' packages, which neither Slurm nor Docker needs: a
process beside this one imports it without them, answers, and leaves this process as it was.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.quoting import shell_word
from nemotron_kit.spec.runconfig import DEFAULTS, ProfileError, RunConfig, env_dict, resolve_partition, with_overrides
from nemotron_kit.worker import python_module
from nemotron_kit.worker.process import start_apart


def build_packager(run: Any, config: RunConfig) -> Any:
    """Ours, `worktree` (the default), carries the code itself: NeMo-Run then packs nothing."""
    return _PACKAGERS[config.packager or "worktree"](run, config)


def git_packager(run: Any, config: RunConfig) -> Any:
    return run.GitArchivePackager(
        subpath=config.subpath or "",
        include_submodules=config.include_submodules is not False,
        include_pattern=list(config.packager_include_pattern or [""]),
        include_pattern_relative_path=["" for _ in config.packager_include_pattern or [""]],
    )


def _pattern(run: Any, config: RunConfig) -> Any:
    if not config.packager_include_pattern:
        raise ProfileError("packager 'pattern' needs packager_include_pattern.")
    patterns = list(config.packager_include_pattern)
    return run.PatternPackager(include_pattern=patterns, relative_path=[str(Path.cwd())] * len(patterns))


def _hybrid(run: Any, config: RunConfig) -> Any:
    plain_git = git_packager(run, replace(config, packager_include_pattern=None))
    return run.HybridPackager(sub_packagers={"git": plain_git, "pattern": _pattern(run, config)}, extract_at_root=True)


def _nothing(run: Any, _: RunConfig) -> Any:
    return run.Packager()


_PACKAGERS = {"worktree": _nothing, "none": _nothing, "git": git_packager, "pattern": _pattern, "hybrid": _hybrid}


_SECRET = re.compile(r"\$\{secret:([A-Za-z_][A-Za-z0-9_]*)\}\Z")
Env = dict[str, str]


class FromProfile(str):
    """A variable's value as a profile gives it: `$NAME` in it is what that is where the job runs."""


def _word(value: str) -> str:
    return shell_word(value) if isinstance(value, FromProfile) else shlex.quote(value)


def _local(run: Any, config: RunConfig, env: Env) -> Any:
    return run.LocalExecutor(
        ntasks_per_node=config.nproc_per_node or 1, nodes=config.nodes or 1, env_vars=env, **(config.extra or {})
    )


def _docker(run: Any, config: RunConfig, env: Env) -> Any:
    _need(config, "container_image")
    gpus = config.gpus_per_node
    return run.DockerExecutor(
        container_image=config.container_image,
        ntasks_per_node=config.nproc_per_node or 1,
        num_gpus=config.nproc_per_node if gpus is None and config.runtime == "nvidia" else gpus,
        runtime=config.runtime,
        ipc_mode=config.ipc_mode,
        shm_size=config.shm_size,
        volumes=list(config.mounts or ()),
        packager=build_packager(run, config),
        env_vars=env,
        **(config.extra or {}),
    )


_SLURM_AS_THEY_ARE = (
    *("gpus_per_node", "cpus_per_task", "cpus_per_gpu", "gpus_per_task", "mem", "mem_per_gpu", "mem_per_cpu", "gres"),
    *("qos", "constraint", "exclude", "exclusive", "array", "time", "container_image"),
)


def _slurm(run: Any, config: RunConfig, env: Env) -> Any:
    partition = resolve_partition(config, is_launch=bool(config.detach))
    _need(replace(config, partition=partition), "account", "partition")
    # NeMo-Run writes every name in capitals: one that isn't would become another variable.
    capitals = {name: _word(value) for name, value in env.items() if name == name.upper()}
    others = [f"export {name}={_word(value)}" for name, value in env.items() if name != name.upper()]
    return run.SlurmExecutor(
        account=config.account,
        partition=partition,
        job_name_prefix=f"{config.job_name}.",
        nodes=config.nodes or 1,
        ntasks_per_node=config.ntasks_per_node or 1,
        torchrun_nproc_per_node=config.nproc_per_node,
        container_mounts=list(config.mounts or ()),
        setup_lines="\n".join([*others, *_shell(config)]) or None,
        tunnel=_tunnel(run, config),
        packager=build_packager(run, config),
        env_vars=capitals,
        # Otherwise a thread of NeMo-Run's prints over whatever else is shown.
        poll_estimated_start_time=False,
        **{name: getattr(config, name) for name in _SLURM_AS_THEY_ARE},
        **(config.extra or {}),
    )


def _skypilot(run: Any, config: RunConfig, env: Env) -> Any:
    kind, _, count = (config.gpus or "").partition(":")
    if count and not count.isdecimal():
        raise ProfileError(f"gpus: expected NAME or NAME:COUNT, got {config.gpus!r}.")
    return run.SkypilotExecutor(
        container_image=config.container_image,
        cloud=config.cloud,
        gpus=kind or None,
        gpus_per_node=int(count) if count else config.gpus_per_node,
        num_nodes=config.nodes or 1,
        cluster_name=config.cluster_name,
        setup="\n".join(_shell(config)) or None,
        torchrun_nproc_per_node=config.nproc_per_node,
        # SkyPilot's executor takes no other.
        packager=git_packager(run, config),
        env_vars=env,
        **(config.extra or {}),
    )


def _dgxcloud(run: Any, config: RunConfig, env: Env) -> Any:
    needed = ("base_url", "app_id", "app_secret", "project_name", "container_image", "nemo_run_dir")
    _need(config, *needed)
    extra = dict(config.extra or {})
    if "kube_apiserver_url" not in extra:
        raise ProfileError('dgxcloud needs the address of its API server: extra = {kube_apiserver_url = "https://…"}.')
    return run.DGXCloudExecutor(
        base_url=config.base_url,
        client_id=config.app_id,
        client_secret=_secret("app_secret", config.app_secret or ""),
        project_name=config.project_name,
        container_image=config.container_image,
        pvc_nemo_run_dir=config.nemo_run_dir,
        nodes=config.nodes or 1,
        gpus_per_node=config.gpus_per_node or 0,
        nprocs_per_node=config.nproc_per_node or 1,
        pvcs=[_claim(item) for item in config.pvcs or ()],
        packager=build_packager(run, config),
        env_vars={name: _word(value) for name, value in env.items()},
        **extra,
    )


def _lepton(run: Any, config: RunConfig, env: Env) -> Any:
    _need(config, "container_image", "nemo_run_dir")
    mounts = [mount.split(":", 2) for mount in config.mounts or ()]
    if any(len(parts) < 2 for parts in mounts):
        raise ProfileError(f"mounts: lepton takes PATH:MOUNT_PATH:STORAGE, got {config.mounts}.")
    return run.LeptonExecutor(
        container_image=config.container_image,
        nemo_run_dir=config.nemo_run_dir,
        nodes=config.nodes or 1,
        gpus_per_node=config.gpus_per_node or 0,
        nprocs_per_node=config.nproc_per_node or 1,
        resource_shape=config.resource_shape or "",
        node_group=config.node_group or "",
        mounts=[dict(zip(("path", "mount_path", "from"), parts, strict=False)) for parts in mounts],
        pre_launch_commands=_shell(config),
        packager=build_packager(run, config),
        env_vars=env,
        **(config.extra or {}),
    )


def _kubeflow(run: Any, config: RunConfig, env: Env) -> Any:
    _need(config, "container_image")
    return run.KubeflowExecutor(
        image=config.container_image,
        num_nodes=config.nodes or 1,
        nprocs_per_node=config.nproc_per_node,
        gpus_per_node=config.gpus_per_node,
        packager=build_packager(run, config),
        # As entries of the pod, not as env_vars: those go through a script that quotes nothing.
        env_list=[{"name": name, "value": value} for name, value in env.items()],
        **(config.extra or {}),
    )


BUILDERS: dict[str, Callable[[Any, RunConfig, Env], Any]] = {
    "local": _local,
    "docker": _docker,
    "slurm": _slurm,
    "skypilot": _skypilot,
    "dgxcloud": _dgxcloud,
    "lepton": _lepton,
    "kubeflow": _kubeflow,
}


def _need(config: RunConfig, *names: str) -> None:
    missing = [name for name in names if not getattr(config, name)]
    if missing:
        raise ProfileError(
            f"executor {config.executor!r} needs {' and '.join(missing)}.",
            hint="Add to the profile in env.toml:\n" + "\n".join(f'{name} = "…"' for name in missing),
        )


def _tunnel(run: Any, config: RunConfig) -> Any:
    if config.tunnel == "local":
        return run.LocalTunnel(job_dir="")  # NeMo-Run never fills a folder that is named here
    if not (config.host and config.user):
        missing = " and ".join(name for name in ("host", "user") if not getattr(config, name))
        raise ProfileError(f"tunnel 'ssh' needs {missing}.", hint="Set it in the profile.")
    identity = str(Path(config.identity).expanduser()) if config.identity else None
    job_dir = config.remote_job_dir or ".nemotron/runs"  # relative to the home there
    return run.SSHTunnel(host=config.host, user=config.user, identity=identity, job_dir=job_dir)


def _shell(config: RunConfig) -> list[str]:
    """The lines that are shell by intent."""
    return [*(config.startup_commands or ()), *([config.setup] if config.setup else ())]


def _secret(name: str, value: str) -> str:
    """`${secret:NAME}` is the environment variable NAME; anything else is taken as it stands."""
    match = _SECRET.match(value)
    if match is None:
        return value
    if match[1] not in os.environ:
        raise ProfileError(f"{name}: the environment variable {match[1]} is not set.")
    return os.environ[match[1]]


def _claim(item: str | dict[str, Any]) -> dict[str, Any]:
    """`claim:/path`, or a table as DGX Cloud's own API takes it."""
    if isinstance(item, dict):
        return item
    name, _, path = item.partition(":")
    if not (name and path.startswith("/")):
        raise ProfileError(f"pvcs: expected CLAIM:/PATH or a table, got {item!r}.")
    return {"claimName": name, "path": path, "existingPvc": True}


class MissingExtra(UserError, ImportError):
    """A package that this executor needs is not installed."""


def build_executor(config: RunConfig, env_vars: Mapping[str, str] | None = None) -> Any:
    """The NeMo-Run executor for `config`, with `env_vars` over the profile's own.

    It names a launch's resources; nothing is connected to, started or written. The launcher stays None: the worker
    starts torchrun. Slurm needs account and partition, Docker container_image, an ssh tunnel host and user. Raises
    ProfileError (a ValueError) for what is missing or wrong, MissingExtra (an ImportError) without NeMo-Run or what it
    needs itself.
    """
    checked = _checked(config)
    build = BUILDERS[checked.executor]
    added = env_dict(RunConfig(env_vars=[f"{name}={value}" for name, value in (env_vars or {}).items()]))
    run = _nemo_run()
    try:
        executor = build(
            run, checked, {**{name: FromProfile(text) for name, text in env_dict(checked).items()}, **added}
        )
    except TypeError as error:
        raise ProfileError(f"extra: NeMo-Run's {checked.executor} executor says: {error}.") from error
    except (ImportError, AssertionError) as error:  # NeMo-Run asserts that SkyPilot and Kubernetes are installed
        raise MissingExtra(f"executor {checked.executor!r} is not complete here: {error}") from error
    if checked.retries is not None:
        executor.retries = checked.retries
    return executor


def _checked(config: RunConfig) -> RunConfig:
    """The same config, each value checked: a caller may have made it by hand."""
    given = {name: value for name, value in asdict(config).items() if value != DEFAULTS[name] and name != "extends"}
    return replace(with_overrides(RunConfig(), given, prefix=""), extends=None)


def _nemo_run() -> Any:
    try:
        import nemo_run
    except ImportError as error:
        raise MissingExtra(
            f"This executor needs NeMo-Run, which can't be imported: {error}.",
            hint="pip install 'nemotron-kit[nemo-run]'",
        ) from error
    return nemo_run


# How long the process beside this one waits for another question.
_IDLE_SECONDS = 60
_beside: list[subprocess.Popen[str]] = []


def start() -> None:
    """Start the process that answers, unless there is one. It ends with this one, or when nothing is asked."""
    if _beside and _beside[0].poll() is not None:
        _beside.pop()
    if not _beside:
        _beside.append(start_apart(python_module(__name__), subprocess.DEVNULL, talks=True))


def ask(module: str, request: Mapping[str, Any]) -> Any:
    """What `answer(request)` of one of our modules gives in the process beside this one; None where NeMo-Run is
    imported here already, or there was no answer: doing it here then says why."""
    if not _beside and ("nemo_run" in sys.modules or not find_spec("nemo_run")):
        return None
    try:
        start()
        process = _beside[0]
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 — Popen was given pipes
        process.stdin.write(json.dumps({"module": module, "request": request}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())["answer"]
    except (OSError, TypeError, ValueError):  # it has ended, or a value is none of JSON's
        return None


def import_in_part() -> Any:
    """NeMo-Run, in a process of our own: without torch, and with empty modules for the clouds' packages while it is
    imported. A third of the time; local, Docker's and Slurm's executors are whole."""
    if "nemo_run" not in sys.modules:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        empty = _Empty({name for name in ("leptonai", "kubernetes") if name not in sys.modules})
        sys.meta_path.insert(0, empty)
        try:
            import_module("nemo_run")
        finally:
            sys.meta_path.remove(empty)
            for name in [name for name, module in sys.modules.items() if isinstance(module, _EmptyModule)]:
                del sys.modules[name]
    return sys.modules["nemo_run"]


class _EmptyModule(ModuleType):
    """Whatever is imported from it is a class without anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Empty(MetaPathFinder, Loader):
    """Finds the packages of these names, and what is in them, empty."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        found = fullname.partition(".")[0] in self._names
        return ModuleSpec(fullname, self, is_package=True) if found else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


def main() -> None:
    """Answer questions, one a line, until there are no more."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    import_in_part()
    while select.select([sys.stdin], [], [], _IDLE_SECONDS)[0] and (line := sys.stdin.readline()):
        question = json.loads(line)
        try:
            answer = import_module(question["module"]).answer(question["request"])
        # Whoever asked does it again, and has the error then.
        except Exception:  # noqa: BLE001
            answer = None
        print(json.dumps({"answer": answer}), file=answers, flush=True)


if __name__ == "__main__":
    main()
