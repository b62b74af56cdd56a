"""Content digests of shards and weights, and the check of shards against the records that data prep wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.lineage import job_inputs
from nemotron_kit.artifacts.manifest import sha256_files
from nemotron_kit.errors import UserError
from nemotron_kit.files import read_regular, sha256_of

# More than this is not read through before a run starts, unless dataset.verify asks for it: it takes minutes.
READ_LIMIT = 16 << 30
# A larger file without a record is identified by its size and by pieces of it.
_WHOLE = 256 << 20
_PIECES, _PIECE = 64, 1 << 16
_SUFFIXES = ("bin", "idx")


@dataclass(frozen=True)
class ShardContents:
    """`digests`: prefix → digest of the content of its two files. `summary`: a sentence on what was verified."""

    digests: Mapping[str, str]
    summary: str


def shard_contents(prefixes: Iterable[str], verify: bool | None, registered: str | None = None) -> ShardContents:
    """The content digests of shards, compared with the records that data prep left beside them (`<prefix>.json`).

    `verify`: read every recorded shard and compare its sha256 (None: if they have at most READ_LIMIT bytes).
    `registered`: the artifact whose files a registry has verified. Raises UserError for a file that does not match its
    record.
    """
    prefixes = list(dict.fromkeys(prefixes))
    records = {prefix: found for prefix in prefixes if (found := _record(prefix)) is not None}
    size = sum(entry[0] for record in records.values() for entry in record.values())
    read = size <= READ_LIMIT if verify is None else verify
    if read:
        _compare(records, size)
    digests = {}
    for prefix in prefixes:
        record = records.get(prefix)
        files = [record[suffix][1] if record else fingerprint(Path(f"{prefix}.{suffix}")) for suffix in _SUFFIXES]
        digests[prefix] = sha256_of(files)
    return ShardContents(digests, _summary(len(prefixes), len(records), size, read, registered))


def _record(prefix: str) -> dict[str, tuple[int, str]] | None:
    """{suffix: (size, sha256)} of a shard, from its record; None without one. Raises UserError if it can't be read."""
    path = Path(f"{prefix}.json")
    try:
        record = json.loads(read_regular(path))
        if isinstance(record, dict) and "plan" not in record:
            return None  # another tool's file
        found = {suffix: (int(record[suffix][0]), str(record[suffix][1])) for suffix in _SUFFIXES}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path}: the shard's record can't be read ({error}): its content can't be checked.",
            hint="Make the shard again (nemotron nano3 data prep pretrain), or remove the record to train unchecked.",
        ) from error
    return found


def _compare(records: Mapping[str, Mapping[str, tuple[int, str]]], size: int) -> None:
    wanted = {
        Path(f"{prefix}.{suffix}"): sha256
        for prefix, record in records.items()
        for suffix, (_, sha256) in record.items()
    }
    for (path, expected), found in zip(wanted.items(), sha256_files(list(wanted), size), strict=True):
        if found != expected:
            raise UserError(
                f"{path}: not the content that was written: its sha256 is {found[:12]}…, and "
                f"{path.with_suffix('.json').name} says {expected[:12]}….",
                hint="Make the shard again: nemotron nano3 data prep pretrain remakes what is damaged.",
            )


def _summary(shards: int, recorded: int, size: int, read: bool, registered: str | None) -> str:
    where = f"as registered ({registered})" if registered else None
    if not recorded:
        missing = f"none of {shards} shards has a record of its content beside it: only sizes and indices were checked"
        return f"Data: {where or missing}."
    if not read:
        return f"Data: {where or f'{size / 1e9:,.0f} GB were not read through; dataset.verify=true does that'}."
    rest = f"; {shards - recorded} have no record and were not checked" if recorded < shards and not where else ""
    return f"Data: {recorded} of {shards} shards read, their sha256 is that of their records{rest}."


def fingerprint(path: Path) -> str:
    """A file's sha256; for a large one, a digest of its size and of pieces spread evenly over it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= _WHOLE:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256(str(size).encode("ascii"))
            for piece in range(_PIECES):
                file.seek((size - _PIECE) * piece // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from error
    return f"pieces:{digest.hexdigest()}"


def weights_digest(folder: Path) -> str | None:
    """The digest of the config and the weights in a model's folder; None where there is no model."""
    if not (folder / "config.json").is_file():
        return None
    names = [path for pattern in ("config.json", "*.safetensors", "*.bin") for path in sorted(folder.glob(pattern))]
    return sha256_of([[path.name, fingerprint(path)] for path in names])


def recorded_digest(files: Mapping[str, Any], folder: str) -> str:
    """A digest of the files below `folder` of a checkpoint, from the hashes in its record (`files`); reads no file.
    It is not equal to the `weights_digest` of the same model."""
    return sha256_of([[name, files[name]["sha256"]] for name in sorted(files) if name.startswith(f"{folder}/")])


def registered_as(folder: Path) -> str | None:
    """The label of the registered artifact at `folder` where it is an input of this process's job, else None.

    The launch verified the files of such an input, so they need no second check.
    """
    for pin in job_inputs().values():
        if pin.version is not None and Path(pin.path).resolve() == folder.resolve():
            return pin.label
    return None
