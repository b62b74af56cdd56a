"""The agent's operations for `nemotron profiles check`. They submit nothing, and no file remains."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from nemotron_kit.home import expand_user
from nemotron_kit.remote.agent import slurm_commands as commands

_SECONDS = 30.0
OLDEST = (3, 11)
# What the engines need, by the name that `engine=` has: hf's kernels for Mamba-2 are those of mamba_ssm.
ENGINES = {"hf": "transformers", "megatron_bridge": "megatron.bridge", "nemo_rl": "nemo_rl"}
_MODULES = ("omegaconf", "yaml", "pydantic", "torch", "nemotron_kit", "mamba_ssm", *ENGINES.values())
# Run as a child without -I, so that the user's packages are found as the job finds them. Imports what the worker needs,
# and finds out whether the other packages are installed.
PROBE = """
import importlib, importlib.util, json, os, platform, sys
try:
    from importlib.metadata import version
except ImportError:
    version = str
found, broken = {}, {}
for name in NAMES:
    try:
        parent = name.partition(".")[0]
        if importlib.util.find_spec(parent) and importlib.util.find_spec(name):
            if name in ("omegaconf", "yaml"):
                importlib.import_module(name)
            found[name] = version({"yaml": "PyYAML"}.get(name, name.replace("_", "-").replace(".", "-")))
    except Exception as error:
        if type(error).__name__ == "PackageNotFoundError":
            found[name] = "there"
        else:
            broken[name] = "%s: %s" % (type(error).__name__, error)
facts = {"version": platform.python_version(), "modules": found, "broken": broken, "executable": sys.executable}
print("nemotron-python: " + json.dumps(facts))
""".replace("NAMES", repr(_MODULES))
_FACTS = re.compile(r"^nemotron-python: (\{.*\})$", re.MULTILINE)
_HOST = re.compile(r"^nemotron-node: (\S+)$", re.MULTILINE)
_STOPPED = re.compile(r"^nemotron: (setup: .+), and the job was not started$", re.MULTILINE)


def python_facts(python: str | None = None) -> dict[str, Any]:
    """The Python that the job will use, `python` or this one: its version, which of the relevant packages are there,
    and which of the worker's can't be imported."""
    program = str(expand_user(python or sys.executable))
    try:
        done = subprocess.run(
            [program, "-c", PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            cwd="/",
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
    except OSError as error:
        return {"error": f"{program}: {error.strerror or error}"}
    except subprocess.TimeoutExpired:
        return {"error": f"{program}: no answer in {_SECONDS:.0f} s"}
    found = _FACTS.search(done.stdout.decode(errors="replace"))
    if done.returncode != 0 or not found:
        message = done.stderr.decode(errors="replace").strip()[-300:]
        return {"error": f"{program}: {message or f'no Python: exit code {done.returncode}'}"}
    return dict(json.loads(found[1]))


def slurm_on_node(
    options: list[str],
    image: list[str] | None = None,
    python: str = "python3",
    seconds: float = 60,
    payload: bytes = b"",
) -> dict[str, Any]:
    """Run the script of the payload on a node that srun gets with these options within `seconds`, then `python` in the
    container that srun's options `image` describe: {"host", "stopped": what failed, "python": its facts, "message"}."""
    asked = ["srun", "--quiet", f"--immediate={seconds:.0f}", *options]
    code, out, errors = commands.run([*asked, "bash", "-c", payload.decode()], seconds=seconds + 240)
    host, stopped = _HOST.search(out), _STOPPED.search(out)
    facts: dict[str, Any] = {"host": host and host[1], "stopped": stopped and stopped[1], "code": code}
    if image and host and not stopped:
        code, out, errors = commands.run([*asked, *image, python, "-c", PROBE], seconds=seconds + 600)
        facts["code"] = code
    found = _FACTS.search(out)
    message = [line for line in (errors or out).splitlines() if line.strip() and not line.startswith("nemotron")]
    return {**facts, "python": json.loads(found[1]) if found else None, "message": "\n".join(message[-3:])[-500:]}


def writable(folder: str) -> dict[str, Any]:
    """Whether files can be created in `folder`, or in its nearest existing parent; and the free space."""
    existing = Path(folder)
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    probe = existing / f".nemotron-{secrets.token_hex(6)}"
    usage = shutil.disk_usage(existing)
    facts = {"exists": existing == Path(folder), "nearest": str(existing), "free": usage.free, "total": usage.total}
    try:
        probe.mkdir(mode=0o700)
    except OSError as error:
        return {**facts, "error": error.strerror or str(error)}
    probe.rmdir()
    return facts


