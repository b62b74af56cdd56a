"""Composes many jobs: files once for each choice of groups, then each job's values on a copy."""

from __future__ import annotations

import copy
import io
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.config.compose import Composed, PreparedCommand, compose_prepared, keep_texts, prepare_without_files
from nemotron_kit.config.limits import faster_omegaconf
from nemotron_kit.config.secrets import refuse_literal_secrets
from nemotron_kit.config.wording import translated

if TYPE_CHECKING:
    from nemotron_kit.discovery import Tree
    from nemotron_kit.envfile import EnvFile


class Copies:
    """`make()` gives a new deep copy of a config, with types, flags and parents."""

    def __init__(self, original: Any) -> None:
        self._original, self._types = original, list[type]()
        buffer = io.BytesIO()
        self._data: bytes | None = None
        try:
            _Pickler(buffer, self._types).dump(original)
            self._data = buffer.getvalue()
        # A config may contain any object.
        except Exception:  # noqa: BLE001
            return

    def make(self) -> Any:
        """A new copy."""
        if self._data is None:
            return copy.deepcopy(self._original)
        return _Unpickler(io.BytesIO(self._data), self._types).load()


class _Pickler(pickle.Pickler):
    """Pickles the classes of schemas by identity: they are made at run time and can't be imported by name."""

    def __init__(self, file: io.BytesIO, types: list[type]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._types, self._numbers = types, dict[type, int]()

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, type):
            return None
        if obj not in self._numbers:
            self._numbers[obj] = len(self._types)
            self._types.append(obj)
        return self._numbers[obj]


class _Unpickler(pickle.Unpickler):
    """Reads what _Pickler wrote in the same process."""

    def __init__(self, file: io.BytesIO, types: list[type]) -> None:
        super().__init__(file)
        self._types = types

    def persistent_load(self, number: int) -> type:
        return self._types[number]


# The versions of Hydra whose load_sweep_config SweepComposer reproduces.
KNOWN = "1.3."
# Keys that SweepComposer sets itself: an override of one of them is left to Hydra's loader.
_SET_HERE = ("hydra.runtime", "hydra.searchpath", "hydra.job.env_copy", "hydra.overrides")


class Unusual(Exception):
    """An override that only Hydra's own config loader can apply."""


