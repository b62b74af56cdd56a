"""Making the packets of a launch: the composed config, and how a job's process gets hold of the task function."""

from __future__ import annotations

import base64
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.execution.hydra_launcher.compose import uninstall
from nemotron_kit.execution.hydra_launcher.packet import IMPORTED, PROGRAM, SENT, Packet, task_of, versions

PLUGINS = "hydra_plugins."


class Packer:
    """Makes the packets of one launch."""

    def __init__(self, task: Callable[..., Any], callbacks: Any, argv: list[str]) -> None:
        self.kind, self.function, (self._program, self._module) = _kind(task)
        self._argv, self._versions = argv, versions()
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
        return Packet(
            kind=self.kind,
            function=self.function,
            config=pickled,
            shared=self._shared,
            argv=[move(self._argv[0]), *self._argv[1:]],
            sys_path=list(import_path),
            versions=self._versions,
            program=move(self._program) if self._program and not self._module else self._program,
            module=self._module,
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


def _kind(task: Callable[..., Any]) -> tuple[str, str, tuple[str | None, bool]]:
    """(kind, the function's name, (program, whether it is a module))."""
    module, name = getattr(task, "__module__", None), getattr(task, "__qualname__", type(task).__qualname__)
    if module == "__main__":
        program = _program(sys.modules["__main__"])
        if program[0] is not None:
            return PROGRAM, name, program
    elif module and _is_importable(task, module, name):
        return IMPORTED, f"{module}:{name}", (None, False)
    return SENT, f"{module}:{name}", (None, False)


def _program(main: ModuleType) -> tuple[str | None, bool]:
    """How this program can be run again. A prompt, a notebook, `python -c` and standard input can't."""
    if main.__spec__ is not None:
        return main.__spec__.name, True
    path = getattr(main, "__file__", None)
    return (str(Path(path).absolute()), False) if path and os.path.isfile(path) else (None, False)  # noqa: PTH113


def _is_importable(task: Callable[..., Any], module: str, name: str) -> bool:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return task_of(found) is task
