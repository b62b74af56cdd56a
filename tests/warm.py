"""Python scripts in processes of their own that are forked from one with torch and transformers loaded.

Loading them takes five seconds of a processor, which is most of what a training of a few steps takes. Everything else
is as in `python SCRIPT …`: arguments, environment, working folder, streams, exit code. This file is also that process.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@functools.cache
def _server() -> subprocess.Popen[str]:
    """It ends when its standard input does: with this process, at the latest."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )


def run_warm(script: Path, *words: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT WORDS` in `cwd`, to its end."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    line = [str(script), *words]
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        order = {"line": line, "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, f"the process that forks has ended with {server.wait()}"
        return subprocess.CompletedProcess(line, int(answer), out.read_text(), err.read_text())


def _fork() -> dict[str, Any] | None:
    """Start a process for each order that arrives; in that process, its order. None once there are no more."""
    for text in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            return dict(json.loads(text))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def _become(order: dict[str, Any]) -> None:
    """What `python SCRIPT` finds when it starts."""
    for number, (file, flags) in enumerate(
        [(os.devnull, os.O_RDONLY), *((order[name], os.O_WRONLY | os.O_CREAT) for name in ("out", "err"))]
    ):
        opened = os.open(file, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv = order["line"]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))


if __name__ == "__main__":
    import torch
    import transformers

    torch.set_num_threads(1)
    assert transformers.NemotronHForCausalLM and transformers.Trainer
    gc.collect()
    gc.freeze()  # neither a collection nor the end of a process looks through all that was loaded
    if order := _fork():
        _become(order)
        runpy.run_path(sys.argv[0], run_name="__main__")
