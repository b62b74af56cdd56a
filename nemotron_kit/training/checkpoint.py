"""Training checkpoints: written, verified, read and pruned. One folder a step, written atomically.

    step-00000100/
    ├── checkpoint.json         see below
    ├── model/                  the weights, as transformers saves them: config.json, *.safetensors
    └── optimizer.safetensors   the optimizer's state

checkpoint.json: `step`, `progress` (TrainingProgress), `identity` (the settings and the data that a run must share to
continue from it), `processes` and `parallelism` that wrote it, `files` (path → size and sha256), `sealed_by`, and
`sha256` of the record without this key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import DamagedRecordError, NemotronError, UserError
from nemotron_kit.files import (
    CHECKSUM,
    WRITER,
    aside,
    fsync_dir,
    read_checksummed,
    read_json,
    render_checksummed,
    write_text,
)

if TYPE_CHECKING:
    import torch


MODEL = "model"
OPTIMIZER = "optimizer.safetensors"
# A time_step_min that limits nothing. Not 0: where weights are made anew, its logarithm is taken.
NO_TIME_STEP_LIMIT = 1e-30


@dataclass
class TrainingProgress:
    """The progress of a run; saved with each checkpoint.

    No state of random generators is saved: random numbers, the order of the data and the learning rate are functions of
    the seed and the step.

    step: optimizer steps done. nll, steps_in_window: the loss summed since the last log line. elapsed: seconds of
    training, over all attempts. loss: the last logged training loss; valid_loss: the last held-out one. valid_on:
    digest of the held-out data. changes: settings that had changed when the run was resumed ({step, name, there,
    here}), as checkpoint.may_differ permits. tokens: how many were trained on. samples: how many windows, rows or
    prompts the steps took (0 in records of earlier versions). window and held_out belong to the step loop: the sums of
    a step's values since the last row, the last row of held-out values with the step at which they were measured, and
    those from before the first step.
    """

    step: int = 0
    nll: float = 0.0
    steps_in_window: int = 0
    elapsed: float = 0.0
    loss: float | None = None
    valid_loss: float | None = None
    valid_on: str | None = None
    changes: list[dict[str, Any]] = field(default_factory=list)
    window: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    held_out: dict[str, float] = field(default_factory=dict)
    held_out_step: int = 0
    before: dict[str, float] = field(default_factory=dict)
    samples: int = 0

    def forget_held_out(self) -> None:
        """Drop the held-out values, where this run has no held-out data, or other data than they were measured on: they
        would be reported as those of its last weights."""
        self.valid_loss, self.valid_on = None, None
        self.held_out, self.held_out_step, self.before = {}, 0, {}


def export_model(model: Any, folder: Path) -> None:
    """Write the model to `folder` in transformers' format (safetensors). Raises OSError if the disk refuses."""
    with for_generation(model.config), disk_errors():
        model.save_pretrained(folder)


@contextlib.contextmanager
def for_generation(config: Any) -> Iterator[None]:
    """Within it, a model's config is the one that goes with its weights."""
    before = {name: getattr(config, name) for name in ("use_cache", "time_step_min") if hasattr(config, name)}
    config.use_cache = True  # the Trainer turns it off; it is for generation
    if "time_step_min" in before:
        # Once there are weights, this is nothing but transformers' lower limit of dt, which it has in forward passes
        # over whole sequences and not in decoding, and our training in neither (see model.py).
        config.time_step_min = min(config.time_step_min, NO_TIME_STEP_LIMIT)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def save_config(config: Any, generation: Any, folder: Path) -> None:
    """Write what `export_model` writes beside the weights: the config, and what the model generates by."""
    config.architectures, config.dtype = ["NemotronHForCausalLM"], "float32"
    with for_generation(config):
        config.save_pretrained(folder)
    if generation is not None:
        generation.save_pretrained(folder)


def save_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module, path: Path) -> None:
    """Write every tensor of the optimizer's state, named `<entry>.<parameter>`. Raises OSError if the disk refuses."""
    from safetensors.torch import save_file

    state = {
        f"{entry}.{name}": value.contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for entry, value in optimizer.state[parameter].items()
    }
    with disk_errors():
        save_file(state, path)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Convert safetensors' own error for a full disk to an OSError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


