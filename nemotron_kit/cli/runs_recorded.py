"""A job as it was recorded, as the start of another: its config, with what was the old run's own put back in place."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.app import App, ArtifactInput, Group
from nemotron_kit.cli.quoting import quoted
from nemotron_kit.errors import UserError
from nemotron_kit.files import read_regular
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.records import DamagedRecord, read_object

if TYPE_CHECKING:
    from nemotron_kit.artifacts.pin import Pin
    from nemotron_kit.discovery import Tree
    from nemotron_kit.plan.runconfig import RunConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_WORD = re.compile(r"[A-Za-z_][\w.-]*\Z", re.ASCII)


class Recorded:
    """What a job's folder and its run's plan say. Raises UserError for one that can't be started again by them."""

    def __init__(self, run: RunFolder, job: JobFolder) -> None:
        from nemotron_kit.artifacts.errors import DamagedRecordError
        from nemotron_kit.artifacts.pin import Pin
        from nemotron_kit.config.files import load_mapping

        self.run, self.job = run, job
        try:
            self.plan, self.spec = run.plan(), job.spec()
            for key in ("command", "handler", "config_cls", "cwd"):
                if not str(self.spec.get(key) or "").strip() and not self.spec.get("module"):
                    raise DamagedRecord(f"{job.path / 'job.json'}: it has no {key}.")
            if not all(map(_NAME.match, str(self.spec.get("command") or "").split())):
                raise DamagedRecord(f"{job.path / 'job.json'}: command is {self.spec['command']!r}, no command's name.")
            if any(not path or "\0" in path for path in self.spec.get("sys_path") or ()):
                raise DamagedRecord(f"{job.path / 'job.json'}: sys_path holds what is no path.")
            self.place: Mapping[str, Any] = _place(job) or self.plan.get("place") or {}
            inputs = job.artifacts()["inputs"]
        except DamagedRecord as error:
            raise UserError(f"{run.id}: its record is not whole: {str(error).rstrip('.')}.") from error
        if self.spec.get("module"):
            raise UserError(
                f"{run.id} was launched by a program of its own, which alone can compose its config.",
                hint=f"Its command line: {self.plan.get('command_line')}",
            )
        self.config = load_mapping(job.config_path)
        try:
            self.pins: dict[str, Pin] = {slot: Pin.from_dict(pin) for slot, pin in inputs.items()}
        except DamagedRecordError as error:
            raise UserError(f"{job.path / 'artifacts.json'}: {error.message}") from error

    @property
    def label(self) -> str:
        many = len(self.run.jobs()) > 1
        return f"{self.run.id}/{self.job.number}" if many else self.run.id

    @property
    def recipe(self) -> str:
        return str(self.spec["command"]).split()[0]

    @property
    def stage(self) -> str:
        """The job's own: a sweep may be over stages, too."""
        return "/".join(str(self.spec["command"]).split()[1:])

    @property
    def config_name(self) -> str:
        name = (self.spec.get("environment") or {}).get("NEMOTRON_CONFIG_NAME") or self.plan.get("config_name")
        return str(name or "default")

    @property
    def folder(self) -> str:
        """The folder that it was launched from."""
        tree = self.place.get("tree")
        inside = self.place.get("cwd")
        if tree:
            inside = os.path.normpath(os.path.join(tree.get("root") or "", tree.get("inside") or ""))  # noqa: PTH118
        return str((self.plan.get("code") or {}).get("folder") or inside or self.spec.get("cwd"))

    @property
    def settings(self) -> RunConfig:
        """The profile's settings as they were."""
        from nemotron_kit.plan.runconfig import RunConfig
        from nemotron_kit.plan.values import check_value

        given = {name: value for name, value in (self.plan.get("settings") or {}).items() if value is not None}
        try:
            settings = RunConfig(**given)
            for name, value in given.items():
                check_value(name, value, f"{self.run.path / 'plan.json'}: settings.{name}")
            return settings
        except TypeError as error:
            raise UserError(f"{self.run.id}: its settings are another version's: {error}.") from error

    @property
    def overrides(self) -> list[str]:
        """What was typed, in Hydra's words, without what chose the command and its config."""
        file = self.job.path / ".hydra" / "overrides.yaml"
        try:
            words = json.loads(read_regular(file))
        except (OSError, ValueError):
            words = shlex.split(self.plan["hydra"])[3:] if isinstance(self.plan.get("hydra"), str) else []
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UserError(f"{self.run.id}: its record is not whole: {file}: expected a list of texts.")
        return list(words)

    def values(self, *, keep_env: bool, is_open: Callable[[str], bool]) -> tuple[dict[str, Any], list[str]]:
        """(the config for a file, the words that add to it what was added with `+` and delete what was deleted).

        Where the schema is not `is_open`, a key that was added can't stand in the file.
        """
        run = {key: value for key, value in (self.config.get("run") or {}).items() if key in ("wandb", "env")}
        if not keep_env:
            run.pop("env", None)
        values = {key: self._back(value) for key, value in self.config.items() if key != "run"}
        words = []
        added = str((self.spec.get("environment") or {}).get("NEMOTRON_ADDED_KEYS") or "").split(",")
        for key in filter(None, added):
            found, value = _take(values, key.split("."), keep=is_open(key))
            words += [f"++{key}={hydra_value(value)}"] if found else []
        words += [word for word in self.overrides if word.startswith("~") and not word.startswith("~/")]
        return {**values, **({"run": run} if run else {})}, words

    def references(self) -> dict[str, str]:
        """Slot → the very version that was read."""
        return {slot: pin.label for slot, pin in self.pins.items()}

    def app(self, tree: Tree) -> App:
        """The recipe's tree; for a program that was its own recipe, one that holds the command by what is on record."""
        recipe, stage = self.recipe, self.stage
        if recipe in tree.apps:
            return tree.apps[recipe]
        if recipe in tree.broken:
            raise UserError(f"The recipe {recipe!r} is broken: {tree.broken[recipe]}.")
        app = App(recipe)
        *groups, name = stage.split("/")
        group: Group = app
        for each in groups:
            group = group.group(each)
        inputs = {slot: ArtifactInput(reference) for slot, reference in self.references().items()}
        script = self.spec.get("script")
        group.command(
            name,
            self._home(self.spec["config_cls"]),
            self._home(self.spec["handler"]),
            script_path=self._back(script, False) if script else None,
            artifacts=inputs,
            torchrun=self.spec.get("torchrun"),
        )
        return app

    def _home(self, name: str) -> str:
        path, colon, rest = name.rpartition(":")
        return f"{self._back(path, False)}{colon}{rest}" if path.endswith(".py") else name

    def _back(self, value: Any, to_folder: bool = True) -> Any:
        """A value with its paths as this machine calls them, and the old job's folder as whatever job's it will be."""
        if isinstance(value, Mapping):
            return {key: self._back(item, to_folder) for key, item in value.items()}
        if isinstance(value, list):
            return [self._back(item, to_folder) for item in value]
        if not isinstance(value, str):
            return value
        for here, there in self._moves():
            value = here + value[len(there) :] if value == there or value.startswith(f"{there}/") else value
        for folder in (str(self.place.get("job") or ""), str(self.job.path)) if to_folder else ():
            value = value.replace(folder, "${oc.env:NEMO_RUN_DIR}") if folder else value
        return value

    def _moves(self) -> Sequence[tuple[str, str]]:
        """(prefix here, prefix there), the longest there first; of several spellings of a folder here, its own path."""
        root = (self.place.get("tree") or {}).get("root")
        moves = sorted((self.place.get("moves") or {}).items(), key=lambda move: (-len(move[1]), move[0] != root))
        return list({there: (here, there) for here, there in reversed(moves)}.values())[::-1]


