"""The operations of `nemotron profiles check`. They submit nothing and leave nothing behind."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from nemotron_kit.remote.agent import slurm_commands as commands

_SECONDS = 30.0
_MODULES = ("omegaconf", "torch", "nemotron_kit")
# As a child without -I: what the job's Python finds, the user's own packages included.
_LOOK = """
import importlib.metadata, importlib.util, json, platform
found = {}
for name in %r:
    if importlib.util.find_spec(name):
        try:
            found[name] = importlib.metadata.version(name.replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            found[name] = "there"
print(json.dumps({"version": platform.python_version(), "modules": found}))
"""


def python_facts(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """The Python that answers, as a job will find it: version, and which of the packages that matter it has."""
    del payload
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LOOK % (_MODULES,)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_SECONDS,
        check=False,
        cwd="/",
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    if done.returncode != 0:
        return {"error": done.stderr.decode(errors="replace").strip()[-300:]}, b""
    return {"executable": sys.executable, **json.loads(done.stdout)}, b""


def writable(payload: bytes, folder: str) -> tuple[dict[str, Any], bytes]:
    """Whether files can be made in `folder`, or in the first folder above it that is there; and the space left."""
    del payload
    place = Path(folder)
    while not place.exists() and place != place.parent:
        place = place.parent
    probe = place / f".nemotron-{secrets.token_hex(6)}"
    usage = shutil.disk_usage(place)
    facts = {"exists": place == Path(folder), "nearest": str(place), "free": usage.free, "total": usage.total}
    try:
        probe.mkdir(mode=0o700)
    except OSError as error:
        return {**facts, "error": error.strerror or str(error)}, b""
    probe.rmdir()
    return facts, b""


def slurm_facts(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Which of Slurm's commands are there; whether queue and accounting answer; whether srun knows containers."""
    del payload
    tools = {tool: shutil.which(tool) for tool in ("sbatch", "squeue", "sacct", "scancel", "srun", "scontrol")}
    facts: dict[str, Any] = {"tools": tools}
    if tools["sbatch"]:
        facts["version"] = commands.run(["sbatch", "--version"], seconds=_SECONDS)[1].strip()
    if tools["squeue"]:
        facts["squeue"] = _said(["squeue", "--noheader", "--me", "--format=%i"])
    if tools["sacct"]:
        facts["sacct"] = _said(["sacct", "--noheader", "--allocations", "--format=JobID"])
    if tools["srun"]:
        facts["pyxis"] = "--container-image" in "".join(commands.run(["srun", "--help"], seconds=_SECONDS)[1:])
    return facts, b""


def slurm_accepts(payload: bytes, options: list[str]) -> tuple[str | None, bytes]:
    """sbatch's objection to a job with these options (`sbatch --test-only`, which submits nothing); None when it would
    accept it."""
    del payload
    code, out, said = commands.run(["sbatch", "--test-only", *options, "--wrap", "true"], seconds=_SECONDS)
    return (None if code == 0 else said or out.strip() or f"exit code {code}"), b""


def docker_facts(payload: bytes, image: str | None = None) -> tuple[dict[str, Any], bytes]:
    """The engine's version, or why it does not answer; and whether it has `image` already."""
    del payload
    if shutil.which("docker") is None:
        return {"error": "there is no docker command"}, b""
    code, out, said = commands.run(["docker", "version", "--format", "{{.Server.Version}}"], seconds=_SECONDS)
    if code != 0:
        return {"error": said or f"exit code {code}"}, b""
    has = bool(image) and commands.run(["docker", "image", "inspect", "--", str(image)], seconds=_SECONDS)[0] == 0
    return {"version": out.strip(), "has_image": has}, b""


def _said(arguments: list[str]) -> str | None:
    """None for a command that succeeds, else what it printed."""
    code, _, said = commands.run(arguments, seconds=_SECONDS)
    return None if code == 0 else said or f"exit code {code}"
