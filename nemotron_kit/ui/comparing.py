"""The pages of several runs: their curves, one over the other, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from nemotron_kit.cli.runs.diff import differences, facts
from nemotron_kit.cli.runs.list import chosen_jobs
from nemotron_kit.cli.runs.results import sweep_table
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import finite
from nemotron_kit.masking import masked
from nemotron_kit.remote.snapshot import git
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import TERMINAL, JobFolder
from nemotron_kit.runs.ledger import labels_of
from nemotron_kit.ui.page import Links, WebPage, as_text, curve_figures
from nemotron_kit.ui.reading import RecordReader, plan_of

# Jobs of a sweep in an overlay, jobs of one overlay, runs of one difference, characters of a code diff.
_BEST, _OVERLAID, _RUNS, _DIFF = 10, 60, 10, 200_000
_ABSENT = "(not there)"


class ComparingPages:
    """Makes the pages that are about several runs."""

    def __init__(self, reader: RecordReader, links: Links) -> None:
        self.reader, self.links = reader, links

    def compare(self, references: Sequence[str]) -> WebPage:
        """The metric curves of runs and of the best jobs of sweeps, one over the other. Raises UserError."""
        chosen: list[tuple[str, RunFolder, JobFolder]] = []
        for reference in dict.fromkeys(references):
            chosen += self._members(reference)
        if not chosen:
            raise UserError("Which runs?", hint="Choose runs on the page of runs, then Overlay curves.")
        chosen = chosen[:_OVERLAID]
        labels = [_label(name, run, job) for name, run, job in chosen]
        rows: list[dict[str, Any]] = [
            {
                "name": name,
                "url": self.links.job(run.id, job.number) if "/" in name else self.links.run(run.id),
                "result": self.reader.result(job),
                "label": label if labels.count(label) == 1 else None,  # of two runs with one name, their ids
            }
            for (name, run, job), label in zip(chosen, labels, strict=True)
        ]
        figures = curve_figures(
            self.reader, [(row["label"] or row["name"], job) for row, (*_, job) in zip(rows, chosen, strict=True)]
        )
        names = list(dict.fromkeys(metric for row in rows for metric in row["result"].metrics))
        names.sort(key=lambda name: "loss" not in name.lower())
        live = not all(row["result"].state in TERMINAL for row in rows)
        data = {
            "rows": rows,
            "metrics": names[:6],
            "references": list(references),
            "diff": self.links.diff([name for name, *_ in chosen]) if 1 < len(chosen) <= _RUNS else None,
        }
        return WebPage("compare.html", "Curves", data, figures, live, "compare")

    def _members(self, reference: str) -> list[tuple[str, RunFolder, JobFolder]]:
        run, jobs = chosen_jobs(reference)
        if jobs is not None:
            return [(f"{run.id}/{job.number}", run, job) for job in jobs]
        every = run.jobs()
        if len(every) == 1:
            return [(run.id, run, every[0])]
        if run.is_pipeline:
            return [(each.id, each, each.jobs()[0]) for each in run.stage_runs() if each.jobs()]
        table = sweep_table(self.reader.results(run, every), None, plan_of(run))
        best = table.jobs[:_BEST]
        return [(f"{run.id}/{job.number}", run, JobFolder(run.path / "jobs" / str(job.number))) for job in best]

    def diff(self, references: Sequence[str]) -> WebPage:
        """What differs between runs: config, inputs, code, environment, launch, results. Raises UserError."""
        chosen: list[tuple[str, RunFolder, JobFolder]] = []
        for reference in dict.fromkeys(references):
            run, jobs = chosen_jobs(reference)
            named = bool(jobs) or len(run.jobs()) > 1
            for job in jobs or (run.jobs() or [run.job()])[:1]:
                chosen.append((f"{run.id}/{job.number}" if named else run.id, run, job))
        if not 2 <= len(chosen) <= _RUNS:
            raise UserError("A difference is of two to ten runs.", hint="Choose them on the page of runs.")
        every = []
        for _, run, job in chosen:
            result = self.reader.result(job)
            value = {} if result.value is None else {"returned": finite(result.value)}
            measured = {name: f"{metric.last:.6g}" for name, metric in result.metrics.items()}
            every.append({**facts(run, job), "results": {"state": result.state, **value, **measured}})
        sections = []
        for section, keys in differences(*every).items():
            rows = []
            for key, sides in keys.items():
                values = [sides.get(side, _ABSENT) for side in ascii_lowercase[: len(every)]]
                rows.append((key, [value if isinstance(value, str) else as_text(value) for value in values]))
            sections.append((section, rows))
        data = {
            "names": [(name, self.links.run(name)) for name, *_ in chosen],
            "sections": masked(sections),
            "code": _code_diff(chosen[0][1], chosen[1][1]) if len(chosen) == 2 else None,
            "overlay": self.links.compare([name for name, *_ in chosen]),
        }
        return WebPage("diff.html", "Difference", data, anchor="diff")


def _label(name: str, run: RunFolder, job: JobFolder) -> str | None:
    """The run's name, with the job's number for one of several; None for a run that has no name."""
    label = labels_of(run.id)["name"]
    return f"{label}/{job.number}" if label and "/" in name else label


def _code_diff(a: RunFolder, b: RunFolder) -> dict[str, Any]:
    """The difference of two runs' commits, from the repository that the later one was launched in, and what can't be
    known of their code."""
    codes = [(plan.code if (plan := plan_of(run)) else None) or {} for run in (a, b)]
    commits = [str(code.get("commit") or "") for code in codes]
    notes = [
        f"{run.id} was launched with edits that were not committed; they are not part of this."
        for run, code in zip((a, b), codes, strict=True)
        if code.get("dirty")
    ]
    if not all(commits):
        return {
            "text": "",
            "notes": [*notes, "Not both were launched from a git work tree: there are no commits to compare."],
        }
    if commits[0] == commits[1]:
        return {"text": "", "notes": [*notes, f"Both are of commit {commits[0][:12]}."]}
    folder = Path(str(codes[1].get("folder") or "."))
    try:
        words = ("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--end-of-options", *commits, "--")
        text = git(folder, *words).decode("utf-8", "replace")
    except (NemotronError, OSError) as error:
        return {"text": "", "notes": [*notes, f"{commits[0][:12]} to {commits[1][:12]}: {error}"]}
    if len(text) > _DIFF:
        text = f"{text[:_DIFF]}\n… (git diff {commits[0][:12]} {commits[1][:12]} shows the rest)"
    return {"text": text, "notes": [*notes, f"{commits[0][:12]} to {commits[1][:12]}"]}
