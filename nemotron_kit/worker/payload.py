"""hydra.json: what a job of another @hydra.main app needs besides its folder. sweep.hydra_app writes it.

It holds the composed config as a pickle, because YAML would lose its types: the launch wrote it, and a file that
another user could have written to is not read. The result, answer.json, holds no pickle.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemotron_kit.errors import NemotronError
from nemotron_kit.files import read_regular

FILE = "hydra.json"
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": float}
# Run the program again until it reaches its task function; or call a function that can be imported, or was sent.
PROGRAM, IMPORTED, SENT = "program", "imported", "sent"


@dataclass(frozen=True)
class JobPayload:
    """`program` is a script's path, or a module's name with `module` set. `function` is its task's qualified name, with
    the module in front (`module:name`) where it is imported; of a program's tasks with that name, it is the one after
    `earlier` others that were swept. `started_in` is where the program started: it may have changed its folder.
    `literals` are the variables that hold what the config has as literal secrets, and the types of those values.
    `options` are those of the launch's interpreter (`-O`, `-W error`, `-X utf8`). `load()` gives the rest."""

    kind: str
    function: str
    config: str
    shared: str
    argv: list[str]
    sys_path: list[str]
    versions: dict[str, str]
    program: str | None = None
    module: bool = False
    earlier: int = 0
    started_in: str | None = None
    literals: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)

    def to_text(self) -> str:
        """The content of hydra.json."""
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

    def put_literals(self, config: Any) -> None:
        """Put the literal secrets back into the config, once Hydra has written its files."""
        content = config._value()
        if isinstance(content, dict | list):
            for node in content.values() if isinstance(content, dict) else content:
                self.put_literals(node)
        elif isinstance(content, str) and content.startswith("${secret:"):
            variable = content.removeprefix("${secret:").removesuffix("}")
            if variable in self.literals:
                config._val = _KINDS[self.literals[variable]](os.environ[variable])

    def check_literals(self) -> None:
        """Raises NemotronError where the variables with the config's literal secrets are not set."""
        missing = [variable for variable in self.literals if variable not in os.environ]
        if missing:
            raise NemotronError(
                f"The config has a literal secret, which is in no record: {', '.join(missing)} is not set here.",
                hint=f"export {missing[0]}=… where this was typed, or launch the sweep again. "
                "Better, write ${secret:NAME} in the config.",
            )

    def check_versions(self) -> None:
        """Raises NemotronError when this process could not read the pickle faithfully."""
        ours = versions()
        other = {name: text for name, text in self.versions.items() if ours.get(name) != text}
        if other:
            differing = ", ".join(f"{name} {text} (here {ours.get(name)})" for name, text in other.items())
            raise NemotronError(
                f"The sweep was launched with {differing}: a composed config can't be read by another version.",
                hint="Name the same environment's Python in the profile: python = …",
            )


def versions() -> dict[str, str]:
    """The versions that must be equal on both sides."""
    import hydra
    import omegaconf

    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, "omegaconf": str(omegaconf.__version__), "hydra": str(hydra.__version__)}


def read_payload(folder: Path) -> JobPayload:
    """The payload in a job's folder. Raises NemotronError when it is missing, damaged, or writable by others."""
    path = folder / FILE
    try:
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise NemotronError(f"{path} can be written by others: it is not run.")
        return JobPayload(**json.loads(read_regular(path, limit=1 << 30)))
    except FileNotFoundError as error:
        raise NemotronError(f"{path}: no such file.") from error
    except (ValueError, TypeError) as error:
        raise NemotronError(f"{path}: damaged: {error}.") from error


def name_of(task: Any) -> str:
    """A task function's qualified name; what has none (a partial, an instance) is named by what it is made of."""
    name = getattr(task, "__qualname__", None)
    if isinstance(name, str):
        return name
    inner = getattr(task, "func", None)
    kind = type(task).__qualname__
    return f"{kind}({name_of(inner)})" if callable(inner) else kind


def task_of(found: Any) -> Any:
    """The function that @hydra.main wrapped, or the function itself."""
    return getattr(found, "__wrapped__", found)


def _unpickled(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))  # noqa: S301 — see above
