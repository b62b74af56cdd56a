"""Files appear whole or not at all: written aside, synced, renamed."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_thread = threading.local()


@contextlib.contextmanager
def synced_later() -> Iterator[None]:
    """Within the block what this thread writes is not synced file by file. For who makes thousands of files on which
    nobody relies before `sync_file_system`."""
    before = getattr(_thread, "later", False)
    _thread.later = True
    try:
        yield
    finally:
        _thread.later = before


def sync_file_system(folder: Path) -> None:
    """Make all that was written into the file system of `folder` durable, whoever wrote it."""
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
    """Make the names in `folder` durable (a rename is only as safe as its folder's last sync)."""
    if getattr(_thread, "later", False):
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write `data` to `path` atomically and durably; the temporary file lies beside it, so on the same file system."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        _fill(fd, data, path)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    fsync_dir(path.parent)


def write_new(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write UTF-8 text durably into a folder that nobody looks into yet, since it has not got its name."""
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
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode("utf-8"), mode=mode)


def write_json(path: Path, value: Any, *, mode: int = 0o600) -> None:
    """`write_bytes` for JSON, indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", mode=mode)
