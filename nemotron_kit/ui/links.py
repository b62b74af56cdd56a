"""Where each page is: a path of the server, or a place in an exported file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from urllib.parse import quote, urlencode


class Links:
    """The URLs of the pages; None for one that there is not."""

    # Whether a server answers, which forms need.
    served = True

    def run(self, run_id: str, sort: str = "") -> str | None:
        return f"/runs/{quote(run_id)}{'?' + urlencode({'sort': sort}) if sort else ''}"

    def job(self, run_id: str, number: int) -> str | None:
        return f"/runs/{quote(run_id, safe='')}/{number}"

    def log(self, run_id: str, number: int, name: str) -> str | None:
        return f"/runs/{quote(run_id, safe='')}/{number}/log/{quote(name, safe='')}"

    def compare(self, references: Sequence[str]) -> str | None:
        return f"/compare?{urlencode([('run', each) for each in references])}"

    def diff(self, references: Sequence[str]) -> str | None:
        return f"/diff?{urlencode([('run', each) for each in references])}"

    def artifact(self, name: str, version: int | None = None) -> str | None:
        return f"/artifacts/{quote(name, safe='')}{'' if version is None else f'/{version}'}"

    def page(self, name: str) -> str | None:
        """One of the pages that everything begins with: runs, artifacts, lineage."""
        return "/" if name == "runs" else f"/{name}"


class ExportLinks(Links):
    """Places in one file, for the pages (their anchors) that it holds."""

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
