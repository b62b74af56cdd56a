"""The results of jobs (returned values and metrics), the table of a sweep, sorted by its objective, and a cache of
results, so that a table of 10,000 jobs reads one file."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.cli.output import can_print, print_csv, print_table, write_lines
from nemotron_kit.errors import NemotronError, UserError, listed, near
from nemotron_kit.files import StampedCache, finite, read_regular, stamp
from nemotron_kit.runs.folder import RunFolder, RunSummary
from nemotron_kit.runs.job import DamagedRunRecord, JobFolder, JobState, read_object
from nemotron_kit.runs.metrics import METRICS_FILE, Measured, less_is_better, measured, summarized
from nemotron_kit.spec.plan import Plan, stored_plan
from nemotron_kit.worker.result import FILE

VALUE = "value"
MAIN = 4
_MAIN_RESULTS = re.compile("loss", re.IGNORECASE), re.compile("acc|reward|score", re.IGNORECASE)
_RESULTS = re.compile("loss|error|perplexity|acc|reward|score", re.IGNORECASE)


@dataclass
class JobResult:
    """The overrides, the returned value (None: none, or not ended) and the metrics of one job."""

    number: int
    state: str
    why: str | None
    overrides: list[str]
    value: Any
    metrics: dict[str, Measured]

    @property
    def step(self) -> int | None:
        """The highest step of any of its metrics."""
        return max((each.step for each in self.metrics.values() if isinstance(each.step, int)), default=None)

    def number_of(self, name: str) -> float | None:
        """The last value of a metric, or the returned value; None if it is NaN or not a number, and for what a job
        that did not succeed returned: that is an exit code."""
        metric = self.metrics.get(name)
        returned = self.value if name == VALUE and self.state == "succeeded" else None
        found = metric.last if metric is not None else returned
        if isinstance(found, bool) or not isinstance(found, int | float) or found != found:
            return None
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON data; NaN and infinities are null."""
        return {
            "overrides": self.overrides,
            "value": finite(self.value),
            "step": self.step,
            "results": {name: metric.to_dict() for name, metric in self.metrics.items()},
        }


def job_result(job: JobFolder, state: JobState) -> JobResult:
    """A job's result, read from its folder. Its value is what a recipe's handler or a program's task function returned,
    as recorded in JSON."""
    record: Any = state.facts if state.terminal else None
    if record is not None and VALUE not in record:
        record = record.get("answer") or {}
        with suppress(FileNotFoundError, NemotronError):
            record = read_object(job.path / FILE)
    value = record.get(VALUE) if isinstance(record, Mapping) else None
    if isinstance(value, str) and record.get("types"):
        with suppress(ValueError):  # NaN and infinities are texts in JSON
            value = float(value)
    why = state.error or (f"exit code {state.code}" if state.code else None)
    metrics = summarized(job.path, state.facts) if state.terminal else None
    return JobResult(
        job.number, state.state, why, overrides_of(job), value, measured(job.path) if metrics is None else metrics
    )


def overrides_of(job: JobFolder) -> list[str]:
    """The recorded overrides of one job of a sweep; [] for other jobs."""
    try:
        found = json.loads(read_regular(job.path / ".hydra" / "overrides.yaml"))
    except (OSError, ValueError):
        return []
    return [str(override) for override in found] if isinstance(found, list) else []


@dataclass
class SweepTable:
    """The jobs of a sweep, the best first if it has an objective."""

    jobs: list[JobResult]
    objective: str | None
    lower_is_better: bool

    @property
    def best(self) -> JobResult | None:
        """The job with the best objective; None if there is no objective, or no job has a value for it."""
        first = self.jobs[0] if self.jobs and self.objective else None
        return first if first is not None and first.number_of(str(self.objective)) is not None else None

    @property
    def rule(self) -> str:
        """The sort order, as text."""
        what = "the returned value" if self.objective == VALUE else f"the last {self.objective}"
        return f"sorted by {what}, {'lowest' if self.lower_is_better else 'highest'} first; * is the best"

    def columns(self) -> list[str]:
        """The names of all metrics: the objective first, then those named like results (loss, accuracy, …)."""
        names = list(dict.fromkeys(name for job in self.jobs for name in job.metrics))
        return sorted(names, key=lambda name: (name != self.objective, not _RESULTS.search(name)))

    def varied(self) -> dict[str, dict[int, str]]:
        """The overrides that differ between jobs: key → job number → value."""
        overrides = {
            job.number: {override_key(text): text.partition("=")[2] if "=" in text else text for text in job.overrides}
            for job in self.jobs
        }
        keys = dict.fromkeys(key for each in overrides.values() for key in each)
        return {
            key: {number: each[key] for number, each in overrides.items() if key in each}
            for key in keys
            if len({each.get(key) for each in overrides.values()}) > 1
        }


def override_key(override: str) -> str:
    """`train.lr` of `+train.lr=1e-3`."""
    return override.partition("=")[0].lstrip("+")