class SweepComposer:
    """A replacement for ConfigLoaderImpl.load_sweep_config that composes each choice of groups once."""

    def __init__(self, loader: Any) -> None:
        self._loader, self._slow = loader, loader.load_sweep_config
        # (config name, overrides of hydra.*, choices of groups) → the config that the jobs with these have in common.
        self._trees: dict[tuple[str | None, ...], Copies] = {}
        self._parser: Any = None
        self._parsed: dict[str, Any] = {}
        # Config name → where groups are looked for: the primary config's `hydra.searchpath` adds to it.
        self._repositories: dict[str | None, Any] = {}
        self._groups: dict[tuple[str | None, str], bool] = {}

    def __deepcopy__(self, memo: Any) -> SweepComposer:
        return self  # Hydra copies its singletons to send them along; this is taken out of the copy

    def __call__(self, master_config: Any, sweep_overrides: Sequence[str]) -> Any:
        """The same config as Hydra's loader returns for these arguments; raises the same errors."""
        try:
            return self._quick(master_config, list(sweep_overrides))
        # Hydra raises its own error.
        except Exception:  # noqa: BLE001
            return self._slow(master_config, list(sweep_overrides))

    def _quick(self, master: Any, texts: list[str]) -> Any:
        from omegaconf import OmegaConf

        fixed: Any = OmegaConf.to_container(master.hydra.overrides.hydra)
        overrides = [self._parse(text) for text in texts]
        if any(o.is_sweep_override() or o.is_hydra_override() for o in overrides):
            raise Unusual
        name = master.hydra.job.config_name
        choices = [o for o in overrides if self._is_choice(o, name)]
        config = self._tree(name, fixed, choices).make()
        self._loader._apply_overrides_to_config([o for o in overrides if o not in choices], config)
        _finish(config.hydra, overrides)
        OmegaConf.copy_cache(from_config=master, to_config=config)
        return config

    def _parse(self, text: str) -> Any:
        """The parsed override. Cached: many jobs share overrides."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self._parser = self._parser or OverridesParser.create()
        if text not in self._parsed:
            self._parsed[text] = self._parser.parse_override(text)
        return self._parsed[text]

    def _is_choice(self, override: Any, name: str | None) -> bool:
        """Whether an override chooses a group's option, by Hydra's rule; else it sets a value."""
        if name not in self._repositories:
            _, self._repositories[name] = self._loader._parse_overrides_and_create_caching_repo(name, [])
        key = (name, override.key_or_group)
        if key not in self._groups:
            self._groups[key] = self._repositories[name].group_exists(override.key_or_group)
        return self._groups[key] and not isinstance(override.value(), dict)

    def _tree(self, name: str | None, fixed: list[str], choices: list[Any]) -> Copies:
        """The config before any value of a job is overridden."""
        from hydra.core.utils import JobRuntime

        key = (name, *fixed, None, *(o.input_line for o in choices))
        if key not in self._trees:
            known = [self._parse(text) for text in fixed]
            if any(o.is_sweep_override() or o.key_or_group.startswith(_SET_HERE) for o in known):
                raise Unusual
            options = [o for o in known if self._is_choice(o, name)]
            config = self._merged(name, [*options, *choices])
            self._loader._apply_overrides_to_config([o for o in known if o not in options], config)
            config.hydra.overrides.hydra.extend(fixed)
            if "name" not in config.hydra.job:
                config.hydra.job.name = JobRuntime().get("name")
            config.hydra.job.config_name = name
            self._trees[key] = Copies(config)
        return self._trees[key]

    def _merged(self, name: str | None, choices: list[Any]) -> Any:
        from hydra import __version__, version
        from hydra._internal.defaults_list import create_defaults_list
        from hydra.conf import ConfigSourceInfo
        from omegaconf import OmegaConf, open_dict

        # One copy for each tree: merging moves the loaded nodes into the tree.
        _, files = self._loader._parse_overrides_and_create_caching_repo(name, [])
        found = create_defaults_list(
            repo=files, config_name=name, overrides_list=choices, prepend_hydra=True, skip_missing=False
        )
        if found.config_overrides:
            raise Unusual
        config = self._loader._compose_config_from_defaults_list(defaults=found.defaults, repo=files)
        OmegaConf.set_struct(config, True)
        OmegaConf.set_readonly(config.hydra, False)
        runtime = config.hydra.runtime
        with open_dict(config.hydra):  # what is equal for all jobs with these choices
            runtime.choices.update(found.overrides.known_choices)
            runtime.version, runtime.version_base, runtime.cwd = __version__, version.getbase(), str(Path.cwd())
            runtime.config_sources = [
                ConfigSourceInfo(path=source.path, schema=source.scheme(), provider=source.provider)
                for source in files.get_sources()
            ]
        return config


@dataclass(frozen=True)
class ConfigRecord:
    """The config of an earlier job. `name` is its config's name, `file` holds its `values`. `added` are the keys that
    are no fields of the command (`+key=…`), `deleted` the overrides that removed keys (`~key`)."""

    recipe: str
    stage: str
    name: str
    file: Path
    values: Mapping[str, Any]
    added: Sequence[str] = ()
    deleted: Sequence[str] = ()


class RecordComposer:
    """Composes jobs from recorded configs: the current command, with the recorded values in place of a config file.
    Hydra composes each command once; each job's values are then merged into a copy."""

    def __init__(self, tree: Tree, env: EnvFile) -> None:
        self._tree, self._env = tree, env
        self._commands: dict[tuple[str, str, str], tuple[PreparedCommand, Composed, Copies]] = {}

    def compose(self, record: ConfigRecord, overrides: Sequence[str]) -> Composed:
        """The job with `overrides` on top. Raises UserError for a value that the command no longer accepts, with the
        record's file and line, and for an invalid override."""
        from hydra._internal.config_loader_impl import ConfigLoaderImpl
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.types import RunMode

        refuse_literal_secrets(overrides)
        key = (record.recipe, record.stage, record.name)
        if key not in self._commands:
            prepared = prepare_without_files(self._tree, *key, self._env)
            composed = compose_prepared(prepared)
            self._commands[key] = prepared, composed, Copies((composed.config, composed.hydra))
        prepared, composed, copies = self._commands[key]
        prepared.registered.files[record.name] = record.file
        with translated(prepared), faster_omegaconf():
            config, hydra = copies.make()
            parsed = OverridesParser.create().parse_overrides(
                [*record.deleted, *keep_texts(prepared.command, overrides)]
            )
            ConfigLoaderImpl.validate_sweep_overrides_legal(parsed, run_mode=RunMode.RUN, from_shell=True)
            _merge(config, record)
            ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
            _finish(hydra, parsed)
        return replace(composed, config=config, hydra=hydra, config_file=record.file)


def _merge(config: Any, record: ConfigRecord) -> None:
    """Merge the recorded values into a composed config. A key that is no field and was not added gives Hydra's error
    for a value of a config file."""
    from hydra.errors import ConfigCompositionException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        for key in record.added:
            *above, leaf = key.split(".")
            block: Any = record.values
            for part in above:
                block = block.get(part) if isinstance(block, Mapping) else None
            if isinstance(block, Mapping) and leaf in block:
                OmegaConf.update(config, key, block[leaf], force_add=True)
        config.merge_with(OmegaConf.create(dict(record.values)))
    except OmegaConfBaseException as error:
        what = f"In 'job/{record.name}': {type(error).__name__} raised while composing config:"
        raise ConfigCompositionException(f"{what}\n{error}") from error


def uninstall(loader: Any) -> None:
    """Restore Hydra's composition: a loader that is pickled for a job must not refer to this module."""
    vars(loader).pop("load_sweep_config", None)


def install(loader: Any) -> None:
    """Make a loader of Hydra's compose sweeps with SweepComposer. A loader of an unknown class is left unchanged."""
    import hydra
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    if type(loader) is ConfigLoaderImpl and hydra.__version__.startswith(KNOWN):
        loader.load_sweep_config = SweepComposer(loader)


def _finish(hydra: Any, overrides: Sequence[Any]) -> None:
    """Set the fields of Hydra's node that depend on the job, after the values."""
    from hydra._internal.config_loader_impl import get_overrides_dirname
    from omegaconf import open_dict

    hydra.overrides.task.extend([o.input_line for o in overrides])
    if hydra.job.env_copy:
        with open_dict(hydra):
            for key in hydra.job.env_copy:
                hydra.job.env_set[key] = os.environ[key]
    settings = hydra.job.config.override_dirname
    hydra.job.override_dirname = get_overrides_dirname(
        overrides=overrides, kv_sep=settings.kv_sep, item_sep=settings.item_sep, exclude_keys=settings.exclude_keys
    )
