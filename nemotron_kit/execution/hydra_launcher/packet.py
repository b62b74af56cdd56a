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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from nemotron_kit.errors import NemotronError, UserError

FILE = "hydra.json"
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
        """`callbacks`, `state` (Hydra's singletons, OmegaConf's resolvers), `config`; `task` where it was sent."""
        loaded: dict[str, Any] = _unpickled(self.shared)
        return {**loaded, "config": _unpickled(self.config)}

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
        from hydra.core.singleton import Singleton

        self.kind, self.function, (self._program, self._module) = _kind(task)
        self._argv, self._versions = argv, versions()
        content = {"callbacks": callbacks, "state": Singleton.get_state()}
        if self.kind == SENT:
            content["task"] = task
        elif self.kind == PROGRAM:
            del content["state"]["omegaconf_resolvers"]  # the program registers them again
        self._shared = self._pickled(content)

    def pack(self, config: Any, move: Callable[[str], str]) -> Packet:
        """The packet of one composed job. `move` gives a path of this machine as it is called over there."""
        return Packet(
            kind=self.kind,
            function=self.function,
            config=self._pickled(config),
            shared=self._shared,
            argv=[move(self._argv[0]), *self._argv[1:]],
            sys_path=[move(str(Path(entry).absolute())) for entry in sys.path],
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
