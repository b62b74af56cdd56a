"""build_executor: a profile as NeMo-Run's own executor. NeMo-Run is imported here, and only when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.plan.executors import BUILDERS, FromProfile
from nemotron_kit.plan.runconfig import DEFAULTS, ProfileError, RunConfig, env_dict, with_overrides


class MissingExtra(UserError, ImportError):
    """A package that this executor needs is not installed."""


def build_executor(config: RunConfig, env_vars: Mapping[str, str] | None = None) -> Any:
    """The NeMo-Run executor for `config`, with `env_vars` over the profile's own.

    It names a launch's resources; nothing is connected to, started or written. The launcher stays None: the worker
    starts torchrun. Slurm needs account and partition, Docker container_image, an ssh tunnel host and user. Raises
    ProfileError (a ValueError) for what is missing or wrong, MissingExtra (an ImportError) without NeMo-Run or what it
    needs itself.
    """
    checked = _checked(config)
    build = BUILDERS[checked.executor]
    added = env_dict(RunConfig(env_vars=[f"{name}={value}" for name, value in (env_vars or {}).items()]))
    run = _nemo_run()
    try:
        executor = build(
            run, checked, {**{name: FromProfile(text) for name, text in env_dict(checked).items()}, **added}
        )
    except TypeError as error:
        raise ProfileError(f"extra: NeMo-Run's {checked.executor} executor says: {error}.") from error
    except (ImportError, AssertionError) as error:  # NeMo-Run asserts that SkyPilot and Kubernetes are installed
        raise MissingExtra(f"executor {checked.executor!r} is not complete here: {error}") from error
    if checked.retries is not None:
        executor.retries = checked.retries
    return executor


def _checked(config: RunConfig) -> RunConfig:
    """The same config, each value checked: a caller may have made it by hand."""
    given = {name: value for name, value in asdict(config).items() if value != DEFAULTS[name] and name != "extends"}
    return replace(with_overrides(RunConfig(), given, prefix=""), extends=None)


def _nemo_run() -> Any:
    try:
        import nemo_run
    except ImportError as error:
        raise MissingExtra(
            f"This executor needs NeMo-Run, which can't be imported: {error}.",
            hint="pip install 'nemotron-kit[nemo-run]'",
        ) from error
    return nemo_run
