"""Twelve secrets, each through another entry, on Slurm and in containers: they reach what they are for, and are found
in no file, log, script, record or command line, however they are written."""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import hashlib
import io
import json
import re
import subprocess
import time
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from .docker_world import tool
from .docker_world import world as on_docker  # noqa: F401
from .slurm_world import World
from .slurm_world import world as on_slurm  # noqa: F401

# Named in `secrets`, or referred to by a config: what the job gets.
WANTED = ("WORK_TOKEN", "FILE_SECRET", "LINE_API_KEY", "SWEPT_PASSWORD")
# Secrets by their names: in the launch's environment, and none of the job's business.
OTHERS = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DATABASE_PASSWORD", "GITHUB_PAT", "WANDB_API_KEY")
# Entries that are refused: on the command line, in env_vars, and by ${oc.env:…}.
REFUSED = ("TYPED", "IN_ENV_VARS", "BY_ENV_TOKEN")
CANARIES = {name: f"c4n4ry+{n:02}/{name.lower()[::-1]}=&é%" for n, name in enumerate((*WANTED, *OTHERS, *REFUSED))}

PROGRAM = '''
import hashlib, json, os, sys, time
from dataclasses import dataclass
from pathlib import Path

from nemotron.kit import App


@dataclass
class Config:
    in_file: str = ""
    on_line: str = ""
    sleep: float = 0.0


def digest(text):
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def use(cfg: Config) -> None:
    """Say that they came, and not what they are."""
    came = {name: digest(text) for name, text in os.environ.items()}
    came |= {"in_file": digest(cfg.in_file), "on_line": digest(cfg.on_line)}
    Path(os.environ["NEMO_RUN_DIR"], "came.json").write_text(json.dumps(came))
    print("working", flush=True)
    time.sleep(cfg.sleep)


app = App("work")
app.command("use", Config, use)

if __name__ == "__main__":
    app.run()
'''

PROFILES = """
[canaries]
extends = "C"
secrets = ["WORK_TOKEN", "FILE_SECRET", "LINE_API_KEY", "SWEPT_PASSWORD"]

[literal]
extends = "C"
env_vars = ["IN_ENV_TOKEN=IN_ENV_VARS"]
"""


@pytest.fixture(params=["on_slurm", "on_docker"])
def canary_world(request: pytest.FixtureRequest) -> Iterator[World]:
    world: World = request.getfixturevalue(request.param)
    (world.folder / "work.py").write_text(PROGRAM)
    with (world.folder / "env.toml").open("a") as env:
        env.write(PROFILES)
    (world.folder / "config").mkdir()
    (world.folder / "config" / "mine.yaml").write_text("in_file: ${secret:FILE_SECRET}\n")
    world.env.update({name: CANARIES[name] for name in (*WANTED, *OTHERS, "BY_ENV_TOKEN")})
    yield world


def test_no_canary_is_found_anywhere(canary_world: World) -> None:
    world, line = canary_world, "on_line=${secret:LINE_API_KEY}"
    shown = [
        world.run("use", "-c", "mine", line, "--batch", "canaries", "--dry-run", *more) for more in ((), ("--json",))
    ]
    attached = world.run("use", "-c", "mine", line, "--run", "canaries")
    assert attached.returncode == 0, attached.stderr
    job = world.job(attached.stderr)
    came = json.loads((job.path / "came.json").read_text())
    assert came["in_file"] == _digest("FILE_SECRET") and came["on_line"] == _digest("LINE_API_KEY")
    assert all(came[name] == _digest(name) for name in WANTED) and not set(OTHERS) & set(came)

    process = world.start(
        "python", "work.py", "use", "-m", "sleep=1,2", "on_line=${secret:SWEPT_PASSWORD}", "--batch", "canaries"
    )
    seen = _command_lines_while(process)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    sweep = next(run for run in (world.home / "runs").glob("2*") if run.name != job.run_id)
    said = tool(world, "runs", "wait", sweep.name)
    assert said.returncode == 0, said.stderr
    for point in (sweep / "jobs").iterdir():
        assert json.loads((point / "came.json").read_text())["on_line"] == _digest("SWEPT_PASSWORD")

    texts = [done.stdout + done.stderr for done in (*shown, attached, said)] + [
        out + err,
        *_told(world, job.run_id),
        seen,
    ]
    for text in texts:
        assert hits(text.encode(errors="surrogateescape")) == []
    _nothing_in(world)


