"""Makes NeMo-Run's executor and packager from a profile. NeMo-Run is imported here only, and only when it is needed.

The import takes seconds, most of them for torch and the clouds' packages, which neither Slurm nor Docker needs. So a
helper process imports it without them and answers requests.
"""

from __future__ import annotations

import json
import select
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from nemotron_kit.errors import Problem, UserError
from nemotron_kit.executors.base import executor_for
from nemotron_kit.home import expand_user
from nemotron_kit.quoting import shell_word
from nemotron_kit.spec.runconfig import DEFAULTS, ProfileError, RunConfig, env_dict, with_overrides
from nemotron_kit.worker import python_module
from nemotron_kit.worker.process import start_detached


def build_packager(run: Any, config: RunConfig) -> Any:
    """NeMo-Run's packager for the profile. With the default, `worktree`, nemotron_kit sends the code itself and
    NeMo-Run packs nothing."""
    packager = config.packager or "worktree"
    if packager in ("worktree", "none"):
        return run.Packager()
    if packager == "git":
        return git_packager(run, config)
    if not config.packager_include_pattern:
        raise ProfileError("packager 'pattern' needs packager_include_pattern.")
    patterns = list(config.packager_include_pattern)
    by_pattern = run.PatternPackager(include_pattern=patterns, relative_path=[str(Path.cwd())] * len(patterns))
    if packager == "pattern":
        return by_pattern
    plain_git = git_packager(run, replace(config, packager_include_pattern=None))
    return run.HybridPackager(sub_packagers={"git": plain_git, "pattern": by_pattern}, extract_at_root=True)


def git_packager(run: Any, config: RunConfig) -> Any:
    """NeMo-Run's packager of a git repository's committed files, and of those that match packager_include_pattern."""
    return run.GitArchivePackager(
        subpath=config.subpath or "",
        include_submodules=config.include_submodules is not False,
        include_pattern=list(config.packager_include_pattern or [""]),
        include_pattern_relative_path=["" for _ in config.packager_include_pattern or [""]],
    )


class FromProfile(str):
    """A variable's value as given in a profile: `$NAME` in it is expanded on the machine where the job runs."""


def shell_quoted(value: str) -> str:
    """A variable's value, quoted for a shell. Of a FromProfile `$NAME` stays a reference."""
    return shell_word(value) if isinstance(value, FromProfile) else shlex.quote(value)


def need(config: RunConfig, *names: str) -> None:
    """Raise ProfileError if one of these fields is not set."""
    missing = [name for name in names if not getattr(config, name)]
    if missing:
        raise ProfileError(
            f"executor {config.executor!r} needs {' and '.join(missing)}.",
            hint="Add to the profile in env.toml:\n" + "\n".join(f'{name} = "…"' for name in missing),
        )


def tunnel(run: Any, config: RunConfig) -> Any:
    """NeMo-Run's tunnel to the profile's target."""
    if config.tunnel == "local":
        return run.LocalTunnel(job_dir="")  # NeMo-Run writes nothing into it
    if not (config.host and config.user):
        missing = " and ".join(name for name in ("host", "user") if not getattr(config, name))
        raise ProfileError(f"tunnel 'ssh' needs {missing}.", hint="Set it in the profile.")
    identity = str(expand_user(config.identity)) if config.identity else None
    job_dir = config.remote_job_dir or ".nemotron/runs"  # relative to the home there
    return run.SSHTunnel(host=config.host, user=config.user, identity=identity, job_dir=job_dir)


def shell_lines(config: RunConfig) -> list[str]:
    """The profile's settings that are shell code by definition."""
    return [*(config.startup_commands or ()), *([config.setup] if config.setup else ())]


class MissingExtra(UserError, ImportError):
    """A package that this executor needs is not installed."""


