"""The progress of a running job or run, from its metrics: its step, the number of steps, the time left and the last
loss."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError
from nemotron_kit.files import finite, open_regular, read_regular
from nemotron_kit.home import runs_root
from nemotron_kit.runs.folder import RunFolder, RunSummary
from nemotron_kit.runs.job import DamagedRunRecord, JobFolder
from nemotron_kit.runs.ledger import list_runs, open_run
from nemotron_kit.runs.metrics import METRICS_FILE, TIMESTAMP

# The number of rows read from the end of metrics.jsonl, which all ranks of a node share.
_ROWS = 100
_HEAD = 1 << 14
_LARGEST = 1 << 53
# Fields with the number of steps: those of our recipes, of transformers, of Lightning and of `nemotron init`.
_STEPS = ("train.train_iters", "grpo.max_num_steps", "train.max_steps", "trainer.max_steps", "max_steps", "steps")


@dataclass(frozen=True)
class Progress:
    """`done` units (steps, shards of data prep, or ended jobs of a sweep) out of `of`, the seconds left (`eta`), and
    the last loss; None if not known."""

    unit: str
    done: int
    of: int | None = None
    eta: float | None = None
    loss: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON data, `eta` as `eta_s`."""
        found = {"unit": self.unit, "done": self.done, "of": self.of, "eta_s": self.eta, "loss": self.loss}
        return finite(found)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        of = "" if self.of is None else f"/{self.of}"
        remaining = "" if self.eta is None else f"{short_span(self.eta)} left"
        loss = "" if self.loss is None else f"loss {self.loss:.4g}"
        return ", ".join(filter(None, (f"{self.unit} {self.done}{of}", remaining, loss)))


