"""Atomic and durable writes (a temporary file, synced and renamed), reads of regular files only, strict JSON, and JSON
with a checksum in it."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Self

from nemotron_kit.errors import DamagedRecordError, NemotronError

_thread = threading.local()
DAY_S = 86_400.0
# Key of a document with the positions of NaN and infinities, which JSON lacks.
NONFINITE = "$nonfinite"
_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@contextlib.contextmanager
def synced_later() -> Iterator[None]:
    """Within the block, files written by this thread are not synced one by one: for writers of thousands of files,
    which call `sync_file_system` afterwards."""
    before = getattr(_thread, "later", False)
    _thread.later = True
    try:
        yield
    finally:
        _thread.later = before


def sync_file_system(folder: Path) -> None:
    """Make all writes to the file system of `folder` durable."""
    import ctypes

    fd = os.open(folder, os.O_RDONLY)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None:
            os.sync()
        elif syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(fd)


def fsync_dir(folder: Path) -> None:
    """Make the names in `folder` durable: after a rename or a creation in it."""
    if getattr(_thread, "later", False):
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:  # a descriptor has no name
        error.filename = error.filename or str(folder)
        raise
    finally:
        os.close(fd)


def aside(path: Path) -> Path:
    """A hidden temporary name beside `path`, on the same file system, for a file that is renamed to `path` when
    complete."""
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")


def collect_leftovers(folder: Path, *, ours: bool = False, dry_run: bool = False) -> list[Path]:
    """Remove temporary files of killed processes (named by `aside`) from `folder` that are older than a day and
    whose process id is not in use; returns what was removed. With `ours` (the folder of runs, where folders that end in
    REMOVED are removed later) also those without a process id."""
    gone = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [entry for entry in entries if entry.name.startswith(".") and _is_leftover(entry, ours=ours)]
        for entry in left:
            with contextlib.suppress(OSError):  # another process removes it, too
                path = Path(entry.path)
                gone.append(path)
                if dry_run:
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    path.unlink()
                else:  # which is young again, once a file in it was deleted
                    shutil.rmtree(path.rename(f"{str(path).removesuffix('.tmp')}{REMOVED}") if ours else path)
    return gone


# The name of a folder being removed: `.<its name>.<process>.<random>.removed`, in the same parent.
REMOVED = ".removed"


def _is_leftover(entry: os.DirEntry[str], *, ours: bool) -> bool:
    """Whether the entry is a temporary file of a killed process, older than a day."""
    *_, number, mark = ("", "", *entry.name.removesuffix(".tmp").split("."))
    if not (entry.name.endswith(".tmp") and len(mark) == 8 and (number.isdecimal() or ours)):
        return False
    old = time.time() - entry.stat(follow_symlinks=False).st_mtime > DAY_S
    return old and not (number.isdecimal() and process_exists(int(number)))


def process_exists(pid: int) -> bool:
    """Whether a process with this id exists on this machine, of any user; a zombie counts."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0


def write_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write `data` to `path` atomically and durably, by a temporary file in the same folder that is renamed."""
    temporary = aside(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        _fill(fd, data, path)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    fsync_dir(path.parent)


def write_changed(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """`write_bytes`, with the folder, unless the file holds these very bytes: it is left as it is then."""
    if not path.is_file() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data, mode=mode)


def write_new(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write UTF-8 text durably into a folder that does not have its final name yet, without a temporary file."""
    _fill(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), text.encode("utf-8"), path)
    fsync_dir(path.parent)


def _fill(fd: int, data: bytes, path: Path) -> None:
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if not getattr(_thread, "later", False):
                os.fsync(file.fileno())
    except OSError as error:  # a full disk names no file by itself
        error.filename = error.filename or str(path)
        raise


