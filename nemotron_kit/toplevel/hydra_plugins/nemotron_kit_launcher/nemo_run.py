"""The launcher plugin: its settings, and a class that forwards to the engine. Hydra imports this at every start, so it
stays small."""

# No `from __future__ import annotations`: Hydra's scan executes this module outside sys.modules, where @dataclass can't
# look up postponed annotations.
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class NemoRunConf:
    """`hydra/launcher=nemo_run`: each job of a sweep in a process of its own, where the profile says.

    profile: a profile of env.toml; null: this machine.
    env: fields of the profile that this sweep sets (`+hydra.launcher.env.nodes=2`); a recipe has `run.env` for that.
    max_parallel: jobs at a time; null: what the profile says, else one a CPU on this machine and no limit elsewhere.
    via: what starts jobs on this machine, nemo_run or kit (plain processes); null: NeMo-Run where it is installed.
    detach: submit and return. The sweeper then gets None from every job.
    objective: a metric of metrics.jsonl whose last value a job hands to the sweeper; null: what its function returns.
    """

    _target_: str = "hydra_plugins.nemotron_kit_launcher.nemo_run.NemoRunLauncher"
    profile: str | None = None
    env: dict[str, Any] = field(default_factory=dict)
    max_parallel: int | None = None
    via: str | None = None
    detach: bool = False
    objective: str | None = None


ConfigStore.instance().store(group="hydra/launcher", name="nemo_run", node=NemoRunConf, provider="nemotron_kit")


class NemoRunLauncher(Launcher):
    """Hydra makes one for each sweep, and calls `launch` for each batch of it."""

    def __init__(self, **settings: Any) -> None:
        self.settings: dict[str, Any] = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in settings.items()
        }
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None
        self._sweep: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from nemotron_kit.sweep.launcher import begin_sweep

        self.config, self.hydra_context, self.task_function = config, hydra_context, task_function
        self._sweep = begin_sweep(config, hydra_context, task_function, self.settings)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        returned: list[JobReturn] = self._sweep.launch(job_overrides, initial_job_idx)
        return returned
