"""What a job read and wrote: the inputs that its outputs carry, and the `artifacts.json` in its folder."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.errors import DamagedRecordError
from nemotron_kit.artifacts.pin import Pin
from nemotron_kit.artifacts.sealed import read_json
from nemotron_kit.errors import NemotronError
from nemotron_kit.files import write_json

FILE = "artifacts.json"

# One process can run several jobs after another (a sweep on this machine): each job's folder has its own inputs.
_read_here: dict[str, list[Pin]] = {}
_lock = threading.Lock()


def job_folder() -> Path | None:
    """$NEMO_RUN_DIR, if this process belongs to a job."""
    named = os.environ.get("NEMO_RUN_DIR")
    folder = Path(named) if named else None
    return folder if folder is not None and folder.is_dir() else None


def run_id() -> str | None:
    """The id of the run that this process belongs to."""
    return os.environ.get("NEMOTRON_RUN_ID") or None


def record_input(pin: Pin) -> None:
    """Remember that this process read an artifact: what it saves from now on descends from it."""
    with _lock:
        pins = _read_here.setdefault(_job(), [])
        if pin not in pins:
            pins.append(pin)


def job_inputs() -> dict[str, Pin]:
    """The job's pins by slot, as its artifacts.json names them; {} outside of a job."""
    return {slot: Pin.from_dict(pin) for slot, pin in _job_artifacts()["inputs"].items()}


def inputs() -> tuple[Pin, ...]:
    """The job's inputs as its artifacts.json names them, then what this process loaded; each once."""
    found = list(job_inputs().values())
    with _lock:
        found += _read_here.get(_job(), [])
    return tuple(dict.fromkeys(found))


def record_output(pin: Pin) -> None:
    """Add an artifact to the outputs in the job's artifacts.json; without a job, nothing."""
    folder = job_folder()
    if folder is None:
        return
    with _lock:
        document = _job_artifacts()
        if pin.to_dict() not in document["outputs"]:
            document["outputs"].append(pin.to_dict())
            try:
                write_json(folder / FILE, document)
            except OSError as error:
                raise NemotronError(f"{folder / FILE} can't be written: {error.strerror or error}.") from error


def _job() -> str:
    """What tells this process's jobs apart: the job's folder, or the output folder of a Hydra job of anybody's."""
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
        _read_here.clear()


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
