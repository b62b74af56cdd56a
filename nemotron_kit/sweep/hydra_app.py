"""Plans the jobs of another @hydra.main app: the composed config is sent with each job."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from nemotron_kit.config.secrets import masked_overrides
from nemotron_kit.errors import UserError, error_text
from nemotron_kit.executors.base import PlanContext, executor_for
from nemotron_kit.home import nemotron_home
from nemotron_kit.launch.inputs import pin_slots
from nemotron_kit.launch.placing import (
    ResolvedJob,
    import_path,
    left_out,
    local_registry,
    with_repositories,
)
from nemotron_kit.launch.plan import job_environment, job_files
from nemotron_kit.masking import is_secret_name, masked_by_name
from nemotron_kit.remote.ssh import transport_for
from nemotron_kit.spec.paths import NONE, RemotePaths, with_folder
from nemotron_kit.spec.plan import DETACHED, Plan, is_local
from nemotron_kit.spec.profiles import effective_profile
from nemotron_kit.sweep.compose_jobs import uninstall
from nemotron_kit.sweep.sweep_job import Settings, SweepJob, overrides_of
from nemotron_kit.worker import payload, worker_command
from nemotron_kit.worker.hydra import plain
from nemotron_kit.worker.payload import IMPORTED, PROGRAM, SENT, JobPayload, name_of, task_of, versions

PLUGINS = "hydra_plugins."


def interpreter_options() -> list[str]:
    """The options of this process's interpreter (`-O`, `-W error`, `-X utf8`), as multiprocessing hands them on. Those
    about where modules come from and are cached are left out: a job has the launch's import path."""
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [option for option in options if option not in ("-B", "-E", "-I", "-S", "-s")]


class PayloadBuilder:
    """Makes the payloads (worker.payload) of one launch's jobs."""

    def __init__(self, task: Callable[..., Any], callbacks: Any, argv: list[str], earlier: int = 0) -> None:
        """`earlier`: the number of sweeps over a task function of this name that the program has made before this
        one."""
        self.kind, self.function, self._program = _kind(task)
        self._argv = self._program.argv if self._program else argv
        self._earlier, self._versions = earlier, versions()
        self._plain: dict[str, Any] = {}
        # (key, value) of each literal secret of the jobs' configs → the variable that has it.
        self._literals: dict[tuple[str, Any], str] = {}
        content = {"callbacks": callbacks, "state": _state()}
        if self.kind == SENT:
            content["task"] = task
        elif self.kind == PROGRAM:
            del content["state"]["omegaconf_resolvers"]  # the program registers them again
        self._shared = self._pickled(content)

    def build(self, config: Any, hydra: Any, move: Callable[[str], str], import_path: Sequence[str]) -> JobPayload:
        """The payload of one composed job. `move` translates a path of this machine to the target's; `import_path` is
        sys.path as the job has it."""
        with self._without_plugins(hydra), self._without_literals(config) as literals:
            pickled = self._pickled((config, hydra))
        program = self._program
        return JobPayload(
            kind=self.kind,
            function=self.function,
            config=pickled,
            shared=self._shared,
            argv=[move(self._argv[0]), *self._argv[1:]],
            sys_path=list(import_path),
            versions=self._versions,
            program=(program.name if program.module else move(program.name)) if program else None,
            module=program is not None and program.module,
            earlier=self._earlier,
            started_in=move(program.started_in) if program and program.started_in else None,
            literals=literals,
            options=interpreter_options() if program else [],
        )

    @contextmanager
    def _without_literals(self, config: Any) -> Iterator[dict[str, str]]:
        """Within the block each literal secret in the config, detected by its key or its value, is replaced by a
        reference to a variable of this process, which is passed on like a profile's `secrets`. Yields those variables,
        and the types of the values."""
        found = [(key, node, node._value()) for key, node in literal_secrets(config)]
        literals = {}
        for key, node, value in found:
            variable = self._literals.setdefault((key, value), _variable_for(key, value))
            os.environ[variable] = str(value)
            literals[variable] = type(value).__name__
            node._val = f"${{secret:{variable}}}"
        try:
            yield literals
        finally:
            for _, node, value in found:
                node._val = value

    @contextmanager
    def _without_plugins(self, hydra: Any) -> Iterator[None]:
        """Within the block hydra.launcher and hydra.sweeper are plain nodes: the job's environment may lack the
        plugins' types. A sweep can't sweep over them, so one pair serves all jobs."""
        from omegaconf import OmegaConf

        before = {name: hydra._get_node(name) for name in ("launcher", "sweeper")}
        for name, node in before.items():
            if _type_of(node).__module__.startswith(PLUGINS):
                if name not in self._plain:
                    self._plain[name] = OmegaConf.create(OmegaConf.to_container(node, resolve=False))
                self._plain[name]._set_parent(hydra)
                hydra._content[name] = self._plain[name]
        try:
            yield
        finally:
            hydra._content.update(before)

    def _pickled(self, value: Any) -> str:
        dumps = pickle.dumps  # the job runs the program again, so objects of __main__ keep their names
        if self.kind != PROGRAM:
            try:
                dumps = import_module("cloudpickle").dumps
            except ImportError as error:
                raise UserError(
                    f"The task function {self.function} has to be sent to its jobs, which needs cloudpickle: {error}.",
                    hint="pip install cloudpickle, or call the app's @hydra.main in the program's file.",
                ) from error
        try:
            return base64.b64encode(dumps(value)).decode("ascii")
        except UserError:
            raise
        # Pickling a third party's object may raise any exception.
        except Exception as error:
            raise UserError(
                f"A job of this sweep can't be sent to another process: {error_text(error)}.",
                hint="Its config, its callbacks and what its task function refers to have to be picklable.",
            ) from error


