"""What a job finds of Hydra, wherever it runs: HydraConfig and the job's logging, as @hydra.main would leave them.

Hydra's composed node lies masked in the job's folder: a process that did not compose it reads it there. Where Hydra is
not installed (a container's Python needs OmegaConf alone) there is no HydraConfig to import, and logging is configured
all the same.
"""

from __future__ import annotations

import copy
import logging.config
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemotron_kit.config.files import load_mapping
from nemotron_kit.config.resolvers import register_resolvers, set_run_dir
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.execution.jobspec import rank, read_config
from nemotron_kit.masking import mask_logging

# In the job's folder; its values of environment variables and secrets are masked.
FILE = ".hydra/hydra.yaml"
_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"


def set_hydra_config(config: Any, node: Any, job_folder: str) -> None:
    """Set HydraConfig in the process that composed: `config` is the job's, `node` Hydra's own."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import flag_override, open_dict

    full = copy.deepcopy(config)
    with flag_override(full, ["readonly", "allow_objects", "no_deepcopy_set_nodes"], [False, True, True]):
        with open_dict(full):
            full["hydra"] = node
        _place(full.hydra, job_folder)
        HydraConfig.instance().set_config(full)


def enter_hydra(folder: Path) -> None:
    """In the process that calls the job's handler, before it does: HydraConfig is set, where nobody has set it yet, and
    logging is configured as the composed config says. Raises UserError where that can't be done here."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        node = _known() or _from_folder(folder)
        if node is None:  # a record of an earlier version has none
            _configure(None, verbose=False)
        else:
            _configure(node.job_logging, verbose=node.verbose)
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.job_logging: {str(error).splitlines()[0]}") from error
    mask_logging()


def without_files(job_logging: Mapping[str, Any]) -> dict[str, Any]:
    """A logging configuration without the handlers that write files: of a job's ranks one writes them."""
    handlers = {name: handler for name, handler in (job_logging.get("handlers") or {}).items() if not _is_file(handler)}
    kept: dict[str, Any] = {**job_logging, "handlers": handlers}
    if isinstance(kept.get("root"), Mapping):
        kept["root"] = _only(kept["root"], handlers)
    if isinstance(kept.get("loggers"), Mapping):
        kept["loggers"] = {name: _only(logger, handlers) for name, logger in kept["loggers"].items()}
    return kept


def _known() -> Any:
    """Hydra's node in this process: a launcher of Hydra's, or the launch, has set it."""
    module = sys.modules.get("hydra.core.hydra_config")
    if module is None or not module.HydraConfig.initialized():
        return None
    return module.HydraConfig.get()


def _from_folder(folder: Path) -> Any:
    from omegaconf import OmegaConf, open_dict

    if not (folder / FILE).is_file():
        return None
    node: Any = load_mapping(folder / FILE)["hydra"]
    register_resolvers()
    set_run_dir(str(folder.parent.parent))
    full: Any = OmegaConf.create(dict(read_config(folder)))
    if find_spec("hydra") is None:
        full.hydra = node
        _stand_in_resolvers(full)
        _place(full.hydra, str(folder))
        return full.hydra
    from hydra.conf import HydraConf
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals

    setup_globals()
    typed = OmegaConf.structured(HydraConf)
    with open_dict(typed):  # a config may add to it
        full.hydra = OmegaConf.merge(typed, node)
    _place(full.hydra, str(folder))
    HydraConfig.instance().set_config(full)
    return HydraConfig.get()


def _place(node: Any, job_folder: str) -> None:
    from omegaconf import open_dict, read_write

    with read_write(node), open_dict(node):
        node.runtime.output_dir = job_folder


def _stand_in_resolvers(full: Any) -> None:
    """What Hydra's own resolvers give."""
    from datetime import datetime

    from omegaconf import OmegaConf

    resolvers = {
        "hydra": lambda path: OmegaConf.select(full.hydra, path),
        "now": lambda pattern: datetime.now().strftime(pattern),
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True, use_cache=name == "now")


def _configure(job_logging: Any, *, verbose: Any) -> None:
    """Hydra's configure_log, which is the same with less."""
    from omegaconf import OmegaConf

    values: Any = None if job_logging is None else OmegaConf.to_container(job_logging, resolve=True)
    if values is not None and rank() != 0:
        values = without_files(values)
    try:
        if find_spec("hydra") is not None:
            from hydra.core.utils import configure_log

            configure_log(values if values is None else OmegaConf.create(values), verbose)
            return
        if values is None:
            logging.basicConfig(level=logging.INFO, format=_FORMAT, stream=sys.stdout)
        elif values.get("root") is not None:
            logging.config.dictConfig(values)
    # logging raises a ValueError that names the part, for whatever its class raised: a folder that can't be written, a
    # package that is not here.
    except Exception as error:
        why = error.__cause__ or error
        if isinstance(why, OSError) and why.filename:
            said = f"{os.fsdecode(why.filename)}: {why.strerror}"
        else:
            said = f"{error}: {why}" if why is not error else str(error)
        kind = NemotronError if isinstance(why, OSError) else UserError
        raise kind(f"The job's logging can't be set up: {said}.", hint="See hydra.job_logging.") from error
    if isinstance(verbose, bool):
        verbose = [None] if verbose else []
    for name in [verbose] if isinstance(verbose, str) else verbose:
        logging.getLogger(name).setLevel(logging.DEBUG)


def _is_file(handler: Any) -> bool:
    return isinstance(handler, Mapping) and "filename" in handler


def _only(logger: Any, handlers: Mapping[str, Any]) -> Any:
    if not isinstance(logger, Mapping) or not logger.get("handlers"):
        return logger
    return {**logger, "handlers": [name for name in logger["handlers"] if name in handlers]}
