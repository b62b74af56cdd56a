"""The agent's operations for `nemotron profiles check`. They submit nothing, and no file remains."""

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
# Run as a child without -I, so that the user's own packages are found as the job finds them.
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
    """The Python that the job will use: its version, and which of the relevant packages are installed."""
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
    """Whether files can be created in `folder`, or in its nearest existing parent; and the free space."""
    del payload
    existing = Path(folder)
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    probe = existing / f".nemotron-{secrets.token_hex(6)}"
    usage = shutil.disk_usage(existing)
    facts = {"exists": existing == Path(folder), "nearest": str(existing), "free": usage.free, "total": usage.total}
    try:
        probe.mkdir(mode=0o700)
    except OSError as error:
        return {**facts, "error": error.strerror or str(error)}, b""
    probe.rmdir()
    return facts, b""


def slurm_facts(payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Which of Slurm's commands are installed; whether queue and accounting answer; whether srun supports
    containers."""
    del payload
    tools = {tool: shutil.which(tool) for tool in ("sbatch", "squeue", "sacct", "scancel", "srun", "scontrol")}
    facts: dict[str, Any] = {"tools": tools}
    if tools["sbatch"]:
        facts["version"] = commands.run(["sbatch", "--version"], seconds=_SECONDS)[1].strip()
    if tools["squeue"]:
        facts["squeue"] = _error_output(["squeue", "--noheader", "--me", "--format=%i"])
    if tools["sacct"]:
        facts["sacct"] = _error_output(["sacct", "--noheader", "--allocations", "--format=JobID"])
    if tools["srun"]:
        facts["pyxis"] = "--container-image" in "".join(commands.run(["srun", "--help"], seconds=_SECONDS)[1:])
    return facts, b""


def slurm_accepts(payload: bytes, options: list[str]) -> tuple[str | None, bytes]:
    """sbatch's objection to a job with these options (`sbatch --test-only`, which submits nothing); None if it would
    accept the job."""
    del payload
    code, out, errors = commands.run(["sbatch", "--test-only", *options, "--wrap", "true"], seconds=_SECONDS)
    return (None if code == 0 else errors or out.strip() or f"exit code {code}"), b""


def docker_facts(payload: bytes, image: str | None = None) -> tuple[dict[str, Any], bytes]:
    """The engine's version, or why it does not answer; and whether it has `image` already."""
    del payload
    if shutil.which("docker") is None:
        return {"error": "there is no docker command"}, b""
    code, out, errors = commands.run(["docker", "version", "--format", "{{.Server.Version}}"], seconds=_SECONDS)
    if code != 0:
        return {"error": errors or f"exit code {code}"}, b""
    has = bool(image) and commands.run(["docker", "image", "inspect", "--", str(image)], seconds=_SECONDS)[0] == 0
    return {"version": out.strip(), "has_image": has}, b""


def _error_output(arguments: list[str]) -> str | None:
    """The error output of a command; None if it succeeded."""
    code, _, errors = commands.run(arguments, seconds=_SECONDS)
    return None if code == 0 else errors or f"exit code {code}"