def literal_secrets(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, node) of each value in a composed config that is a secret and given literally."""
    content = config._value()
    if isinstance(content, dict | list):
        for name, node in content.items() if isinstance(content, dict) else enumerate(content):
            yield from literal_secrets(node, f"{key}.{name}" if key else str(name))
    elif isinstance(content, str | int | float) and not isinstance(content, bool) and not hasattr(config, "_content"):
        text = content if isinstance(content, str) else str(content)
        if masked_by_name(text, re.sub(r"(\.\d+)+$", "", key)) != text:
            yield key, config


def _variable_for(key: str, value: Any) -> str:
    """A variable that is unset, or holds this value, and whose name marks it as a secret."""
    name = "NEMOTRON_" + re.sub(r"\W+", "_", key).upper()
    name = name if is_secret_name(name) else f"{name}_SECRET"
    number = 1
    while os.environ.get(name, str(value)) != str(value):
        number += 1
        name = f"NEMOTRON_{number}_{name.removeprefix('NEMOTRON_').lstrip('0123456789_')}"
    return name


def _state() -> dict[str, Any]:
    """Hydra's singletons and OmegaConf's resolvers, without those stored by plugins, which the job's environment may
    lack."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton

    state: dict[str, Any] = Singleton.get_state()  # a copy
    store = state["instances"].get(ConfigStore)
    if store is not None:
        _drop_plugins(store.repo)
    shared = state["instances"].get(GlobalHydra)
    if shared is not None and shared.hydra is not None:
        uninstall(shared.hydra.config_loader)
    return state


def _drop_plugins(group: dict[str, Any]) -> None:
    for name, entry in list(group.items()):
        if isinstance(entry, dict):
            _drop_plugins(entry)
        elif _type_of(entry.node).__module__.startswith(PLUGINS):
            del group[name]


def _type_of(node: Any) -> type:
    from omegaconf import OmegaConf

    return (OmegaConf.get_type(node) if OmegaConf.is_config(node) else None) or type(node)


def _kind(task: Callable[..., Any]) -> tuple[str, str, _Program | None]:
    """(kind, the function's name, how its program is run again)."""
    module, name = getattr(task, "__module__", None), name_of(task)
    found: Any = sys.modules.get(str(module))
    for part in name.split("."):
        found = getattr(found, part, None)
    if module not in (None, "__main__") and task_of(found) is task:
        return IMPORTED, f"{module}:{name}", None
    # A lambda, a partial, a bound method, an instance or a decorator's inner function is created again when the program
    # that created it runs again.
    if _is_made_by_program(task):
        program = _program(sys.modules["__main__"])
        if program is not None:
            return PROGRAM, name, program
    return SENT, f"{module}:{name}", None


def _is_made_by_program(task: Any) -> bool:
    """Whether the program's file defines the task function, or passes it to @hydra.main."""
    parts = [task, *(getattr(task, name, None) for name in ("__wrapped__", "__self__", "func")), type(task)]
    if any(getattr(part, "__module__", None) == "__main__" for part in parts if part is not None):
        return True
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name != "decorated_main":
        frame = frame.f_back  # type: ignore[assignment]
    caller = frame.f_back if frame is not None else None
    return caller is not None and caller.f_globals is vars(sys.modules["__main__"])