def sweep_table(results: Sequence[JobResult], sort: str | None = None, plan: Plan | None = None) -> SweepTable:
    """`results` sorted by `sort` (a metric, or "value"), by default by the objective: the (first) one of the sweeper in
    `plan`, else the returned value, else the first loss, else the first accuracy, reward or score. Jobs
    without a value come last, by number. Whether low values are best follows from `sort` (`METRIC:min`), else from the
    sweeper's direction, else from the metric's name (see `less_is_better`). Raises UserError for an unknown metric."""
    metric = plan.objective.partition(",")[0] if plan and plan.objective else None
    names = list(dict.fromkeys(name for job in results for name in job.metrics))
    returned = any(job.number_of(VALUE) is not None for job in results)
    sort, direction = sort_order(sort, names)
    if sort is not None and sort not in names and not (sort == VALUE and returned):
        known = [*names, *([VALUE] if returned else [])]
        raise UserError(
            f"--sort {sort}: none of these jobs has this metric.",
            hint=near(sort, known) if known else "None of them logged a metric or returned a number.",
        )
    given = metric if metric in names else VALUE if returned else None
    chosen = sort or given or next((name for kind in _MAIN_RESULTS for name in names if kind.search(name)), None)
    if chosen is None:
        return SweepTable(sorted(results, key=lambda job: job.number), None, lower_is_better=True)
    lower_is_better = less_is_better(chosen) if chosen in names else True
    if direction:
        lower_is_better = direction == "min"
    elif plan and plan.direction and chosen == (metric or VALUE):
        lower_is_better = plan.direction != "maximize"

    def sort_key(job: JobResult) -> tuple[bool, float, int]:
        number = job.number_of(chosen)
        return number is None, 0.0 if number is None else number if lower_is_better else -number, job.number

    return SweepTable(sorted(results, key=sort_key), chosen, lower_is_better)


def sort_order(sort: str | None, names: Collection[str] = ()) -> tuple[str | None, str | None]:
    """The metric, and `min` or `max`, of an option `--sort METRIC:min`, unless a metric has that name."""
    name, colon, direction = (sort or "").rpartition(":")
    if colon and direction in ("min", "max") and sort not in names:
        return name, direction
    return sort, None


def print_sweep(table: SweepTable, top: int | None, command: str = "") -> None:
    """Print the table with its most important metrics, and why jobs failed. `command`: the command, and a blank, whose
    options print the rest, if it is not the one that prints the table."""
    header, rows = _cells(table, table.jobs[:top], table.columns()[:MAIN], short=True)
    print_table(header, rows, keep="VALUE" if table.objective == VALUE else table.objective or "")
    lines = [table.rule] if table.best is not None else []
    if len(table.jobs) > len(rows):
        lines.append(f"and {len(table.jobs) - len(rows)} more: {command}--top {len(table.jobs)} prints all")
    if len(table.columns()) > MAIN:
        lines.append(f"more metrics, in {command}--csv and --json: {listed(table.columns()[MAIN:])}")
    write_lines(lines)


def print_sweep_csv(table: SweepTable, top: int | None) -> None:
    """Print every job with every metric as CSV with a header."""
    header, rows = _cells(table, table.jobs[:top], table.columns(), short=False)
    print_csv([header, *rows])


def _cells(
    table: SweepTable, jobs: Sequence[JobResult], metrics: Sequence[str], *, short: bool
) -> tuple[list[str], list[list[str]]]:
    varied, best = table.varied(), table.best
    returned = any(job.value is not None for job in table.jobs)
    stepped = any(job.step is not None for job in table.jobs)
    failed = any(job.why for job in jobs)
    header = ["JOB", "STATE", *varied, *(["VALUE"] if returned else []), *(["STEP"] if stepped else []), *metrics]
    header += ["WHY"] if failed else []
    if not short:
        header = [*map(str.lower, header[:2]), *header[2:]]
    rows = []
    for job in jobs:
        mark = " *" if short and job is best else ""
        rows.append(
            [
                f"{job.number}{mark}",
                job.state,
                *(by_job.get(job.number, "") for by_job in varied.values()),
                *([format_value(job.value, short)] if returned else []),
                *(["" if job.step is None else str(job.step)] if stepped else []),
                *(format_value(job.metrics[name].last if name in job.metrics else None, short) for name in metrics),
                *([job.why or ""] if failed else []),
            ]
        )
    return header, rows