def build_executor(config: RunConfig, env_vars: Mapping[str, str] | None = None) -> Any:
    """The NeMo-Run executor for `config`, with `env_vars` added to the profile's, which they override.

    It describes the resources of a launch; no connection is opened, nothing is started or written. Its launcher is
    None, since the worker starts torchrun. Docker needs container_image, an ssh tunnel host and user. Raises
    ProfileError (a ValueError) for a missing or invalid setting, MissingExtra (an ImportError) if NeMo-Run or a package
    that it needs is not installed.
    """
    # Every value is checked, since a caller may have constructed the config directly.
    given = {name: value for name, value in asdict(config).items() if value != DEFAULTS[name] and name != "extends"}
    checked = replace(with_overrides(RunConfig(), given, prefix=""), extends=None)
    planner = executor_for(checked)
    variables: dict[str, str] = {name: FromProfile(text) for name, text in env_dict(checked).items()}
    variables |= env_dict(RunConfig(env_vars=[f"{name}={value}" for name, value in (env_vars or {}).items()]))
    try:
        import nemo_run
    except ImportError as error:
        raise MissingExtra(f"This executor needs NeMo-Run, which can't be imported: {error}.", hint=_INSTALL) from error
    try:
        executor = planner.nemo_run(nemo_run, variables)
    except TypeError as error:
        raise ProfileError(f"extra: NeMo-Run's {checked.executor} executor: {error}.") from error
    except (ImportError, AssertionError) as error:  # NeMo-Run asserts that SkyPilot and Kubernetes are installed
        raise MissingExtra(f"executor {checked.executor!r} is not complete here: {error}") from error
    if checked.retries is not None:
        executor.retries = checked.retries
    return executor


_INSTALL = "pip install 'nemotron-kit[nemo-run]'"


def missing() -> Iterator[Problem]:
    """The problem that NeMo-Run is not installed. It is not imported, which takes a second."""
    if find_spec("nemo_run") is None:
        yield Problem("This executor needs NeMo-Run, which is not installed.", hint=_INSTALL)


# How long the helper process waits for another request.
_IDLE_SECONDS = 60
_helper: list[subprocess.Popen[str]] = []


def start() -> None:
    """Start the helper process, unless it runs already. It ends with this process."""
    if _helper and _helper[0].poll() is not None:
        _helper.pop()
    if not _helper:
        _helper.append(start_detached(python_module(__name__), subprocess.DEVNULL, talks=True))


def ask(module: str, request: Mapping[str, Any]) -> Any:
    """The result of `answer(request)` of one of our modules, called in the helper process that has NeMo-Run imported.

    None if this process has NeMo-Run imported already, or if the helper gave no result: the caller then calls `answer`
    itself, which raises the error.
    """
    if not _helper and ("nemo_run" in sys.modules or not find_spec("nemo_run")):
        return None
    answered = False
    try:
        line = json.dumps({"module": module, "request": request}) + "\n"
        start()
        process = _helper[0]
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 — Popen was given pipes
        process.stdin.write(line)
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())["answer"]
        answered = True
        return answer
    except (OSError, TypeError, KeyError, ValueError):  # it has ended, or a value is none of JSON's
        return None
    finally:
        # After Ctrl-C, or a line that something else printed, the next line could be the answer to this request.
        if not answered and _helper:
            _helper.pop().kill()


def import_partially() -> Any:
    """Import NeMo-Run, in the helper process only, without torch, and with empty modules in place of the clouds'
    packages. Takes a third of the time; the local, Docker and Slurm executors are complete."""
    if "nemo_run" not in sys.modules:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        empty = _Empty({name for name in ("leptonai", "kubernetes") if name not in sys.modules})
        sys.meta_path.insert(0, empty)
        try:
            import_module("nemo_run")
        finally:
            sys.meta_path.remove(empty)
            for name in [name for name, module in sys.modules.items() if isinstance(module, _EmptyModule)]:
                del sys.modules[name]
    return sys.modules["nemo_run"]


class _EmptyModule(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Empty(MetaPathFinder, Loader):
    """An import finder that gives an empty module for the named packages and their submodules."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        found = fullname.partition(".")[0] in self._names
        return ModuleSpec(fullname, self, is_package=True) if found else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing: the module is empty."""


def main() -> None:
    """Serve requests, one a line, until standard input ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    import_partially()
    while select.select([sys.stdin], [], [], _IDLE_SECONDS)[0] and (line := sys.stdin.readline()):
        question = json.loads(line)
        try:
            answer = import_module(question["module"]).answer(question["request"])
        # The caller repeats the call in its process, and gets the error.
        except Exception:  # noqa: BLE001
            answer = None
        print(json.dumps({"answer": answer}), file=answers, flush=True)


if __name__ == "__main__":
    main()
