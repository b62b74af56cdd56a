"""What jobs left on another machine, copied into this machine's record: how they ended, what they saved, how it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron_kit import files
from nemotron_kit.execution.reach import reach_for
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder, is_last_word


def folder_there(run: RunFolder, plan: Mapping[str, Any]) -> str:
    """The run's folder where its jobs run."""
    return str((plan.get("place") or {}).get("run") or run.path)


def is_apart(run: RunFolder, plan: Mapping[str, Any]) -> bool:
    """Whether the jobs' own folders are not those of the record."""
    return folder_there(run, plan) != str(run.path)


def mirror(run: RunFolder, plan: Mapping[str, Any], jobs: Sequence[JobFolder]) -> None:
    """Bring the records of `jobs` here. Raises Unreachable; nothing to do where the folders are the same."""
    if not jobs or not is_apart(run, plan):
        return
    there = [f"{folder_there(run, plan)}/jobs/{job.number}" for job in jobs]
    records, _ = reach_for(plan.get("settings") or {}).call("job_records", jobs=there)
    for job, found in zip(jobs, records, strict=True):
        _write(job, found)


def is_mirrored(job: JobFolder) -> bool:
    """Whether the end of a job elsewhere, and what it saved, is on record here."""
    return bool((job.exit_record() or {}).get("mirrored"))


def _write(job: JobFolder, found: Mapping[str, Any]) -> None:
    if found["artifacts"]["inputs"] or found["artifacts"]["outputs"]:
        files.write_json(job.path / "artifacts.json", found["artifacts"])
    if found["metrics"]:
        files.write_text(job.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in found["metrics"]))
    end, own = found["exit"], job.exit_record()
    if end is not None and is_last_word(end):
        _began(job, found["history"])
        own = end  # else the scheduler has the last word: a job that was stopped does not know why
    if own is not None:
        files.write_json(job.path / "exit.json", {**own, "mirrored": True})


def _began(job: JobFolder, history: Sequence[Mapping[str, Any]]) -> None:
    """When the job began, by its own word: nobody may have looked at it while it ran."""
    began = next((entry for entry in reversed(history) if entry.get("state") == "running"), None)
    if began is not None and job.state().started is None:
        job.transition("running", observed=True, at=began["at"])
