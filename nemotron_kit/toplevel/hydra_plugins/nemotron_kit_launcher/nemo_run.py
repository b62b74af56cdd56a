"""The launcher plugin: its settings, and a door to the engine. Hydra imports this at every start, so it stays small."""

# No `from __future__ import annotations`: Hydra's scan executes this module outside sys.modules, where @dataclass can't
# look up postponed annotations.
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class NemoRunConf:
    """`profile`: a profile of env.toml (null: this machine). `max_parallel`: jobs at a time (null: one a CPU)."""

    _target_: str = "hydra_plugins.nemotron_kit_launcher.nemo_run.NemoRunLauncher"
    profile: str | None = None
    max_parallel: int | None = None


ConfigStore.instance().store(group="hydra/launcher", name="nemo_run", node=NemoRunConf, provider="nemotron_kit")


class NemoRunLauncher(Launcher):
    """Runs each job of a sweep in a process of its own, on the machine that the profile names."""

    def __init__(self, profile: str | None = None, max_parallel: int | None = None) -> None:
        self.profile = profile
        self.max_parallel = max_parallel
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context, self.task_function = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from nemotron_kit.execution.sweep import Settings, launch

        settings: Any = Settings(self.profile, self.max_parallel)
        return launch(self.config, self.hydra_context, settings, job_overrides, initial_job_idx)
