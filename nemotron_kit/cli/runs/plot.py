"""`nemotron runs plot`: the curves of a metric of jobs and sweeps, drawn in the terminal."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

from nemotron_kit.cli.output import can_print, cells, clean, colour, fitting, write_lines
from nemotron_kit.cli.runs.list import chosen_jobs
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import UserError, listed, near
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.ledger import labels_of
from nemotron_kit.runs.metrics import TIMESTAMP, series

# Horizontal axis → the metrics that may have its values.
AXES = {"step": (), "time": ("elapsed", TIMESTAMP, "time", "seconds"), "tokens": ("tokens", "consumed_tokens")}
_UNITS = {"step": "step", "time": "seconds", "tokens": "tokens"}
_MAX_JOBS = 12
# The second column of a wide character; a noncharacter, which no text has.
_SECOND = "\ufdd0"
_MAX_POINTS = 2000

Series = dict[str, tuple[list[int], list[float]]]


def plot(argv: list[str]) -> int:
    """`nemotron runs plot ID …`: draw the curves of a metric, one for each job; returns 0."""
    options = ToolParser("runs", "plot").parse(argv)
    found = {name: series(job.path, times=True) for name, job in _named(options.ids).items()}
    names = [name for name in dict.fromkeys(name for each in found.values() for name in each) if name != TIMESTAMP]
    metric = options.metric or next((name for name in names if "loss" in name.lower()), next(iter(names), None))
    if metric is None:
        raise UserError(f"{', '.join(options.ids)}: no metric was logged.", hint="A job logs metrics by log_metrics.")
    if metric not in names:
        raise UserError(f"--metric {metric}: no job logged it.", hint=near(metric, names))
    curves = {name: _curve(name, each, metric, options.x) for name, each in found.items() if metric in each}
    drawn = {name: curve for name, curve in curves.items() if curve[0]}
    if not drawn:
        what = "NaN or infinite only" if options.x == "step" else f"never logged together with {options.x}, or NaN"
        others = listed([clean(name) for name in names if name != metric])
        hint = f"Logged was also: {others}." if others else None
        raise UserError(f"There is no curve of {metric}: it is {what}.", hint=hint)
    write_lines(_drawn(drawn, metric, options.x, options.height))
    missing = [name for name in found if name not in drawn]
    if missing:
        write_lines([f"without {metric}, or with NaN only: {', '.join(map(clean, missing))}"])
    return 0


def _named(references: Sequence[str]) -> dict[str, JobFolder]:
    """The jobs by the name of their curve: the run's name or the end of its id, and the job's number in a sweep."""
    jobs: list[JobFolder] = []
    for reference in references:
        run, chosen = chosen_jobs(reference)
        of_run = run.jobs() if chosen is None else chosen
        if len(of_run) > _MAX_JOBS:
            hint = f"Name some of them: {run.id}/0-{_MAX_JOBS - 1}."
            raise UserError(f"{run.id} has {len(of_run)} jobs; at most {_MAX_JOBS} curves can be drawn.", hint=hint)
        if not of_run:
            raise UserError(f"{run.id} has no jobs.", hint=f"nemotron runs show {run.id}")
        jobs += of_run
    if len(jobs) > _MAX_JOBS:
        raise UserError(f"These are {len(jobs)} jobs; at most {_MAX_JOBS} curves can be drawn.")
    found: dict[str, JobFolder] = {}
    for job in jobs:
        label = labels_of(job.run_id)["name"]
        name = job.reference.replace(job.run_id, str(label) if label else job.run_id[-6:])
        found[name if name not in found else job.reference] = job
    return found


def _curve(name: str, found: Series, metric: str, axis: str) -> tuple[list[float], list[float]]:
    """(x, y) of one job, without NaN and infinities. Raises UserError for an axis that it did not log."""
    steps, values = found[metric]
    places = axis_values(found, axis)
    if axis != "step" and not places:
        logs = f"It logs {listed([each for each in found if each != TIMESTAMP])}."
        what = " or ".join(each for each in AXES[axis] if each != TIMESTAMP)
        raise UserError(f"--x {axis}: {name} logged no {what}.", hint=logs)
    points = [
        (float(step) if axis == "step" else places[step], value)
        for step, value in zip(steps, values, strict=True)
        if math.isfinite(value) and (axis == "step" or step in places)
    ]
    stride = max(1, len(points) // _MAX_POINTS)
    points = [*points[::stride], *points[-1:]] if stride > 1 else points
    return [x for x, _ in points], [y for _, y in points]


def axis_values(found: Series, axis: str) -> dict[int, float]:
    """Step → its place on the axis `time` (in seconds) or `tokens`; empty for a job that logged none."""
    metric = next((each for each in AXES[axis] if each in found), None)
    if metric is None:
        return {}
    places = dict(zip(*found[metric], strict=True))
    start = min(places.values()) if metric == TIMESTAMP else 0.0
    return {step: value - start for step, value in places.items() if math.isfinite(value)}


def _drawn(curves: dict[str, tuple[list[float], list[float]]], metric: str, axis: str, height: int) -> list[str]:
    try:
        import plotext
    except ImportError as error:
        hint = "pip install 'nemotron-kit[plot]'"
        raise UserError(f"nemotron runs plot needs plotext: {error}.", hint=hint) from error
    drawing: Any = plotext
    drawing.clear_figure()
    width = min(shutil.get_terminal_size((80, 24)).columns, 200)
    drawing.limit_size(False, False)  # else --height would have no effect beyond the terminal's
    drawing.plotsize(width, min(height, 200))
    drawing.theme("pro" if colour(sys.stdout) else "clear")
    marker = "braille" if can_print("⣿") else "*"
    # Without colours the curves would look the same.
    letters = ascii_lowercase if len(curves) > 1 and not colour(sys.stdout) else ""
    for at, (name, (x, y)) in enumerate(curves.items()):
        drawing.plot(x, y, label=_spread(name, width // 2), marker=letters[at % len(letters)] if letters else marker)
    for ticks, axis_values in (
        (drawing.xticks, [each for x, _ in curves.values() for each in x]),
        (drawing.yticks, [each for _, y in curves.values() for each in y]),
    ):
        low, high = min(axis_values), max(axis_values)
        # plotext spells such numbers in full, and 1e100 leaves no room for the curve.
        if not 1e-3 <= max(-low, high) < 1e7 and low < high:
            ticks_at = [low + (high - low) * part / 4 for part in range(5)]
            ticks(ticks_at, [f"{tick:.3g}" for tick in ticks_at])
    drawing.title(_spread(metric, width - 4))
    drawing.xlabel(_UNITS[axis])
    return [line.rstrip().replace(_SECOND, "") for line in str(drawing.build()).splitlines()]


def _spread(name: str, columns: int) -> str:
    """A name of at most so many columns, a `…` for what does not fit, with a placeholder after each wide character:
    plotext takes every character for one column."""
    text = clean(name)
    if cells(text) > columns:
        text = f"{text[: fitting(text, columns - 1)]}…"
    return "".join(character + _SECOND * (cells(character) - 1) for character in text)