def test_a_canary_in_the_wrong_place_is_refused_and_leaves_nothing(canary_world: World) -> None:
    world = canary_world
    typed = world.run("use", f"+hf.token={CANARIES['TYPED']}", "--batch", "C")
    by_environment = world.run("use", "in_file=${oc.env:BY_ENV_TOKEN}", "--batch", "C")
    env = world.folder / "env.toml"
    text = env.read_text()
    env.write_text(text.replace("=IN_ENV_VARS", f"={CANARIES['IN_ENV_VARS']}"))
    literal = world.run("use", "--batch", "literal")
    env.write_text(text)
    for done in (typed, by_environment, literal):
        assert done.returncode == 2 and "secret" in done.stderr, done.stderr
        assert hits((done.stdout + done.stderr).encode()) == []
    assert not (world.home / "runs").exists()
    _nothing_in(world)


def test_they_are_gone_when_the_job_was_killed_or_cancelled(canary_world: World) -> None:
    world = canary_world
    job = world.batch("use", "-c", "mine", "sleep=60", profile="canaries")
    assert world.wait(job, "running") == "running"
    _nothing_in(world)
    assert tool(world, "runs", "cancel", job.run_id).returncode == 0
    _nothing_in(world)


def test_the_search_finds_what_it_is_for() -> None:
    canary = CANARIES["WORK_TOKEN"].encode()
    for written in (
        canary, base64.b64encode(b"x" + canary), base64.b64encode(b"xy" + canary), canary.hex().encode(),
        quote(canary).encode(), quote_plus(canary).encode(), zlib.compress(canary), gzip.compress(b"x" * 99 + canary),
        base64.b64encode(zlib.compress(b"{'config': " + canary + b"}")), json.dumps(CANARIES["WORK_TOKEN"]).encode(),
    ):  # fmt: skip
        assert hits(b"before " + written + b" after") == ["WORK_TOKEN"], written
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("file", b"nothing" * 50 + canary)
    assert hits(packed.getvalue()) == ["WORK_TOKEN"]
    assert hits(b"nothing") == []


def hits(data: bytes, depth: int = 0) -> list[str]:
    """The canaries in some bytes: as they are, in base64, hex, URL and JSON notation; compressed, in an archive; and
    compressed and in base64."""
    found = {name for name, text in CANARIES.items() if any(form in data for form in _forms(text))}
    if depth < 3:
        for inner in _unpacked(data):
            found.update(hits(inner, depth + 1))
    return sorted(found)


@cache
def _forms(text: str) -> list[bytes]:
    raw = text.encode()
    shifted = [base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4] for shift in range(3)]
    url = [quote(text).encode(), quote_plus(text).encode(), quote(text, safe="").encode()]
    return [raw, *shifted, raw.hex().encode(), raw.hex().upper().encode(), *url, json.dumps(text)[1:-1].encode()]


def _unpacked(data: bytes) -> Iterator[bytes]:
    for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08", data):
        bits = 31 if data[match.start()] == 0x1F else 15
        with contextlib.suppress(zlib.error):
            yield zlib.decompressobj(bits).decompress(data[match.start() :], 1 << 22)
    if data[:2] == b"PK":
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield archive.read(name)
    for match in re.finditer(rb"[A-Za-z0-9+/_-]{24,}={0,2}", data):
        with contextlib.suppress(binascii.Error, ValueError):
            inner = base64.b64decode(
                match[0] + b"=" * (-len(match[0]) % 4), altchars=b"-_" if b"_" in match[0] else None
            )
            if inner[:1] == b"\x78" or inner[:2] == b"\x1f\x8b":
                yield inner


def _nothing_in(world: World) -> None:
    """Every file of the launch and of the jobs; the kit's own are the same as the checkout's."""
    for path in world.folder.parent.rglob("*"):
        if path.is_file() and "/kit/" not in str(path):
            assert hits(path.read_bytes()) == [], path
            assert hits(str(path).encode()) == [], path


def _told(world: World, run_id: str) -> list[str]:
    """What the tools say of a run: the kit's, and the scheduler's or the engine's."""
    words = (["runs", "show", run_id], ["runs", "show", run_id, "--json"], ["runs", "logs", run_id], ["runs", "--json"])
    said = [tool(world, *each).stdout for each in words]
    if "SLURM_CONF" in world.slurm.env:
        return [*said, world.slurm.run("scontrol", "show", "job", "-dd"), world.slurm.run("sacct", "-o", "ALL", "-P")]
    return said


def _command_lines_while(process: subprocess.Popen[str]) -> str:
    """The command lines of every process of this machine, as long as one runs."""
    seen: set[bytes] = set()
    while process.poll() is None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                seen.add(path.read_bytes())
        time.sleep(0.1)
    return b"\n".join(seen).decode(errors="replace")


def _digest(name: str) -> str:
    return hashlib.sha256(CANARIES[name].encode()).hexdigest()
