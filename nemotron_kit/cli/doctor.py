"""`nemotron doctor`: checks whether this machine can launch and run jobs, and prints how to fix what fails."""

from __future__ import annotations

import json
import netrc
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.cli.output import WARNING, print_json, print_table, write_lines
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.config.wording import STORAGE_FIX
from nemotron_kit.discovery import discover
from nemotron_kit.envfile import read_env_file
from nemotron_kit.errors import NemotronError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.home import nemotron_home
from nemotron_kit.spec.profiles import list_run_profiles, read_profile

OK, WARN, FAIL = "ok", "warn", "fail"
_STYLES = {OK: "green", WARN: WARNING, FAIL: "bold red"}
# Package → the extra of ours that needs it ("": always needed), in the order of the report.
_PACKAGES = {
    "hydra-core": "",
    "omegaconf": "",
    "torch": "[train]",
    "transformers": "[train]",
    "pyarrow": "[data]",
    "nemo-run": "[nemo-run]",
    "hydra-submitit-launcher": "[submitit]",
    "wandb": "[wandb]",
}
_LOW, _NONE_LEFT = 10e9, 1e9  # bytes free
_SKEW = 2.0  # seconds between this machine's clock and its file system's
_TORCH_S = 120  # importing torch from a cold network file system
_TORCH = """\
import json, torch
found = {"version": torch.__version__, "cuda": torch.version.cuda}
found["gpus"] = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Diagnosis:
    """One line of the report: what was checked, its state (ok, warn or fail), the finding, and how to fix it."""

    what: str
    state: str
    seen: str
    fix: str = ""


# What the report calls a check that raised an error.
_TITLES = {"weights_and_biases": "W&B"}


def doctor(argv: list[str]) -> int:
    """`nemotron doctor [--json]`: returns 1 if anything fails, else 0. Starts no job and contacts no other machine."""
    options = ToolParser("doctor").parse(argv)
    found: list[Diagnosis] = []
    for finding in (each for check in CHECKS for each in _guarded(check)):
        # What is wrong with env.toml, which several of them read, once.
        if finding.state != FAIL or finding.seen not in {each.seen for each in found}:
            found.append(finding)
    if options.json:
        print_json([asdict(finding) for finding in found])
    else:
        print_table(("WHAT", "STATE", "SEEN"), [(f.what, f.state, f.seen) for f in found], styles=_STYLES)
        if wrong := [finding for finding in found if finding.fix]:
            write_lines(["", *(f"{finding.what}: {finding.fix}" for finding in wrong)])
    return int(any(finding.state == FAIL for finding in found))


def _guarded(check: Callable[[], Iterator[Diagnosis]]) -> Iterator[Diagnosis]:
    """The findings of one check. An error that it raises becomes its finding, and the other checks still run."""
    what = _TITLES.get(check.__name__, check.__name__)
    try:
        yield from check()
    except NemotronError as error:
        yield Diagnosis(what, FAIL, error.message, error.hint or "")
    except FileNotFoundError as error:
        path = error.filename or "the working folder"
        yield Diagnosis(what, FAIL, f"{path} does not exist", "" if error.filename else "cd to another one.")
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""  # none for a full disk
        yield Diagnosis(what, FAIL, f"{where}{error.strerror or error}")


def python() -> Iterator[Diagnosis]:
    """The version of Python, and whether it is a virtual environment's, and the `nemotron` on the PATH, too."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Diagnosis("python", OK if sys.version_info >= (3, 11) else FAIL, f"{version} ({sys.executable})")
    if sys.prefix == sys.base_prefix and not os.environ.get("CONDA_PREFIX") and not Path("/.dockerenv").exists():
        fix = "python3 -m venv .venv && . .venv/bin/activate, then install nemotron-kit into it."
        yield Diagnosis("environment", WARN, "none: nemotron-kit is installed among the system's packages", fix)
    found = shutil.which("nemotron")
    if found is None:
        fix = f'Put {Path(sys.executable).parent} on PATH, or run "{sys.executable} -m nemotron_kit".'
        yield Diagnosis("nemotron", WARN, "not on the PATH", fix)
    elif Path(found).resolve().parent != Path(sys.executable).parent.resolve() and not _is_script_of_this(found):
        fix = "Activate one of the two environments."
        yield Diagnosis("nemotron", WARN, f"{found} on the PATH belongs to another environment", fix)


def _is_script_of_this(script: str) -> bool:
    """Whether a script names the Python of this environment; pip writes a long path into its second line."""
    with Path(script).open("rb") as file:
        return f"{sys.prefix}/".encode() in file.read(1024)


