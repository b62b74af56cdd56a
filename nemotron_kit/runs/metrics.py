"""The metrics of a job: `log_metrics`, which any of its processes may call, and the evaluation of its rows.

metrics.jsonl in the job's folder has one JSON object a line: `step` (a whole number; left out if a value belongs to no
step), one number for each metric, `rank` if a rank other than 0 wrote the row, and `_timestamp`, when that was (seconds
since 1970; rows of earlier versions have none). NaN and infinities are the texts
"NaN", "Infinity" and "-Infinity". Ranks on other nodes than rank 0 write metrics-rank-N.jsonl beside it: appending from
two hosts to one file of an NFS loses rows.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import math
import operator
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import finite, open_appending, open_regular, plain
from nemotron_kit.home import TENSORBOARD
from nemotron_kit.runs.job import JobFolder

METRICS_FILE = "metrics.jsonl"
TIMESTAMP = "_timestamp"  # as W&B names it
RESERVED = ("step", "rank", TIMESTAMP)
_PERIOD_S = 0.25
_ROWS = 20_000
_CHUNK = 1 << 18
_NAME_CHARS = 200
_LARGE = 1 << 63
_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_log = logging.getLogger(__name__)
_logged: list[bool] = []


def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
    """Record numbers measured by this process of a job: `log_metrics({"loss": 1.2}, step=7)`.

    Values are numbers, or scalars of NumPy or torch. They are in metrics.jsonl within a second, also after kill -9, and
    go to W&B if this process has a run open. Outside of a job (no NEMO_RUN_DIR) nothing is written. Any thread and any
    forked process may call it. Raises UserError for an invalid metric, NemotronError if the file can't be written.
    """
    row: dict[str, Any] = {}
    if step is not None:
        row["step"] = step if type(step) is int and -_LARGE < step < _LARGE else _whole(step)
    if not isinstance(metrics, Mapping):
        raise UserError(
            f"log_metrics: the metrics are {_kind(metrics)}, not a mapping of names to numbers.",
            hint='log_metrics({"loss": 1.2}, step=7)',
        )
    for name, value in metrics.items():
        kind = type(value)
        if type(name) is not str or name in RESERVED or len(name) > _NAME_CHARS or not name.isprintable() or not name:
            text = repr(name) if len(repr(name)) <= _NAME_CHARS else f"{repr(name)[:_NAME_CHARS]}…"
            raise UserError(
                f"log_metrics: {text} can't be a metric's name: it must be a text of 1 to {_NAME_CHARS} printable "
                "characters, and not step, rank or _timestamp."
            )
        row[name] = value if kind is float or (kind is int and -_LARGE < value < _LARGE) else _number(name, value)
    folder = os.environ.get("NEMO_RUN_DIR")
    if folder:
        rank = _rank()
        MetricsFile.of(_path(folder, rank)).write({**row, "rank": rank} if rank else row)
    elif not _logged:
        _logged.append(True)
        _log.debug("log_metrics: not in a job (NEMO_RUN_DIR is not set), so nothing is written")
    to_wandb(row)
    to_tensorboard(row)


def _whole(step: Any) -> int:
    try:
        found = operator.index(step)
    except TypeError:
        raise UserError(f"log_metrics: step is {_kind(step)}, not a whole number.") from None
    if not -_LARGE < found < _LARGE:
        raise UserError("log_metrics: step is a whole number of more than 63 bits.")
    return found


def _number(name: str, value: Any) -> float:
    found = plain(value)
    if isinstance(found, bool | int | float):
        try:
            float(found)
        except OverflowError:
            raise UserError(f"log_metrics: {name} is a whole number that no float can hold.") from None
        return float(found) if isinstance(found, float) else int(found)
    raise UserError(f"log_metrics: {name} is {_kind(value)}, not a number or a scalar of NumPy or torch.")


def _kind(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else f'{text[:39]}…'} ({type(value).__name__})"


def _rank() -> int:
    text = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    return int(text) if text.isdecimal() else 0


def _path(folder: str, rank: int) -> str:
    """The file of this process's rows: all ranks on rank 0's node share one (their rank is their local rank)."""
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or ""
    return f"{folder}/{METRICS_FILE}" if rank == 0 or local == str(rank) else f"{folder}/metrics-rank-{rank}.jsonl"


def to_wandb(row: Mapping[str, Any]) -> None:
    """Log the row to W&B if this process has a W&B run."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        try:
            wandb.log({name: value for name, value in row.items() if name not in RESERVED}, step=row.get("step"))
        except Exception as error:  # noqa: BLE001 — an error of W&B must not end a training
            print(f"warning: W&B does not take the metrics of step {row.get('step')}: {error}", file=sys.stderr)  # noqa: T201


