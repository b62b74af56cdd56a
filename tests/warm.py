"""Python programs in processes of their own that are forked from one in which what they import is loaded.

Loading torch and transformers takes four seconds of a processor, which is most of what a training of a few steps takes;
Hydra, this package and NeMo-Run beside it take one and a half, which is most of a launch. Everything else is as in
`python SCRIPT …` and `nemotron …`: arguments, environment, working folder, streams, exit code. What judges how a
process starts, what it imports, or its signals starts a real one. This file is also the process that forks.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import gc
import importlib
import json
import os
import pkgutil
import re
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

TRAINING, LAUNCH = "training", "launch"
_LENGTH = struct.Struct("!I")
# What Python reads of these when it starts can't be changed later.
_AT_START = ("PYTHON", "LC_", "LANG")
_STARTED = {name: text for name, text in os.environ.items() if name.startswith(_AT_START) and name != "PYTHONPATH"}
# Commands that load little: to fork what has loaded much takes longer.
_LIGHT = r"^\S*/nemotron (runs(?! (rerun|resume))|artifacts|profiles|completion|--help)\b"


@functools.cache
def _server(kind: str) -> tuple[subprocess.Popen[bytes], str]:
    """The process that forks, and its address. It ends when its standard input does: when this process does."""
    folder = tempfile.mkdtemp(prefix="warm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    env = {name: text for name, text in os.environ.items() if not name.startswith(_AT_START)}
    env |= {**_STARTED, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, kind, folder]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", f"the process that forks has ended with {process.wait()}"
    return process, f"{folder}/socket"


def run(
    line: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: str = "",
    timeout: float = 240,
    loaded: str = LAUNCH,
) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT …`, `python -m MODULE …` or `SCRIPT …` of Python's, to its end. TimeoutExpired kills it."""
    arguments = [str(argument) for argument in line]
    if arguments[0] == sys.executable:
        arguments = arguments[1:]
    at_start = {name: text for name, text in env.items() if name.startswith(_AT_START) and name != "PYTHONPATH"}
    other = at_start != _STARTED or re.search(_LIGHT, " ".join(arguments))
    if other or (arguments[0].startswith("-") and arguments[0] != "-m"):
        plain: dict[str, Any] = {"input": stdin, "capture_output": True, "text": True, "timeout": timeout}
        return subprocess.run([str(argument) for argument in line], cwd=cwd, env=env, check=False, **plain)
    _, address = _server(loaded)
    with tempfile.TemporaryFile() as given, socket.socket(socket.AF_UNIX) as asked:
        given.write(stdin.encode())
        given.seek(0)
        asked.connect(address)
        streams = [_Stream(), _Stream()]
        order = json.dumps({"line": arguments, "cwd": str(cwd), "env": dict(env)}).encode()
        socket.send_fds(asked, [_LENGTH.pack(len(order))], [given.fileno(), *(stream.end for stream in streams)])
        asked.sendall(order)
        for stream in streams:
            os.close(stream.end)
        deadline = time.monotonic() + timeout
        asked.settimeout(timeout)
        try:
            asked.recv(_LENGTH.size)
            code = asked.recv(16)
            for stream in streams:
                stream.thread.join(max(deadline - time.monotonic(), 0))
                if stream.thread.is_alive():
                    raise TimeoutError
        except TimeoutError:
            raise subprocess.TimeoutExpired(arguments, timeout) from None
    assert code, "the process that forks has ended"
    return subprocess.CompletedProcess(arguments, int(code), *(stream.text() for stream in streams))


class _Stream:
    """What a process prints: the end of a pipe that it has, and a thread that reads the other one."""

    def __init__(self) -> None:
        self._own, self.end = os.pipe()
        self._read = bytearray()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        while part := os.read(self._own, 1 << 16):
            self._read += part
        os.close(self._own)

    def text(self) -> str:
        return self._read.decode().replace("\r\n", "\n").replace("\r", "\n")


