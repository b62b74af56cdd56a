"""Charts as data for plotly.js: metric curves, the parallel coordinates of a sweep, the lineage graph."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nemotron_kit.cli.runs.plot import AXES, Series, axis_values
from nemotron_kit.cli.runs.results import VALUE, SweepTable
from nemotron_kit.errors import printable
from nemotron_kit.files import finite
from nemotron_kit.masking import mask
from nemotron_kit.ui.lineage import Graph

# The points of all curves of one chart together, and the least of one.
_POINTS, _LEAST = 20_000, 200
_MOST_LINES = 200
_CATEGORIES = 12

_TITLES = {"time": "seconds since the first value", "tokens": "tokens"}


@dataclass(frozen=True)
class Figure:
    """One chart. `kind` is `curves`, `parallel` or `lineage`; `data` and `layout` are plotly's. `axes`: other
    horizontal axes than the step, each with a title and, for each line, the places of its points."""

    key: str
    title: str
    kind: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    axes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The chart as JSON that can stand in a page's script element: no `<` in it ends that."""
        text = json.dumps(finite(vars(self)), ensure_ascii=True, allow_nan=False)
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def label(text: object) -> str:
    """A text as plotly shows it literally: it reads a few HTML tags in its labels."""
    shown = printable(mask(str(text)))
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def curves(metric: str, lines: Sequence[tuple[str, Series]]) -> Figure:
    """One metric over the steps, the time and the tokens, a line for each job: `lines` are (the job's name, all that it
    logged, with the metric)."""
    most = max(_LEAST, _POINTS // max(1, len(lines)))
    data = []
    others: dict[str, list[list[float | None]]] = {axis: [] for axis in AXES if axis != "step"}
    for name, found in lines:
        steps, values = thinned(*found[metric], most)
        for axis, places in others.items():
            at = axis_values(found, axis)
            places.append([round(at[step], 3) if step in at else None for step in steps] if at else [])
        dots = "lines+markers" if len(steps) < 2 else "lines"
        data.append({"type": "scatter", "mode": dots, "name": label(name), "x": steps, "y": values})
    axes = {axis: {"title": _TITLES[axis], "x": places} for axis, places in others.items() if any(places)}
    layout = {"xaxis": {"title": {"text": "step"}}}
    return Figure(f"metric-{metric}", printable(mask(metric)), "curves", data, layout, axes)


def thinned(steps: Sequence[int], values: Sequence[float], most: int) -> tuple[list[int], list[float | None]]:
    """At most about `most` points of a curve: the least and the greatest value of each stretch, so that no spike is
    lost. What is not finite is a gap."""
    if len(steps) <= most:
        return list(steps), [value if math.isfinite(value) else None for value in values]
    stretch = math.ceil(2 * len(steps) / most)
    chosen: set[int] = {0, len(steps) - 1}
    for start in range(0, len(steps), stretch):
        part = range(start, min(start + stretch, len(steps)))
        known = [at for at in part if math.isfinite(values[at])]
        chosen |= {min(known, key=values.__getitem__), max(known, key=values.__getitem__)} if known else {start}
    places = sorted(chosen)
    return [steps[at] for at in places], [values[at] if math.isfinite(values[at]) else None for at in places]


def parallel(table: SweepTable) -> Figure | None:
    """A sweep's parallel coordinates: an axis for each varied override and for the objective, a line for each job (the
    best so many), the best one marked; None where there is nothing to compare."""
    varied = table.varied()
    jobs = [job for job in table.jobs if table.objective and job.number_of(table.objective) is not None]
    if table.best is None or not varied or len(jobs) < 2:
        return None
    objective = str(table.objective)
    jobs = jobs[:_MOST_LINES]
    axes = [_Axis(key, {job.number: own.get(job.number, "") for job in jobs}) for key, own in varied.items()]
    name = "returned value" if objective == VALUE else objective
    axes.append(_Axis(name, {job.number: repr(job.number_of(objective)) for job in jobs}))
    data = []
    for place in range(len(jobs) - 1, -1, -1):  # the best on top
        job, best = jobs[place], place == 0
        text = [f"{label(axis.name)} = {label(axis.texts[job.number])}" for axis in axes]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if best else "lines",
                "name": f"★ job {job.number}" if best else f"job {job.number}",
                "x": list(range(len(axes))),
                "y": [axis.places[job.number] for axis in axes],
                "text": text,
                "hovertemplate": f"job {job.number}: %{{text}}<extra></extra>",
                "meta": {"best": best, "rank": place / max(1, len(jobs) - 1), "job": job.number},
            }
        )
    marks = [
        {"x": at, "y": y, "text": label(text), "showarrow": False, "xanchor": "left", "xshift": 4}
        for at, axis in enumerate(axes)
        for y, text in axis.ticks
    ]
    rules = [{"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1} for at in range(len(axes))]
    layout = {
        "xaxis": {
            "tickvals": list(range(len(axes))),
            "ticktext": [label(axis.name) for axis in axes],
            "range": [-0.1, len(axes) - 0.6],
            "showgrid": False,
            "fixedrange": True,
        },
        "yaxis": {"visible": False, "range": [-0.06, 1.06], "fixedrange": True},
        "meta": {"axes": [axis.scale for axis in axes]},
        "annotations": marks,
        "shapes": rules,
    }
    return Figure("parallel", f"Parallel coordinates; {table.rule.replace('*', '★')}", "parallel", data, layout)


class _Axis:
    """One axis: where each job's value lies between 0 and 1, the labels, and `scale`, by which the page turns a place
    into a value. Numbers are laid out by value, on a logarithmic scale where they span more than a factor of 10; other
    values at equal distances."""

    scale: dict[str, Any]

    def __init__(self, name: str, texts: Mapping[int, str]) -> None:
        self.name, self.texts = name, texts
        numbers = {job: _number(text) for job, text in texts.items()}
        if all(number is not None for number in numbers.values()):
            known = {job: number for job, number in numbers.items() if number is not None}
            least, greatest = min(known.values()), max(known.values())
            log = least > 0 and greatest / least > 10
            low, high = (math.log(least), math.log(greatest)) if log else (least, greatest)
            spread = (high - low) or 1.0
            self.places = {job: ((math.log(n) if log else n) - low) / spread for job, n in known.items()}
            middle = math.exp((low + high) / 2) if log else (low + high) / 2
            ends = [(0.0, f"{least:.4g}"), (0.5, f"{middle:.4g}"), (1.0, f"{greatest:.4g}")]
            self.ticks = ends if greatest > least else ends[:1]
            self.scale = {"name": printable(mask(name)), "low": low, "spread": spread, "log": log}
            return
        different = sorted(dict.fromkeys(texts.values()))
        spaced = {text: at / max(1, len(different) - 1) for at, text in enumerate(different)}
        self.places = {job: spaced[text] for job, text in texts.items()}
        self.scale = {"name": printable(mask(name)), "texts": [printable(mask(text)) for text in different]}
        shown = different[:: math.ceil(len(different) / _CATEGORIES)]
        self.ticks = [(spaced[text], text if len(text) <= 24 else f"{text[:23]}…") for text in shown]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def lineage(graph: Graph, urls: Mapping[str, str | None]) -> Figure | None:
    """The graph as a flow from left (raw data) to right; a click on a node follows its URL. None without an edge."""
    edges = sorted((above, below) for above, below in graph.edges)
    if not edges:
        return None
    keys = list(graph.nodes)
    at = {key: place for place, key in enumerate(keys)}
    # Plotly writes the labels of the last column to the left of its nodes: a line higher, they do not meet the others.
    above = {edge[0] for edge in edges}
    node = {
        "label": [label(graph.nodes[key].short) + ("" if key in above else "<br> <br> ") for key in keys],
        "customdata": [[urls.get(key), label(graph.nodes[key].name)] for key in keys],
        "meta": [graph.nodes[key].kind for key in keys],
        "hovertemplate": "%{customdata[1]}<extra></extra>",
        "pad": 22,
        "thickness": 14,
    }
    link = {
        "source": [at[above] for above, _ in edges],
        "target": [at[below] for _, below in edges],
        "value": [1] * len(edges),
        "hoverinfo": "skip",
    }
    data = [{"type": "sankey", "arrangement": "fixed", "node": node, "link": link}]
    return Figure("lineage", "Lineage, from data to model", "lineage", data, graph.size)