@dataclass(frozen=True)
class _Program:
    """How this program can be run again. `name` is a file's path, or a module's name with `module` set; `argv` are the
    arguments that it was started with (it may have removed some from sys.argv since)."""

    name: str
    module: bool
    argv: list[str]
    started_in: str | None


def _program(main: ModuleType) -> _Program | None:
    """How to run this program again; None for a prompt, a notebook, `python -c` and standard input."""
    started: list[str] = sys.orig_argv
    path = getattr(main, "__file__", None)
    if main.__spec__ is not None and main.__spec__.name == "__main__":  # a folder, or a zip file, that was named
        path = os.path.dirname(str(path))  # noqa: PTH120
    elif main.__spec__ is not None:
        name = main.__spec__.name
        asked = name.removesuffix(".__main__")
        at = None
        for i, argument in enumerate(started):  # where an interpreter's option `-m NAME` ends
            before = started[i - 1] if i else ""
            joined = argument.startswith("-") and not argument.startswith("--") and argument.endswith(f"m{asked}")
            if joined or (argument == asked and before.startswith("-") and before.endswith("m")):
                at = i
                break
        argv = [sys.argv[0], *(sys.argv[1:] if at is None else started[at + 1 :])]
        # `-m` adds the folder that it was started in to sys.path by itself.
        return _Program(name, True, argv, None)
    if not path or not os.path.exists(path):  # noqa: PTH110
        return None
    # Python makes the script's path absolute, and does not resolve links in it.
    at = next(
        (i for i, argument in enumerate(started) if i and (path == argument or path.endswith(f"/{argument}"))), None
    )
    if at is None:
        return _Program(str(Path(path).absolute()), False, list(sys.argv), None)
    inside = path.removesuffix(f"/{started[at]}") if path != started[at] else None
    return _Program(path, False, started[at:], inside or None)


MODULE = "nemotron_kit.worker.hydra_job"


