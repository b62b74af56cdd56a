"""Hydra's JobReturn as the launcher gives it. Imports Hydra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from nemotron_kit.execution.hydra_launcher.answer import Answer
from nemotron_kit.execution.hydra_launcher.point import Composed
from nemotron_kit.runs.job import JobFolder


class _Asked:
    """A field whose value is made when it is asked for; the None that JobReturn's own __init__ sets is dropped."""

    def __init__(self, make: Callable[[Returned], Any]) -> None:
        self._make = make

    def __get__(self, instance: Returned | None, owner: type) -> Any:
        return self if instance is None else self._make(instance)

    def __set__(self, instance: Returned, value: Any) -> None:
        del instance, value


class Returned(JobReturn):  # type: ignore[misc]
    """One job's. Its configs are composed again when a sweeper asks for them: ten thousand would not fit into memory,
    and hardly anybody asks."""

    cfg = _Asked(lambda self: self._composed[0])
    hydra_cfg = _Asked(lambda self: self._whole)
    task_name = _Asked(lambda self: str(self._composed[1].job.name))

    def __init__(
        self,
        words: Sequence[str],
        compose: Callable[[], Composed],
        job: JobFolder,
        answer: Answer | None,
        *,
        value: Any,
        error: Exception | None = None,
    ) -> None:
        self._compose, self._job, self._answer = compose, job, answer
        super().__init__(
            overrides=list(words),
            working_dir=(answer and answer.working_dir) or str(job.path),
            status=JobStatus.COMPLETED if error is None else JobStatus.FAILED,
            _return_value=value if error is None else error,
        )

    @cached_property
    def _composed(self) -> Composed:
        return self._compose()

    @cached_property
    def _whole(self) -> Any:
        from omegaconf import OmegaConf, open_dict, read_write

        config = OmegaConf.create({"hydra": self._composed[1]}, flags={"allow_objects": True})
        answer, hydra = self._answer, config.hydra
        with read_write(hydra), open_dict(hydra):
            hydra.runtime.output_dir = (answer and answer.output_dir) or str(self._job.path)
            hydra.job.id = (answer and answer.job_id) or hydra.job.id
        return config
