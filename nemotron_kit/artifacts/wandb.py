"""W&B runs: configured by env.toml or the environment, offline unless the server can be reached, never in the way."""

# No postponed annotations here: WandbConfig is also used as an OmegaConf schema.

import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.wandb_tracker import PATIENCE_S, bounded, require_wandb
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import UserError, nearest, sentence

logger = logging.getLogger(__name__)

_KEYS = ("project", "entity", "run_name", "name", "tags", "notes", "enabled")
_INIT_S = 15.0
_PROBE_S = 2.0


@dataclass
class WandbConfig:
    """How runs are tracked in W&B; without a project they are not."""

    project: str | None = None
    entity: str | None = None
    run_name: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    enabled: bool | None = None

    def __post_init__(self) -> None:
        self.tags = tuple(self.tags or ())
        self.enabled = bool(self.project) and self.enabled is not False


def wandb_config_from_env_file() -> WandbConfig | None:
    """`[wandb]` of the env.toml that is found; None without the table, or where it says `enabled = false`."""
    env = read_env_file()
    table = env.table("wandb")
    if table.get("enabled", bool(table)) is False:
        return None
    where = f"{env.path}: [wandb]"
    for key in table:
        if key not in _KEYS:
            raise UserError(f"{where} has no key {key!r}.", hint=sentence(nearest(key, _KEYS)))
    tags = table.get("tags", [])
    texts = {"project": table.get("project"), "entity": table.get("entity"), "notes": table.get("notes")}
    texts["run_name"] = table.get("run_name", table.get("name"))
    for key, value in texts.items():
        if not isinstance(value, str | None):
            raise UserError(f"{where} {key} is {value!r}, not a text.")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UserError(f"{where} tags is {tags!r}.", hint='Write a list of texts: tags = ["a", "b"].')
    if not texts["project"]:
        raise UserError(f"{where} names no project.", hint='Add project = "…", or remove the table to turn W&B off.')
    return WandbConfig(tags=tuple(tags), **texts)


def wandb_config_from_environ() -> WandbConfig | None:
    """$WANDB_PROJECT, _ENTITY, _NAME, _TAGS (with commas) and _NOTES; None without a project."""
    values = {key: os.environ.get(f"WANDB_{key}") or None for key in ("PROJECT", "ENTITY", "NAME", "NOTES")}
    if values["PROJECT"] is None:
        return None
    tags = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    return WandbConfig(values["PROJECT"], values["ENTITY"], values["NAME"], tuple(tags), values["NOTES"])


def init_wandb_if_configured(
    wandb_config: WandbConfig | None = None, job_type: str = "data-prep", tags: list[str] | None = None
) -> None:
    """Start a W&B run and track artifacts in it, if `wandb_config` (else the environment, else env.toml) says so.

    On rank 0 only. The run is offline where W&B can't be reached or has no key here, unless WANDB_MODE says otherwise;
    trouble with the service is a warning, and WANDB_MODE=disabled tracks nothing. UserError where W&B is asked for and
    not installed.
    """
    config = wandb_config or wandb_config_from_environ() or wandb_config_from_env_file()
    if config is None or not config.enabled or os.environ.get("RANK", "0") != "0":
        return
    if os.environ.get("WANDB_MODE") == "disabled":
        return
    from nemotron_kit.artifacts.backend import get_config, init

    wandb = require_wandb()
    known = get_config()
    init("wandb", known.root if known else None, wandb_project=config.project, wandb_entity=config.entity)
    if wandb.run is None:
        _start(wandb, config, job_type, [*config.tags, *(tags or [])])
    elif tags:
        try:
            add_run_tags(tags)
        except Exception as error:  # noqa: BLE001 — as in _start
            logger.warning("W&B does not take the tags %s: %s", ", ".join(tags), error)


def add_run_tags(tags: list[str]) -> None:
    """Add tags to the active W&B run; without one, nothing."""
    run = _active_run()
    if run is not None and tags:
        run.tags = tuple(dict.fromkeys([*(run.tags or ()), *tags]))


add_wandb_tags = add_run_tags


def finish_wandb(exit_code: int = 0) -> None:
    """Close the active W&B run with its exit code, waiting a minute at most for what is still to be sent."""
    if _active_run() is None:
        return
    try:
        bounded(lambda: (sys.modules["wandb"].finish(exit_code=exit_code),), "W&B did not take the rest of the run")
    # The work is done; what W&B does with it must not turn it into a failure.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        logger.warning("%s", error)


def _active_run() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)


def _start(wandb: Any, config: WandbConfig, job_type: str, tags: list[str]) -> None:
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() and _reachable() else "offline")
    folder = lineage.job_folder()
    arguments: dict[str, Any] = {
        "project": config.project,
        "entity": config.entity,
        "name": config.run_name,
        "tags": list(dict.fromkeys(tags)) or None,
        "notes": config.notes,
        "job_type": job_type,
        "dir": str(folder) if folder else None,
        "id": _run_id(folder),
        "settings": _settings(wandb),
    }
    if mode == "online":
        try:
            wandb.init(**arguments, mode=mode, resume="allow")
            return
        # Every failure of the service, of whatever class, means the same: keep the record here.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            logger.warning("W&B can't be used now (%s); the run is recorded offline, for `wandb sync`.", error)
            mode = "offline"
    try:
        wandb.init(**arguments, mode=mode)
    except (Exception, SystemExit) as error:  # noqa: BLE001 — the job is what counts, not what is told of it
        logger.warning("W&B can't be used (%s): nothing is tracked there.", error)


def _settings(wandb: Any) -> Any:
    """Bounded waiting, and no copy of argv, code or environment: they can hold secrets."""
    wanted = {"x_disable_meta": True, "save_code": False, "init_timeout": _INIT_S, "finish_timeout": PATIENCE_S}
    known = getattr(wandb.Settings, "model_fields", wanted)
    return wandb.Settings(**{key: value for key, value in wanted.items() if key in known})


def _run_id(folder: Path | None) -> str | None:
    """One W&B run for a job, also after it was requeued."""
    run = lineage.run_id()
    if run is None:
        return None
    return re.sub(r"[^A-Za-z0-9_-]+", "-", f"{run}-{folder.name}" if folder else run)[:64]


def _server() -> SplitResult:
    return urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")


def _has_key() -> bool:
    """Whether W&B finds credentials without asking at the terminal: in the environment, or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import netrc

    try:
        file = netrc.netrc(os.environ.get("NETRC") or str(Path("~/.netrc").expanduser()))
    except (OSError, netrc.NetrcParseError):
        return False
    return file.authenticators(_server().hostname or "") is not None


def _reachable() -> bool:
    """Whether W&B's server, or the proxy in front of it, takes a connection at once."""
    import socket
    from urllib.request import getproxies

    address = _server()
    proxy = getproxies().get(address.scheme)
    address = urlsplit(proxy if "://" in proxy else f"//{proxy}") if proxy else address
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=_PROBE_S).close()
    except (OSError, ValueError):
        return False
    return True
