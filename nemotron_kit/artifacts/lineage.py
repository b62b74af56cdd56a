"""Lineage: the artifacts that a job read and saved, in its folder's `artifacts.json`.

The processes of a job may save at the same time, so each save is a separate file in `artifacts.d`. `artifacts.json`
is updated after each save; readers join the two.

    {"inputs": {"data": PIN}, "outputs": [PIN, …]}

A pin names a version for good: `name`, `version` (a number), `digest`, `type`, `path`, `registry` (the registry's id).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.errors import DamagedRecordError, NemotronError, UserError
from nemotron_kit.files import read_json, sha256_of, write_json
from nemotron_kit.home import located

if TYPE_CHECKING:
    from nemotron_kit.artifacts.saving import Artifact

FILE = "artifacts.json"
# One file a save: `runs.job` reads them, too.
SAVES = "artifacts.d"

# One process can run several jobs after another (a sweep on this machine): each job's folder has its own inputs.
_inputs_by_job: dict[str, list[Pin]] = {}
_lock = threading.Lock()
# The inputs of a command that runs in this process without a job's folder.
_given: list[dict[str, Pin]] = []


def job_folder() -> Path | None:
    """$NEMO_RUN_DIR, if this process belongs to a job."""
    named = os.environ.get("NEMO_RUN_DIR")
    folder = Path(named) if named else None
    return folder if folder is not None and folder.is_dir() else None


def require_job_folder(then: str = "nothing is saved") -> None:
    """Raise NemotronError if this process belongs to a job whose folder was moved or removed: the lineage could not be
    recorded, and writing would recreate the folder at its old path."""
    named = os.environ.get("NEMO_RUN_DIR")
    if named and run_id() and not Path(named).is_dir():
        raise NemotronError(
            f"{named}, the folder of this job, was moved or removed: {then}.",
            hint="Put it back where it was, or run the job again.",
        )


def run_id() -> str | None:
    """The id of the run that this process belongs to."""
    return os.environ.get("NEMOTRON_RUN_ID") or None


def record_input(pin: Pin) -> None:
    """Record that this process read an artifact: artifacts that it saves afterwards have it as an input."""
    with _lock:
        pins = _inputs_by_job.setdefault(_job(), [])
        if pin not in pins:
            pins.append(pin)


def job_inputs() -> dict[str, Pin]:
    """The job's pins by slot, as its artifacts.json names them; {} outside of a job."""
    if _given:
        return dict(_given[-1])
    folder, inputs = job_folder(), _job_artifacts()["inputs"]
    here = located(inputs, folder.absolute().parent.parent) if folder else inputs
    return {slot: Pin.from_dict(pin) for slot, pin in here.items()}


@contextlib.contextmanager
def given_inputs(pins: Mapping[str, Pin]) -> Iterator[None]:
    """Within the block, use these inputs (slot → pin) in this process, which runs a command without a job folder."""
    _given.append(dict(pins))
    try:
        yield
    finally:
        _given.pop()


def inputs() -> tuple[Pin, ...]:
    """The job's inputs as listed in its artifacts.json, followed by those that this process loaded itself, without
    duplicates."""
    found = list(job_inputs().values())
    with _lock:
        found += _inputs_by_job.get(_job(), [])
    return tuple(dict.fromkeys(found))


def record_output(pin: Pin) -> None:
    """Add an artifact to the outputs of the job. Does nothing outside of a job."""
    folder = job_folder()
    if folder is None:
        require_job_folder(f"{pin.label} is not among its outputs")
        return
    with _lock:
        known = _job_artifacts()  # raises an error for a damaged list, which is never overwritten
        if pin.to_dict() in known["outputs"]:
            return
        saves = folder / SAVES
        try:
            saves.mkdir(mode=0o700, exist_ok=True)
            write_json(saves / f"{time.time_ns():020d}-{sha256_of(pin.to_dict())[:16]}.json", pin.to_dict())
            _list_saves(folder)
        except OSError as error:
            where = error.filename or folder / FILE
            raise NemotronError(f"{where} can't be written: {error.strerror or error}.") from error


