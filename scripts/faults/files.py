"""Hostile files where a file is read: each is one error in bounded time, or is read correctly."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LIMIT = 30.0  # seconds; what is bounded at all ends within a few
RECIPE = """
from dataclasses import dataclass, field
from nemotron.kit import App

@dataclass
class C:
    n: int = 1
    t: dict = field(default_factory=dict)

def go(cfg): ...

app = App("r")
app.command("go", C, go)
"""
CONFIG = "n: 2\nt:\n  a: [1, 2, 3]\n  b: {c: text, d: 1.5}\n"
DRY = ("r", "go", "-c", "./c.yaml", "--dry-run")


def run(work: Path, scale: float, seed: int) -> tuple[int, list[str]]:
    """(cases, what did not hold)."""
    failures: list[str] = []
    cases = 0
    rng = random.Random(seed)
    for name, make, arguments, codes in [*_fixed(), *_torn(rng, int(12 * scale))]:
        cases += 1
        folder = work / f"case{cases}"
        (folder / "r").mkdir(parents=True)
        (folder / "r/__init__.py").write_text(RECIPE)
        (folder / "env.toml").write_text('[cli]\nrecipes = ["r"]\n')
        os.environ["NEMOTRON_HOME"] = str(folder / "home")
        make(folder)
        failures += [f"{name}: {line}" for line in _judged(folder, arguments, codes)]
    return cases, failures


def _judged(folder: Path, arguments: tuple[str, ...], codes: tuple[int, ...]) -> Iterator[str]:
    began = time.monotonic()
    # In a process group with 4 GB of memory at most, which protects the machine from a reader without a bound.
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33)); "
    start = "sys.argv[0] = 'nemotron'; from nemotron_kit.cli.main import console; console()"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", limit + start, *arguments],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        yield f"still running after {LIMIT:.0f} s"
        return
    text = (out + err).decode("utf-8", "replace")
    if "Traceback" in text:
        yield f"a traceback: {text.strip().splitlines()[-1][:150]}"
    if process.returncode not in codes:
        yield f"exit {process.returncode} after {time.monotonic() - began:.1f} s: {text.strip()[-150:]!r}"


Case = tuple[str, Callable[[Path], object], tuple[str, ...], tuple[int, ...]]


def _config(text: str | bytes) -> Callable[[Path], object]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "c.yaml").write_bytes(data)


def _fixed() -> Iterator[Case]:
    lines = [f"k{n + 1}: ${{k{n}}}${{k{n}}}" for n in range(31)]
    yield "interpolation bomb", _config("t:\n  k0: xx\n  " + "\n  ".join(lines).replace("${k", "${t.k")), DRY, (2,)
    aliases = "\n".join(f"  a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(9))
    yield "alias bomb", _config(f"t:\n  a0: &a0 [x, x]\n{aliases}\n"), DRY, (2,)
    yield "deep nesting", _config("t: " + "[" * 100_000 + "]" * 100_000), DRY, (2,)
    yield "deep nesting in blocks", _config("\n".join(" " * n + "a:" for n in range(3000))), DRY, (2,)
    yield "NUL bytes", _config(b"n: 2\n\0\0\0\0"), DRY, (2,)
    yield "UTF-16", _config("n: 2\n".encode("utf-16")), DRY, (0, 2)
    yield "byte order mark", _config("\ufeffn: 2\n"), DRY, (0,)
    yield "CRLF", _config("n: 2\r\nt:\r\n  a: 1\r\n"), DRY, (0,)
    yield "a doubled key", _config("n: 2\nn: 3\n"), DRY, (2,)
    yield "a Python object", _config("t: !!python/object/apply:os.system ['touch canary']\n"), DRY, (2,)
    yield "a TAB in a key", _config("t:\n  a\tb: 1\n"), DRY, (0, 2)
    yield "a list at the top", _config("- 1\n"), DRY, (2,)
    yield "bytes that are no text", _config(b"n: \xff\xfe\n"), DRY, (2,)
    yield "a pipe as config", lambda folder: os.mkfifo(folder / "c.yaml"), DRY, (2,)
    yield "a folder as config", lambda folder: (folder / "c.yaml").mkdir(), DRY, (2,)
    yield "a pipe as env.toml", lambda f: ((f / "env.toml").unlink(), os.mkfifo(f / "env.toml")), ("r", "go"), (2,)
    yield "env.toml of NUL bytes", lambda f: (f / "env.toml").write_bytes(b"\0" * 100), ("r", "go"), (2,)
    prep = ("nano3", "data", "prep", "pretrain", "-c", "tiny", "blend_path=blend.json", "output_dir=out")
    for text in ("[", "{}", "null", '{"datasets": 3}', '{"datasets": [{"path": null}]}', '{"datasets": []}', "\0"):
        blend = "pretrain", "-c", "tiny", "blend_path=blend.json", "output_dir=out"
        yield (
            f"blend {text!r}",
            lambda f, t=text: (f / "blend.json").write_text(t),
            ("nano3", "data", "prep", *blend),
            (2,),
        )
    prep = ("nano3", "data", "prep", "pretrain", "-c", "tiny", "blend_path=blend.json", "output_dir=out")
    yield "a pipe as blend", lambda folder: os.mkfifo(folder / "blend.json"), prep, (1, 2)
    yield "a pipe as source", _source(lambda path: os.mkfifo(path)), prep, (1, 2)
    yield "a source that is a sparse file", _source(lambda path: _sparse(path)), prep, (1, 2)
    yield "a gzip bomb", _source(_gzip_bomb, "rows.jsonl.gz"), prep, (1, 2)
    yield "a zstd bomb", _source(_zstd_bomb, "rows.jsonl.zst"), prep, (1, 2)


def _torn(rng: random.Random, number: int) -> Iterator[Case]:
    """A config cut off anywhere, or with a bit flipped: an error, or a valid config; never a traceback."""
    data = CONFIG.encode()
    for _ in range(number):
        cut = rng.randrange(len(data))
        flipped = bytearray(data)
        flipped[cut] ^= 1 << rng.randrange(8)
        yield f"a config cut off at {cut}", _config(data[:cut]), DRY, (0, 2)
        yield f"a bit turned at {cut}", _config(bytes(flipped)), DRY, (0, 2)


def _source(make: Callable[[Path], object], name: str = "rows.jsonl") -> Callable[[Path], object]:
    def made(folder: Path) -> None:
        (folder / "blend.json").write_text(f'{{"datasets": [{{"name": "a", "path": "{name}"}}]}}')
        make(folder / name)

    return made


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 33)


def _gzip_bomb(path: Path) -> None:
    block = gzip.compress(b'{"text": "' + b"a" * (1 << 26))
    zeros = gzip.compress(b"a" * (1 << 26))
    path.write_bytes(block + zeros * 60)


def _zstd_bomb(path: Path) -> None:
    import zstandard

    compressor = zstandard.ZstdCompressor()
    path.write_bytes(compressor.compress(b'{"text": "' + b"a" * (1 << 26)) + compressor.compress(b"a" * (1 << 26)) * 60)
