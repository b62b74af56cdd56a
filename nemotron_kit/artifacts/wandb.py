"""W&B runs, and artifacts logged to them: online, or offline where the server cannot be reached."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from nemotron_kit.artifacts import lineage
from nemotron_kit.artifacts.datasets import InputDatasetInfo, to_wandb_uri
from nemotron_kit.artifacts.manifest import folder_of, read_document
from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.artifacts.registry import get_config, init
from nemotron_kit.envfile import Lines, read_env_file, reserved_table
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.masking import masked

if TYPE_CHECKING:
    from nemotron_kit.artifacts.saving import Artifact


logger = logging.getLogger(__name__)
# The time after which a service that does not answer is given up, in seconds.
PATIENCE_S = 60.0
# W&B run id → the inputs that it knows.
_noted: dict[str, set[Pin]] = {}


def require_wandb() -> Any:
    """The wandb module; UserError that names the extra where it isn't installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "W&B tracking is asked for, but wandb is not installed.",
            hint="pip install 'nemotron-kit[wandb]', or turn tracking off ([wandb] in env.toml, run.wandb, --wandb.…).",
        ) from error
    return wandb


class WandbTracker:
    """Logs every saved artifact to the active W&B run; an offline run stores them for `wandb sync`."""

    def __init__(self) -> None:
        self.wandb = require_wandb()

    def is_active(self) -> bool:
        """Whether a W&B run is open in this process."""
        run = self.wandb.run
        return run is not None and not getattr(run, "disabled", False)

    def get_run_id(self) -> str | None:
        """The W&B run's id."""
        return self.wandb.run.id if self.is_active() else None

    def use_artifact(self, ref: str, artifact_type: str) -> Path:
        """Record `ref` as an input of the run; returns its folder on this machine, downloaded if necessary.

        Raises UserError without a run, or in an offline one, where W&B can't be asked.
        """
        run = self._run()
        if run.offline:
            raise UserError(
                f"{ref} can't be fetched: this W&B run is offline.", hint="Name a local artifact or a path."
            )
        used = bounded(lambda: run.use_artifact(ref), f"W&B did not answer for {ref}")
        folder = Path(str(used.metadata.get("path", "")))
        if (folder / "metadata.json").is_file():
            return folder
        return Path(bounded(used.download, f"W&B did not send {ref}", seconds=None))

    def log_artifact(
        self, artifact: Artifact, name: str, used_refs: Sequence[str] = (), *, used_artifacts: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Log metadata.json and the small files, and a reference to the folder; returns the ids. Gives up after
        PATIENCE_S seconds."""
        run = self._run()
        used = list(used_refs or used_artifacts)
        info: dict[str, Any] = bounded(lambda: self._log(run, artifact, name, used), f"W&B did not answer for {name}")
        return info

    def _run(self) -> Any:
        if not self.is_active():
            raise UserError("No W&B run is active.", hint="Call init_wandb_if_configured() or wandb.init(…) first.")
        return self.wandb.run

    def _log(self, run: Any, artifact: Artifact, name: str, used: list[str]) -> dict[str, Any]:
        document = artifact._document()
        known = {"created_at": artifact.created_at, "path": document["path"], **_local_version(artifact._pin)}
        about = {**known, **({"inputs": used} if used else {}), **document["metadata"]}
        logged = self.wandb.Artifact(name=name, type=artifact.type, metadata=about)
        for path, stored in files_of(artifact):
            logged.add_file(path, name=stored)
        for uri, stored in artifact.get_wandb_references():
            logged.add_reference(uri, name=stored, checksum=False)
        run.summary.update(artifact.metrics)
        self._note_inputs(run, artifact, used)
        logged = run.log_artifact(logged, aliases=["latest"])
        if run.offline:
            return lineage.tracked(artifact, used, run_id=run.id)
        logged.wait(timeout=int(PATIENCE_S))
        return lineage.tracked(artifact, used, artifact_id=logged.qualified_name, run_id=run.id, url=logged.url)

    def _note_inputs(self, run: Any, artifact: Artifact, used: list[str]) -> None:
        """Record the inputs in the run's lineage. An input that W&B refuses is logged as a warning and left out."""
        _note_pins(self.wandb, run)
        for ref in used:
            if not ref.startswith("art://") and not run.offline:
                with _warned(ref):
                    run.use_artifact(ref)
        for source in getattr(artifact, "source_datasets", []):
            info = InputDatasetInfo(source) if isinstance(source, str) else source
            with _warned(info.uri):
                self._note_source(run, "dataset", info.uri, info.subset, vars(info))
        tokenizer = getattr(artifact, "tokenizer_uri", None)
        if tokenizer:
            with _warned(tokenizer):
                self._note_source(run, "tokenizer", tokenizer, None, {"uri": tokenizer})

    def _note_source(self, run: Any, kind: str, uri: str, subset: str | None, about: dict[str, Any]) -> None:
        address = to_wandb_uri(uri)
        source = self.wandb.Artifact(
            name=artifact_name(uri, subset), type=kind, description=f"Source: {address}", metadata=about
        )
        source.add_reference(address, name="data", checksum=False)
        _use(run, source)


def _note_pins(wandb: Any, run: Any) -> None:
    """Record the artifacts that the job has read so far as inputs of the run, each once, by its name in W&B if it was
    logged to W&B."""
    noted = _noted.setdefault(str(run.id), set())
    for pin in lineage.inputs():
        if pin in noted:
            continue
        with _warned(pin.label):
            logged = ((read_document(folder_of(Path(pin.path))) or {}).get("tracking") or {}).get("artifact_id")
            if isinstance(logged, str) and not run.offline:
                run.use_artifact(logged)
            else:
                name, kind = pin.name or artifact_name(pin.path), pin.type or "artifact"
                source = wandb.Artifact(name=name, type=kind, metadata={"path": pin.path, **_local_version(pin)})
                source.add_reference(to_wandb_uri(pin.path), name="output", checksum=False)
                _use(run, source)
            noted.add(pin)


def _local_version(pin: Pin | None) -> dict[str, Any]:
    """Which version of the registry an artifact in W&B is, for its metadata there."""
    return {"local_version": pin.label, "sha256": pin.digest} if pin is not None and pin.version is not None else {}


def _use(run: Any, source: Any) -> None:
    """Record an artifact as an input of the run. In an offline run it is stored for `wandb sync`: W&B's public
    `use_artifact` refuses that, although recording an artifact that is not logged yet needs no connection."""
    if run.offline:
        run._log_artifact(source, is_user_created=True, use_after_commit=True)
    else:
        run.use_artifact(source)


def files_of(artifact: Artifact) -> list[tuple[str, str]]:
    """(path, name) of the files to upload: those of `get_wandb_files` that are inside the artifact's folder. A field of
    an untrusted metadata.json, or a link, could name any file of this user."""
    folder = artifact._get_output_dir().resolve()
    inside = []
    for path, stored in artifact.get_wandb_files():
        real = Path(path).resolve()
        if real.is_relative_to(folder) and real.is_file():
            inside.append((str(real), stored))
        else:
            logger.warning("W&B is not sent %s: %s is no file in the artifact's folder, %s.", stored, real, folder)
    return inside


@contextlib.contextmanager
def _warned(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 — the artifact is logged without this input
        logger.warning("W&B does not take %s as an input of this run: %s", what, error)


def artifact_name(uri: str, subset: str | None = None) -> str:
    """A valid W&B artifact name for an address: without the scheme, other characters as dashes, 128 characters at
    most."""
    bare = uri.split("://", 1)[-1] + (f"-{subset}" if subset else "")
    return re.sub(r"[^A-Za-z0-9._]+", "-", bare).strip("-._")[:128] or "dataset"


def bounded(work: Callable[[], Any], complaint: str, *, seconds: float | None = PATIENCE_S) -> Any:
    """Run `work()` in a thread. Raises NemotronError with `complaint` if it has not finished in time; the thread is
    then abandoned."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        # Passed to the caller's thread, which raises it.
        except BaseException as error:  # noqa: BLE001
            failure.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise NemotronError(f"{complaint} within {seconds:.0f} s.", hint="`wandb sync` sends it later.")
    return outcome[0]


# No postponed annotations here: WandbConfig is also used as an OmegaConf schema.


_INIT_S = 15.0
_PROBE_S = 2.0


@dataclass
class WandbConfig:
    """The settings of runs in W&B; without a project, runs are not tracked."""

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
    """The [wandb] table of env.toml; None if there is no such table, or if it has `enabled = false`."""
    env = read_env_file()
    given = env.table("wandb")
    if given.get("enabled", bool(given)) is False:
        return None
    table = reserved_table(env, "wandb")
    name = table.pop("name", None)
    if not table.get("project"):
        where = Lines(env).where("wandb")
        raise UserError(
            f"{where}: it names no project.", hint='Add project = "…", or remove the table to turn W&B off.'
        )
    return WandbConfig(**{"run_name": name, **table})


def wandb_config_from_environ() -> WandbConfig | None:
    """$WANDB_PROJECT, _ENTITY, _NAME, _TAGS (comma-separated) and _NOTES; None without a project."""
    values = {key: os.environ.get(f"WANDB_{key}") or None for key in ("PROJECT", "ENTITY", "NAME", "NOTES")}
    if values["PROJECT"] is None:
        return None
    tags = [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    return WandbConfig(values["PROJECT"], values["ENTITY"], values["NAME"], tuple(tags), values["NOTES"])


def init_wandb_if_configured(
    wandb_config: WandbConfig | None = None, job_type: str = "data-prep", tags: list[str] | None = None
) -> None:
    """Start a W&B run and track artifacts in it, if `wandb_config` (else the environment, else env.toml) configures
    one; no artifacts where env.toml says `[artifacts] backend = "file"`.

    On rank 0 only. The run is offline where W&B can't be reached or has no key here, unless WANDB_MODE says otherwise;
    trouble with the service is a warning, and WANDB_MODE=disabled tracks nothing. UserError where W&B is asked for and
    not installed.
    """
    config = wandb_config or wandb_config_from_environ() or wandb_config_from_env_file()
    if config is None or not config.enabled or os.environ.get("RANK", "0") != "0":
        return
    if os.environ.get("WANDB_MODE") == "disabled":
        return
    wandb = require_wandb()
    known = get_config()
    logged = known is not None or read_env_file().table("artifacts").get("backend") != "file"
    if logged:
        init("wandb", known.root if known else None, wandb_project=config.project, wandb_entity=config.entity)
    if wandb.run is None:
        start_run(wandb, config, job_type, [*config.tags, *(tags or [])])
        if logged:
            note_inputs()
    elif tags:
        try:
            add_run_tags(tags)
        except Exception as error:  # noqa: BLE001 — as in start_run
            logger.warning("W&B does not take the tags %s: %s", ", ".join(tags), error)


def add_run_tags(tags: list[str]) -> None:
    """Add tags to the active W&B run; without one, nothing."""
    run = _active_run()
    if run is not None and tags:
        run.tags = tuple(dict.fromkeys([*(run.tags or ()), *masked(tags)]))


add_wandb_tags = add_run_tags


def finish_wandb(exit_code: int = 0) -> None:
    """Close the active W&B run with its exit code; waits at most a minute for pending uploads. A run that has saved
    nothing has its inputs, too."""
    run = _active_run()
    if run is None:
        return
    if str(run.id) in _noted:
        note_inputs()
    try:
        bounded(lambda: (sys.modules["wandb"].finish(exit_code=exit_code),), "W&B did not take the rest of the run")
    # The job has ended; an error of W&B must not make it fail.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        logger.warning("%s", error)


def note_inputs() -> None:
    """Record the artifacts that the job has read so far in the active run. Never raises; takes at most PATIENCE_S."""
    run = _active_run()
    if run is None:
        return
    try:
        bounded(lambda: _note_pins(sys.modules["wandb"], run), "W&B did not answer for the run's inputs")
    except Exception as error:  # noqa: BLE001 — an error of W&B must not make the job fail
        logger.warning("%s", error)


def _active_run() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)


def start_run(wandb: Any, config: WandbConfig, job_type: str, tags: list[str]) -> None:
    """Start a W&B run, offline if W&B can't be reached or there is no key; failures of W&B are logged as warnings."""
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() and _reachable() else "offline")
    folder = lineage.job_folder()
    # Bounded waiting, and no copy of argv, code or environment, which can hold secrets.
    wanted = {"x_disable_meta": True, "save_code": False, "init_timeout": _INIT_S, "finish_timeout": PATIENCE_S}
    known = getattr(wandb.Settings, "model_fields", wanted)
    arguments: dict[str, Any] = {
        "project": config.project,
        "entity": config.entity,
        **masked({"name": config.run_name, "tags": list(dict.fromkeys(tags)) or None, "notes": config.notes}),
        "job_type": job_type,
        "dir": str(folder) if folder else None,
        "id": _run_id(folder),
        "settings": wandb.Settings(**{key: value for key, value in wanted.items() if key in known}),
    }
    if mode == "online":
        try:
            wandb.init(**arguments, mode=mode, resume="allow")
            return
        # Every failure of the service, of any class, is handled in the same way: the run is offline.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            logger.warning("W&B can't be used now (%s); the run is recorded offline, for `wandb sync`.", error)
            mode = "offline"
    try:
        wandb.init(**arguments, mode=mode)
    except (Exception, SystemExit) as error:  # noqa: BLE001 — a tracker's failure must not fail the job
        logger.warning("W&B can't be used (%s): nothing is tracked in it.", error)


def _run_id(folder: Path | None) -> str | None:
    """The W&B run id of a job: the same after it was requeued, and another for each job of a sweep. Of a long one, the
    middle (recipe and stage) is cut: time and random digits identify the run, and the job's number follows them."""
    run = lineage.run_id()
    if run is None:
        return None
    found = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{run}-{folder.name}" if folder else run)
    return found if len(found) <= 64 else f"{found[:40]}{found[-24:]}"


def _server() -> SplitResult:
    return urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai")


def _has_key() -> bool:
    """Whether W&B finds credentials without asking at the terminal: in the environment, or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import netrc

    try:
        file = netrc.netrc(os.environ.get("NETRC") or os.path.expanduser("~/.netrc"))  # noqa: PTH111
    except (OSError, netrc.NetrcParseError):
        return False
    return file.authenticators(_server().hostname or "") is not None


def _reachable() -> bool:
    """Whether W&B's server, or the proxy in front of it, accepts a connection."""
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
