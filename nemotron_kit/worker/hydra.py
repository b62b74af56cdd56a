"""What a job has of Hydra: HydraConfig, logging, callbacks, and the files that Hydra writes, with secrets masked."""

from __future__ import annotations

import copy
import json
import logging.config
import os
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nemotron_kit.config.compose import Composed
from nemotron_kit.config.config_files import load_mapping
from nemotron_kit.config.freeze import to_yaml
from nemotron_kit.config.resolvers import register_resolvers, set_run_dir
from nemotron_kit.config.secrets import masked_overrides
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import map_leaves, write_text
from nemotron_kit.masking import MASK, mask_logging, masked_by_name
from nemotron_kit.spec.plan import rank, read_config
from nemotron_kit.worker.process import Outcome

# Hydra copies and sets environment variables by these; their values may be secret.
_ENVIRONMENT = ("env_set", "env_copy")


def hydra_files(composed: Composed) -> dict[str, str]:
    """Name in the job folder → text, as Hydra would have written them."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(composed.config, resolve=False, enum_to_str=True)
    hydra: Any = OmegaConf.to_container(composed.hydra, resolve=False, enum_to_str=True)
    overrides = masked_overrides(composed.overrides)
    return {
        ".hydra/config.yaml": to_yaml(masked_by_name(plain(config))),
        ".hydra/hydra.yaml": to_yaml({"hydra": _masked_node(hydra)}),
        ".hydra/overrides.yaml": json.dumps(overrides, indent=2, ensure_ascii=False) + "\n",
    }


def mask_multirun(folder: Path) -> None:
    """Mask what Hydra's sweeper itself has written into a sweep's folder: multirun.yaml, Hydra's node in clear."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = folder / "multirun.yaml"
    if not path.is_file():
        return
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    masked_text = to_yaml({**masked_by_name(plain(values)), "hydra": _masked_node(values.get("hydra") or {})})
    write_text(path, masked_text)


def _masked_node(hydra: dict[str, Any]) -> Any:
    """Hydra's node without the values of environment variables, neither as its own values nor in its overrides."""
    hydra = plain(hydra)
    for name in _ENVIRONMENT:
        variables = hydra.get("job", {}).get(name)
        if isinstance(variables, Mapping):
            hydra["job"][name] = dict.fromkeys(variables, MASK)
    overrides = hydra.get("overrides") or {}
    hydra["overrides"] = {kind: masked_overrides(map(str, values or ())) for kind, values in overrides.items()}
    return masked_by_name(hydra)


def plain(value: Any) -> Any:
    """Paths as strings: a YAML with a Python object in it is refused by every safe loader."""
    return map_leaves(value, lambda leaf: str(leaf) if hasattr(leaf, "__fspath__") else leaf)


# In the job's folder; its values of environment variables and secrets are masked.
FILE = ".hydra/hydra.yaml"
_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"


def set_hydra_config(config: Any, node: Any, job_folder: str) -> None:
    """Set HydraConfig in the process that composed: `config` is the job's, `node` its section `hydra`."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import flag_override, open_dict

    full = copy.deepcopy(config)
    with flag_override(full, ["readonly", "allow_objects", "no_deepcopy_set_nodes"], [False, True, True]):
        with open_dict(full):
            full["hydra"] = node
        _set_output_dir(full.hydra, job_folder)
        HydraConfig.instance().set_config(full)


def enter_hydra(folder: Path) -> None:
    """Set HydraConfig where it is not set yet, and configure logging as the composed config has it; called before the
    job's handler, in its process. Raises UserError where that can't be done."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        node = _current_node() or _from_folder(folder)
        if node is None:  # a record of an earlier version has none
            _configure(None, verbose=False)
        else:
            _configure(node.job_logging, verbose=node.verbose)
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.job_logging: {str(error).splitlines()[0]}") from error
    mask_logging()


def without_files(job_logging: Mapping[str, Any]) -> dict[str, Any]:
    """A logging configuration without the handlers that write files: of a job's ranks one writes them."""
    handlers = {
        name: handler
        for name, handler in (job_logging.get("handlers") or {}).items()
        if not (isinstance(handler, Mapping) and "filename" in handler)
    }
    kept: dict[str, Any] = {**job_logging, "handlers": handlers}
    if isinstance(kept.get("root"), Mapping):
        kept["root"] = _only(kept["root"], handlers)
    if isinstance(kept.get("loggers"), Mapping):
        kept["loggers"] = {name: _only(logger, handlers) for name, logger in kept["loggers"].items()}
    return kept


def _current_node() -> Any:
    """Hydra's node in this process: a launcher of Hydra's, or the launch, has set it."""
    module = sys.modules.get("hydra.core.hydra_config")
    if module is None or not module.HydraConfig.initialized():
        return None
    return module.HydraConfig.get()


