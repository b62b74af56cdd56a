"""The records of launches: one folder a run, one folder a job, one file a state transition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemotron_kit.lazy import load_names

if TYPE_CHECKING:
    from nemotron_kit.runs.cancel import cancel_jobs
    from nemotron_kit.runs.folder import RunFolder, RunSummary, create_run, new_run_id, open_job, runs_root
    from nemotron_kit.runs.job import EXIT_CODES, STATES, TERMINAL, JobFolder, JobState, process_facts
    from nemotron_kit.runs.ledger import list_runs, open_run, remove_run, run_ids
    from nemotron_kit.runs.logs import TerminalSanitizer, follow, log_file

_HOMES = {
    "cancel": "cancel_jobs",
    "folder": "create_run new_run_id open_job RunFolder runs_root RunSummary",
    "job": "EXIT_CODES JobFolder JobState process_facts STATES TERMINAL",
    "ledger": "list_runs open_run remove_run run_ids",
    "logs": "follow log_file TerminalSanitizer",
}

__all__ = [
    "EXIT_CODES",
    "STATES",
    "TERMINAL",
    "JobFolder",
    "JobState",
    "RunFolder",
    "RunSummary",
    "TerminalSanitizer",
    "cancel_jobs",
    "create_run",
    "follow",
    "list_runs",
    "log_file",
    "new_run_id",
    "open_job",
    "open_run",
    "process_facts",
    "remove_run",
    "run_ids",
    "runs_root",
]

__getattr__, __dir__ = load_names(__name__, __all__, _HOMES)
