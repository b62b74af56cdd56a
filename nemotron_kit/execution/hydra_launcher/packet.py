"""hydra.json: what a job of somebody else's @hydra.main app needs besides its folder. Written and read here alone.

It holds the composed config as a pickle, because YAML would lose its types: the launch wrote it, and only the launch's
own user can write into the job's folder. The way back is answer.json, which holds none.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.execution.hydra_launcher.compose import uninstall

FILE = "hydra.json"
PLUGINS = "hydra_plugins."
# Run the program again until it arrives at its task function; or call a function that can be imported, or was sent.
PROGRAM, IMPORTED, SENT = "program", "imported", "sent"


@dataclass(frozen=True)
class Packet:
    """`program` is a script's path, or a module's name with `module` set. `function` is its task's qualified name, with
    the module in front (`module:name`) where it is imported. `load()` gives the rest."""

    kind: str
    function: str
    config: str
    shared: str
    argv: list[str]
    sys_path: list[str]
    versions: dict[str, str]
    program: str | None = None
    module: bool = False

    def to_text(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    def load(self) -> dict[str, Any]:
        """`callbacks`, `state` (Hydra's singletons, OmegaConf's resolvers), `config` with Hydra's node in it; `task`
        where it was sent."""
        from omegaconf import flag_override, open_dict

        loaded: dict[str, Any] = _unpickled(self.shared)
        config, hydra = _unpickled(self.config)
        with flag_override(config, ["readonly", "no_deepcopy_set_nodes"], [False, True]), open_dict(config):
            config.hydra = hydra
        return {**loaded, "config": config}

    def check_versions(self) -> None:
        """Raises NemotronError when this process could not read the pickle faithfully."""
        here = versions()
        other = {name: text for name, text in self.versions.items() if here.get(name) != text}
        if other:
            told = ", ".join(f"{name} {text} (here {here.get(name)})" for name, text in other.items())
            raise NemotronError(
                f"The sweep was launched with {told}: a composed config can't be read by another version.",
                hint="Name the same environment's Python in the profile: python = …",
            )


def versions() -> dict[str, str]:
    """What must be the same on both sides."""
    import hydra
    import omegaconf

    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "omegaconf": str(omegaconf.__version__), "hydra": str(hydra.__version__)}


def read_packet(folder: Path) -> Packet:
    """The packet in a job's folder. Raises NemotronError when it is missing or damaged."""
    path = folder / FILE
    try:
        return Packet(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise NemotronError(f"{path}: no such file.") from error
    except (ValueError, TypeError) as error:
        raise NemotronError(f"{path}: damaged: {error}.") from error


class Packer:
    """Makes the packets of one launch."""

    def __init__(self, task: Callable[..., Any], callbacks: Any, argv: list[str]) -> None:
        self.kind, self.function, (self._program, self._module) = _kind(task)
        self._argv, self._versions = argv, versions()
        content = {"callbacks": callbacks, "state": _state()}
        if self.kind == SENT:
            content["task"] = task
        elif self.kind == PROGRAM:
            del content["state"]["omegaconf_resolvers"]  # the program registers them again
        self._shared = self._pickled(content)

    def pack(self, config: Any, hydra: Any, move: Callable[[str], str], import_path: Sequence[str]) -> Packet:
        """The packet of one composed job. `move` gives a path of this machine as it is called over there, `import_path`
        is this process's as the job's."""
        return Packet(
            kind=self.kind,
            function=self.function,
            config=self._pickled((config, _without_plugins(hydra))),
            shared=self._shared,
            argv=[move(self._argv[0]), *self._argv[1:]],
            sys_path=list(import_path),
            versions=self._versions,
            program=move(self._program) if self._program and not self._module else self._program,
            module=self._module,
        )

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


def _without_plugins(hydra: Any) -> Any:
    """Hydra's node with its launcher and sweeper as plain nodes: the plugins' own types may not be there."""
    from omegaconf import OmegaConf, flag_override, open_dict

    packed = hydra.copy()
    with flag_override(packed, "readonly", False), open_dict(packed):
        for name in ("launcher", "sweeper"):
            node = packed._get_node(name)
            if _type_of(node).__module__.startswith(PLUGINS):
                packed[name] = OmegaConf.create(OmegaConf.to_container(node, resolve=False))
    return packed


def _unpickled(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))  # noqa: S301 — see above


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


def task_of(found: Any) -> Any:
    """The function that @hydra.main wrapped, or the function itself."""
    return getattr(found, "__wrapped__", found)
