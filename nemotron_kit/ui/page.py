"""A page as data, the URLs of the pages, and what several of them show alike: pins, curves, times."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from nemotron_kit.files import finite
from nemotron_kit.home import is_run_id, runs_root
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.metrics import TIMESTAMP
from nemotron_kit.ui.figures import Figure, curves
from nemotron_kit.ui.reading import RecordReader

# Metrics of one page.
_METRICS = 24


@dataclass
class WebPage:
    """A page: its template, its data, its charts. `live`: what it shows may change, and is looked
    at again, `every` so many seconds."""

    template: str
    title: str
    data: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    live: bool = False
    anchor: str = ""
    every: int = 3


class Links:
    """The URLs of the pages; None for a page that does not exist."""

    # Whether a server handles requests, which forms need.
    served = True

    def run(self, run_id: str, sort: str = "") -> str | None:
        """The page of a run; `sort` is the column that a sweep's table is sorted by."""
        return f"/runs/{quote(run_id)}{'?' + urlencode({'sort': sort}) if sort else ''}"

    def job(self, run_id: str, number: int) -> str | None:
        """The page of one job of a sweep."""
        return f"/runs/{quote(run_id, safe='')}/{number}"

    def log(self, run_id: str, number: int, name: str) -> str | None:
        """The log of a job as JSON (see reading.read_log)."""
        return f"/runs/{quote(run_id, safe='')}/{number}/log/{quote(name, safe='')}"

    def compare(self, references: Sequence[str]) -> str | None:
        """The page with the curves of several runs and jobs."""
        return f"/compare?{urlencode([('run', each) for each in references])}"

    def diff(self, references: Sequence[str]) -> str | None:
        """The page with the differences between several runs and jobs."""
        return f"/diff?{urlencode([('run', each) for each in references])}"

    def artifact(self, name: str, version: int | None = None) -> str | None:
        """The page of a version, or without one of all versions of a name."""
        return f"/artifacts/{quote(name, safe='')}{'' if version is None else f'/{version}'}"

    def page(self, name: str) -> str | None:
        """One of the pages that everything begins with: runs, artifacts, lineage."""
        return "/" if name == "runs" else f"/{name}"


class ExportLinks(Links):
    """Anchors in one file, for the pages that it contains; `anchors` are theirs."""

    served = False

    def __init__(self, anchors: Collection[str]) -> None:
        self._anchors = anchors

    def _at(self, anchor: str) -> str | None:
        return f"#{anchor}" if anchor in self._anchors else None

    def run(self, run_id: str, sort: str = "") -> str | None:
        return None if sort else self._at(f"run-{run_id.replace('/', '-')}")

    def job(self, run_id: str, number: int) -> str | None:
        return self._at(f"run-{run_id}-{number}")

    def log(self, run_id: str, number: int, name: str) -> str | None:
        return None

    def compare(self, references: Sequence[str]) -> str | None:
        return self._at("compare")

    def diff(self, references: Sequence[str]) -> str | None:
        return self._at("diff")

    def artifact(self, name: str, version: int | None = None) -> str | None:
        return self._at(f"artifact-{name}" if version is None else f"artifact-{name}-v{version}")

    def page(self, name: str) -> str | None:
        return self._at(name)


def pin_link(links: Links, pin: Any) -> dict[str, Any]:
    """A pin as the templates show it: label, URL, path, digest."""
    if not isinstance(pin, Mapping):
        return {"label": "not resolved yet" if pin is None else str(pin), "url": None, "path": ""}
    name, version = str(pin.get("name")), pin.get("version")
    if not isinstance(version, int):
        return {"label": str(pin.get("path")), "url": None, "path": ""}
    return {
        "label": f"{name}:v{version}",
        "url": links.artifact(name, version),
        "path": str(pin.get("path")),
        "digest": str(pin.get("digest"))[:12],
    }


def run_link(links: Links, producer: str) -> str | None:
    """The URL of the run that saved a version, where it is still there."""
    there = is_run_id(producer) and (runs_root() / producer).is_dir()
    return links.run(producer) if there else None


def curve_figures(reader: RecordReader, jobs: Sequence[tuple[str, JobFolder]]) -> list[Figure]:
    """A chart for each metric that any of the jobs has, with a line for each job that has it."""
    found = [(name, reader.curves(job)) for name, job in jobs]
    names = dict.fromkeys(metric for _, measured in found for metric in measured if metric != TIMESTAMP)
    ordered = sorted(names, key=lambda name: "loss" not in name.lower())[:_METRICS]
    return [curves(metric, [(name, measured) for name, measured in found if metric in measured]) for metric in ordered]


def as_text(value: Any) -> str:
    """A value as JSON."""
    return json.dumps(finite(value), ensure_ascii=False, default=str)