RECORD = "checkpoint.json"
# How checkpoint.may_differ names a record that has no checksum.
UNCHECKED_RECORD = "checkpoint.record"
_NAME = re.compile(r"step-(\d{8})\Z")
# Files of a killed writer are removed only once no living process can own them.
_LEASE_SECONDS = 3600
# Names of removed folders, which no writer uses: deleted whenever possible.
_PRUNED = ".pruned"


def write(folder: Path, step: int, fill: Callable[[Path], dict[str, Any]]) -> Path:
    """Write the checkpoint of `step` and return its folder, `<folder>/step-<step>`.

    `fill` writes files into the folder that it is given and returns the record's other entries. Everything is written
    to a temporary folder, synced, and renamed at the end, so a checkpoint is complete and durable or absent. Raises
    NemotronError if the disk refuses; earlier checkpoints are not touched.
    """
    final = folder / name(step)
    if (final / RECORD).is_file():  # the same step of the same run: the same content
        return final
    folder.mkdir(parents=True, exist_ok=True)
    building = aside(final)
    try:
        with write_errors(final):
            building.mkdir()
            record = fill(building)
            commit(building, final, {"step": step, **record, "files": sync_and_hash(building)})
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return final


def commit(building: Path, final: Path, record: dict[str, Any]) -> None:
    """Make the synced files in `building` the checkpoint `final`: its record is written, and it gets its name."""
    # As JSON reads it back (a number as a key is a text then): that is what the checksum is of.
    write_text(building / RECORD, render_checksummed({**json.loads(json.dumps(record)), **WRITER}))
    building.rename(final)
    fsync_dir(final.parent)


@contextlib.contextmanager
def write_errors(final: Path) -> Iterator[None]:
    """Convert an OSError to the NemotronError that says that the disk refuses the checkpoint `final`."""
    try:
        yield
    except OSError as error:
        raise NemotronError(
            f"{final}: the checkpoint can't be written: {error.strerror or error}.",
            hint="Earlier checkpoints are intact; free some space, or set another checkpoint.save, and start again.",
        ) from error


def require_own(path: Path, identity: Mapping[str, Any]) -> None:
    """NemotronError when there is a checkpoint in `path`, and it is another run's."""
    if path.exists() and read(path, verify=False).get("identity") != identity:
        raise NemotronError(
            f"{path} appeared while this run was under way, with the weights of another one.",
            hint="Give each run a checkpoint.save of its own.",
        )


def name(step: int) -> str:
    """The name of the folder that holds the checkpoint of `step`."""
    return f"step-{step:08d}"


def sync_and_hash(folder: Path, known: Mapping[str, dict[str, Any]] | None = None) -> dict[str, dict[str, Any]]:
    """Sync every file below `folder` to disk; returns {relative path: {"size": bytes, "sha256": hex}}. Those in `known`
    were synced and hashed by who wrote them."""
    files = dict(known or {})
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if str(path.relative_to(folder)) in files:
            continue
        files[str(path.relative_to(folder))] = sync_file(path)
    for inner in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        fsync_dir(inner)
    return files


def sync_file(path: Path) -> dict[str, Any]:
    """Sync a file to disk; returns its {"size": bytes, "sha256": hex}."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def latest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder`, or None."""
    return max(all_in(folder), default=None, key=lambda path: path.name)


