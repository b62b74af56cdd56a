"""The URL of each page: a path of the server, or an anchor in an exported file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from urllib.parse import quote, urlencode


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