def packages() -> Iterator[Diagnosis]:
    """The versions of the important packages, and those that our requirements exclude."""
    refused = _refused()
    for name, extra in _PACKAGES.items():
        version = _version(name)
        if version is None and not extra:
            yield Diagnosis(name, FAIL, "not installed", f"pip install {name}")
        elif version is not None and name not in refused:
            yield Diagnosis(name, OK, version)
    for name, (of, needed) in refused.items():
        yield Diagnosis(of, FAIL, f"{name} {_version(name)}, and {needed} is needed", f"pip install '{name}{needed}'")
    lacking = [extra for name, extra in _PACKAGES.items() if extra and _version(name) is None]
    if lacking:
        extras = ", ".join(sorted(set(lacking)))
        yield Diagnosis("extras", OK, f"not installed: {extras}; a command that needs one names it")
    optuna, storage = _version("optuna") or "", _version("SQLAlchemy") or ""
    if optuna.startswith("2.") and storage.startswith("2."):
        seen = f"optuna {optuna} can't store studies with SQLAlchemy {storage}: hydra.sweeper.storage fails"
        yield Diagnosis("optuna", WARN, seen, STORAGE_FIX)
    if found := _version("nemotron"):
        seen = f"NVIDIA's package nemotron {found} has the module `nemotron`, too: one hides the other"
        yield Diagnosis(
            "nemotron", FAIL, seen, "pip uninstall nemotron && pip install --force-reinstall --no-deps nemotron-kit"
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _refused() -> dict[str, tuple[str, str]]:
    """The installed packages whose version our requirements exclude: name → (the extra of ours that needs it, else the
    package itself; the required range). The extra `dev` is left out."""
    from packaging.requirements import Requirement  # hydra-core requires it

    found = {}
    for requirement in map(Requirement, metadata.requires("nemotron-kit") or []):
        extra = re.search(r'extra == "([\w-]+)"', str(requirement.marker))
        of, version = extra[1] if extra else requirement.name, _version(requirement.name)
        if version and of != "dev" and not requirement.specifier.contains(version, prereleases=True):
            found[requirement.name] = (of, str(requirement.specifier))
    return found


def gpus() -> Iterator[Diagnosis]:
    """torch and its GPUs, found out in a child process: importing torch takes seconds, and may crash the process."""
    if _version("torch") is None:
        yield Diagnosis("training", OK, "torch is not installed: this machine can't run training jobs")
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=_TORCH_S, check=False
        )
    except subprocess.TimeoutExpired:
        yield Diagnosis("torch", FAIL, f"importing it takes more than {_TORCH_S} s", "Is its disk very slow?")
        return
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Diagnosis("torch", FAIL, last, "pip install --force-reinstall torch")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    names: list[str] = found["gpus"]
    if names:
        counted = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
        yield Diagnosis("GPUs", OK, f"{counted} (CUDA {found['cuda']})")
    elif shutil.which("nvidia-smi"):
        fix = "pip install torch for the driver's CUDA version: https://pytorch.org/get-started/locally"
        yield Diagnosis("GPUs", WARN, f"nvidia-smi is installed, but torch {found['version']} finds no GPU", fix)
    else:
        yield Diagnosis("GPUs", OK, "none: jobs on this machine train on its CPUs")


def recipes() -> Iterator[Diagnosis]:
    """The recipes, and the errors of those that can't be imported."""
    tree = discover()
    yield Diagnosis("recipes", OK, ", ".join(sorted(tree.apps)))
    for name, why in sorted(tree.broken.items()):
        yield Diagnosis(f"recipe {name}", FAIL, why, "Correct it, or remove it from [cli] recipes in env.toml.")


def profiles() -> Iterator[Diagnosis]:
    """env.toml, each profile in it, and whether what its executor needs on this machine is installed."""
    env = read_env_file()
    if env.path is None:
        yield Diagnosis("env.toml", OK, "none: jobs run on this machine")
        return
    yield Diagnosis("env.toml", OK, str(env.path))
    for name in list_run_profiles():
        what = f"profile {name}"
        try:
            config = read_profile(name).config
        except NemotronError as error:
            yield Diagnosis(what, FAIL, str(error.message), error.hint or "")
            continue
        client = "ssh" if config.tunnel == "ssh" else executor_for(config).client
        if client and shutil.which(client) is None:
            over_ssh = executor_for(config).over_ssh and config.tunnel != "ssh"
            fix = (
                'Set tunnel = "ssh" and host.' if over_ssh else "Install it, or run nemotron on a machine that has it."
            )
            yield Diagnosis(what, FAIL, f"{config.executor}: {client} is not on this machine", fix)
        elif executor_for(config).by_nemo_run and find_spec("nemo_run") is None:
            seen = f"{config.executor}: NeMo-Run is not installed"
            yield Diagnosis(what, FAIL, seen, "pip install 'nemotron-kit[nemo-run]'")
        else:
            yield Diagnosis(what, OK, f"{config.executor}; nemotron profiles check {name} connects to its target")


