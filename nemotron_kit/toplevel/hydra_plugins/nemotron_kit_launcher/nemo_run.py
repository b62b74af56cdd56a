"""The launcher plugin: its settings, and a class that forwards to the engine. Hydra imports this at every start, so it
stays small."""

# No `from __future__ import annotations`: Hydra's scan executes this module outside sys.modules, where @dataclass can't
# look up postponed annotations.
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

_CHECK, _CALLBACK = "hydra/launcher_check", "nemo_run_check"
_STORE = ConfigStore.instance()


@dataclass
class NemoRunConf:
    """`hydra/launcher=nemo_run`: runs each job of a sweep as a separate process, by the profile's executor.

    profile: a profile of env.toml; null: this machine.
    env: fields of the profile that this sweep sets (`+hydra.launcher.env.nodes=2`); a recipe has `run.env` for that.
    max_parallel: jobs at a time; null: the profile's, else one for each CPU on this machine and no limit on others.
    via: what starts jobs on this machine, nemo_run or kit (plain processes); null: NeMo-Run where it is installed.
    detach: submit and return. The sweeper then gets None from every job.
    objective: a metric of metrics.jsonl whose last value a job hands to the sweeper; null: what its function returns.
    """

    defaults: list[Any] = field(default_factory=lambda: [{f"/{_CHECK}@_global_.hydra.callbacks": "nemo_run"}, "_self_"])
    _target_: str = f"{__name__}.NemoRunLauncher"
    profile: str | None = None
    env: dict[str, Any] = field(default_factory=dict)
    max_parallel: int | None = None
    via: str | None = None
    detach: bool = False
    objective: str | None = None


_STORE.store(group="hydra/launcher", name="nemo_run", node=NemoRunConf, provider="nemotron_kit")
_STORE.store(
    group=_CHECK, name="nemo_run", node={_CALLBACK: {"_target_": f"{__name__}.SingleRunCheck"}}, provider="nemotron_kit"
)


class SingleRunCheck(Callback):
    """Stops a program that was given `hydra/launcher=nemo_run` without `-m`: Hydra uses a launcher only in sweeps, and
    would run the job in this process. A launcher in the program's defaults list is for its sweeps, and no error. At the
    end of a program's sweep it prints the table of its jobs."""

    sweep: Any = None  # set when Hydra begins one with the launcher

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with code 2 where the command line names the launcher."""
        typed = [override for override in config.hydra.overrides.hydra if override.startswith("hydra/launcher=")]
        if typed:
            hint = "Add -m; to run the job here, leave out the launcher."
            sys.stderr.write(f"error: {typed[-1]} has no effect without -m.\n{hint}\n")
            sys.exit(2)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Before the sweeper is imported."""
        from nemotron_kit.sweep.objective import quiet_alembic

        quiet_alembic()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra's call where the sweeper raised nothing."""
        if self.sweep is not None:
            _print_end(self.sweep)

    @staticmethod
    def remove(hydra: DictConfig) -> None:
        """Remove the callback from the section `hydra` of a sweep or of its job, where it has no effect."""
        with read_write(hydra), open_dict(hydra):
            hydra.callbacks.pop(_CALLBACK, None)
            hydra.runtime.choices.pop(f"{_CHECK}@hydra.callbacks", None)


def _print_end(sweep: Any) -> None:
    """Print the table of a program's sweep, once."""
    run = sweep.ended_run()
    if run is not None:
        from nemotron_kit.cli.runs.results_table import print_sweep_end

        print_sweep_end(run)


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
        """Hydra's call before the first batch: start the sweep. Raises UserError for wrong settings."""
        from nemotron_kit.sweep.launcher import begin_sweep

        self.config, self.hydra_context, self.task_function = config, hydra_context, task_function
        self._sweep = begin_sweep(config, hydra_context, task_function, self.settings)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; the results are in the order of `job_overrides`."""
        returned: list[JobReturn] = self._sweep.launch(job_overrides, initial_job_idx)
        if self._sweep.stops_at(returned):
            _print_end(self._sweep)
        return returned