def write_text(path: Path, text: str, *, mode: int = 0o600) -> None:
    """`write_bytes` for UTF-8 text. Raises OSError for text that can't be encoded, as of a path with invalid bytes."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = ascii(text[max(0, error.start - 60) : error.end + 20])
        raise OSError(errno.EILSEQ, f"{around} is not UTF-8 text, so no record can hold it", str(path)) from error
    write_bytes(path, data, mode=mode)


def write_json(path: Path, value: Any, *, mode: int = 0o600, undecoded: bool = False) -> None:
    """`write_bytes` for JSON, indented, keys in the order given; NaN and infinities as `encoded` has them. `undecoded`:
    texts may contain bytes that are not UTF-8, as a file name from Python has them; JSON has an escape for those."""
    text = json.dumps(encoded(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if undecoded:
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    write_text(path, text, mode=mode)


def read_cache(path: Path, version: int) -> dict[str, Any]:
    """The entries that `write_cache` wrote with this version; {} if the cache does not exist or is damaged."""
    import binascii  # a shared library, which a launch need not load

    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        head, _, body = read_regular(path, limit=1 << 30).partition(b"\n")
        if json.loads(head) == {"version": version, "crc": binascii.crc32(body)}:
            return dict(json.loads(body))
    return {}


def write_cache(path: Path, version: int, entries: dict[str, Any]) -> None:
    """Write the entries of a cache, with a checksum. Does nothing if the disk is full or read-only."""
    import binascii

    with contextlib.suppress(OSError):
        body = json.dumps(entries).encode()
        write_bytes(path, json.dumps({"version": version, "crc": binascii.crc32(body)}).encode() + b"\n" + body)


# Fewer new entries than this are cheaper to compute again than to write.
_WORTH_WRITING = 32


class StampedCache:
    """`with StampedCache(path, version) as cache:` reads the `entries` of a cache, and writes them at the block's end
    if it was worth it. What is cached follows from other files, whose stamps (see `stamp`) each entry has: one with
    other stamps than these files have now is not valid."""

    def __init__(self, path: Path, version: int) -> None:
        self.entries: dict[str, Any] = {}
        self._path, self._version, self._new = path, version, 0

    def __enter__(self) -> Self:
        self.entries = read_cache(self._path, self._version)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._new >= _WORTH_WRITING:
            write_cache(self._path, self._version, self.entries)

    def add(self, key: str, entry: Any) -> None:
        """Set an entry, to be written."""
        self.entries[key] = entry
        self._new += 1

    def keep_only(self, keys: Collection[str]) -> None:
        """Drop the entries of other keys than all that there are: what they were made of was removed."""
        if len(keys) < len(self.entries):
            kept = set(keys)
            self.entries = {key: entry for key, entry in self.entries.items() if key in kept}


def stamp(path: str) -> list[int]:
    """Inode, size and mtime (ns) of a file."""
    status = os.stat(path)  # noqa: PTH116 — of 10,000 files; pathlib's takes longer than all the rest
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Plain data with `change` applied to every value in it that is no mapping and no list."""
    if isinstance(value, Mapping):
        return {key: map_leaves(item, change) for key, item in value.items()}
    return [map_leaves(item, change) for item in value] if isinstance(value, list) else change(value)


def plain(value: Any) -> Any:
    """A value with the numbers and arrays of NumPy, torch and similar packages converted to Python's types, at any
    depth. These packages are not imported: their objects are recognised by `dtype` and `tolist`."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(plain(item) for item in value)
    if hasattr(type(value), "tolist") and hasattr(type(value), "dtype"):
        return value.tolist()
    return value


def finite(value: Any) -> Any:
    """A value whose NaN and infinities are the texts "NaN", "Infinity" and "-Infinity"."""
    return _finite(value, (), [])


def encoded(value: Any) -> Any:
    """`plain` and `finite`; a document (an object) also lists the positions of NaN and infinities, so that `decoded`
    restores them and leaves texts that look like them unchanged."""
    try:
        json.dumps(value, allow_nan=False)
        return value
    except TypeError:
        value = plain(value)
    except ValueError:
        pass
    found: list[tuple[str | int, ...]] = []
    made = _finite(value, (), found)
    return {**made, NONFINITE: [list(path) for path in found]} if found and isinstance(made, dict) else made


def decoded(document: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `encoded`. An invalid list of positions changes nothing."""
    places = document.pop(NONFINITE, None)
    for place in places if isinstance(places, list) else ():
        with contextlib.suppress(LookupError, TypeError, ValueError):
            *above, last = place
            block: Any = document
            for key in above:
                block = block[key]
            block[last] = _NONFINITE[block[last]]
    return document


def _finite(value: Any, place: tuple[str | int, ...], found: list[tuple[str | int, ...]]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        found.append(place)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(item, (*place, key), found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, (*place, number), found) for number, item in enumerate(value)]
    return value


