"""Checkpoints of a sharded model: each rank writes, syncs and hashes a file of its own rows; the record that makes them
a checkpoint is written last. A run with any other layout can resume from it: a rank reads the rows that it holds.

    step-00000100/
    ├── checkpoint.json             as in every checkpoint: progress, identity, each file's size and sha256
    ├── model/config.json
    └── shards/
        ├── index.json              for each tensor: its type and shape, and which file has which rows
        └── rank-00000.safetensors  `weights.<parameter>`, and the optimizer's `exp_avg.<parameter>`, …
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import aside, fsync_dir, write_text
from nemotron_kit.training import checkpoint, processes
from nemotron_kit.training.checkpoint import MODEL, disk_errors, save_config
from nemotron_kit.training.parallel import is_first_replica, local_shard, rows_of, tensors, whole

if TYPE_CHECKING:
    import torch

SHARDS = "shards"
INDEX = f"{SHARDS}/index.json"
WEIGHTS = "weights"
# Where a model is exported: a file's tensors are together on one rank, and no more than that.
_EXPORT_BYTES = 4 << 30


def is_one(path: Path) -> bool:
    """Whether the checkpoint in `path` is of this kind."""
    return (path / INDEX).is_file()


def verifies(name: str) -> bool:
    """Whether this rank reads the file `name` of a checkpoint through when a run goes on from it: each a part of the
    shards, the first all else."""
    number = re.search(rf"{SHARDS}/rank-(\d+)", name)
    return int(number[1]) % processes.world_size() == processes.rank() if number else processes.rank() == 0


def save(
    folder: Path, step: int, record: dict[str, Any], model: Any, optimizer: torch.optim.Optimizer, *, later: bool
) -> Save:
    """Begin to write the checkpoint of `step`, which `commit` completes; with `later` from a copy of the state, while
    training goes on. All ranks must call it.

    Raises NemotronError if another run has written a checkpoint of this step to `folder` meanwhile."""
    state = {f"{WEIGHTS}.{name}": tensor for name, tensor in tensors(model).items()}
    for name, parameter in model.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            state[f"{entry}.{name}"] = value
    # What this rank writes: key → ([type, whole shape, first row, end], rows). Of equal copies one is written.
    local = {}
    for key, tensor in state.items():
        start, stop = rows_of(tensor)
        if is_first_replica(tensor) and stop > start:
            rows = local_shard(tensor)
            local[key] = ([str(rows.dtype).removeprefix("torch."), list(tensor.shape), start, stop], rows)
    begun = Save(folder, step, record, model)
    begun.begin(local, later=later)
    return begun


class Save:
    """A checkpoint that is being written; `written`: whether this rank's part is on disk. It is complete and durable
    after `commit`, and does not exist before that."""

    def __init__(self, folder: Path, step: int, record: dict[str, Any], model: Any) -> None:
        self.final = folder / checkpoint.name(step)
        self._record = {"step": step, **record}
        self._config, self._generation = model.config, getattr(model, "generation_config", None)
        self._local: dict[str, list[Any]] = {}
        self._error: Exception | None = None
        self._files: dict[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._aside: Path | None = None

    def begin(self, local: dict[str, tuple[list[Any], torch.Tensor]], *, later: bool) -> None:
        """Create the temporary folder and write this rank's file; `later`: in a thread, from a copy of the state."""
        with checkpoint.write_errors(self.final):
            place = processes.on_all_ranks(self._place)[0]
            if place is None:  # the same step of the same run: the same content
                return
            self._aside = Path(place)
            processes.on_all_ranks(self._require_shared)
        self._local = {key: info for key, (info, _) in local.items()}
        values = {key: value.to("cpu", copy=True) if later else value.contiguous() for key, (_, value) in local.items()}
        if later:
            self._thread = threading.Thread(target=self._write, args=(values,), name=self.final.name, daemon=True)
            self._thread.start()
        else:
            self._write(values)

    def _place(self) -> str | None:
        if processes.rank() != 0:
            return None
        checkpoint.require_own(self.final, self._record["identity"])
        if (self.final / checkpoint.RECORD).is_file():
            return None
        place = aside(self.final)
        (place / SHARDS).mkdir(parents=True)
        return str(place)

    def _require_shared(self) -> None:
        if not (self.aside / SHARDS).is_dir():
            raise NemotronError(
                f"{self.final.parent}: process 0 has made a folder there that process {processes.rank()} does not "
                "see: ranks on several nodes need a checkpoint.save that all of them share."
            )

    @property
    def aside(self) -> Path:
        """The temporary folder in which the files are written; `commit` renames it."""
        assert self._aside is not None  # noqa: S101 - begin() has set it
        return self._aside

    @property
    def written(self) -> bool:
        """Whether this rank's file is written, or its writing has failed, which `commit` raises."""
        return self._thread is None or not self._thread.is_alive()

    def _write(self, values: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        try:
            if values:
                name = f"{SHARDS}/rank-{processes.rank():05d}.safetensors"
                with disk_errors():
                    save_file(values, self.aside / name)
                self._files = {name: checkpoint.sync_file(self.aside / name)}
                fsync_dir((self.aside / name).parent)
        except Exception as error:  # noqa: BLE001 - nobody hears a thread: commit() raises it, on all ranks
            self._error = error

    def commit(self) -> None:
        """Make it a checkpoint, once all ranks have written. All must call it. NemotronError, on all ranks, when the
        disk has refused; earlier checkpoints are untouched."""
        if self._aside is None:
            return
        if self._thread is not None:
            self._thread.join()
        try:
            with checkpoint.write_errors(self.final):
                parts = processes.on_all_ranks(self._written_part)
                processes.on_all_ranks(lambda: self._commit(parts) if processes.rank() == 0 else None)
        finally:
            if processes.rank() == 0:
                shutil.rmtree(self.aside, ignore_errors=True)

    def _written_part(self) -> dict[str, Any]:
        if isinstance(self._error, OSError):
            raise self._error
        if self._error is not None:
            raise NemotronError(
                f"{self.final}: the checkpoint can't be written: {type(self._error).__name__}: {self._error}.",
                hint="Earlier checkpoints are intact.",
            ) from self._error
        return {"files": self._files, "rows": self._local}

    def _commit(self, parts: list[dict[str, Any]]) -> None:
        index: dict[str, Any] = {}
        files: dict[str, Any] = {}
        for part in parts:
            files |= part["files"]
            for key, (dtype, shape, start, stop) in part["rows"].items():
                entry = index.setdefault(key, {"dtype": dtype, "shape": shape, "rows": []})
                entry["rows"].append([start, stop, next(iter(part["files"]))])
        for entry in index.values():
            entry["rows"].sort()
        write_text(self.aside / INDEX, json.dumps(index))
        save_config(self._config, self._generation, self.aside / MODEL)
        everything = checkpoint.sync_and_hash(self.aside, files)
        checkpoint.commit(self.aside, self.final, {**self._record, "files": everything})


class Shards:
    """The tensors of such a checkpoint, of which any rows can be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.index: dict[str, Any] = json.loads((path / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path / INDEX}: it can't be read: {error}.") from error
        self._open: dict[str, Any] = {}

    def read_into(self, target: Any, key: str) -> None:
        """Read the rows that this rank holds of the tensor `key` into `target`. UserError when it is not there, or of
        another shape."""
        from safetensors import safe_open

        entry = self.index.get(key)
        if entry is None or list(target.shape) != entry["shape"]:
            there = "missing" if entry is None else f"of the shape {entry['shape']}"
            raise UserError(f"{self.path}: {key} is {there}; the model's is {list(target.shape)}.")
        start, stop = rows_of(target)
        local = local_shard(target)
        done = start
        for first, end, file in entry["rows"]:
            lower, upper = max(first, start), min(end, stop)
            if lower >= upper:
                continue
            if lower > done:
                break
            if file not in self._open:
                self._open[file] = safe_open(self.path / file, framework="pt")
            stored = self._open[file]
            if local.dim() == 0:
                local.copy_(stored.get_tensor(key))
            else:
                local[lower - start : upper - start].copy_(stored.get_slice(key)[lower - first : upper - first])
            done = upper
        if done < stop:
            raise UserError(f"{self.path}: rows {done} to {stop} of {key} are in none of its files.")


def load_weights(model: Any, path: Path) -> None:
    """Fill the model, in whatever layout, from the checkpoint in `path`."""
    import torch

    shards = Shards(path)
    state = tensors(model)
    names = {key.partition(".")[2] for key in shards.index if key.startswith(f"{WEIGHTS}.")}
    if names != set(state):
        odd = sorted(names ^ set(state))[0]
        raise UserError(f"{path}: its weights don't fit the model ({odd} is on one side only).")
    with torch.no_grad():
        for name, tensor in state.items():
            shards.read_into(tensor, f"{WEIGHTS}.{name}")


def load_optimizer(optimizer: torch.optim.Optimizer, model: Any, path: Path) -> None:
    """Put back the optimizer's state, in whatever layout: that which `save_optimizer` wrote to `path`, or where its
    folder is a sharded checkpoint, that of all ranks. Raises UserError if it doesn't belong to this model."""
    import torch

    path = path.parent if is_one(path.parent) else path
    source = _OneFile(path) if path.is_file() else Shards(path)
    entries: dict[str, list[str]] = {}
    for key in source.index:
        entry, _, name = key.partition(".")
        if entry != WEIGHTS:
            entries.setdefault(name, []).append(entry)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if set(entries) != set(trained):
        odd = sorted(set(entries) ^ set(trained))[0]
        raise UserError(f"{path}: the optimizer's state doesn't fit the model ({odd} is on one side only).")
    with torch.no_grad():
        for name, parameter in trained.items():
            for entry in entries[name]:
                of_parameter = source.index[f"{entry}.{name}"]["shape"] == list(parameter.shape)
                value = torch.zeros_like(parameter) if of_parameter else torch.zeros((), device=parameter.device)
                source.read_into(value, f"{entry}.{name}")
                optimizer.state[parameter][entry] = value


class _OneFile(Shards):
    """A safetensors file that holds every tensor whole."""

    def __init__(self, file: Path) -> None:
        from safetensors import safe_open

        self.path, self._open = file.parent, {}
        with safe_open(file, framework="pt") as stored:
            shapes = {key: list(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118
        self.index = {
            key: {"shape": shape, "rows": [[0, shape[0] if shape else 1, file.name]]} for key, shape in shapes.items()
        }


def export_weights(model: Any, folder: Path) -> dict[str, dict[str, Any]]:
    """Write the model in transformers' format; {file: {"size", "sha256"}}. All ranks must call it.

    Blocks are put together one after the other; no rank ever holds more than one file's tensors, and the ranks take
    turns in writing and hashing. OSError, on all ranks, where the disk refuses.
    """
    from safetensors.torch import save_file
    from transformers.core_model_loading import revert_weight_conversion

    state = tensors(model)
    groups = list(_files_of(state))
    written: dict[str, Any] = {}
    names: dict[str, list[str]] = {}
    failed: OSError | None = None
    for number, group in enumerate(groups):
        writes = number % processes.world_size() == processes.rank() and failed is None
        together = {}
        for name in group:
            full = whole(state[name])
            if writes:
                together[name] = full.cpu()
        if not writes:
            continue
        named = "model" if len(groups) == 1 else f"model-{number + 1:05d}-of-{len(groups):05d}"
        file = f"{named}.safetensors"
        stored = {key: value.contiguous() for key, value in revert_weight_conversion(model, together).items()}
        try:
            with disk_errors():
                save_file(stored, folder / file, metadata={"format": "pt"})
            written[file] = checkpoint.sync_file(folder / file)
            fsync_dir(folder)
        except OSError as error:
            failed = error
        names[file] = list(stored)

    def written_part() -> dict[str, Any]:
        if failed is not None:
            raise failed
        return {"files": written, "names": names}

    parts = processes.on_all_ranks(written_part)
    if processes.rank() == 0 and len(groups) > 1:
        where = {name: file for part in parts for file, stored in part["names"].items() for name in stored}
        size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n", mode=0o666)
    return {file: entry for part in parts for file, entry in part["files"].items()}


def _files_of(state: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
    """The names of the tensors of each exported file: whole blocks, together about `_EXPORT_BYTES`."""
    group: list[str] = []
    size, block = 0, ""
    for name, tensor in state.items():
        here = ".".join(name.split(".")[:3])
        if group and here != block and size >= _EXPORT_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensor.numel() * tensor.element_size()
        block = here
    yield group