# (pid, job folder) → the writer of event files; None if no package for them is installed.
_writers: dict[tuple[int, str], Any] = {}


def to_tensorboard(row: Mapping[str, Any]) -> None:
    """Add the row to TensorBoard's event files in `tensorboard` in the job's folder, if env.toml turns that on
    (`[tracking] tensorboard = true`); each rank has its own folder."""
    if TENSORBOARD not in os.environ or not (folder := os.environ.get("NEMO_RUN_DIR")):
        return
    try:
        key = (os.getpid(), folder)
        if key not in _writers:
            _writers[key] = _event_writer(folder)
        writer, step = _writers[key], row.get("step")
        if writer is not None:
            for name, value in row.items():
                if name not in RESERVED:
                    writer.add_scalar(name, float(value), step)
    except Exception as error:  # noqa: BLE001 — an error of TensorBoard must not end a training
        print(f"warning: TensorBoard does not get the metrics of step {row.get('step')}: {error}", file=sys.stderr)  # noqa: T201


def _event_writer(folder: str) -> Any:
    rank = _rank()
    path = f"{folder}/tensorboard/rank-{rank}" if rank else f"{folder}/tensorboard"
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            print(f"warning: no event files are written: {error}", file=sys.stderr)  # noqa: T201
            return None
    return SummaryWriter(path, flush_secs=1)


class MetricsFile:
    """Appends rows to one file: the first at once, the following ones every quarter second by a thread, whole lines in
    one write. The file is opened for each write, so it may be replaced meanwhile."""

    _all: ClassVar[dict[str, MetricsFile]] = {}

    def __init__(self, path: str) -> None:
        self._path = path
        self._begin()

    @classmethod
    def of(cls, path: str | Path) -> MetricsFile:
        """This process's instance for `path`."""
        found = cls._all.get(path) if isinstance(path, str) else None
        return found or cls._all.setdefault(str(path), cls(str(path)))

    def _begin(self) -> None:
        """Start with no rows and no thread; also called in a forked child, since the parent writes the pending rows."""
        self._lock = threading.RLock()  # reentrant: a signal handler may log, too
        self._rows: deque[str] = deque()  # appended to without the lock
        self._rest = b""
        self._written_at = -math.inf
        self._writer: threading.Thread | None = None
        self._error: OSError | None = None
        self._known = False

    def write(self, row: Mapping[str, Any], *, now: bool = False) -> None:
        """Append a row; with `now` it is in the file on return. Raises NemotronError if this row, or an earlier one,
        can't be written."""
        row = {**row, TIMESTAMP: round(time.time(), 3)}
        try:
            line = _ENCODE(row)
        except ValueError:
            line = _ENCODE(finite(row))
        self._rows.append(line)
        if not now and self._writer is not None and self._error is None and len(self._rows) < _ROWS:
            return
        with self._lock:
            # A child of multiprocessing runs its finalizers at its end, no atexit functions.
            if not self._known and (util := sys.modules.get("multiprocessing.util")) is not None:
                util.Finalize(None, flush_metrics, exitpriority=0)
            if now or self._error or time.monotonic() - self._written_at > _PERIOD_S or len(self._rows) >= _ROWS:
                self._write_out()
            elif self._writer is None:
                self._writer = threading.Thread(target=self._keep_writing, name="metrics", daemon=True)
                self._writer.start()

    def flush(self) -> None:
        """Write the pending rows. Raises NemotronError if that fails."""
        with self._lock:
            self._write_out()

    def _keep_writing(self) -> None:
        while True:
            time.sleep(_PERIOD_S)
            with self._lock:
                self._writer, this_thread = None, self._writer  # first: a concurrent append then starts a new thread
                if not self._rows and not self._rest:
                    return
                self._writer = this_thread
                try:
                    self._write_out()
                except NemotronError:  # the next write, or the flush at exit, raises it again
                    self._writer = None
                    return

    def _write_out(self) -> None:
        if not self._rows and not self._rest:
            return
        lines = [self._rows.popleft() for _ in range(len(self._rows))]
        self._rest += "".join(f"{line}\n" for line in lines).encode()
        self._error = None
        try:
            with open_appending(self._path) as file:
                if not self._known:
                    self._rest = _missing_newline(self._path) + self._rest
                    self._known = True
                while self._rest:
                    self._rest = self._rest[file.write(self._rest) or 0 :]
        except OSError as error:
            self._error = error
            raise NemotronError(f"{self._path}: metrics can't be written: {error.strerror}.") from error
        self._written_at = time.monotonic()


