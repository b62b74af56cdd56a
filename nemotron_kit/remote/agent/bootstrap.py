"""Starts the agent on a target that may not have nemotron_kit yet.

The text of this file is sent over the connection and executed there by `python -I -c 'import
sys;exec(sys.stdin.buffer.readline())'`, so it imports the standard library only.

One JSON line follows: `{"mark", "root", "kit"}`, where `kit` is the hash of the package that the launch runs. If the
folder `<root>/kit/<kit>/` is missing, the package is requested from the launch as a zip.
"""

import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# An older Python has to read this file, to say so: no annotation may need a newer one.
OLDEST = (3, 11)


def start() -> None:
    """Find or receive the package, answer `ready`, and serve operations. Standard output carries only responses."""
    head = json.loads(sys.stdin.buffer.readline())
    # The launch sends no more until it receives `ready` or `need`, so nothing remains in that buffer.
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # A program that an operation starts can neither read a request nor write into an answer.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def respond(**answer: object) -> None:
        sink.write(f"\n{head['mark']} {json.dumps(answer)}\n".encode())
        sink.flush()

    try:
        if sys.version_info < OLDEST:
            raise RuntimeError(f"Python is {sys.version.split()[0]} there, 3.11 or newer is needed")
        package = Path(head["root"], "kit", head["kit"]).expanduser()
        if not package.is_dir():
            respond(need="kit")
            unpack(source.read(int(source.readline())), package)
        check(package)
        os.utime(package)  # it is in use: see code.clean
        sys.path.insert(0, str(package))
        from nemotron_kit.remote.agent.operations import serve
    # Any error is reported to the launch.
    except Exception as error:  # noqa: BLE001
        respond(error=f"{type(error).__name__}: {error}")
        return
    respond(ready=True)
    serve(source, sink, head["mark"])


def unpack(data: bytes, package: Path) -> None:
    """Unpack the zip into the folder `package`."""
    package.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with appearing(package) as building, zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(building)


@contextmanager
def appearing(folder: Path) -> "Iterator[Path]":
    """A new folder, which is renamed to `folder` once the block has filled it, unless another process was faster."""
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield building
        building.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:  # a full disk must not keep a part of it
        shutil.rmtree(building, ignore_errors=True)


def check(package: Path) -> None:
    """Raise RuntimeError for a folder that another user owns or may write to: code from there is not run."""
    status = package.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RuntimeError(f"{package} can be written by others")


if __name__ == "__main__":
    start()
