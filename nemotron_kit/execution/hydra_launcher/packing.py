"""Making the packets of a launch: the composed config, and how a job's process gets hold of the task function."""

from __future__ import annotations

import base64
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.execution.hydra_launcher.compose import uninstall
from nemotron_kit.execution.hydra_launcher.packet import (
    IMPORTED,
    PROGRAM,
    SENT,
    Packet,
    name_of,
    task_of,
    versions,
)

PLUGINS = "hydra_plugins."


class Packer:
    """Makes the packets of one launch."""

    def __init__(self, task: Callable[..., Any], callbacks: Any, argv: list[str], earlier: int = 0) -> None:
        """`earlier`: how many sweeps over a task function of this name the program has made before this one."""
        self.kind, self.function, self._program = _kind(task)
        self._argv = self._program.argv if self._program else argv
        self._earlier, self._versions = earlier, versions()
        self._plain: dict[str, Any] = {}
        content = {"callbacks": callbacks, "state": _state()}
        if self.kind == SENT:
            content["task"] = task
        elif self.kind == PROGRAM:
            del content["state"]["omegaconf_resolvers"]  # the program registers them again
        self._shared = self._pickled(content)

    def pack(self, config: Any, hydra: Any, move: Callable[[str], str], import_path: Sequence[str]) -> Packet:
        """The packet of one composed job. `move` gives a path of this machine as it is called over there, `import_path`
        is this process's as the job's."""
        with self._without_plugins(hydra):
            pickled = self._pickled((config, hydra))
        program = self._program
        return Packet(
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
        )

    @contextmanager
    def _without_plugins(self, hydra: Any) -> Iterator[None]:
        """Within the block hydra.launcher and hydra.sweeper are plain nodes: the plugins' own types may not be there.
        A sweep can't sweep over them, so that one pair does for all jobs."""
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
        try:
            return base64.b64encode(self._dump(value)).decode("ascii")
        except UserError:
            raise
        # Whatever a stranger's object raises when it is pickled.
        except Exception as error:
            raise UserError(
                f"A job of this sweep can't be sent to a process of its own: {type(error).__name__}: {error}.",
                hint="Its config, its callbacks and what its task function refers to have to be picklable.",
            ) from error

    def _dump(self, value: Any) -> bytes:
        if self.kind == PROGRAM:  # what lives in __main__ will be there again, under the same name
            return pickle.dumps(value)
        try:
            cloudpickle = import_module("cloudpickle")
        except ImportError as error:
            raise UserError(
                f"The task function {self.function} has to be sent to its jobs, which needs cloudpickle: {error}.",
                hint="pip install cloudpickle, or call the app's @hydra.main from the program's own file.",
            ) from error
        data: bytes = cloudpickle.dumps(value)
        return data


def _state() -> dict[str, Any]:
    """Hydra's singletons and OmegaConf's resolvers, without what plugins have stored: they may not be there."""
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
    if module not in (None, "__main__") and _is_importable(task, str(module), name):
        return IMPORTED, f"{module}:{name}", None
    # A lambda, a partial, a bound method, an instance, a decorator's inner function: whatever this program's own lines
    # made is made again by them.
    if _made_by_the_program(task):
        program = _program(sys.modules["__main__"])
        if program is not None:
            return PROGRAM, name, program
    return SENT, f"{module}:{name}", None


def _made_by_the_program(task: Any) -> bool:
    """Whether the program's own file made the task function, or calls it through @hydra.main itself."""
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
    arguments that it was started with (it may have taken some of them out of sys.argv by now)."""

    name: str
    module: bool
    argv: list[str]
    started_in: str | None


def _program(main: ModuleType) -> _Program | None:
    """A prompt, a notebook, `python -c` and standard input can't be run again."""
    started: list[str] = sys.orig_argv
    path = getattr(main, "__file__", None)
    if main.__spec__ is not None and main.__spec__.name == "__main__":  # a folder, or a zip file, that was named
        path = os.path.dirname(str(path))  # noqa: PTH120
    elif main.__spec__ is not None:
        name = main.__spec__.name
        asked = name.removesuffix(".__main__")
        at = next((i for i, word in enumerate(started) if _names_module(started[:i], word, asked)), None)
        argv = [sys.argv[0], *(sys.argv[1:] if at is None else started[at + 1 :])]
        # `-m` has put the folder that it was started in in front.
        return _Program(name, True, argv, None)
    if not path or not os.path.exists(path):  # noqa: PTH110
        return None
    # Python has made the path that it was given absolute, and no more.
    at = next((i for i, word in enumerate(started) if i and (path == word or path.endswith(f"/{word}"))), None)
    if at is None:
        return _Program(str(Path(path).absolute()), False, list(sys.argv), None)
    inside = path.removesuffix(f"/{started[at]}") if path != started[at] else None
    return _Program(path, False, started[at:], inside or None)


def _names_module(before: Sequence[str], word: str, name: str) -> bool:
    """Whether `word` is where `-m name` ends, among the words that an interpreter was started with."""
    if word == name:
        return bool(before) and before[-1].startswith("-") and before[-1].endswith("m")
    return word.startswith("-") and not word.startswith("--") and word.endswith(f"m{name}")


def _is_importable(task: Callable[..., Any], module: str, name: str) -> bool:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return task_of(found) is task