_ENCODE = json.JSONEncoder(allow_nan=False, check_circular=False).encode


def _missing_newline(path: str) -> bytes:
    """A newline if the file ends in an incomplete line of a killed process, else nothing."""
    with open_regular(path) as file:
        if file.seek(0, os.SEEK_END) == 0:
            return b""
        file.seek(-1, os.SEEK_END)
        return b"" if file.read(1) == b"\n" else b"\n"


def flush_metrics() -> None:
    """Write all pending rows of this process; errors are printed on stderr."""
    for each in list(MetricsFile._all.values()):
        try:
            each.flush()
        except NemotronError as error:
            print(f"warning: {error.message}", file=sys.stderr)  # noqa: T201
    for key in [key for key in _writers if key[0] == os.getpid()]:
        writer = _writers.pop(key)
        if writer is not None:
            writer.close()  # flush() would not write the rows still in its thread's queue


def _forked() -> None:
    for each in MetricsFile._all.values():
        each._begin()


atexit.register(flush_metrics)
os.register_at_fork(after_in_child=_forked)

# --- evaluation

_RANK_FILE = re.compile(r"metrics-rank-(\d{1,9})\.jsonl")
# The name of the summary of the metrics in a job's exit record.
SUMMARY = "metrics"
_LESS_IS_BETTER = re.compile(
    "loss|error|perplexity|(?<![a-z])(?:nll|ppl|r?mse|mae|mape|wer|cer|bpb)(?![a-z])", re.IGNORECASE
)


@lru_cache(1024)
def less_is_better(name: str) -> bool:
    """Whether the lowest value of a metric is the best: its name contains loss, error or perplexity, or an
    abbreviation of one as a word."""
    return _LESS_IS_BETTER.search(name) is not None


@dataclass
class Measured:
    """One metric of a job: its last and its best value, each with its step (None: it was logged without one)."""

    last: float
    step: int | None
    best: float
    best_step: int | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON data; NaN and infinities are texts."""
        return finite({"last": self.last, "step": self.step, "best": self.best, "best_step": self.best_step})  # type: ignore[no-any-return]


def measured(folder: Path) -> dict[str, Measured]:
    """The metrics that the job in `folder` logged, in order of first appearance: rank 0's values. For a metric that
    only other ranks logged, the last value is the lowest rank's, and the best is the best of all ranks."""
    ranks = measured_by_rank(folder)
    found = dict(ranks.pop(0, {}))
    others: dict[str, Measured] = {}
    for rank in sorted(ranks):
        for name, metric in ranks[rank].items():
            if name in found:
                continue
            known = others.setdefault(name, replace(metric))
            if _is_better(name, metric.best, known.best):
                known.best, known.best_step = metric.best, metric.best_step
    return {**others, **found} if others else found