def read(path: Path, *, verify: bool | Callable[[str], bool], allow_unchecked: bool = False) -> dict[str, Any]:
    """The record of a checkpoint. UserError when it is damaged; `verify` reads every file (or those whose name it is
    true of) and compares its sha256.

    `allow_unchecked` also takes a record without a checksum, as earlier versions wrote it, and marks it with
    record["unchecked"] = True: it can't be verified.
    """
    try:
        try:
            record = read_checksummed(path / RECORD, "record")
        except DamagedRecordError:
            record = read_json(path / RECORD, "record")
            if not isinstance(record, dict) or not record.get("files") or {CHECKSUM, *WRITER} & record.keys():
                raise
            record["unchecked"] = True
        files = record["files"]
        if record["step"] != int(path.name.removeprefix("step-")):
            raise ValueError(f"it is of step {record['step']}")
        # Of such a record no file is read: they may be large.
        refused = record.get("unchecked") and not allow_unchecked
        damaged = [
            name
            for name, entry in files.items()
            if not refused and not _intact(path / name, entry, verify if isinstance(verify, bool) else verify(name))
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NemotronError) as error:
        why = error.message.removeprefix(f"{path / RECORD}: ") if isinstance(error, NemotronError) else error
        raise UserError(
            f"{path / RECORD}: the checkpoint's record can't be read ({why}).", hint=_around(path)
        ) from error
    if refused:
        raise UserError(
            f"{path / RECORD}: the checkpoint's record has no checksum: it is of an earlier version, or was changed. "
            "Its data and settings are not known for certain.",
            hint=f"To go on from it all the same: 'checkpoint.may_differ=[{UNCHECKED_RECORD}]'. {_around(path)}",
        )
    if damaged:
        raise UserError(f"{path / damaged[0]}: the file is missing, or not what was saved.", hint=_around(path))
    return record


def prune(folder: Path, keep: int, also: Collection[Path] = ()) -> list[str]:
    """Remove all but the newest `keep` checkpoints and those in `also`, and what killed writers left. What can't be
    removed (a file that is open on NFS leaves a `.nfs…`) is retried next time and returned, one sentence each: it does
    not affect training."""
    problems = []
    for path in sorted(all_in(folder))[:-keep]:
        if path in also:
            continue
        gone = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PRUNED}")
        try:
            path.rename(gone)  # it stops being a checkpoint at once, not file by file
        except OSError as error:
            problems.append(f"{path} can't be removed: {error.strerror or error}.")
    left = [*folder.glob(f".*{_PRUNED}")]
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEASE_SECONDS:
                left.append(path)
    for debris in left:
        why = remove(debris)
        if why:
            problems.append(f"{debris} can't be removed: {why}.")
    return problems


def best(folder: Path, count: int, column: str, higher_is_better: bool, valid_on: str | None) -> list[Path]:
    """The `count` checkpoints with the best held-out value of `column`, of equal ones the later. Those that were not
    validated at their step, or on other data than `valid_on`, or whose record can't be read, are the worst."""
    sign = 1.0 if higher_is_better else -1.0

    def value(path: Path) -> tuple[float, str]:
        try:
            progress = read(path, verify=False, allow_unchecked=True)["progress"]
        except UserError:
            return -math.inf, path.name
        # Records of earlier versions don't say when, and on what, it was measured.
        comparable = progress.get("held_out_step", progress["step"]) == progress["step"]
        comparable = comparable and progress.get("valid_on") in (None, valid_on)
        found = (progress.get("held_out") or {}).get(column) if comparable else None
        return -math.inf if found is None else sign * float(found), path.name

    return sorted(all_in(folder), key=value, reverse=True)[:count]


def remove(folder: Path) -> str | None:
    """Remove a folder, as much of it as can be removed; returns the first reason why something remains, None if all is
    gone."""
    reasons: list[str] = []

    for here, folders, files in os.walk(folder, topdown=False):
        for name in [*files, *folders]:
            _remove_one(Path(here, name), reasons)
    _remove_one(folder, reasons)
    return reasons[0] if reasons else None


def _remove_one(path: Path, reasons: list[str]) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    except FileNotFoundError:  # another process removes it too
        pass
    except OSError as error:
        reasons.append(f"{path}: {error.strerror or error}")


def all_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, unordered."""
    return [path for path in folder.glob("step-*") if _NAME.match(path.name) and path.is_dir()]


def _intact(path: Path, entry: dict[str, Any], verify: bool) -> bool:
    if not path.is_file() or path.stat().st_size != entry["size"]:
        return False
    if not verify:
        return True
    with path.open("rb") as file:
        return bool(hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"])


def _around(path: Path) -> str:
    others = sorted(other.name for other in all_in(path.parent) if other != path)
    if others:
        return f"Remove {path} to go on from {others[-1]}."
    return f"Remove {path} to start anew."