def registry() -> Iterator[Diagnosis]:
    """Whether $NEMOTRON_HOME can be written, and whether a record of the registry is damaged."""
    home = nemotron_home()
    nearest = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        # Tried, since root may write anywhere by the mode, and not below /proc or on a read-only file system.
        tempfile.TemporaryDirectory(dir=nearest).cleanup()
    except OSError:
        fix = "export NEMOTRON_HOME=/a/folder/of/yours"
        yield Diagnosis("home", FAIL, f"{nearest} can't be written", fix)
        return
    yield Diagnosis("home", OK, f"{home}{'' if home.exists() else ', made at the first launch'}")
    store = open_registry()
    damaged = store.repair(dry_run=True) if store.root.is_dir() else []
    if damaged:
        first = f"{damaged[0].what}: {damaged[0].why}"
        yield Diagnosis("registry", WARN, f"{len(damaged)} damaged: {first}", "nemotron artifacts gc --dry-run")
    else:
        count = len(store.entries()) if store.root.is_dir() else 0
        yield Diagnosis("registry", OK, f"{store.root}: {count} artifact{'' if count == 1 else 's'}")


def disk() -> Iterator[Diagnosis]:
    """The free space in $NEMOTRON_HOME and in the working folder."""
    home = nemotron_home()
    folders = {"disk of home": home, "disk of this folder": Path.cwd()}
    seen: set[int] = set()
    for what, folder in folders.items():
        existing = next(each for each in (folder, *folder.parents) if each.exists())
        if (device := existing.stat().st_dev) in seen:
            continue
        seen.add(device)
        usage = shutil.disk_usage(existing)
        state = FAIL if usage.free < _NONE_LEFT else WARN if usage.free < _LOW else OK
        fix = "nemotron runs rm removes runs; a checkpoint of the published model takes 379 GB." if state != OK else ""
        yield Diagnosis(what, state, f"{usage.free / 1e9:,.0f} of {usage.total / 1e9:,.0f} GB free at {existing}", fix)


def weights_and_biases() -> Iterator[Diagnosis]:
    """Whether W&B would find a login; no server is contacted."""
    asked = "wandb" in read_env_file().tables
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        yield Diagnosis("W&B", OK, f"WANDB_MODE={os.environ['WANDB_MODE']}: nothing is sent")
    elif _version("wandb") is None:
        state, fix = (FAIL, "pip install 'nemotron-kit[wandb]'") if asked else (OK, "")
        yield Diagnosis("W&B", state, "not installed, and env.toml has [wandb]" if asked else "not installed", fix)
    elif os.environ.get("WANDB_API_KEY"):
        yield Diagnosis("W&B", OK, "WANDB_API_KEY is set")
    elif _in_netrc():
        yield Diagnosis("W&B", OK, "~/.netrc has a login")
    else:
        state, fix = (WARN, "wandb login, or export WANDB_MODE=offline") if asked else (OK, "")
        yield Diagnosis("W&B", state, "no login: neither WANDB_API_KEY nor ~/.netrc", fix)


def _in_netrc() -> bool:
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].partition("/")[0]
    file = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")  # noqa: PTH111
    try:
        return netrc.netrc(file).authenticators(host.partition(":")[0]) is not None
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False


def clock() -> Iterator[Diagnosis]:
    """Compares this machine's clock with that of the file system of $NEMOTRON_HOME, which may be a server's: runs are
    sorted, and the age of unused files is computed, by both."""
    home = nemotron_home()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"\n")
            file.flush()
            skew = os.fstat(file.fileno()).st_mtime - time.time()
    except OSError as error:
        yield Diagnosis("clock", WARN, f"not compared: {existing} can't be written: {error.strerror}")
        return
    state, fix = (OK, "") if abs(skew) < _SKEW else (WARN, "Set both by NTP (chrony, systemd-timesyncd).")
    text = "the file system agrees" if state == OK else f"the file system of {existing} differs by {skew:+.1f} s"
    yield Diagnosis("clock", state, f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}; {text}", fix)


CHECKS = (python, packages, gpus, recipes, profiles, registry, disk, weights_and_biases, clock)
