"""Folders of an object store (s3://bucket/prefix, and other URLs that fsspec opens): writing and reading objects."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import aside, fsync_dir
from nemotron_kit.home import nemotron_home

# pathlib makes s3:/bucket of s3://bucket.
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(?!/)(.+)\Z")


def object_url(path: str | os.PathLike[str]) -> str | None:
    """`path` as an object store's URL without a slash at its end; None for a path on this machine."""
    found = _URL.match(os.fspath(path))
    if found is None or found[1] in ("file", "local"):
        return None
    return f"{found[1]}://{found[2].rstrip('/')}"


class ObjectFolder:
    """The objects below a URL. Objects are written atomically.

    The store's client reads credentials and the server's address from the environment (AWS_ACCESS_KEY_ID,
    AWS_ENDPOINT_URL, …). Every method raises NemotronError if the store refuses the request or can't be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            from fsspec.core import url_to_fs

            fs, inner = url_to_fs(url)
        except ImportError as error:
            scheme = url.split("://")[0]
            hint = "pip install 'nemotron-kit[s3]'" if scheme == "s3" else f"Install what {scheme}:// needs."
            raise UserError(f"{url}: {error}.", hint=hint) from error
        except Exception as error:  # each store has its own types
            raise UserError(f"{url}: can't be opened: {type(error).__name__}: {error}.") from error
        self._fs: Any = fs
        self._inner = str(inner)

    def at(self, name: str) -> str:
        """The URL of an object."""
        return f"{self.url}/{name}"

    def put(self, file: Path, name: str) -> None:
        """Copy a file from this machine to the object `name`."""
        with self._convert_errors(name, "written"):
            self._fs.put_file(str(file), self._object_path(name))
            if (size := self.size(name)) != file.stat().st_size:
                raise NemotronError(f"{self.at(name)} has {size} bytes after {file} was copied to it.")

    def put_text(self, text: str, name: str) -> None:
        """Write an object of UTF-8 text."""
        with self._convert_errors(name, "written"):
            self._fs.pipe_file(self._object_path(name), text.encode("utf-8"))

    def size(self, name: str) -> int | None:
        """An object's size in bytes; None if it does not exist."""
        with self._convert_errors(name, "read"):
            self._fs.invalidate_cache()  # the cached listings: another machine may have written the object
            try:
                return int(self._fs.info(self._object_path(name))["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:
        """An object's content; None if it does not exist."""
        with self._convert_errors(name, "read"):
            try:
                return bytes(self._fs.cat_file(self._object_path(name)))
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        """The names of the objects below `folder`, sorted."""
        with self._convert_errors(folder, "listed"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._object_path(folder))
            except FileNotFoundError:
                return []
            start = len(self._object_path(""))
            return sorted(str(path)[start:] for path in found)

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects. A name without an object is no error."""
        for name in names:
            with self._convert_errors(name, "removed"), suppress(FileNotFoundError):
                self._fs.rm_file(self._object_path(name))

    def get(self, name: str, file: Path) -> None:
        """Copy an object to a file, atomically."""
        temporary = aside(file)
        try:
            with self._convert_errors(name, "read"):
                self._fs.get_file(self._object_path(name), str(temporary))
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_dir(file.parent)

    def _object_path(self, name: str) -> str:
        return f"{self._inner}/{name}"

    @contextmanager
    def _convert_errors(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except NemotronError:
            raise
        except Exception as error:  # each store raises its own
            raise NemotronError(
                f"{self.at(name)}: can't be {what}: {type(error).__name__}: {error}.",
                hint="Are bucket, endpoint and credentials right, and is the store there?",
            ) from error


def local_copies(prefix: str, suffixes: Sequence[str], optional: Sequence[str] = ()) -> str:
    """Copy the objects `<prefix><suffix>` to the cache in $NEMOTRON_HOME, unless they are in it; returns the prefix of
    the copies.

    If several processes of a machine call it at once, one copies. Raises NemotronError if an object does not exist.
    """
    url, _, name = prefix.rpartition("/")
    folder = nemotron_home() / "cache" / "objects" / hashlib.sha256(url.encode("utf-8")).hexdigest()[:16]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = ObjectFolder(url)
    lock = os.open(folder / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for suffix in (*suffixes, *optional):
            size, file = store.size(f"{name}{suffix}"), folder / f"{name}{suffix}"
            if size is None and suffix in optional:
                with suppress(FileNotFoundError):
                    file.unlink()
            elif size is None:
                raise NemotronError(f"{prefix}{suffix}: there is no such object.")
            # A record is small and describes the others: it is always copied again.
            elif suffix in optional or not file.is_file() or file.stat().st_size != size:
                store.get(f"{name}{suffix}", file)
    finally:
        os.close(lock)
    return str(folder / name)