def slurm_facts() -> dict[str, Any]:
    """Which of Slurm's commands are installed; whether queue and accounting answer; whether srun supports
    containers."""
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
    if shutil.which("apptainer"):
        facts["apptainer"] = commands.run(["apptainer", "--version"], seconds=_SECONDS)[1].strip()
    return facts


def slurm_accepts(options: list[str]) -> str | None:
    """sbatch's objection to a job with these options (`sbatch --test-only`, which submits nothing); None if it would
    accept the job."""
    code, out, errors = commands.run(["sbatch", "--test-only", *options, "--wrap", "true"], seconds=_SECONDS)
    return None if code == 0 else errors or out.strip() or f"exit code {code}"


_MANIFESTS = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " + (
    "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
)
_RESPONSE_SECONDS = 10.0


def image_in_registry(image: str, plain: bool = False) -> dict[str, str]:
    """Whether the image's registry has it, as seen from this machine without a login: `state` (found, missing or
    unknown) and a `message` for the user. `plain`: a registry without TLS."""
    if "://" in image and not image.startswith("docker://"):
        return {"state": "unknown", "message": "pulled when the job starts: not checked"}
    host, name, tag = image_parts(image)
    url = f"http{'' if plain else 's'}://{host}/v2/{name}/manifests/{tag}"
    try:
        code, challenge = _manifest(url, None)
        if code == 401 and (token := _token(challenge)):
            code, _ = _manifest(url, token)
    except (OSError, ValueError, HTTPException) as error:  # the last one of a name that no address can have, too
        message = (
            f"pulled when the job starts; {host} does not answer from here ({getattr(error, 'reason', None) or error})"
        )
        return {"state": "unknown", "message": message}
    if code == 200:
        return {"state": "found", "message": f"{host} has it; pulled when the job starts"}
    if code == 404:
        return {"state": "missing", "message": f"{host} has no such image"}
    return {"state": "unknown", "message": f"pulled when the job starts; {host} shows it to logins only ({code})"}


def image_parts(image: str) -> tuple[str, str, str]:
    """Registry, name, and tag or digest of an image as Docker or Pyxis writes it."""
    text = image.removeprefix("docker://")
    host, mark, rest = text.partition("#" if "#" in text else "/")
    if not mark or not ("#" in text or "." in host or ":" in host or host == "localhost"):
        host, rest = "registry-1.docker.io", text if "/" in text else f"library/{text}"
    host = host.rpartition("@")[2]  # Pyxis: USER@REGISTRY#IMAGE
    if "@" in rest:
        name, _, tag = rest.partition("@")
        return host, name.partition(":")[0], tag
    name, _, tag = rest.partition(":")
    return host, name, tag or "latest"


def _manifest(url: str, token: str | None) -> tuple[int, str]:
    """The code of the answer to a request for a manifest, and its challenge."""
    headers = {"Accept": _MANIFESTS, **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url, method="HEAD", headers=headers)  # noqa: S310 — https, or http
    try:
        with urllib.request.urlopen(request, timeout=_RESPONSE_SECONDS) as answer:  # noqa: S310
            return int(answer.status), ""
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("WWW-Authenticate") or ""


def _token(challenge: str) -> str | None:
    """An anonymous token from the address in the registry's challenge; None if it gives none."""
    given = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if not given.get("realm", "").startswith("https://"):
        return None
    query = urllib.parse.urlencode({key: given[key] for key in ("service", "scope") if key in given})
    try:
        with urllib.request.urlopen(f"{given['realm']}?{query}", timeout=_RESPONSE_SECONDS) as answer:  # noqa: S310
            found = json.loads(answer.read(1_000_000))
    except urllib.error.HTTPError:
        return None
    return str(found.get("token") or found.get("access_token") or "") or None


def docker_facts(image: str | None = None) -> dict[str, Any]:
    """The engine's version, or why it does not answer; and whether it has `image` already."""
    if shutil.which("docker") is None:
        return {"error": "there is no docker command"}
    code, out, errors = commands.run(["docker", "version", "--format", "{{.Server.Version}}"], seconds=_SECONDS)
    if code != 0:
        return {"error": errors or f"exit code {code}"}
    has = bool(image) and commands.run(["docker", "image", "inspect", "--", str(image)], seconds=_SECONDS)[0] == 0
    return {"version": out.strip(), "has_image": has}


def _error_output(arguments: list[str]) -> str | None:
    """The error output of a command; None if it succeeded."""
    code, _, errors = commands.run(arguments, seconds=_SECONDS)
    return None if code == 0 else errors or f"exit code {code}"
