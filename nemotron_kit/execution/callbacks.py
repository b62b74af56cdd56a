"""Hydra's callbacks (`hydra.callbacks` in a config) around a job, in the process that runs it.

Hydra itself calls those of a sweep, and those of each job where its own launchers run it. What is left are single jobs,
and the jobs of the kit's launcher.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.execution.jobspec import rank, read_config
from nemotron_kit.execution.outcome import Outcome

_OURS = ".NemoRunLauncher"


@dataclass
class End:
    """How the job within the block ended, once that is known."""

    outcome: Outcome | None = None


@contextmanager
def hydra_callbacks(folder: Path, task: Any) -> Iterator[End]:
    """Around the block on_job_start and on_job_end are called, in a single job on_run_start and on_run_end, too. As in
    Hydra, nothing hears of a job that was interrupted, and what a callback raises is a warning.

    Raises UserError for callbacks that can't be made here.
    """
    end, hooks = End(), _hooks(folder)
    if hooks is None:
        yield end
        return
    hooks.start(task)
    try:
        yield end
    except Exception as error:
        hooks.end(None, error)
        raise
    outcome = end.outcome
    if outcome is None:
        hooks.end(None, None)
    elif outcome.state not in ("cancelled", "preempted"):
        hooks.end(outcome.value, outcome.exception)


def _hooks(folder: Path) -> _Hooks | None:
    """None where there are no callbacks, or somebody else calls them."""
    module = sys.modules.get("hydra.core.hydra_config")
    if module is None or not module.HydraConfig.initialized() or rank() != 0:
        return None
    node = module.HydraConfig.get()
    single = not str(node.mode).endswith("MULTIRUN")
    if not node.callbacks or not (single or str(node.launcher.get("_target_")).endswith(_OURS)):
        return None
    return _Hooks(folder, node, single=single)


class _Hooks:
    def __init__(self, folder: Path, node: Any, *, single: bool) -> None:
        from hydra._internal.callbacks import Callbacks
        from hydra.errors import HydraException
        from omegaconf import OmegaConf

        self.config: Any = OmegaConf.create({**read_config(folder), "hydra": node}, flags={"allow_objects": True})
        self._node, self._single = node, single
        try:
            self._callbacks: Any = Callbacks(self.config)
        except HydraException as error:
            text = " ".join(str(error).split("\n")[:2])
            raise UserError(
                f"hydra.callbacks: {text}.", hint="Its class has to be importable where jobs run."
            ) from error

    def start(self, task: Callable[..., Any]) -> None:
        if self._single:
            self._callbacks.on_run_start(config=self.config, config_name=self._node.job.config_name)
        self._callbacks.on_job_start(config=self.config, task_function=task)

    def end(self, value: Any, error: BaseException | None) -> None:
        from hydra.core.utils import JobReturn, JobStatus
        from omegaconf import OmegaConf

        returned = JobReturn(
            overrides=list(self._node.overrides.task),
            cfg=OmegaConf.masked_copy(self.config, [key for key in self.config if key != "hydra"]),
            hydra_cfg=OmegaConf.masked_copy(self.config, ["hydra"]),
            working_dir=str(self._node.runtime.output_dir),
            task_name=str(self._node.job.name),
            status=JobStatus.FAILED if error else JobStatus.COMPLETED,
            _return_value=error or value,
        )
        self._callbacks.on_job_end(config=self.config, job_return=returned)
        if self._single:
            name = self._node.job.config_name
            self._callbacks.on_run_end(config=self.config, config_name=name, job_return=returned)
