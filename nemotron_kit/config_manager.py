"""`cli(MyConfig, config_file="config.yaml")`: a typed config for one's own program, with overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from nemotron_kit.train_script import (
    apply_hydra_overrides,
    load_omegaconf_yaml,
    omegaconf_to_dataclass,
    parse_config_and_overrides,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")


@dataclass
class ConfigManager(Generic[T]):
    """A config dataclass and the file that fills it (YAML, TOML or JSON; None: the dataclass's defaults)."""

    config_cls: type[T]
    config_file: str | Path | None = None

    def read(self, overrides: Sequence[str] = ()) -> DictConfig:
        """The file's values with `overrides` applied, interpolations unresolved."""
        from omegaconf import OmegaConf

        config = OmegaConf.create({}) if self.config_file is None else load_omegaconf_yaml(self.config_file)
        return apply_hydra_overrides(config, list(overrides))

    def load(self, overrides: Sequence[str] = ()) -> T:
        """The typed config. UserError for a missing file, unknown ending, unknown field or wrong type."""
        return omegaconf_to_dataclass(self.read(overrides), self.config_cls)


def cli(config_cls: type[T], config_file: str | Path | None = None, argv: Sequence[str] | None = None) -> T:
    """A `config_cls` from `config_file` and the command line (`--config FILE`, `key=value`, `--flag`).

    `argv` defaults to `sys.argv[1:]`. Raises UserError as `ConfigManager.load` does.
    """
    path, overrides = parse_config_and_overrides(config_file or "", argv)
    given = Path(path) if str(path) not in ("", ".") else None
    return ConfigManager(config_cls, given).load(overrides)
