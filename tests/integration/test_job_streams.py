"""How a job's two streams are captured: by whom they are written, where they lead, and who has gone meanwhile."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from ..conftest import until

START = """
import ctypes, io, logging, os, subprocess, sys, time
from nemotron_kit.worker.streams import captured

def log(path):
    return io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")

"""


def run(code: str, log: Path, **kinds: object) -> subprocess.Popen[bytes]:
    """`code` within a capture into `log`."""
    inside = "".join(f"    {line}\n" for line in code.strip().splitlines())
    program = f"{START}with log({str(log)!r}) as file, captured(file):\n{inside}"
    return subprocess.Popen([sys.executable, "-c", program], **{"stdin": subprocess.DEVNULL, **kinds})  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("code", "logged", "out", "err"),
    [
        pytest.param("print('a'); print('b', file=sys.stderr); os.write(1, b'c\\n'); print('d'); os.write(2, b'e\\n')",
                     "a b c d e", "a c d", "b e", id="both streams, apart"),
        pytest.param("logging.basicConfig(level='INFO', format='%(message)s')\n"
                     "for n in range(50):\n    print(n, file=[sys.stdout, sys.stderr][n % 2]); logging.info('r%s', n)",
                     " ".join(f"{n} r{n}" for n in range(50)), " ".join(str(n) for n in range(0, 50, 2)),
                     " ".join(f"{n} r{n}" if n % 2 else f"r{n}" for n in range(50)), id="fast alternation"),
        pytest.param("print('from Python'); ctypes.CDLL(None).printf(b'from C\\n')", "from Python from C",
                     "from Python from C", "", id="what C code holds back"),
        pytest.param("print('out', end=''); os.fork() or os._exit(0)", "out", "out", "",
                     id="a fork writes nothing twice"),
        pytest.param("print('one')\nwith log(os.environ['INNER']) as inner, captured(inner): print('two')\n"
                     "print('three')", "one two three", "one two three", "", id="one capture in another"),
        pytest.param("class Wrapper:\n    def __init__(self, stream): self.stream = stream\n"
                     "    def write(self, text): self.stream.write(text)\n    def flush(self): self.stream.flush()\n"
                     "sys.stdout = Wrapper(sys.__stdout__)\n"
                     "with log(os.environ['INNER']) as inner, captured(inner): print('once')\n"
                     "print(open(os.environ['INNER']).read())", "once once", "once once", "",
                     id="a program's stream that writes to the captured one"),
        pytest.param("text = os.environ['SAID_TOKEN'] + '\\n'\nos.write(1, text[:6].encode()); time.sleep(0.02)\n"
                     "os.write(1, text[6:].encode())", "***", "***", "", id="a secret in two parts"),
        pytest.param("os.environ['LATE_TOKEN'] = 'looked-up-later'; print('looked-up-later')", "***", "***", "",
                     id="a secret that the job looks up"),
        pytest.param("data = b'x' * (1 << 20)\nhold = ctypes.PyDLL(None)\nleft = data\n"
                     "while left: left = left[hold.write(1, left, len(left)):]\nprint()\nprint(len(data))",
                     "x" * (1 << 20) + " 1048576", "x" * (1 << 20) + " 1048576", "",
                     id="C code that holds Python's lock"),
    ],
)  # fmt: skip
def test_what_is_written_is_logged_and_shown(tmp_path: Path, code: str, logged: str, out: str, err: str) -> None:
    env = {**os.environ, "SAID_TOKEN": "hf_canary0123456789", "INNER": str(tmp_path / "inner.log")}
    process = run(code, tmp_path / "job.log", stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    shown = process.communicate(timeout=30)
    assert process.returncode == 0, shown
    assert (tmp_path / "job.log").read_text().split() == logged.split()
    assert [text.decode().split() for text in shown] == [out.split(), err.split()]


def test_until_its_process_exits_what_threads_and_exit_functions_write_is_logged(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    program = f"""{START}
import atexit, threading
with log({str(log)!r}) as file, captured(file, shown=False, until_exit=True):
    atexit.register(lambda: (print("exit function"), os.system("echo child")))
    threading.Thread(target=lambda: (time.sleep(0.2), os.write(2, b"thread\\n"))).start()
    print("within")
print("after")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert log.read_text().splitlines() == ["within", "after", "thread", "exit function", "child"]


LEAVES = """
import atexit, os, subprocess, sys, threading, time
from dataclasses import dataclass
from nemotron_kit import App

@dataclass
class Config:
    leaves: str = ""

def thread():
    for number in range(40):
        print("thread", number)
        time.sleep(0.01)

def first(cfg):
    print("handler", cfg.leaves)
    if "thread" in cfg.leaves:
        threading.Thread(target=thread).start()
    if "function" in cfg.leaves:
        atexit.register(lambda: (print("exit function"), os.write(1, b"raw\\n"), subprocess.run(["echo", "child"])))

app = App("leaves")
app.command("first", Config, first)
app.command("second", Config, lambda cfg: print("second"))
app.pipeline("both", ["first", "second"])
app.run()
"""