CHECKSUM = "sha256"
# The writer field of our documents. Other tools' documents have no checksum; one with this field must have one.
WRITER = {"sealed_by": "nemotron_kit"}


def canonical(value: Any) -> bytes:
    """The canonical JSON encoding of a value, of which checksums are computed: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sha256_of(value: Any) -> str:
    """Hex digest of a JSON value, whatever the order of its keys."""
    import hashlib  # a shared library, as binascii

    return hashlib.sha256(canonical(value)).hexdigest()


def render_checksummed(document: dict[str, Any]) -> str:
    """The document as JSON text with its sha256. The text ends with its last brace, so no truncated text is valid
    JSON."""
    body = encoded({key: value for key, value in document.items() if key != CHECKSUM})
    return json.dumps({**body, CHECKSUM: sha256_of(body)}, indent=1)


def read_json(path: Path, what: str) -> Any:
    """The JSON in `path`. FileNotFoundError if there is none, DamagedRecordError if it isn't JSON."""
    found = _parsed(path, what)[1]
    return decoded(found) if isinstance(found, dict) and NONFINITE in found else found


def read_checksummed(path: Path, what: str, *, strict: bool = True) -> dict[str, Any]:
    """A document without its checksum; DamagedRecordError, naming the file, where the checksum does not match.

    `strict` also refuses a file whose text is not exactly what `render_checksummed` writes. Without it, a document with
    neither checksum nor WRITER is taken as it is: another tool wrote it.
    """
    text, document = _parsed(path, what)
    if not isinstance(document, dict):
        raise DamagedRecordError(f"{path}: this {what} is damaged: not a JSON object.")
    checksum = document.pop(CHECKSUM, None)
    if checksum is None and not strict and not WRITER.keys() & document.keys():
        return decoded(document)
    found = sha256_of(document)
    if checksum != found or (strict and text != json.dumps({**document, CHECKSUM: found}, indent=1)):
        raise DamagedRecordError(f"{path}: this {what} is damaged or was changed by hand: its sha256 does not match.")
    stored = {key: value for key, value in document.items() if key not in WRITER}
    return decoded(stored) if NONFINITE in stored else stored


def _parsed(path: Path, what: str) -> tuple[str, Any]:
    """The text of a file, and the JSON in it."""
    try:
        text = read_regular(path).decode("utf-8")
        return text, json.loads(text, object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise DamagedRecordError(f"{path}: this {what} is damaged: not UTF-8 ({error}).") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except OSError as error:
        raise NemotronError(f"{path}: can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DamagedRecordError(f"{path}: this {what} is damaged: not valid JSON ({error}).") from error


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text. Raises ValueError for a key that is given twice, of which JSON keeps the last one."""
    document = dict(pairs)
    if len(document) != len(pairs):
        key = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {key!r} is given twice in one object")
    return document


def open_regular(path: str | Path, *, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading (links are followed).

    Opening a FIFO waits for a writer, and a device may have no end: both raise OSError that names the kind of file.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"is {kind_of_file(mode)}, not a regular file", str(path))
        return os.fdopen(fd, "rb", buffering)
    except BaseException:
        os.close(fd)
        raise


def open_appending(path: str | Path) -> FileIO:
    """Open a regular file for appending, unbuffered; creates it with mode 0600. Raises OSError for other kinds."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        raise OSError(errno.EINVAL, "is a FIFO or a socket, not a regular file", str(path)) from error
    if not stat.S_ISREG(mode := os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, f"is {kind_of_file(mode)}, not a regular file", str(path))
    return FileIO(fd, "ab")


def read_regular(path: str | Path, *, limit: int = 64 << 20) -> bytes:
    """The content of a regular file of at most `limit` bytes. Raises OSError for other kinds, EFBIG for a larger
    file."""
    with open_regular(path, buffering=0) as file:
        # A buffer of `limit` bytes would take longer to get than a small file to read.
        data = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
        while len(data) <= limit and (more := file.read(1 << 20)):
            data += more
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit >> 20} MiB", str(path))
    return data


def kind_of_file(mode: int) -> str:
    """The kind of file that `st_mode` means, as text: "a FIFO"."""
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "a folder" if stat.S_ISDIR(mode) else "a regular file")
