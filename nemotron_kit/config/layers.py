"""Where each value of a composed config comes from: the dataclass, config files and groups in Hydra's order, and
the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.config.compose import PreparedCommand
from nemotron_kit.config.config_files import key_location
from nemotron_kit.config.limits import faster_omegaconf
from nemotron_kit.config.registration import main_hydra
from nemotron_kit.config.wording import translated

_ABSENT = object()


@dataclass(frozen=True)
class Setting:
    """What one layer sets a field to: `source` names the layer (a dataclass, `file:line`, `command line`), `value` is
    as written there, before interpolation."""

    source: str
    value: Any


@dataclass(frozen=True)
class _Layer:
    """A config of Hydra's defaults list. Its keys are below `package`."""

    source: str
    file: Path | None
    package: tuple[str, ...]
    values: Mapping[str, Any]
    is_schema: bool


class Layers:
    """The layers of one composition, later ones over earlier ones."""

    def __init__(self, prepared: PreparedCommand, config_dir: str | None = None) -> None:
        keys = [key.split("/") for key in prepared.registered.groups]
        groups = {"/".join(parts[:depth]) for parts in keys for depth in range(1, len(parts))}
        # The choice of a group's option is no value: its file is a layer.
        self._overrides = [
            override
            for override in prepared.typed
            if not override.startswith(_CHOICES)
            and (_key(override) not in groups or override.partition("=")[2].lstrip().startswith("{"))
        ]
        self._layers = _layers(prepared, config_dir)
        # What the schema has beside the dataclass's own defaults: fields that an artifact fills, and the section `run`.
        self._mapped = {
            field: f"artifact {slot} (--art.{slot})"
            for slot, declared in prepared.command.artifacts.items()
            for field in declared.mappings.values()
        }

    def settings(self, field: str) -> list[Setting]:
        """Every layer that sets a field or block (dotted), or the block around it, in order: the last one holds, and
        blocks are merged."""
        parts = tuple(field.split("."))
        found = []
        for layer in self._layers:
            inside = parts[: len(layer.package)] == layer.package
            at = parts[len(layer.package) :]
            value: Any = layer.values if inside else _ABSENT
            for part in at:
                value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
            if value is not _ABSENT and not (at == () and not value):
                found.append(Setting(self._source(layer, field, value, at), value))
        for override in self._overrides:
            key, name = override.partition("=")[0], _key(override)
            if name == field or name.startswith(f"{field}.") or field.startswith(f"{name}."):
                found.append(Setting("command line", "removed" if key.startswith("~") else override))
        return found

    def _source(self, layer: _Layer, field: str, value: Any, at: tuple[str, ...]) -> str:
        if layer.file is not None:
            return key_location(layer.file, ".".join(at))
        if layer.package or not layer.is_schema:
            return layer.source
        if str(value).startswith("${art:"):
            return self._mapped.get(field, layer.source)
        return "nemotron_kit" if field.partition(".")[0] == "run" else layer.source


def _key(override: str) -> str:
    """The key of an override or the group that it chooses from, without prefixes and package."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


_CHOICES = ("recipe=", "stage=", "config=", "run.profile=", "run.mode=")


def _layers(prepared: PreparedCommand, config_dir: str | None) -> list[_Layer]:
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    command, registered = prepared.command, prepared.registered
    job, schema = f"job/{command.recipe}/", f"schema/{command.recipe}/"
    layers = []
    with faster_omegaconf(), translated(prepared), main_hydra(config_dir) as hydra:
        loader = hydra.config_loader
        for default in loader.compute_defaults_list("config", prepared.overrides, RunMode.RUN).defaults:
            path = str(default.config_path)
            if path.startswith(("hydra/", "recipe/", "stage/", "config/")) or path == "config":
                continue
            found = loader.repository.load_config(config_path=path)
            values: Any = OmegaConf.to_container(found.config, resolve=False, enum_to_str=True)
            is_job = path.startswith(job)
            file = registered.files.get(path.rpartition("/")[2]) if is_job else registered.groups.get(path)
            package = tuple(part for part in str(default.package or "").split(".") if part)
            source = command.load_config_cls().__qualname__ if path.startswith(schema) else path
            layers.append(_Layer(source, file, package, values, path.startswith(schema)))
    return layers
