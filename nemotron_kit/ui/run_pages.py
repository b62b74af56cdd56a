"""The pages of runs: all of them, one, a sweep, a pipeline."""

from __future__ import annotations

import time
from argparse import ArgumentTypeError
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from nemotron_kit.cli.runs.list import chosen_jobs, clock, duration
from nemotron_kit.cli.runs.results import VALUE, JobResult, sweep_table
from nemotron_kit.cli.runs.show import artifacts_of, distinct_overrides, where_at
from nemotron_kit.cli.toolargs import span
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import read_regular
from nemotron_kit.home import first_id_since, runs_root
from nemotron_kit.runs.folder import DAMAGE, RunFolder, RunSummary
from nemotron_kit.runs.job import DAMAGED, STATES, DamagedRunRecord, JobFolder
from nemotron_kit.runs.ledger import RunIndex, labels_of, run_ids
from nemotron_kit.runs.progress import short_span
from nemotron_kit.spec.plan import is_local
from nemotron_kit.ui.figures import Figure, parallel
from nemotron_kit.ui.page import Links, WebPage, as_text, curve_figures, pin_link
from nemotron_kit.ui.reading import RecordReader, is_over, log_names_of, plan_of, read_log

PER_PAGE = 100
# Rows of a sweep's table, jobs of a sweep whose curves are drawn.
_ROWS, _DRAWN = 500, 10
# A sweep with more jobs is looked at again after so many seconds.
_MANY, _SLOWER = 200, 20
# Reading the results for the first view of a page of runs may take this long; the next view has the others.
_RESULTS_S = 0.4
# Characters of a config.
_TEXT = 400_000