def _list_saves(folder: Path) -> None:
    """Update artifacts.json from artifacts.d. Each writer reads the folder again after it has renamed its list, so with
    several writers no save is missing."""
    while True:
        document, missing = _job_artifacts(), []
        listed = {sha256_of(pin)[:16] for pin in document["outputs"]}
        for file in sorted((folder / SAVES).glob("[0-9]*.json")):
            if (mark := file.stem.partition("-")[2]) not in listed:
                # A damaged one is another process's save: its reader reports it.
                with contextlib.suppress(FileNotFoundError, DamagedRecordError):
                    missing.append(read_json(file, "record of a save"))
                    listed.add(mark)
        if not missing:
            return
        write_json(folder / FILE, {**document, "outputs": [*document["outputs"], *missing]})


def _job() -> str:
    """The key of the current job in this process: the job's folder, or the output folder of another program's Hydra
    job."""
    if named := os.environ.get("NEMO_RUN_DIR"):
        return named
    hydra_config: Any = getattr(sys.modules.get("hydra.core.hydra_config"), "HydraConfig", None)
    if hydra_config is None or not hydra_config.initialized():
        return ""
    from omegaconf import OmegaConf

    runtime = hydra_config.get().runtime
    return "" if OmegaConf.is_missing(runtime, "output_dir") else str(runtime.output_dir)


def forget_inputs() -> None:
    """Forget what this process loaded outside of any job (for tests)."""
    with _lock:
        _inputs_by_job.clear()


def _job_artifacts() -> dict[str, Any]:
    folder = job_folder()
    try:
        document = read_json(folder / FILE, "job's list of artifacts") if folder else {}
    except FileNotFoundError:
        document = {}
    if not isinstance(document, dict):
        raise DamagedRecordError(f"{folder}/{FILE}: this job's list of artifacts is damaged: not a JSON object.")
    document.setdefault("inputs", {})
    document.setdefault("outputs", [])
    if not isinstance(document["inputs"], dict) or not isinstance(document["outputs"], list):
        raise DamagedRecordError(f"{folder}/{FILE}: this job's list of artifacts is damaged.")
    return document


# --- trackers: other systems to which saves and loads are reported


@runtime_checkable
class LineageTracker(Protocol):
    """The interface of a tracking system: four methods."""

    def is_active(self) -> bool:
        """Whether a run is open to log to."""

    def use_artifact(self, ref: str, artifact_type: str) -> Path:
        """Record that the run reads `ref`, and return the artifact's folder on this machine."""

    def log_artifact(self, artifact: Artifact, name: str, used_refs: Sequence[str]) -> dict[str, Any]:
        """Log a saved artifact; returns artifact_id, artifact_type, run_id, url, used_artifacts."""

    def get_run_id(self) -> str | None:
        """The id of the run, None without one."""


class NoOpTracker:
    """Tracks nothing."""

    def is_active(self) -> bool:
        """Always False."""
        return False

    def use_artifact(self, ref: str, artifact_type: str) -> Path:
        """Always raises UserError: nothing can be fetched without a tracker."""
        raise UserError(f"{ref} can't be fetched: tracking is off.", hint="set_lineage_tracker(…) chooses a tracker.")

    def log_artifact(
        self, artifact: Artifact, name: str, used_refs: Sequence[str] = (), *, used_artifacts: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Logs nothing; every id is None."""
        return tracked(artifact, used_refs or used_artifacts)

    def get_run_id(self) -> str | None:
        """None."""
        return None


def tracked(artifact: Artifact, used: Sequence[str], **found: str | None) -> dict[str, Any]:
    """What `log_artifact` returns."""
    ids = {"artifact_id": None, "run_id": None, "url": None, **found}
    return {**ids, "artifact_type": artifact.type, "used_artifacts": list(used)}


_tracker: LineageTracker = NoOpTracker()


def set_lineage_tracker(tracker: LineageTracker | None) -> None:
    """Set the tracker to which saves and loads are reported; None turns tracking off."""
    global _tracker
    _tracker = tracker if tracker is not None else NoOpTracker()


def get_lineage_tracker() -> LineageTracker:
    """The tracker in use; a NoOpTracker where none was set."""
    return _tracker


def active_tracker() -> LineageTracker | None:
    """The tracker in use, if it has a run open to log to."""
    return _tracker if _tracker.is_active() else None