# Larger files are not read at a job's end, which nobody should wait for.
_SUMMARIZED = 16 << 20


def summary(folder: Path) -> dict[str, Any]:
    """The metrics of the job in `folder` for its exit record, so that a table need not read the rows: {} if it logged
    none, if ranks on other nodes did as well, or if there are more than 16 MB of rows."""
    with contextlib.suppress(OSError):
        size = (folder / METRICS_FILE).stat().st_size
        if size <= _SUMMARIZED and len(_metrics_files(folder)) == 1:
            found = {name: list(metric.to_dict().values()) for name, metric in measured(folder).items()}
            return {SUMMARY: {"bytes": size, "values": found}}
    return {}


def summarized(folder: Path, exit_record: Mapping[str, Any]) -> dict[str, Measured] | None:
    """The metrics that `summary` wrote into the exit record; None if there are none, or if rows were added since."""
    try:
        known = exit_record[SUMMARY]
        if os.stat(f"{folder}/{METRICS_FILE}").st_size != known["bytes"]:  # noqa: PTH116 — of 10,000 jobs
            return None
        return {name: _measured(*values) for name, values in known["values"].items()}
    except (OSError, LookupError, TypeError, AttributeError, ValueError, OverflowError):
        return None


def _measured(last: Any, step: Any, best: Any, best_step: Any) -> Measured:
    last, best = (_NONFINITE[value] if isinstance(value, str) else value for value in (last, best))
    if not {type(last), type(best)} <= {int, float} or not {type(step), type(best_step)} <= {int, type(None)}:
        raise ValueError("not the values of a metric")
    float(last), float(best)  # OverflowError: a number that no float holds
    return Measured(last, step, best, best_step)


def measured_by_rank(folder: Path) -> dict[int, dict[str, Measured]]:
    """Rank → the metrics that it logged. Invalid lines are skipped."""
    found: dict[int, dict[str, Measured]] = {}
    for path in _metrics_files(folder):
        with contextlib.suppress(OSError):
            for rows in _chunks(path):
                if not _add_columns(rows, found):
                    _add_rows(rows, found)
    return found


def _add_columns(rows: Sequence[dict[str, Any]], found: dict[int, dict[str, Measured]]) -> bool:
    """Add rows of rank 0 that all have the same metrics, finite numbers, at C speed; False, with nothing added, for
    others. A sweep's table reads a million rows."""
    first = rows[0].keys() if rows else ()
    if not first or "rank" in first or any(row.keys() != first for row in rows):
        return False
    columns = {name: [row[name] for row in rows] for name in first}
    steps = columns.pop("step", None)
    columns.pop(TIMESTAMP, None)
    for values in columns.values():
        if not {*map(type, values)} <= {float, int} or not math.isfinite(sum(values)):
            return False
    into = found.setdefault(0, {})
    for name, values in columns.items():
        best = min(values) if less_is_better(name) else max(values)
        last_step, best_step = (steps[-1], steps[values.index(best)]) if steps else (None, None)
        known = into.get(name)
        if known is None:
            into[name] = Measured(values[-1], last_step, best, best_step)
            continue
        known.last, known.step = values[-1], last_step
        if _is_better(name, best, known.best):
            known.best, known.best_step = best, best_step
    return True


def _add_rows(rows: Sequence[dict[str, Any]], found: dict[int, dict[str, Measured]]) -> None:
    """Add rows of any kind."""
    for row in rows:
        step, rank = row.pop("step", None), row.pop("rank", 0)
        row.pop(TIMESTAMP, None)
        into = found.setdefault(rank if isinstance(rank, int) else 0, {})
        for name, value in row.items():
            if type(value) not in (float, int):
                value = _NONFINITE.get(value) if isinstance(value, str) else None
                if value is None:
                    continue
            known = into.get(name)
            if known is None:
                into[name] = Measured(value, step, value, step)
                continue
            known.last, known.step = value, step
            if _is_better(name, value, known.best):
                known.best, known.best_step = value, step