def format_value(value: Any, short: bool) -> str:
    """A value as the text of a cell, with `short` in five digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}" if short else repr(value)
    return value if isinstance(value, str) else json.dumps(finite(value))


def measured_facts(
    metrics: Mapping[str, Measured],
    ranks: Mapping[int, Mapping[str, Measured]],
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]],
) -> list[str]:
    """A line for each metric of one job: its last value, the best value if it differs, the range of the ranks' last
    values if several ranks logged it, and its curve."""
    lines = []
    for name, metric in metrics.items():
        last = f"{name} {metric.last:.6g}{_at(metric.step)}"
        differs = metric.best != metric.last and not math.isnan(metric.best)
        best = f", best {metric.best:.6g}{_at(metric.best_step)}" if differs else ""
        found = sorted((each[name].last, rank) for rank, each in ranks.items() if name in each)
        spread = ""
        if len(found) > 1:
            (least, first), (most, highest) = found[0], found[-1]
            spread = f"; of {len(found)} ranks {least:.6g} (rank {first}) to {most:.6g} (rank {highest})"
        curve = sparkline(curves[name][1]) if name in curves else ""
        lines.append(f"{last}{best}{spread}{f'  {curve}' if curve else ''}")
    return lines


_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 24


def sparkline(values: Sequence[float]) -> str:
    """The curve of some values as a text of block characters; "" for fewer than three values, for a constant, and if
    the output's encoding lacks the characters."""
    known = [value for value in values if math.isfinite(value)]
    least, most = min(known, default=0.0), max(known, default=0.0)
    if len(known) < 3 or least == most or not can_print(_BARS):
        return ""
    count = min(_WIDTH, len(known))
    parts = [known[len(known) * at // count : len(known) * (at + 1) // count] for at in range(count)]
    means = [sum(part) / len(part) for part in parts]
    return "".join(_BARS[min(7, int((mean - least) / (most - least) * 8))] for mean in means)


def _at(step: int | None) -> str:
    return "" if step is None else f" at step {step}"


_CACHE = ".results.json"
_CACHE_VERSION = 1

Known = tuple[JobState, JobResult]


class ResultCache(StampedCache):
    """A cache of results: key → [stamp of the job's records, its state, its result]. `folder` is a run's, whose jobs
    are the keys, or that of all runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / _CACHE, _CACHE_VERSION)

    def known(self, key: str, folder: str) -> Known | None:
        """The cached state and result of the ended job in `folder`; None if there is no valid entry. The state has no
        `facts`."""
        entry = self.entries.get(key)
        try:
            if entry is None or entry[0] != _stamps(folder):
                return None
            state, started, finished, code, error, number, overrides, value, metrics = entry[1:]
            measured = {name: Measured(*values) for name, values in metrics.items()}
        # The entry is of another version, or the job's files were deleted.
        except (OSError, TypeError, ValueError):
            return None
        why = error or (f"exit code {code}" if code else None)
        result = JobResult(number, state, why, overrides, value, measured)
        return JobState(state, finished, started, finished, code, error), result

    def read(self, key: str, job: JobFolder, state: JobState | None = None) -> Known:
        """The state (`state`, if the caller has it) and the result of a job, read from its folder; cached if the job
        has ended."""
        stamps: list[int] = []
        folder = str(job.path)
        with suppress(OSError):  # before the folder is read: a change meanwhile makes the entry invalid
            stamps = _stamps(folder)
        state = state or job.state()
        result = job_result(job, state)
        if stamps and state.terminal:
            metrics = {
                name: [metric.last, metric.step, metric.best, metric.best_step]
                for name, metric in result.metrics.items()
            }
            state_values = [state.state, state.started, state.finished, state.code, state.error]
            self.add(key, [stamps, *state_values, result.number, result.overrides, result.value, metrics])
        return state, result

    def result(self, key: str, job: JobFolder, state: JobState | None = None) -> JobResult:
        """The result of a job."""
        return (self.known(key, str(job.path)) or self.read(key, job, state))[1]


def _stamps(folder: str) -> list[int]:
    """The stamp of the exit record, and the size of the metrics; -1 without metrics."""
    exit_record = stamp(f"{folder}/exit.json")
    try:
        size = os.stat(f"{folder}/{METRICS_FILE}").st_size  # noqa: PTH116
    except FileNotFoundError:
        size = -1
    return [*exit_record, size]


def results_of_runs(
    root: Path, runs: Sequence[RunSummary], every: Sequence[str], sort: str | None = None
) -> dict[str, JobResult]:
    """Run id → the result of its job, or of a sweep's best job, by the metric `sort` where its jobs have it; without
    runs that have none. `every` are the ids of all existing runs."""
    found: dict[str, JobResult] = {}
    with ResultCache(root) as cache:
        cache.keep_only(every)
        for summary in runs:
            if summary.jobs == 1:
                known = cache.known(summary.id, f"{root}/{summary.id}/jobs/0")
                if known is None and (jobs := RunFolder(root / summary.id).jobs()):
                    known = cache.read(summary.id, jobs[0])
                if known is not None:
                    found[summary.id] = known[1]
            elif summary.jobs > 1:
                run = RunFolder(root / summary.id)
                with suppress(DamagedRunRecord):
                    results = results_of_jobs(run, run.jobs())
                    metrics = {name for job in results for name in job.metrics}
                    by = sort if {sort, sort_order(sort, metrics)[0]} & metrics else None
                    table = sweep_table(results, by, stored_plan(run))
                    if table.best is not None:
                        found[summary.id] = table.best
    return found


def results_of_jobs(run: RunFolder, jobs: Sequence[JobFolder]) -> list[JobResult]:
    """The results of a sweep's jobs."""
    with ResultCache(run.path) as cache:
        return [cache.result(job.path.name, job) for job in jobs]