class RunPages:
    """Makes the pages. `links` says which of them one page can lead to. `export`: for a file, which has no server."""

    def __init__(self, reader: RecordReader, links: Links, *, export: bool = False) -> None:
        self.reader, self.links, self.export = reader, links, export

    # --- runs

    def runs(self, query: Mapping[str, str]) -> WebPage:
        """The launches, newest first. Raises UserError for a filter that is none."""
        given = {key: query.get(key, "").strip() for key in ("q", "recipe", "stage", "state", "since", "tag")}
        page = int(query["page"]) if query.get("page", "").isdecimal() and len(query["page"]) < 7 else 1
        start = max(0, page - 1) * PER_PAGE
        found, total = self._search(given, start)
        elsewhere = [run.id for run in found if not is_over(run) and not (run.jobs and is_local(run.executor))]
        self.reader.ask([RunFolder(runs_root() / run_id) for run_id in elsewhere])
        rows, names = self._rows(found[:PER_PAGE])
        return WebPage(
            "runs.html",
            "Runs",
            {
                "rows": rows,
                "metrics": names,
                "given": given,
                "filtered": any(given.values()),
                "states": [*STATES, DAMAGED],
                "total": total,
                "page_number": page,
                "pages": None if total is None else max(1, -(-total // PER_PAGE)),
                "newer": self._turned(given, page - 1) if page > 1 else None,
                "older": self._turned(given, page + 1) if len(found) > PER_PAGE else None,
                "root": str(runs_root()),
            },
            live=True,
            anchor="runs",
        )

    @staticmethod
    def _turned(given: Mapping[str, str], page: int) -> str:
        return f"/?{urlencode({**{key: text for key, text in given.items() if text}, 'page': str(page)})}"

    def _search(self, given: Mapping[str, str], start: int) -> tuple[list[RunSummary], int | None]:
        """(the runs of one page that match and, where there is one, the first of the next page; how many match, if that
        is known without opening them all)."""
        if given["state"] and given["state"] not in (*STATES, DAMAGED):
            raise UserError(f"{given['state']!r} is no state.", hint=f"One of {', '.join([*STATES, DAMAGED])}.")
        everything = ids = run_ids()
        if given["since"]:
            try:
                first = first_id_since(span(given["since"]))
            except ArgumentTypeError as error:
                raise UserError(f"since: {error}.") from error
            ids = [run_id for run_id in ids if run_id[: len(first)] >= first]
        if given["q"] or given["tag"]:
            words = given["q"].lower().split()
            ids = [run_id for run_id in ids if self._has(run_id, words, given["tag"])]
        window = slice(start, start + PER_PAGE + 1)
        if not (given["recipe"] or given["stage"] or given["state"]):
            return [self.reader.summary(RunFolder(runs_root() / run_id)) for run_id in ids[window]], len(ids)
        states = [given["state"]] if given["state"] else []
        below = f"{given['stage'].replace(' ', '/').strip('/')}/" if given["stage"] else ""

        def named(recipe: str | None, stage: str | None) -> bool:
            return given["recipe"] in ("", recipe) and f"{stage or ''}/".startswith(below)

        with RunIndex(runs_root()) as index:
            index.keep_only(everything)
            found = (run for run in index.search(ids, named, states) if not states or run.state in states)
            return list(islice(found, window.start, window.stop)), None

    def _has(self, run_id: str, words: Sequence[str], tag: str) -> bool:
        """Whether the words are in a run's id or labels, and the tag is one of its tags."""
        left = [word for word in words if word not in run_id]
        if not (left or tag):
            return True
        labels = self.reader.labels(run_id)
        text = " ".join(str(label) for label in (labels["name"], labels["note"], *labels["tags"]) if label).lower()
        return all(word in text for word in left) and (not tag or tag in labels["tags"])

    def _rows(self, found: Sequence[RunSummary]) -> tuple[list[dict[str, Any]], list[str]]:
        rows, names = [], Counter[str]()
        until = time.monotonic() + _RESULTS_S
        for run in found:
            result, progress, run = None, None, self.reader.with_reachability(run)
            in_time = time.monotonic() < until or self.export
            if in_time:
                progress = self.reader.progress(run)
            if run.jobs == 1 and in_time:
                with suppress(UserError):  # removed meanwhile
                    result = self.reader.result(RunFolder(runs_root() / run.id).job())
                    names.update(list(result.metrics))
            labels = self.reader.labels(run.id)
            rows.append(
                {
                    "id": run.id,
                    "url": self.links.run(run.id),
                    "name": labels["name"],
                    "tags": labels["tags"],
                    "note": labels["note"],
                    "job": " ".join(filter(None, (run.recipe, (run.stage or "").replace("/", " ")))),
                    "jobs": run.jobs,
                    "state": run.state,
                    "progress": str(progress or ""),
                    "created": run.created,
                    "took": short_span(duration(run.started, run.finished, run.state)),
                    "code": run.code,
                    "why": run.error or (f"waits for {run.reason}" if run.reason else ""),
                    "result": result,
                }
            )
        # Of the metrics of all runs on the page: losses first, then by how many runs have them.
        ordered = sorted(names, key=lambda name: ("loss" not in name.lower(), -names[name], name))
        return rows, ordered[:2]

    # --- a run

    def run(self, reference: str, query: Mapping[str, str]) -> WebPage:
        """A run, a sweep, a pipeline, or the job `ID/N` of a sweep."""
        run, chosen = chosen_jobs(reference)
        self.reader.ask([run] if not is_over(self.reader.summary(run)) or chosen else [], records=True)
        if run.is_pipeline:
            return self._pipeline(run)
        jobs = run.jobs() if chosen is None else chosen
        summary = self.reader.summary(run)
        data: dict[str, Any] = {**self._head(run, summary), "facts": list(self._facts(run, summary))}
        live = not is_over(summary)
        if len(jobs) != 1:
            more, figures = self._sweep(run, self.reader.results(run, jobs), query)
            every = _SLOWER if len(jobs) > _MANY else 3
            return WebPage("sweep.html", run.id, data | more, figures, live, f"run-{run.id}", every)
        (job,) = jobs
        data |= self._job(run, job)
        if summary.state == DAMAGED:
            data |= {"job_state": DAMAGED, "job_error": summary.error}
        data["of_sweep"] = self.links.run(run.id) if summary.jobs > 1 else None
        title = f"{run.id}/{job.number}" if summary.jobs > 1 else run.id
        live = live and not self.reader.state(job).terminal
        figures = curve_figures(self.reader, [(labels_of(run.id)["name"] or title, job)])
        return WebPage("run.html", title, data, figures, live, f"run-{title.replace('/', '-')}")

    def _head(self, run: RunFolder, summary: RunSummary) -> dict[str, Any]:
        labels = labels_of(run.id)
        return {"run": run.id, "state": summary.state, **labels, "why": summary.error, "reason": summary.reason}

    def _facts(self, run: RunFolder, summary: RunSummary) -> Iterator[tuple[str, str, str | None]]:
        """(what, its value, a URL) of a run."""
        plan = plan_of(run)
        if plan is not None:
            yield "command", plan.command_line, None
            if plan.hydra and plan.stage:  # a program of its own has no such line
                yield "hydra", plan.hydra_command, None
        yield "profile", f"{plan.profile} ({plan.executor})" if plan and plan.profile else "none: this machine", None
        yield "launched", clock(summary.created), None
        yield "took", short_span(duration(summary.started, summary.finished, summary.state)), None
        if progress := self.reader.progress(summary):
            yield "progress", str(progress), None
        for name, other in (("rerun of", plan.rerun_of), ("pipeline", plan.part_of)) if plan else ():
            if other:
                yield name, other, self.links.run(other)
        for other in plan.after if plan else ():
            yield "after", other, self.links.run(other)
        code = (plan.code if plan else None) or {}
        if code.get("commit"):
            edits = " and edits that were not committed" if code.get("dirty") else ""
            yield "code", f"{str(code['commit'])[:12]}{edits} in {code.get('folder')}", None
        yield "folder", str(run.path), None

    def _job(self, run: RunFolder, job: JobFolder) -> dict[str, Any]:
        state = self.reader.state(job)
        result = self.reader.result(job, state)
        names = log_names_of(run, job) or ["job"]
        logs = [{"name": name, "url": self.links.log(run.id, job.number, name)} for name in names]
        if self.export:
            for log in logs:
                try:  # its end, for a file that is mailed
                    log["text"] = read_log(run, job, str(log["name"]), None)["text"]
                except NemotronError as error:
                    log["text"] = error.message
        history = [
            {"at": clock(entry["at"]), "state": entry["state"], "where": where_at(entry)} for entry in job.history()
        ]
        if state.finished:
            history.append({"at": clock(state.finished), "state": state.state, "where": state.error or ""})
        config, config_file = _config(job)
        artifacts = artifacts_of(job, plan_of(run))
        return {
            "number": job.number,
            "job_state": state.state,
            "job_error": state.error,
            "code": state.code,
            "overrides": result.overrides,
            "returned": None if result.value is None else as_text(result.value),
            "measured": result.metrics,
            "inputs": [(slot, pin_link(self.links, pin)) for slot, pin in artifacts["inputs"].items()],
            "outputs": [pin_link(self.links, pin) for pin in artifacts["outputs"]],
            "damage": artifacts.get("error"),
            "history": history,
            "logs": logs,
            "following": not state.terminal,
            "config": config,
            "config_file": config_file,
            "compare": self._earlier(run),
        }

    def _earlier(self, run: RunFolder) -> tuple[str, str] | None:
        """(the run of the same stage before this one, the URL of their difference)."""
        plan = plan_of(run)
        if plan is None or self.export:
            return None
        ids = run_ids()
        before = ids[ids.index(run.id) + 1 :][:200] if run.id in ids else []
        for earlier in before:
            other = plan_of(RunFolder(run.path.with_name(earlier)))
            if other is not None and (other.recipe, other.stage) == (plan.recipe, plan.stage):
                url = self.links.diff([earlier, run.id])
                return (earlier, url) if url else None
        return None

    # --- sweeps and pipelines

    def _sweep(
        self, run: RunFolder, results: Sequence[JobResult], query: Mapping[str, str]
    ) -> tuple[dict[str, Any], list[Figure]]:
        """(the data, the charts) of a sweep's page."""
        table = sweep_table(results, query.get("sort") or None, plan_of(run))
        varied, metrics, best = table.varied(), table.columns(), table.best
        returned = any(job.value is not None for job in table.jobs)
        rows = [
            {
                "number": job.number,
                "url": self.links.job(run.id, job.number),
                "best": job is best,
                "state": job.state,
                "varied": [own.get(job.number, "") for own in varied.values()],
                "value": None if job.value is None else as_text(job.value),
                "step": job.step,
                "metrics": [job.metrics.get(name) for name in metrics],
                "why": job.why,
            }
            for job in table.jobs[:_ROWS]
        ]
        data = {
            "rows": rows,
            "varied": list(varied),
            "metrics": metrics,
            "returned": returned,
            "objective": table.objective,
            "rule": table.rule.replace("*", "★") if best is not None else "",
            "sort_urls": {name: self.links.run(run.id, sort=name) for name in [*metrics, VALUE]},
            "counts": Counter(job.state for job in results).most_common(),
            "jobs": len(results),
            "best": None if best is None else {"number": best.number, "url": self.links.job(run.id, best.number)},
            "drawn": min(_DRAWN, len(results)),
        }
        first = parallel(table)
        jobs = [JobFolder(run.path / "jobs" / str(job.number)) for job in table.jobs[:_DRAWN]]
        named = [
            (f"{'★ ' if best is not None and at == 0 else ''}job {job.number} {own}".rstrip(), job)
            for at, (job, own) in enumerate(zip(jobs, distinct_overrides(jobs), strict=True))
        ]
        return data, [*([first] if first else []), *curve_figures(self.reader, named)]

    def _pipeline(self, run: RunFolder) -> WebPage:
        summary = run.summary()
        stages = []
        for number, record in enumerate(run.stages()):
            its = run.stage_run(record)
            state = DAMAGED if DAMAGE in record else "skipped" if record.get("skipped") else "removed"
            name = record.get("run") or record.get("producer")
            exists = run.stage_run({"run": name}) is not None  # a skipped stage's producer may have been removed
            its_summary = its.summary() if its is not None else None
            outputs = record.get("outputs") or []
            if its is not None and (jobs := its.jobs()):
                with suppress(DamagedRunRecord):
                    outputs = jobs[0].artifacts()["outputs"]
            stages.append(
                {
                    "number": number,
                    "stage": str(record["stage"]).replace("/", " "),
                    "state": its_summary.state if its_summary else state,
                    "why": (its_summary.error if its_summary else None) or record.get("why") or record.get(DAMAGE),
                    "run": name,
                    "exists": exists,
                    "url": self.links.run(str(name)) if exists else None,
                    "took": short_span(duration(its_summary.started, its_summary.finished, its_summary.state))
                    if its_summary
                    else "",
                    "outputs": [pin_link(self.links, pin) for pin in outputs],
                }
            )
        names = (run.plan().get("stages") or [])[len(stages) :]
        stages += [{"stage": str(name).replace("/", " "), "state": "not started"} for name in names]
        data = {**self._head(run, summary), "facts": list(self._facts(run, summary)), "stages": stages}
        return WebPage("pipeline.html", run.id, data, live=not is_over(summary), anchor=f"run-{run.id}")


def _config(job: JobFolder) -> tuple[str, str]:
    """(the config with everything resolved, else as it was frozen; its file)."""
    for name in ("resolved.yaml", "config.yaml"):
        with suppress(OSError):
            text = read_regular(job.path / name).decode("utf-8", "replace")
            return text if len(text) <= _TEXT else f"{text[:_TEXT]}\n… (the rest is in {name})", name
    return "", ""