@pytest.mark.parametrize(
    ("command", "leaves", "logged"),
    [
        ("first", "", ["handler"]),
        ("first", "thread", ["handler thread", *(f"thread {number}" for number in range(40))]),
        ("first", "function", ["handler function", "exit function", "raw", "child"]),
        ("both", "function", ["second", "exit function", "raw", "child"]),
    ],
)
def test_in_the_launching_process_it_is_logged_and_the_launchs_own_lines_are_not(
    tmp_path: Path, command: str, leaves: str, logged: list[str]
) -> None:
    (tmp_path / "leaves.py").write_text(LEAVES)
    env = {**os.environ, "NEMOTRON_HOME": str(tmp_path / "home")}
    value = f"first.leaves={leaves}" if command == "both" else f"leaves={leaves}"
    stdin = "" if leaves else "<&-"  # closed, its number is free for another file
    line = ["sh", "-c", f'exec "$@" {stdin}', "sh", sys.executable, "leaves.py", command, value]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    log = max((tmp_path / "home" / "runs").glob("*/jobs/0/logs/*.log"), key=lambda path: path.stat().st_mtime)
    assert [line.rstrip() for line in log.read_text().splitlines()] == logged
    assert set(logged) <= {line.rstrip() for line in (done.stdout + done.stderr).splitlines()}
    assert "succeeded in" in done.stderr


def test_what_a_job_has_left_writes_into_its_log_even_with_replaced_streams_and_the_launch_does_not(
    tmp_path: Path,
) -> None:
    program = f"""{START}
import atexit, threading
class Replaced(io.StringIO):
    def __init__(self, stream): super().__init__(); self.stream = stream
    def write(self, text): return self.stream.write("replaced " + text if text.strip() else text)
def thread():
    ended.wait()
    os.fork() or (print("fork", flush=True), os._exit(0))
    os.wait()
    print("thread")
ended = threading.Event()
os.chdir({str(tmp_path)!r})
with log("1.log") as file, captured(file, if_left=True):
    atexit.register(lambda: print("exit function"))
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    sys.stdout = Replaced(sys.stdout)
    print("one")
print("between")
with log("2.log") as file, captured(file, if_left=True):
    logging.info("logging of the first")
    left = threading.Thread(target=thread)
    left.start()
    sys.stdout = Replaced(sys.stdout)
print("after", flush=True)
ended.set()
left.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    second = ["logging of the first", "fork", "thread", "replaced exit function"]
    assert (tmp_path / "1.log").read_text().splitlines() == ["replaced one"]
    assert (tmp_path / "2.log").read_text().splitlines() == second
    assert done.stdout.splitlines() == ["replaced one", "between", second[0], "after", *second[1:]]


def test_a_terminal_stays_one_and_may_be_closed(tmp_path: Path) -> None:
    log, (ours, theirs) = tmp_path / "job.log", os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x2a\0\x64\0\0\0\0\0")  # 42 lines of 100
    process = run(
        "print(sys.stdout.isatty(), os.isatty(1), os.isatty(2), tuple(os.get_terminal_size(1)), flush=True)\n"
        "for n in range(3): print(f'\\r{n} %', end='', file=sys.stderr, flush=True)\n"
        "subprocess.run(['sh', '-c', 'test -t 1 && echo; test -t 2 && echo a child has it, too'])\n"
        "print('\\x1b[1mready\\x1b[0m', flush=True)\n"
        f"while not os.path.exists({str(tmp_path / 'closed')!r}): time.sleep(0.02)\n"
        "for n in range(20): print('after', n)",
        log, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(ours, 1000)
    said = "True True True (100, 42)\n\r0 %\r1 %\r2 %\na child has it, too\n\x1b[1mready"
    assert seen.decode().replace("\r\n", "\n").startswith(said)
    os.close(ours)
    (tmp_path / "closed").touch()
    assert process.wait(30) == 0
    assert log.read_bytes().decode().startswith(said)
    assert log.read_text().endswith("".join(f"after {n}\n" for n in range(20)))


def test_who_has_gone_and_who_stays(tmp_path: Path) -> None:
    """A reader that has left, streams that were never open, and a child that goes on writing."""
    log = tmp_path / "job.log"
    process = run("for n in range(5000): print(n)", log, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(30) == 0, process.communicate()
    assert log.read_text() == "".join(f"{n}\n" for n in range(5000))
    begun = time.monotonic()
    writes = "while :; do echo tick; sleep 0.01; test -e $STOP && { echo last; exit; }; done"
    env = {**os.environ, "STOP": str(tmp_path / "stop")}
    process = run(f"subprocess.Popen(['sh', '-c', {writes!r}]); print('end')", tmp_path / "two.log",
                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)  # fmt: skip
    assert process.wait(30) == 0
    assert time.monotonic() - begun < 15, "it waited for its child"
    assert "end\n" in (tmp_path / "two.log").read_text()
    (tmp_path / "stop").touch()
    until(lambda: (tmp_path / "two.log").read_text().endswith("last\n"), 30)