# What trains, unless it only tells something.
_TRAINS = r"\b(train|pretrain|sft|rl|eval|pipeline)\b"
_TELLS = r"--(dry-run|help|cfg|info)\b|\b(explain|profiles)\b"
_CLIENT = """#!{python} -IS
import json, os, re, signal, socket, sys
arguments = {arguments}
line = " ".join(arguments)
at_start = {{name: text for name, text in os.environ.items() if name.startswith({at_start}) and name != "PYTHONPATH"}}
other = at_start != {env} or re.search({light!r}, line)
if not arguments or other or arguments[0].startswith("-") and arguments[0] != "-m":
    os.execv({program!r}, [{program!r}, *sys.argv[1:]])
kept = [folder for folder in os.environ["PATH"].split(":") if folder != os.path.dirname(__file__)]
order = json.dumps({{"line": arguments, "cwd": os.getcwd(), "env": {{**os.environ, "PATH": ":".join(kept)}}}}).encode()
asked = socket.socket(socket.AF_UNIX)
asked.connect({addresses}[bool(re.search({trains!r}, line)) and not re.search({tells!r}, line)])
socket.send_fds(asked, [len(order).to_bytes(4, "big")], [0, 1, 2])
asked.sendall(order)
child = int.from_bytes(asked.recv(4), "big")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _: os.kill(child, number))
nothing = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(nothing, stream)
code = int(asked.recv(16) or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@functools.cache
def programs(loaded: str = TRAINING) -> Path:
    """A folder for the PATH: `nemotron` and `python` there are forked. They stand first on no PATH of what they start.

    Signals are passed on, and who kills them kills the process behind. `python -c …` and `python - …` are plain, and so
    is every program where Python's own variables are others."""
    # To fork a process with torch takes as long as most commands that do not train.
    addresses = [_server(kind)[1] for kind in (LAUNCH, loaded)]
    folder = Path(addresses[1]).with_name("bin")
    folder.mkdir()
    for name in ("nemotron", "python"):
        program = str(Path(sys.executable).with_name(name))
        arguments = f"[{program!r}, *sys.argv[1:]]" if name == "nemotron" else "sys.argv[1:]"
        ways = {"addresses": addresses, "trains": _TRAINS, "tells": _TELLS, "light": _LIGHT}
        text = _CLIENT.format(
            python=sys.executable, arguments=arguments, at_start=_AT_START, env=_STARTED, program=program, **ways
        )
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def run_warm(script: Path, *arguments: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT ARGUMENTS` in `cwd`, to its end: a training."""
    return run([sys.executable, script, *arguments], cwd=cwd, env=env, loaded=TRAINING)


# --- the process that forks


def _load(kind: str) -> None:
    import hydra._internal.hydra
    import hydra._internal.utils
    import hydra.main
    import omegaconf
    import rich.console

    from nemotron_kit.cli import main

    assert hydra and omegaconf and rich and main
    for room in ("cli", "config", "launch", "executors", "remote", "runs", "spec", "sweep", "artifacts"):
        package = importlib.import_module(f"nemotron_kit.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    if kind == TRAINING:
        import torch
        import transformers

        torch.set_num_threads(1)
        assert transformers.NemotronHForCausalLM and transformers.Trainer


class _Helper:
    """The server's helper process with NeMo-Run, as a process's own: several take turns."""

    def __init__(self, process: subprocess.Popen[str], lock: int) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._in, self._out, self._lock = process.stdin, process.stdout, lock
        self.stdin = self.stdout = self

    def poll(self) -> None:
        """It runs: the server has looked."""

    def write(self, line: str) -> None:
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        self._in.write(line)

    def flush(self) -> None:
        self._in.flush()

    def readline(self) -> str:
        answer = self._out.readline()
        fcntl.lockf(self._lock, fcntl.LOCK_UN)
        return answer

    def kill(self) -> None:
        """It is not this process's."""


def _helpers(arguments: Sequence[str]) -> list[Any]:
    """The list of NeMo-Run's helper process that this package keeps; it runs, if these arguments are a launch."""
    from nemotron_kit.executors import nemo_run

    launches = ("--run", "--batch", "--after", "run.profile", "hydra/launcher", "hydra.launcher", "runs", "pipeline")
    if any(argument.startswith(launches) for argument in arguments):
        nemo_run.start()
    return nemo_run._helper


def _serve(kind: str, folder: Path) -> dict[str, Any] | None:
    """Start a process for each order that arrives; in that process, its order. None once there are no more."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen(64)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    print("ready", flush=True)
    running = selectors.DefaultSelector()
    running.register(0, selectors.EVENT_READ)
    running.register(listener, selectors.EVENT_READ)
    asking: dict[int, tuple[int, socket.socket]] = {}  # by the process's own descriptor: its id, and who asked

    while True:
        for key, _ in running.select():
            if key.fileobj == 0:
                return None
            if key.fileobj is listener:
                asked, _ = listener.accept()
                try:
                    header, ends, _, _ = socket.recv_fds(asked, _LENGTH.size, 3)
                    with asked.makefile("rb") as file:
                        order = dict(json.loads(file.read(*_LENGTH.unpack(header))))
                except (OSError, ValueError, struct.error):  # who asks has ended
                    asked.close()
                    continue
                helpers = _helpers(order["line"]) if kind == LAUNCH else []
                child = os.fork()
                if child == 0:
                    running.close()
                    for other in (listener, asked, *(one for _, one in asking.values())):
                        other.close()
                    for own in asking:
                        os.close(own)
                    helpers[:] = [_Helper(helper, lock) for helper in helpers]
                    return {**order, "ends": ends}
                for end in ends:
                    os.close(end)
                asked.sendall(_LENGTH.pack(child))
                own = os.pidfd_open(child)
                asking[own] = child, asked
                running.register(own, selectors.EVENT_READ)
                running.register(asked, selectors.EVENT_READ, own)
            elif key.data is not None:  # who asked waits no longer
                running.unregister(key.fileobj)
                if key.data in asking:
                    os.kill(asking[key.data][0], signal.SIGKILL)
            else:
                child, asked = asking.pop(int(key.fd))
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                running.unregister(key.fd)
                os.close(key.fd)
                if asked in {one.fileobj for one in running.get_map().values()}:
                    running.unregister(asked)
                    asked.sendall(str(code).encode())
                elif kind == LAUNCH:  # it may have been killed while the helper answered it
                    helpers = _helpers([])
                    while helpers:
                        helpers.pop().kill()
                asked.close()


def _become(order: dict[str, Any]) -> None:
    """What `python SCRIPT` finds when it starts; then, the script."""
    for number, end in enumerate(order["ends"]):
        os.dup2(end, number)
        os.close(end)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(order["env"])
    time.tzset()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(order["env"].get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    os.chdir(order["cwd"])
    arguments: list[str] = order["line"]
    sys.orig_argv = [sys.executable, *arguments]
    more = [path for path in order["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    main = sys.modules["__main__"] = ModuleType("__main__")
    if arguments[0] == "-m":
        sys.path[:0] = [order["cwd"], *more]
        sys.argv = arguments[1:]
        runpy._run_module_as_main(arguments[1])  # type: ignore[attr-defined]
        return
    script = Path(arguments[0])
    if (script / "__main__.py").exists():
        sys.path[:0] = [str(script), *more]
        sys.argv = arguments
        runpy.run_path(str(script), run_name="__main__")
        return
    path = str(Path(order["cwd"], script))
    sys.path[:0] = [str(Path(path).resolve().parent), *more]
    sys.argv = arguments
    main.__dict__.update({"__file__": path, "__builtins__": __builtins__, "__spec__": None})
    exec(compile(Path(path).read_bytes(), path, "exec"), main.__dict__)  # noqa: S102


if __name__ == "__main__":
    sys.path.pop(0)
    _load(sys.argv[1])
    gc.collect()
    gc.freeze()  # neither a collection nor the end of a process looks through all that was loaded
    if ordered := _serve(sys.argv[1], Path(sys.argv[2])):
        _become(ordered)