class ProgramPlanner:
    """Makes the SweepJobs of one launch of an app that is not a recipe."""

    def __init__(
        self, task: Callable[..., Any], callbacks: Any, settings: Settings, run_id: str, earlier: int = 0
    ) -> None:
        """`earlier`: see PayloadBuilder."""
        given = dict(settings.env) | ({"max_parallel": settings.max_parallel} if settings.max_parallel else {})
        self.profile, self.run_id, self.objective = settings.profile, run_id, settings.objective
        self.run = effective_profile(settings.profile, file_env={}, command_line=given).config
        if self.run.dry_run:
            raise UserError(
                f"dry_run is set in the profile {settings.profile}, and a sweep of this program can't be previewed.",
                hint="hydra.launcher.env.dry_run=false starts it.",
            )
        self.run, _ = with_folder(self.run, lambda: transport_for(self.run).root)
        local = is_local(self.run.executor)
        # Jobs that can use the files of the launch run on them, as with Hydra's other launchers: a program that finds
        # its project by its own path reads and writes it. A packager named in the profile sends a copy instead.
        sees_this_tree = self.run.tunnel != "ssh" and self.run.container_image is None
        if self.run.packager is None and not local and sees_this_tree:
            self.run = replace(self.run, packager=NONE)
        self.registry = local_registry(self.run)
        self.fetch: tuple[dict[str, str], ...] = ()
        if not local:
            root = executor_for(self.run).paths(run_id, 0, registry=self.registry).root
            self.run, self.fetch, _ = with_repositories(self.run, root, transport_for)
        self.executor = executor_for(self.run)
        self.mode = "local" if local else "batch" if settings.detach else "run"
        ignored = self.run.detach and not settings.detach
        self._notes = ["detach: no effect on a sweep; hydra.launcher.detach=true detaches it."] if ignored else []
        # torchrun only if it is asked for: a program that starts its processes itself would be started many times.
        several = (self.run.nproc_per_node or 1) > 1 or (self.run.nodes or 1) > 1
        self.resources = self.executor.resources(None if several else False)
        self.payloads = PayloadBuilder(task, callbacks, list(sys.argv), earlier)

    def plan_job(self, config: Any, hydra: Any, number: int) -> SweepJob:
        """The SweepJob of one composed job; `hydra` is the config's node hydra."""
        from omegaconf import OmegaConf

        label, overrides = str(hydra.job.name), overrides_of(hydra)
        paths, cwd = self._placed(hydra, number)
        environment, secrets = self._environment(hydra, paths)
        drop_copied(hydra)
        packed = self.payloads.build(config, hydra, paths.move, import_path(paths))
        readable = masked_by_name(plain(OmegaConf.to_container(config, resolve=False, enum_to_str=True)))
        resolved = ResolvedJob(readable, self.run, paths, readable)
        pins = pin_slots(readable, resolved, self.run_id, transport_for)
        secrets = tuple(dict.fromkeys([*secrets, *packed.literals]))
        added = self.executor.plan(
            PlanContext(
                resources=self.resources,
                paths=paths,
                inputs=pins,
                run_id=self.run_id,
                job=number,
                label=label,
                mode=self.mode,
                secrets=secrets,
                torchrun=False,
                single=False,
            )
        )
        run = {"command": self.payloads.function, "handler": "", "config_cls": "", "script": None, "module": MODULE}
        plan = Plan(
            run_id=self.run_id,
            recipe=label,
            stage="",
            folder=f"{nemotron_home()}/runs/{self.run_id}",
            argv=tuple(sys.argv),
            hydra=tuple(overrides),
            mode=self.mode,
            profile=self.profile,
            executor=self.run.executor,
            settings=self.run,
            launch=DETACHED,
            config_name=str(hydra.job.config_name),
            config_file=None,
            config=readable,
            inputs=pins,
            references={slot: str(readable["run"][slot]) for slot in pins},
            launch_command=tuple(worker_command(paths.python, paths.package, paths.job)),
            environment=environment,
            secrets=secrets,
            captured={},
            files={
                **job_files(resolved, pins, self.resources, environment, secrets, run, cwd),
                ".hydra/overrides.yaml": json.dumps(masked_overrides(overrides), indent=2, ensure_ascii=False) + "\n",
                payload.FILE: packed.to_text(),
            },
            problems=tuple(added.problems),
            notes=(*self._notes, *added.notes, *left_out(paths)),
            job=number,
            paths=paths,
            repositories=self.fetch,
            single=False,
            objective=self.objective,
            **added.fields,
        )
        return SweepJob(plan, tuple(overrides))

    def _placed(self, hydra: Any, number: int) -> tuple[RemotePaths, str]:
        """The paths of a job's files, and the folder that it starts in: that of the launch, where the app's relative
        paths and Hydra's folders are. In a container, and on another machine, that folder is not there: the job starts
        in its own, and `hydra` is changed, so that Hydra's sweep folder is in the run's."""
        from omegaconf import open_dict, read_write

        paths = self.executor.paths(self.run_id, number, registry=self.registry)
        if paths.is_remote or self.run.container_image:
            with read_write(hydra), open_dict(hydra):
                hydra.sweep.dir, hydra.runtime.cwd = f"{paths.run}/sweep", paths.cwd
            return paths, paths.cwd
        if paths.code:  # the jobs share one copy, into which they write nothing
            code = f"{paths.run}/code"
            moves = tuple((here, code + there[len(paths.code) :]) for here, there in paths.moves)
            paths = replace(paths, code=code, moves=moves)
        return paths, str(Path.cwd())

    def _environment(self, hydra: Any, paths: RemotePaths) -> tuple[dict[str, str], tuple[str, ...]]:
        """The job's variables, and the names of those whose values must not be written to any file."""
        copied = {name: os.environ[name] for name in hydra.job.env_copy}  # Hydra's copy takes ${…} in it for a key
        secret = [name for name in copied if is_secret_name(name)]
        variables = job_environment(self.run_id, paths, {}, self.run, ())
        variables |= {name: text for name, text in copied.items() if name not in secret}
        variables["NEMOTRON_EXECUTOR"] = self.run.executor
        return variables, tuple(dict.fromkeys([*(self.run.secrets or ()), *secret]))


def drop_copied(hydra: Any) -> None:
    """Remove the values of hydra.job.env_copy, which Hydra would write into files unmasked."""
    from omegaconf import open_dict, read_write

    variables = hydra.job.env_set
    with read_write(variables), open_dict(variables):
        for name in hydra.job.env_copy:
            with suppress(KeyError):
                del variables[name]  # pop would resolve it
