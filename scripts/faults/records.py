"""Damaged records, byte by byte: each is reported when it is read, and everything else is still listed.

`tests/integration/test_runs_fuzz.py` does the same key by key.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from nemotron_kit.cli.main import nemotron

RECIPE = """
from dataclasses import dataclass
from pathlib import Path
from nemotron.kit import App, Artifact

@dataclass
class C:
    name: str

def go(cfg):
    folder = Path(cfg.name)
    folder.mkdir(exist_ok=True)
    (folder / "x").write_text(cfg.name)
    Artifact(path=folder, metadata={"n": 3}).save(name=cfg.name)
    print("written")

app = App("r")
app.command("go", C, go)
"""


def run(work: Path, scale: float, seed: int) -> tuple[int, list[str]]:
    """(cases, what did not hold)."""
    (work / "r").mkdir()
    (work / "r/__init__.py").write_text(RECIPE)
    (work / "env.toml").write_text('[cli]\nrecipes = ["r"]\n')
    for name in ("First", "Second"):
        code, text = _output(["r", "go", "--name", name])
        assert code == 0, text
    first, second = sorted(path.name for path in (work / "home/runs").glob("2*"))
    shutil.copytree(work / "home", work / "whole")
    rng = random.Random(seed)
    commands = {
        "runs": ["runs"],
        "show": ["runs", "show", first],
        "diff": ["runs", "diff", first, second],
        "logs": ["runs", "logs", first],
        "artifacts": ["artifacts"],
        "versions": ["artifacts", "First"],
        "version": ["artifacts", "First:v0"],
        "verify": ["artifacts", "First:v0", "--verify"],
        "gc": ["artifacts", "gc", "--dry-run"],
    }
    cases, failures = 0, []
    for path in _records(work / "whole", first):
        damaged = [*_damages(path.read_bytes(), rng)]
        for what, data in damaged if scale >= 2 else rng.sample(damaged, 4):
            shutil.rmtree(work / "home")
            shutil.copytree(work / "whole", work / "home")
            (work / "home" / path.relative_to(work / "whole")).write_bytes(data)
            for name, line in commands.items():
                cases += 1
                code, text = _output(line)
                wrong = _judged(name, code, text, second)
                failures += [f"{path.relative_to(work / 'whole')}, {what}, {name}: {wrong}"] if wrong else []
    return cases, failures


def _judged(name: str, code: int | str, text: str, second: str) -> str:
    if not isinstance(code, int) or "Traceback" in text:
        return f"{code} {text.strip()[-200:]}"
    if code not in (0, 1, 2, 3):
        return f"exit {code}"
    if name == "runs" and (code != 0 or second[-6:] not in text):
        return f"exit {code}, and the other run is not listed"
    if name == "artifacts" and (code != 0 or "Second" not in text):
        return f"exit {code}, and the other name is not listed: {text.strip()[-200:]}"
    return ""


def _records(whole: Path, first: str) -> Iterator[Path]:
    """The files of the first run and of what it saved."""
    for folder in (whole / "runs" / first, whole / "artifacts"):
        for path in sorted(folder.rglob("*")):
            inside = str(path.relative_to(whole))
            if path.is_file() and path.stat().st_size and "Second" not in inside and path.suffix != ".log":
                yield path


def _damages(data: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    yield "empty", b""
    yield "a byte more", data + b"x"
    yield "NUL bytes", b"\0" * len(data)
    yield "no text", b"\xff\xfe" + data
    for _ in range(4):
        at = rng.randrange(len(data))
        yield f"cut off at {at}", data[:at]
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        yield f"a bit turned at {at}", bytes(flipped)


def _output(arguments: list[str]) -> tuple[int | str, str]:
    kept = io.BytesIO()
    out = io.TextIOWrapper(kept, encoding="utf-8", write_through=True)
    code: int | str
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = nemotron(arguments)
        except Exception as error:  # noqa: BLE001 — a traceback is the fault that is searched for
            code = repr(error)[:300]
    return code, kept.getvalue().decode("utf-8", "replace")
