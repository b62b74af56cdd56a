"""The first lines that run on a target, before it has the kit. Its text travels over the connection and is executed
there by `python -I -c 'import sys;exec(sys.stdin.buffer.readline())'`: the standard library only, no import of ours.

Then comes one JSON line `{"mark", "root", "kit"}`. Where `<root>/kit/<kit>/` is missing, the zip of it is asked for."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

OLDEST = (3, 11)


def start() -> None:
    """Find or take the kit, say `ready`, and go on as its agent. Standard output is kept for answers alone."""
    head = json.loads(sys.stdin.buffer.readline())
    # The launch sends no more until it is told `ready` or `need`, so nothing is left behind in that buffer.
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # A program that an operation starts can neither read a request nor write into an answer.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def say(**answer: object) -> None:
        sink.write(f"\n{head['mark']} {json.dumps(answer)}\n".encode())
        sink.flush()

    try:
        if sys.version_info < OLDEST:
            raise RuntimeError(f"Python is {sys.version.split()[0]} there, 3.11 or newer is needed")
        kit = Path(head["root"], "kit", head["kit"]).expanduser()
        if not kit.is_dir():
            say(need="kit")
            unpack(source.read(int(source.readline())), kit)
        check(kit)
        os.utime(kit)  # it is in use: see code.clean
        sys.path.insert(0, str(kit))
        from nemotron_kit.remote.agent.operations import serve
    # Whatever it is, whoever launched must read it.
    except Exception as error:  # noqa: BLE001
        say(error=f"{type(error).__name__}: {error}")
        return
    say(ready=True)
    serve(source, sink, head["mark"])


def unpack(data: bytes, kit: Path) -> None:
    """Make the folder `kit` from its zip: it appears whole. Another launch may do the same at the same time."""
    kit.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".kit-", dir=kit.parent))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(building)
    try:
        building.rename(kit)
    except OSError:
        if not kit.is_dir():
            raise
        shutil.rmtree(building)


def check(kit: Path) -> None:
    """What somebody else may write to is not run."""
    status = kit.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RuntimeError(f"{kit} can be written by others")


if __name__ == "__main__":
    start()
