"""`nemotron runs --columns|--sort|--top|--csv`: a table of runs with their results; the table at a sweep's end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nemotron_kit.cli.output import clean, print_csv, print_table, write_lines
from nemotron_kit.cli.runs.list import age_of, duration, iso, name_of
from nemotron_kit.cli.runs.results import (
    MAIN,
    VALUE,
    JobResult,
    SweepTable,
    format_value,
    override_key,
    print_sweep,
    results_of_jobs,
    results_of_runs,
    sort_order,
    sweep_table,
)
from nemotron_kit.errors import UserError, listed, near
from nemotron_kit.home import runs_root
from nemotron_kit.runs.folder import RunFolder, RunSummary
from nemotron_kit.runs.ledger import labels_of, run_ids
from nemotron_kit.spec.plan import stored_plan

STEP = "step"


class LaunchTable:
    """Runs with their results, best first by the metric `sort` (else newest first). `columns` are names of metrics,
    `value`, `step` and keys of overrides. Raises UserError for a name that no run has."""

    def __init__(self, runs: Sequence[RunSummary], columns: Sequence[str], sort: str | None) -> None:
        root = runs_root()
        self.results = results_of_runs(root, runs, run_ids(root), sort)
        nothing = JobResult(0, "", None, [], None, {})
        found = [replace(self.results.get(run.id, nothing), number=at) for at, run in enumerate(runs)]
        self.table = sweep_table(found, sort) if sort and found else SweepTable(found, None, lower_is_better=True)
        self.runs = [runs[result.number] for result in self.table.jobs]
        self.sort = sort_order(sort, self.table.columns())[0]
        self.columns = self.table.columns()
        if not columns:
            return
        overrides = {override_key(text) for job in self.table.jobs for text in job.overrides}
        known = [*self.columns, VALUE, STEP, *sorted(overrides)]
        for name in columns:
            if name not in known and self.runs:
                raise UserError(f"--columns {name}: no listed run has it.", hint=near(name, known))
        self.columns = list(dict.fromkeys([*([self.sort] if self.sort else []), *columns]))

    @property
    def best(self) -> RunSummary | None:
        """The run with the best value of `sort`; None if no run has one."""
        return self.runs[0] if self.table.best is not None else None

    def cells(self, at: int, columns: Sequence[str], *, short: bool) -> list[str]:
        """The texts of one row's columns."""
        job = self.table.jobs[at]
        values: dict[str, Any] = {VALUE: job.value, STEP: job.step}
        values |= {override_key(text): text.partition("=")[2] for text in job.overrides}
        values |= {name: metric.last for name, metric in job.metrics.items()}
        return [format_value(values.get(name), short) for name in columns]


def print_launches(table: LaunchTable, top: int | None, *, asked: bool) -> None:
    """Print the table; without `asked`, only the most important columns."""
    columns = table.columns if table.sort is None else [table.sort, *(c for c in table.columns if c != table.sort)]
    wide = columns if asked else columns[:MAIN]
    names = {run.id: name_of(run) for run in table.runs[:top]}
    named = any(names.values())
    header = ["RUN", "STATE", "AGE", *(["NAME"] if named else []), *wide]
    rows = []
    for at, run in enumerate(table.runs[:top]):
        mark = " *" if run is table.best else ""
        name = [names[run.id]] if named else []
        rows.append([f"{run.id}{mark}", run.state, age_of(run), *name, *table.cells(at, wide, short=True)])
    print_table(header, rows, keep=table.sort or "")
    lines = [table.table.rule] if table.best is not None else []
    if len(table.runs) > len(rows):
        lines.append(f"and {len(table.runs) - len(rows)} more: --top N shows N, --csv all")
    if len(columns) > len(wide):
        lines.append(f"more columns, in --csv and --json, or by --columns: {listed(columns[len(wide) :])}")
    if any(run.jobs > 1 for run in table.runs[:top]):
        lines.append("the results of a sweep are those of its best job")
    write_lines(lines)


def print_launches_csv(table: LaunchTable, top: int | None) -> None:
    """Print every run with every column as CSV with a header."""
    facts = ["run", "recipe", "stage", "state", "created_at", "duration_s", "name", "tags", "overrides"]
    rows: list[list[Any]] = [[*facts, *table.columns]]
    for at, run in enumerate(table.runs[:top]):
        labels, job = labels_of(run.id), table.table.jobs[at]
        took = duration(run.started, run.finished, run.state)
        known = [run.id, run.recipe, run.stage, run.state, iso(run.created), took, labels["name"]]
        texts = [" ".join(labels["tags"]), " ".join(job.overrides)]
        rows.append([*known, *texts, *table.cells(at, table.columns, short=False)])
    print_csv(rows)


_LAST = 20


def print_sweep_end(run: RunFolder) -> None:
    """Print the table of a sweep that has ended, and its best job, on standard error: standard output belongs to the
    jobs. Prints nothing for one job, or without results."""
    jobs = run.jobs()
    if len(jobs) < 2:
        return
    results = results_of_jobs(run, jobs)
    table = sweep_table(results, None, stored_plan(run))
    if not any(job.metrics or job.value is not None for job in results):
        return
    with contextlib.redirect_stdout(sys.stderr):
        print_sweep(table, _LAST, f"nemotron runs show {run.id} ")
        if (best := table.best) is not None:
            name = str(table.objective)
            varied = " ".join(
                f"{key}={by_job[best.number]}" for key, by_job in table.varied().items() if best.number in by_job
            )
            write_lines(
                [f"best: {run.id}/{best.number}  {name} {format_value(best.number_of(name), True)}  {clean(varied)}"]
            )
