"""Files where they lie: on this machine or behind a URL of fsspec's. Nothing here knows what is inside them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from nemotron_kit.data_prep.local_files import LeftOut
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import open_regular

BUFFER = 1 << 20
# What a remote store says about content, the strongest first; a time stamp is the last resort.
_IDENTITIES = ("sha256", "lfs", "blob_id", "md5Hash", "ETag", "etag", "checksum", "content_md5", "crc32c", "generation")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class Found:
    """A file that a listing found: `path` opens it, `identity` is what a remote store said about its content."""

    path: str
    size: int
    identity: str | None = None


LOCAL = "file://"


def is_remote(path: str) -> bool:
    return "://" in path and not path.startswith(LOCAL)


def open_binary(path: str) -> BinaryIO:
    """The file at a path or URL, buffered and seekable."""
    if not is_remote(path):
        return open_regular(path, buffering=BUFFER)
    fs, inner = filesystem(path)
    return cast(BinaryIO, io.BufferedReader(fs.open(inner, "rb"), BUFFER))


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path inside it) of a URL. Raises UserError when the package for it is missing."""
    try:
        from fsspec.core import url_to_fs

        fs, inner = url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url}: {error}", hint=f"Install what {url.split('://')[0]}:// needs.") from error
    except ValueError as error:  # an unknown protocol
        raise UserError(f"{url}: {error}") from error
    except OSError as error:  # some connect at once
        raise UserError(f"{url}: can't be reached: {error.strerror or error}.") from error
    except Exception as error:  # each protocol raises its own: one that needs options a TypeError, mostly
        raise UserError(
            f"{url}: {url.split('://')[0]}:// can't be opened: {type(error).__name__}: {error}.",
            hint="A blend file gives a URL alone: a protocol that needs options has to be copied to files first.",
        ) from error
    return fs, str(inner)


def files_below(fs: Any, inner: str, left: LeftOut) -> dict[str, Found]:
    """Relative path → file, of every file below `inner` (or `inner` itself); hidden ones are left out."""
    below = {}
    for path, info in fs.find(inner, detail=True).items():
        relative = path[len(inner) :].strip("/") or path.rsplit("/", 1)[-1]
        if any(part.startswith(".") for part in relative.split("/")):
            left.add(relative, "hidden")
        elif info["type"] != "file":
            left.add(relative, f"a {info['type']}, not a file")
        else:
            below[relative] = found_at(fs, path, info)
    return below


def found_at(fs: Any, path: str, info: dict[str, Any]) -> Found:
    return Found(fs.unstrip_protocol(path), int(info["size"]), _remote_identity(info))


def content_identity(path: str, size: int, *, whole: bool) -> str:
    """What tells this local file's content from another's: its sha256, or for a large one size, time and samples."""
    digest = hashlib.sha256()
    with open_binary(path) as file:
        if whole:
            while data := file.read(BUFFER):
                digest.update(data)
            return f"sha256:{digest.hexdigest()}"
        for sixteenth in range(16):
            file.seek(size * sixteenth // 16)
            digest.update(file.read(1 << 16))
    return f"sampled:{size}:{Path(path).stat().st_mtime_ns}:{digest.hexdigest()}"


def _remote_identity(info: dict[str, Any]) -> str | None:
    for key in (*_IDENTITIES, *_TIMES):
        value = info.get(key)
        if isinstance(value, dict):
            value = value.get("sha256")
        if value:
            return f"{key}:{value}"
    return None


def failing(path: str, error: Exception) -> NemotronError:
    """The error for a file that could not be read to its end."""
    return NemotronError(
        f"{path}: reading failed: {type(error).__name__}: {error}.", hint="Run it again: finished shards are kept."
    )


def unlistable(path: str, where: str, error: Exception) -> UserError:
    """The error for a URL that gave no list of files: not there, not allowed, not reachable."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"{where}: {path} can't be listed: {reason}", hint="Is the name right, the network there, a token needed?"
    )