def _is_installed() -> bool:
    """Whether there is a Hydra to import. A `hydra.py` or a folder of that name, which a project may have, is none."""
    spec = find_spec("hydra")
    folders = spec.submodule_search_locations if spec is not None else None
    return any(Path(folder, "core", "hydra_config.py").is_file() for folder in folders or ())


def _from_folder(folder: Path) -> Any:
    from omegaconf import OmegaConf, open_dict

    if not (folder / FILE).is_file():
        return None
    node: Any = load_mapping(folder / FILE)["hydra"]
    register_resolvers()
    set_run_dir(str(folder.parent.parent))
    full: Any = OmegaConf.create(dict(read_config(folder)))
    if not _is_installed():  # Hydra, which has these resolvers
        full.hydra = node
        register: Any = partial(OmegaConf.register_new_resolver, replace=True)
        register("hydra", lambda path: OmegaConf.select(full.hydra, path))
        register("now", lambda pattern: datetime.now().strftime(pattern), use_cache=True)
        _set_output_dir(full.hydra, str(folder))
        return full.hydra
    from hydra.conf import HydraConf
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals

    setup_globals()
    typed = OmegaConf.structured(HydraConf)
    with open_dict(typed):  # a config may add to it
        full.hydra = OmegaConf.merge(typed, node)
    _set_output_dir(full.hydra, str(folder))
    HydraConfig.instance().set_config(full)
    return HydraConfig.get()


def _set_output_dir(node: Any, job_folder: str) -> None:
    from omegaconf import open_dict, read_write

    with read_write(node), open_dict(node):
        node.runtime.output_dir = job_folder


def _configure(job_logging: Any, *, verbose: Any) -> None:
    """Configure logging as Hydra's configure_log does, also where Hydra is not installed."""
    from omegaconf import OmegaConf

    values: Any = None if job_logging is None else OmegaConf.to_container(job_logging, resolve=True)
    if values is not None and rank() != 0:
        values = without_files(values)
    try:
        if _is_installed():
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
            reason = f"{os.fsdecode(why.filename)}: {why.strerror}"
        else:
            reason = f"{error}: {why}" if why is not error else str(error)
        kind = NemotronError if isinstance(why, OSError) else UserError
        raise kind(f"The job's logging can't be set up: {reason}.", hint="See hydra.job_logging.") from error
    if isinstance(verbose, bool):
        verbose = [None] if verbose else []
    for name in [verbose] if isinstance(verbose, str) else verbose:
        logging.getLogger(name).setLevel(logging.DEBUG)


def _only(logger: Any, handlers: Mapping[str, Any]) -> Any:
    if not isinstance(logger, Mapping) or not logger.get("handlers"):
        return logger
    return {**logger, "handlers": [name for name in logger["handlers"] if name in handlers]}


_OURS = ".NemoRunLauncher"


def with_hydra_callbacks(folder: Path, task: Any, run: Callable[[], Outcome]) -> Outcome:
    """Call on_job_start, then `run`, then on_job_end; for a job that is no sweep's, on_run_start and on_run_end too.

    As in Hydra, no callback is called for the end of a job that was interrupted, and what a callback raises is a
    warning. Raises UserError for callbacks that can't be made here.
    """
    node = _current_node()
    if node is None or not node.callbacks or rank() != 0:  # of a job's ranks, rank 0 calls them
        return run()
    single = not str(node.mode).endswith("MULTIRUN")
    if not single and not str(node.launcher.get("_target_")).endswith(_OURS):  # a launcher of Hydra's calls them itself
        return run()
    from hydra._internal.callbacks import Callbacks
    from hydra.core.utils import JobReturn, JobStatus
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    config: Any = OmegaConf.create({**read_config(folder), "hydra": node}, flags={"allow_objects": True})
    try:
        callbacks: Any = Callbacks(config)
    except HydraException as error:
        text = " ".join(str(error).split("\n")[:2])
        raise UserError(f"hydra.callbacks: {text}.", hint="Its class has to be importable where jobs run.") from error

    def ended(value: Any, error: BaseException | None) -> None:
        returned = JobReturn(
            overrides=list(node.overrides.task),
            cfg=OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]),
            hydra_cfg=OmegaConf.masked_copy(config, ["hydra"]),
            working_dir=str(node.runtime.output_dir),
            task_name=str(node.job.name),
            status=JobStatus.FAILED if error else JobStatus.COMPLETED,
            _return_value=error or value,
        )
        callbacks.on_job_end(config=config, job_return=returned)
        if single:
            callbacks.on_run_end(config=config, config_name=node.job.config_name, job_return=returned)

    if single:
        callbacks.on_run_start(config=config, config_name=node.job.config_name)
    callbacks.on_job_start(config=config, task_function=task)
    try:
        outcome = run()
    except Exception as error:
        ended(None, error)
        raise
    if outcome.state not in ("cancelled", "preempted"):
        ended(outcome.value, outcome.exception)
    return outcome
