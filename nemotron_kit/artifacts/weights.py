"""Checks that the weight files of a model are complete from their headers alone: reads no tensor and needs no torch."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError

_LENGTH = struct.Struct("<Q")
# The format's limit on the header's length, in bytes.
_LONGEST = 100_000_000
_BITS = {"BOOL": 8}


def check_weights(folder: Path) -> None:
    """Check every *.safetensors below `folder`, every archive of torch.save's, and that all files named by an index
    exist.

    Raises UserError for the first file that is truncated, too long, or whose header is damaged. Other formats are not
    opened, and of an archive only the directory is read: nothing is unpickled. The safetensors format: an u64 header
    length, a JSON header with dtype, shape and data offsets of each tensor, then the data.
    """
    checks = {".safetensors": _check_file, ".bin": _check_archive, ".pt": _check_archive, ".pth": _check_archive}
    for path in sorted(path for path in folder.rglob("*") if path.suffix in checks and path.is_file()):
        checks[path.suffix](path)
    for path in sorted(path for ending in (".safetensors", ".bin") for path in folder.rglob(f"*{ending}.index.json")):
        _check_index(path)


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size).ljust(_LENGTH.size, b"\xff"))
            if length > min(_LONGEST, size - _LENGTH.size):
                raise ValueError(f"{size:,} bytes don't hold its header")
            tensors = json.loads(file.read(length))
            end = max([0, *(_end(name, entry) for name, entry in tensors.items() if name != "__metadata__")])
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}.", hint=_HINT) from error
    whole = _LENGTH.size + length + end
    if whole != size:
        raise UserError(
            f"{path}: {size:,} bytes, but its header describes {whole:,}: it is truncated or damaged.",
            hint=_HINT,
        )


def _check_archive(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":  # torch.save's zip format; its older format has no length field
                zipfile.ZipFile(file).close()
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}.") from error
    # A damaged directory may also name an unknown version of zip, or a name that is no text.
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{path}: not a whole archive of weights: {error}.", hint=_HINT) from error


def _end(name: str, entry: dict[str, Any]) -> int:
    """The offset at which the tensor's data ends. Raises ValueError if its offsets don't match its dtype and shape."""
    begin, end = entry["data_offsets"]
    count = 1
    for dimension in entry["shape"]:
        count *= dimension
    kind = str(entry["dtype"])
    digits = "".join(filter(str.isdigit, kind.partition("_")[0]))
    bits = _BITS.get(kind) or (int(digits) if digits else None)  # None: an unknown type
    if not 0 <= begin <= end or (bits and (end - begin) * 8 != count * bits):
        raise ValueError(f"the data offsets of {name} don't match its shape")
    return int(end)


def _check_index(path: Path) -> None:
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in names if not (path.parent / os.fspath(name)).is_file())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not an index of weights: {error}.", hint=_HINT) from error
    if missing:
        raise UserError(f"{path}: {missing[0]}, which it names, does not exist.", hint=_HINT)


_HINT = "Export, copy or download the model again: nothing was registered."