def _is_better(name: str, value: float, best: float) -> bool:
    return (value < best if less_is_better(name) else value > best) or math.isnan(best)


def _metrics_files(folder: Path) -> list[Path]:
    """The files with a job's rows: one of rank 0's node, and one for each rank on another node."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 — names only, and 10,000 folders are listed
    except OSError:
        return []
    ranks = sorted((int(match[1]), name) for name in names if (match := _RANK_FILE.fullmatch(name)))
    return [*([folder / METRICS_FILE] if METRICS_FILE in names else []), *(folder / name for _, name in ranks)]


def series(folder: Path, *, times: bool = False) -> dict[str, tuple[list[int], list[float]]]:
    """Metric → (steps, values), from the lowest rank that logged it; the step of a value without one is the number of
    its row. If a later attempt repeats a step, earlier values from that step on are dropped. With `times` there are
    also those of the rows, as TIMESTAMP."""
    ranks: dict[int, dict[str, tuple[list[int], list[float]]]] = {}
    rows = chain.from_iterable(map(_readable_rows, _metrics_files(folder)))
    for number, row in enumerate(rows):
        step, rank = row.pop("step", None), row.pop("rank", 0)
        position = step if isinstance(step, int) else number
        if not times:
            row.pop(TIMESTAMP, None)
        into = ranks.setdefault(rank if isinstance(rank, int) else 0, {})
        for name, text in row.items():
            value = _NONFINITE.get(text, text) if isinstance(text, str) else text
            if isinstance(value, int | float) and not isinstance(value, bool):
                steps, values = into.setdefault(name, ([], []))
                while steps and steps[-1] >= position:
                    steps.pop()
                    values.pop()
                steps.append(position)
                values.append(value)
    return {name: curve for rank in sorted(ranks, reverse=True) for name, curve in ranks[rank].items()}


def _readable_rows(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(OSError):
        yield from chain.from_iterable(_chunks(path))


def condensed(job: JobFolder, count: int) -> list[dict[str, Any]]:
    """A few rows for which `measured` returns the same as for all rows of the job: the last `count`, and before them,
    if there are more, rows with the best and the last value of each metric."""
    rows = job.metrics(count + 1)
    if len(rows) <= count:
        return rows
    found = measured(job.path).items()
    best = [{"step": metric.best_step, name: finite(metric.best)} for name, metric in found]
    last = [{"step": metric.step, name: finite(metric.last)} for name, metric in found]
    return [*best, *last, *rows[1:]]


def _chunks(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The valid rows of a file, by chunks."""
    with open_regular(path) as file:
        while lines := file.readlines(_CHUNK):
            if not lines[-1].endswith(b"\n"):  # still being written
                lines.pop()
            # The search for unusual numbers takes longer than reading the rows.
            usual = max(map(len, lines), default=0) < _DIGITS
            try:
                rows = _loaded(b"[" + b",".join(lines) + b"]", usual)
            except (ValueError, RecursionError):  # at least one line is not JSON
                rows = list(_whole_lines(lines))
            yield [row for row in rows if isinstance(row, dict)]


def _whole_lines(lines: Sequence[bytes]) -> Iterator[Any]:
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            yield _loaded(line)


# No float holds a number of more digits; a surrogate is half a character, unless the other half follows.
_DIGITS = 300
_UNUSUAL = re.compile(rb"\d{%d}|\\u[dD][89a-fA-F]" % _DIGITS)


def _loaded(text: bytes, short: bool = False) -> Any:
    """The JSON in `text`; null for whole numbers that no float can hold, and names that can be written as UTF-8.
    `short`: no number has `_DIGITS` digits."""
    if (short and b"\\u" not in text) or _UNUSUAL.search(text) is None:
        return json.loads(text)
    return json.loads(
        text,
        parse_int=lambda digits: int(digits) if len(digits) < _DIGITS else None,
        object_pairs_hook=lambda pairs: {name.encode(errors="backslashreplace").decode(): it for name, it in pairs},
    )
