"""A config file with a `defaults:` list, composed by itself for a script that is started directly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemotron_kit.config.defaults import read_job_file
from nemotron_kit.config.files import Spelled
from nemotron_kit.config.store import conf_dir, register_group
from nemotron_kit.errors import UserError

GROUP = "script_file"


def compose_file(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], list[str], Spelled]:
    """(the mapping that a file and what its defaults list names compose to, interpolations unresolved; the overrides
    that chose an option of its groups, as in `optimizer=sgd`; how the file and its siblings write what may be text)."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    groups: set[str] = set()
    spelled: Spelled = {}
    _register(path, set(), groups, spelled)
    chosen = [override for override in overrides if override.lstrip("+~").partition("=")[0].partition("@")[0] in groups]
    primary = {"defaults": [{f"{GROUP}@_global_": path.stem}]}
    ConfigStore.instance().store(name="script_file_primary", node=primary)
    GlobalHydra.instance().clear()
    try:
        hydra = Hydra.create_main_hydra2("script", create_config_search_path(str(conf_dir())))
        config = hydra.compose_config("script_file_primary", chosen, RunMode.RUN, with_log_configuration=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    finally:
        GlobalHydra.instance().clear()
    values: Any = OmegaConf.to_container(config, resolve=False)
    return {key: value for key, value in values.items() if key != "hydra"}, chosen, spelled


def _register(path: Path, seen: set[Path], groups: set[str], spelled: Spelled) -> None:
    from hydra.core.config_store import ConfigStore

    if path in seen:
        return
    seen.add(path)
    found = read_job_file(path, GROUP)
    spelled.update({spot: pair for spot, pair in found.spelled.items() if spot not in spelled})
    ConfigStore.instance().store(group=GROUP, name=path.stem, node=found.values, package="_global_")
    for name, folder in found.groups.items():
        groups.update(each.rpartition("/")[0] for each in register_group(name, folder))
    for sibling in found.siblings:
        _register(sibling, seen, groups, spelled)
