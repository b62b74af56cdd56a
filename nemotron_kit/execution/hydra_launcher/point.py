"""One job of a sweep, composed and planned, and what Hydra is told of it in the end."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemotron_kit.execution.hydra_launcher.answer import Answer, JobFailed, read_answer
from nemotron_kit.plan.plan import Plan
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.states import JobState

log = logging.getLogger("nemotron_kit.launcher")
_OWN_CODE = re.compile(r"exit code (\d+)")


@dataclass(frozen=True)
class Point:
    """`config` is the job's as Hydra composed it, `hydra` its own node. `texts` lie in the job folder beside the plan's
    files."""

    plan: Plan
    config: Any
    hydra: Any
    words: str
    texts: Mapping[str, str] = field(default_factory=dict)

    def returned(self, job: JobFolder, *, objective: str | None = None, detached: bool = False) -> Any:
        """Hydra's JobReturn. A sweeper that asks for the value of a failed job gets its exception."""
        from hydra.core.utils import JobReturn, JobStatus

        state = job.state()
        done = detached or state.state == "succeeded"
        answer = None if detached else read_answer(job)
        return JobReturn(
            overrides=overrides_of(self.hydra),
            cfg=self.config,
            hydra_cfg=self._hydra_config(answer, job),
            working_dir=(answer and answer.working_dir) or str(job.path),
            task_name=str(self.hydra.job.name),
            status=JobStatus.COMPLETED if done else JobStatus.FAILED,
            _return_value=self._value(job, answer, objective) if done else self._error(job, state, answer),
        )

    def _hydra_config(self, answer: Answer | None, job: JobFolder) -> Any:
        from omegaconf import OmegaConf, open_dict, read_write

        config = OmegaConf.create({"hydra": self.hydra}, flags={"allow_objects": True})
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.runtime.output_dir = (answer and answer.output_dir) or str(job.path)
            config.hydra.job.id = (answer and answer.job_id) or config.hydra.job.id
        return config

    def _value(self, job: JobFolder, answer: Answer | None, objective: str | None) -> Any:
        if objective is not None:
            return _metric(job, objective)
        if answer is not None:
            if answer.left_out:
                log.warning("#%d %s: the sweep gets None.", job.number, answer.left_out)
            return answer.value
        return (job.exit_record() or {}).get("value")

    def _error(self, job: JobFolder, state: JobState, answer: Answer | None) -> Exception:
        code = _own_code(state, answer)
        failure = answer.failure if answer else None
        if failure is not None and failure.type != "builtins.SystemExit":
            return failure.rebuild(code)
        where = f"its log: nemotron runs logs {job.run_id} --job {job.number}"
        return JobFailed(
            f"Job {job.number} ({self.words}) {state.state}: {state.error or f'exit code {code}'}; {where}", code
        )


def _own_code(state: JobState, answer: Answer | None) -> int:
    """The job's own exit code: the record's is that of the command line, 1 for any failure."""
    if answer is not None and answer.code:
        return answer.code
    said = _OWN_CODE.search(state.error or "")
    return int(said[1]) if said else int(state.code or 1)


def _metric(job: JobFolder, name: str) -> Any:
    """The last value of a metric that the job wrote."""
    for record in reversed(job.metrics(100_000)):
        if name in record:
            return record[name]
    raise JobFailed(f"Job {job.number} wrote no metric {name!r} (hydra.launcher.objective) into metrics.jsonl.", 0)


def overrides_of(hydra: Any, kind: str = "task") -> list[str]:
    """The words of a composition as they were typed: `${…}` in them stays."""
    from omegaconf import OmegaConf

    words: list[str] = OmegaConf.to_container(hydra.overrides[kind], resolve=False)  # type: ignore[assignment]
    return words
