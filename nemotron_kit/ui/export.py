"""The pages of some runs as one HTML file, to be mailed: nothing in it is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nemotron_kit import files
from nemotron_kit.artifacts.registry import open_registry
from nemotron_kit.cli.runs.list import chosen_jobs
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.ui.artifact_pages import ArtifactPages, sound_versions
from nemotron_kit.ui.comparing import ComparingPages
from nemotron_kit.ui.page import ExportLinks, WebPage
from nemotron_kit.ui.reading import RecordReader
from nemotron_kit.ui.render import encoded, render_file
from nemotron_kit.ui.run_pages import RunPages

# Jobs of a sweep that have a page of their own, versions, and runs in one file.
_JOBS, _VERSIONS, _MOST = 5, 40, 100


def export(file: Path, references: Sequence[str]) -> list[str]:
    """Write the pages of these runs, jobs and sweeps, and return their titles. Raises UserError."""
    chosen = [chosen_jobs(reference) for reference in dict.fromkeys(references)]
    if file.is_dir():
        raise UserError(f"{file} is a folder, not a file to write.", hint=f"--export {file}/runs.html")
    named: dict[str, RunFolder] = {}
    for run, jobs in chosen:
        named |= {run.id: run} if jobs is None else {f"{run.id}/{job.number}": run for job in jobs}
    if len(named) > _MOST:
        raise UserError(f"{len(named)} runs and jobs are too many for one file: {_MOST} are the most.")
    reader = RecordReader()
    try:
        # Twice: only pages of the first pass are linked to in the second.
        anchors: set[str] = set()
        for _ in range(2):
            pages = _pages(reader, ExportLinks(anchors), named)
            anchors = {page.anchor for page in pages}
    finally:
        reader.close()
    html = render_file(pages, ExportLinks(anchors))
    try:
        files.write_bytes(file, encoded(html))
    except OSError as error:
        raise NemotronError(f"{file}: can't be written: {error.strerror or error}.") from error
    return [page.title for page in pages]


def _pages(reader: RecordReader, links: ExportLinks, named: Mapping[str, RunFolder]) -> list[WebPage]:
    """The pages of the runs and jobs in `named` (reference → its run), and those that they lead to."""
    make, several, registry = RunPages(reader, links, export=True), ComparingPages(reader, links), ArtifactPages(links)
    found: dict[str, WebPage] = {}

    def add(page: WebPage) -> WebPage:
        return found.setdefault(page.anchor, page)

    if len(named) > 1:
        add(several.compare(list(named)))
        if len(named) <= 10 and not any(run.is_pipeline for run in named.values()):
            add(several.diff(list(named)))
    for name in named:
        page = add(make.run(name, {}))
        if page.template == "sweep.html":
            for row in page.data["rows"][:_JOBS]:
                add(make.run(f"{name}/{row['number']}", {}))
        if page.template == "pipeline.html":
            for stage in page.data["stages"]:
                if stage.get("exists"):
                    add(make.run(stage["run"], {}))
    made_by = {page.data["run"] for page in found.values() if "run" in page.data}
    lineage = registry.lineage_of(sorted(made_by))
    if lineage.figures:
        add(lineage)
    for version in [each for each in sound_versions(open_registry()) if each.producer in made_by][:_VERSIONS]:
        add(registry.artifact(version.name, version.version))
    return list(found.values())