def short_span(seconds: float | None) -> str:
    """`4s`, `3m12s`, `2h05m`, `3d04h`; "" for None."""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    for unit, size, below, below_unit in (("d", 86400, 3600, "h"), ("h", 3600, 60, "m"), ("m", 60, 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // below:02d}{below_unit}"
    return f"{whole}s"


def progress_of(run: RunSummary, elsewhere: Mapping[str, Progress] | None = None) -> Progress | None:
    """The progress of a running run, or of a running pipeline's last stage. None for a run that is not running, and
    before it has logged metrics. `elsewhere`: that of runs whose metrics are on another machine, by run id."""
    if run.state != "running":
        return None
    if elsewhere and run.id in elsewhere:
        return elsewhere[run.id]
    folder = RunFolder(runs_root() / run.id)
    jobs = folder.jobs()
    if len(jobs) == 1:
        try:
            return job_progress(jobs[0], metrics_tail(jobs[0]))
        except OSError:  # removed meanwhile, or unreadable
            return None
    if jobs:
        ended = sum(os.path.exists(f"{job.path}/exit.json") for job in jobs)  # noqa: PTH110 — of 10,000 jobs
        return Progress("job", ended, len(jobs))
    stages = folder.stage_runs()
    return progress_of(stages[-1].summary(), elsewhere) if stages else None


@dataclass(frozen=True)
class MetricsTail:
    """The end of a job's metrics.jsonl: its last rows, the first step in the file, how many seconds ago it was written,
    and how many the job had run by then, by the clock of the machine that holds it; None if that is not known."""

    rows: list[dict[str, Any]]
    first: int | None = None
    age: float = 0.0
    ran: float | None = None


def metrics_tail(job: JobFolder) -> MetricsTail:
    """Read the end of a job's metrics; no rows if there is no file. Raises OSError if it can't be read."""
    rows, path = job.metrics(_ROWS), job.path / METRICS_FILE
    if not rows:
        return MetricsTail([])
    written, started = path.stat().st_mtime, job.state().started
    return MetricsTail(
        rows, _first_step(path), time.time() - written, None if started is None else max(0.0, written - started)
    )


def job_progress(job: JobFolder, tail: MetricsTail) -> Progress | None:
    """The progress of a job by its metrics, which may be on another machine. None if it has logged no step."""
    rows = [row for row in tail.rows if not row.get("rank")]
    stepped = [row for row in rows if _count(row.get("step")) is not None]
    if not stepped:
        counted = [row for row in rows if _count(row.get("shards")) is not None]
        return Progress("shard", counted[-1]["shards"], _count(counted[-1].get("of"))) if counted else None
    done, of = stepped[-1]["step"], _steps(job.config_path)
    eta = None
    if of is not None:
        rate = steps_per_second(stepped, tail.ran)
        untimed = rate is None and not any(type(row.get("elapsed")) in (int, float) for row in stepped)
        # From the job's start, which is not known for a resumed job.
        if untimed and tail.ran is not None and not any(entry.get("resumed") for entry in job.history()):
            rate = _rate(0 if tail.first is None else done - tail.first, tail.ran)
        seconds = max(0.0, (of - done) / rate - max(0.0, tail.age)) if rate else math.inf
        eta = seconds if math.isfinite(seconds) else None
    return Progress("step", done, of, eta, _loss(rows))


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < _LARGEST else None


def _loss(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The last value of `loss`, else of another metric with loss in its name, preferably not a validation loss."""
    names = {name: None for row in reversed(rows) for name in row if "loss" in name.lower()}
    for name in sorted(names, key=lambda name: (name != "loss", "val" in name or "test" in name)):
        value = next(row[name] for row in reversed(rows) if name in row)
        if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
            return float(value)
        if type(value) in (int, float) and abs(value) <= 1e300:
            return float(value)
    return None


def steps_per_second(rows: Sequence[Mapping[str, Any]], ran: float | None = None) -> float | None:
    """The speed in the last attempt's rows by the metric `elapsed`, else by the times of the rows, with what is between
    steps (evaluations, checkpoints). None if they have no two steps. `ran`: how long the attempt had run at the last
    row, if that is its own; between attempts a job may have waited for hours."""
    for clock in ("elapsed", TIMESTAMP):
        timed = [row for row in rows if _count(row.get("step")) is not None and type(row.get(clock)) in (int, float)]
        if timed:
            break
    else:
        return None
    first = last = timed[-1]
    began = last[clock] - ran if ran and clock == TIMESTAMP else -math.inf
    for row in reversed(timed):
        if row["step"] > first["step"] or row[clock] > first[clock] or row[clock] < began:  # of an earlier attempt
            break
        first = row
    return _rate(last["step"] - first["step"], last[clock] - first[clock])


def tokens_per_second(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The median of the metric `tokens_per_second` in `rows`; None if they have none."""
    rates = [row.get("tokens_per_second") for row in rows]
    found = sorted(rate for rate in rates if isinstance(rate, int | float) and 0 < rate < math.inf)
    return found[len(found) // 2] if found else None


def steps_per_second_of_last(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """`steps_per_second`; where the last rows are of one step, from the start of training."""
    return steps_per_second(rows) or steps_per_second([{"step": 0, "elapsed": 0.0}, *rows])


_RATES = {"tokens": tokens_per_second, "steps": steps_per_second_of_last}
# How many of a command's newest runs are searched for one that is alike, and how many of its last rows are read.
_EARLIER_RUNS, _EARLIER_ROWS = 30, 9


def rate_of_earlier_run(
    recipe: str, stage: str, config: Mapping[str, Any], *, size: tuple[int, int], keys: Sequence[str], of: str
) -> tuple[float, str] | None:
    """(`tokens` or `steps`, as `of` says, a second; the run's id) of the newest run of a command with this size (nodes,
    processes a node), the profile of `config`, and its values at the dotted `keys`; None if there is none."""
    for run in list_runs(recipe=recipe, stage=stage, limit=_EARLIER_RUNS):
        if run.profile != config["run"]["profile"]:
            continue
        with contextlib.suppress(DamagedRunRecord, UserError):  # removed meanwhile, or its jobs are lost
            folder = open_run(run.id)
            plan = folder.plan()
            given, theirs = plan.get("resources") or {}, plan.get("config") or {}
            if size != (given.get("nodes"), given.get("processes")):
                continue
            if any(_at(theirs, key) != _at(config, key) for key in keys):
                continue
            rate = _RATES[of](folder.job().metrics(_EARLIER_ROWS))
            if rate is not None:
                return rate, run.id
    return None


def _at(config: Any, key: str) -> Any:
    """The value at a dotted key; None if there is none."""
    value = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _rate(steps: int, seconds: float) -> float | None:
    return steps / seconds if steps > 0 and 0 < seconds < math.inf else None


def _first_step(path: Path) -> int | None:
    """The first step in the file, which need not be 1: a program may continue from a checkpoint."""
    with open_regular(path) as file:
        head = file.read(_HEAD) or b""
    for line in head.split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and not row.get("rank") and (step := _count(row.get("step"))) is not None:
            return step
    return None


@lru_cache(256)
def _steps(config: Path) -> int | None:
    """The number of steps in a job's config, which does not change; None if it has none of the known fields."""
    import yaml

    try:
        values = yaml.safe_load(read_regular(config, limit=1 << 22))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    for field in _STEPS:
        value = _count(_at(values, field))
        if value:
            return value
    return None