def _place(job: JobFolder) -> Mapping[str, Any] | None:
    """A sweep's plan has its first job's place."""
    from nemotron_kit.execution.hydra_launcher.stored import FILE

    return read_object(job.path / FILE)["place"] if (job.path / FILE).exists() else None


def enter(folder: str) -> None:
    """Go where the first launch stood: relative paths, recipes and env.toml are found from there."""
    if not Path(folder).is_dir():
        raise UserError(
            f"{folder}, where it was launched, is gone.", hint="Its recipe and its paths are found from there."
        )
    os.chdir(folder)


def hydra_value(value: Any) -> str:
    """A plain value in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return f"[{','.join(hydra_value(item) for item in value)}]"
    if isinstance(value, Mapping) and all(_WORD.match(str(key)) for key in value):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    raise UserError(f"{value!r} can't be said in an override.")


def _take(values: dict[str, Any], path: Sequence[str], *, keep: bool) -> tuple[bool, Any]:
    """(whether there is such a value, the value), out of the config unless it is to `keep`: a block that it alone was
    in goes with it, since that was added, too."""
    first, *rest = path
    if first not in values or (rest and not isinstance(values[first], dict)):
        return False, None
    if not rest:
        return True, values[first] if keep else values.pop(first)
    found = _take(values[first], rest, keep=keep)
    if found[0] and not values[first]:
        del values[first]
    return found
