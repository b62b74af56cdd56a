"""`nemotron runs`: lists the runs launched from this machine; also `runs watch`, `tag`, `note` and `rename`."""

from __future__ import annotations

import gc
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from nemotron_kit.cli.output import (
    STYLES,
    clean,
    print_json,
    print_status,
    print_table,
    rich_table,
    terminal_width,
    write_lines,
)
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.errors import UserError, near
from nemotron_kit.home import runs_root
from nemotron_kit.runs.folder import DAMAGE, RunFolder, RunSummary
from nemotron_kit.runs.job import DAMAGED, STATES, TERMINAL, DamagedRunRecord, JobFolder
from nemotron_kit.runs.ledger import labels_of, list_runs, open_run, run_ids
from nemotron_kit.runs.progress import Progress, progress_of, short_span
from nemotron_kit.spec.plan import Labels, is_local


def open_jobs(reference: str) -> tuple[RunFolder, list[JobFolder]]:
    """The run and its jobs that `ID`, `ID/N` or `ID/2-5` selects. Raises UserError if there is none."""
    run, chosen = chosen_jobs(reference)
    jobs = run.jobs() if chosen is None else chosen
    if not jobs and run.is_pipeline:
        jobs = [run.job(0)]  # raises the error that names the stages' runs
    if not jobs:
        raise UserError(f"{run.id} has no jobs.", hint=f"nemotron runs show {run.id}")
    return run, jobs


def chosen_jobs(reference: str, number: int | None = None) -> tuple[RunFolder, list[JobFolder] | None]:
    """The run, and its jobs that `ID/N`, `--job N` or `ID/2-5` names; None for a reference to the whole run. For a
    pipeline, N is a stage: the result is the stage's run. Raises UserError for an unknown run or job."""
    name, slash, behind = reference.partition("/")
    ends = re.fullmatch("([0-9]{1,9})(?:-([0-9]{1,9}))?", behind)
    if slash and ends is None:
        raise UserError(f"{reference!r}: after the / comes a job's number, or a range of them: {name}/2-5.")
    if ends and ends[2] is None and number not in (None, int(ends[1])):
        raise UserError(f"{reference} and --job {number} name two jobs.", hint="Leave one of them out.")
    run = open_run(name)
    if ends and ends[2] is not None:
        if number is not None:
            raise UserError(f"{reference} and --job {number} both select jobs.", hint="Leave one of them out.")
        first, last = int(ends[1]), int(ends[2])
        if run.is_pipeline:
            raise UserError(f"{run.id} is a pipeline: name one stage.", hint=f"{run.id}/{first}")
        if first > last:
            raise UserError(f"{first}-{last} is not a range.", hint=f"{run.id}/{last}-{first}")
        for end in (first, last):
            run.job(end)  # raises the error for one that does not exist
        return run, [job for job in run.jobs() if first <= job.number <= last]
    chosen = int(ends[1]) if ends else number
    if chosen is None or not run.is_pipeline:
        return run, None if chosen is None else [run.job(chosen)]
    records = run.stages()
    if chosen >= len(records):
        stages = ", ".join(f"{at} ({each['stage']})" for at, each in enumerate(records)) or "none yet"
        raise UserError(f"{run.id} has no stage {chosen}.", hint=f"Its stages: {stages}.")
    if damage := records[chosen].get(DAMAGE):
        raise DamagedRunRecord(str(damage))
    # A skipped stage has an earlier run, whose outputs were used.
    return open_run(str(records[chosen].get("run") or records[chosen].get("producer"))), None


def open_job(reference: str) -> tuple[RunFolder, JobFolder]:
    """The run and the selected job. Raises UserError for a sweep without a job number."""
    run, (job, *more) = open_jobs(reference)
    if more and "/" in reference:
        raise UserError(f"{reference} are {len(more) + 1} jobs; this takes one.", hint=f"Name one: {run.id}/0.")
    if more:
        raise UserError(f"{run.id} is a sweep of {len(more) + 1} jobs.", hint=f"Name one: {reference}/0.")
    return run, job


_LIMIT = 20
_WIDE = 120
_REFRESH_S = 2.0
_UNFINISHED = ("running", "pending", "unreachable")


def list_all(argv: list[str]) -> int:
    """`nemotron runs`: the launches, newest first."""
    options = ToolParser("runs").parse(argv)
    if options.csv and options.json:
        raise UserError("nemotron runs: --csv and --json are two formats.", hint="Leave one of them out.")
    gc.disable()  # the index of many runs is many objects, which all live until the end
    every = bool(options.sort or options.top or options.csv)
    limit = options.limit if options.limit is not None else 0 if every else _LIMIT
    found = _matching_now(options, limit)
    if options.sort or options.top or options.csv or options.columns:
        _print_results(found, options)
    elif options.json:
        print_json(_with_results(found))
    elif found:
        _print_runs(found)
        _print_omitted(options, limit, len(found))
    else:
        _print_none(options)
    return 0


def watch(argv: list[str]) -> int:
    """`nemotron runs watch`: print the table of `nemotron runs`, refreshed until all its runs have ended; returns 0."""
    instead = "To follow one run: nemotron runs attach ID, or nemotron runs logs -f ID"
    options = ToolParser("runs", "watch").parse(argv, instead=instead)
    limit = _LIMIT if options.limit is None else options.limit
    found = _matching_now(options, limit)
    if not found:
        _print_none(options)
    elif not sys.stdout.isatty():
        _print_runs(found)
        print_status("nemotron runs watch: standard output is no terminal: printed once.")
    else:
        from rich.console import Console
        from rich.live import Live

        # Each table replaces the one before, and the last stays. Ctrl-C restores the terminal and ends with 130.
        console = Console(highlight=False)
        with Live(_drawn(found, console.width), console=console, auto_refresh=False) as live:
            while any(run.state in _UNFINISHED for run in found):
                time.sleep(_REFRESH_S)
                found = _matching_now(options, limit)
                live.update(_drawn(found, console.width), refresh=True)
    return 0


def _drawn(found: Sequence[RunSummary], width: int) -> Any:
    """The table for a terminal of that width."""
    header, *rows = _table(found)
    return rich_table(header, [[clean(cell) for cell in row] for row in rows], STYLES, width)


def _print_runs(found: Sequence[RunSummary]) -> None:
    header, *rows = _table(found)
    print_table(header, rows)


def _table(found: Sequence[RunSummary]) -> list[list[str]]:
    """A header and a row for each run. Has PROGRESS if a run is running, NAME if one has a name or tags, and JOB on a
    wide terminal (the id contains recipe and stage)."""
    table = [["RUN", "JOB", "STATE", "PROGRESS", "AGE", "TOOK", "EXIT", "NAME", "WHY"]]
    for run, progress in zip(found, _progress_of(found), strict=True):
        job = " ".join(filter(None, (run.recipe, (run.stage or "").replace("/", " "))))
        sweep = f" ({run.jobs} jobs)" if run.jobs > 1 else ""
        took = short_span(duration(run.started, run.finished, run.state))
        code = "" if run.code is None else str(run.code)
        why = run.error or (f"waits for {run.reason}" if run.reason else "")
        facts = [run.id, f"{job}{sweep}", run.state, str(progress or ""), age_of(run), took, code, name_of(run), why]
        table.append(facts)
    left_out = set()
    if not any(run.state == "running" for run in found):
        left_out.add("PROGRESS")
    if not any(row[-2] for row in table[1:]):
        left_out.add("NAME")
    if terminal_width() < _WIDE:
        left_out.add("JOB")
    kept = [number for number, title in enumerate(table[0]) if title not in left_out]
    return [[row[number] for number in kept] for row in table]


def _progress_of(found: Sequence[RunSummary]) -> list[Progress | None]:
    """The progress of each run, None for one that does not run; each target where some run is asked once."""
    elsewhere: dict[str, Progress] = {}
    if any(run.state == "running" and not (run.jobs and is_local(run.executor)) for run in found):
        from nemotron_kit.launch.status import progress_elsewhere

        elsewhere = progress_elsewhere(found)
    return [progress_of(run, elsewhere) for run in found]


def matching(
    options: Any,
    *,
    since: timedelta | None = None,
    limit: int | None = None,
    update: Callable[[Sequence[RunSummary]], Sequence[RunSummary]] = list,
) -> list[RunSummary]:
    """The runs that --recipe, --stage, --state and --tag select, newest first; the others as for `list_runs`."""
    return list_runs(
        recipe=options.recipe,
        stage=options.stage.replace(" ", "/") if options.stage else None,
        states=_states_of(options.state),
        tags=options.tag,
        since=since,
        limit=limit,
        update=update,
    )


def _matching_now(options: Any, limit: int) -> list[RunSummary]:
    """Those that all filters select, with their current states."""
    return matching(options, since=options.since, limit=limit or None, update=_updated)


def _print_results(found: Sequence[RunSummary], options: Any) -> None:
    """Print the runs with their results: returned values and metrics, by the options --columns, --sort, --top, --csv
    and --json."""
    from nemotron_kit.cli.runs.results_table import LaunchTable, print_launches, print_launches_csv

    columns = [name.strip() for text in options.columns for name in text.split(",") if name.strip()]
    if options.top and not options.sort:  # the newest
        found = found[: options.top]
    table = LaunchTable(found, columns, options.sort)
    if options.csv:
        print_launches_csv(table, options.top)
    elif options.json:
        print_json(_with_results(table.runs[: options.top]))
    elif found:
        limit = _LIMIT if options.limit is None else options.limit
        print_launches(table, options.top or limit or None, asked=bool(columns))
        if not (options.sort or options.top):
            _print_omitted(options, limit, len(found))
    else:
        _print_none(options)


def _updated(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The runs with their current states: the back ends of unfinished ones are queried, each target once."""
    unfinished = [run for run in runs if run.state not in (*TERMINAL, DAMAGED)]
    if not any(not run.jobs or not is_local(run.executor) for run in unfinished):
        return list(runs)
    from nemotron_kit.launch.status import refresh_stages, refreshed

    folders = {run.id: RunFolder(runs_root() / run.id) for run in unfinished}
    refreshed_pipelines = {}
    for run in unfinished:
        if not run.jobs and folders[run.id].is_pipeline:
            refresh_stages(folders[run.id], progress=True)
            refreshed_pipelines[run.id] = folders[run.id].summary()
    runs = [refreshed_pipelines.get(run.id, run) for run in runs]
    remote = [run.id for run in runs if not is_local(run.executor) and run.state not in (*TERMINAL, DAMAGED)]
    return refreshed(runs, {run_id: folders[run_id] for run_id in remote}) if remote else list(runs)


def as_json(run: RunSummary) -> dict[str, Any]:
    """A run as `--json` prints it: times in ISO format, UTC; durations in seconds."""
    return {
        "id": run.id,
        "recipe": run.recipe,
        "stage": run.stage,
        "state": run.state,
        "executor": run.executor,
        "profile": run.profile,
        "created_at": iso(run.created),
        "started_at": iso(run.started),
        "finished_at": iso(run.finished),
        "duration_s": duration(run.started, run.finished, run.state),
        "exit_code": run.code,
        "jobs": run.jobs,
        "error": run.error,
        "reason": run.reason,
        **labels_of(run.id),
        "folder": str(runs_root() / run.id),
    }


def _with_results(runs: Sequence[RunSummary]) -> list[dict[str, Any]]:
    """The runs as `--json` prints them: with the overrides, value and metrics of the job, or of a sweep's best job (its
    number is `best_job`; `runs show` has all of them), and with the progress of running ones, else None."""
    from nemotron_kit.cli.runs.results import results_of_runs

    results, rows = results_of_runs(runs_root(), runs, run_ids()), []
    for run, progress in zip(runs, _progress_of(runs), strict=True):
        found = results.get(run.id)
        values = found.to_dict() if found else dict.fromkeys(("overrides", "value", "step", "results"))
        values["progress"] = progress.to_dict() if progress else None
        rows.append({**as_json(run), **values, **({"best_job": found.number} if found and run.jobs > 1 else {})})
    return rows


def iso(seconds: float | None) -> str | None:
    """Seconds since the epoch as an ISO time, UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def clock(seconds: float | None) -> str:
    """A time on this machine's clock; "" for None."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def duration(started: float | None, finished: float | None, state: str) -> float | None:
    """Seconds from `started` to `finished`, or to now if the state is running; None if either is not known."""
    if started is None or (finished is None and state != "running"):
        return None
    return max(0.0, (finished if finished is not None else time.time()) - started)


def _states_of(given: Sequence[str]) -> list[str]:
    """The states that --state options name, each with commas between them. Raises UserError for an unknown one."""
    states = [state.strip() for text in given for state in text.split(",") if state.strip()]
    for state in states:
        if state not in (*STATES, DAMAGED):
            raise UserError(f"nemotron runs: unknown state {state!r}.", hint=near(state, [*STATES, DAMAGED]))
    return states


def age_of(run: RunSummary) -> str:
    """The time since a run's launch, as the text of a cell."""
    return short_span(time.time() - run.created) if run.created is not None else ""


def name_of(run: RunSummary) -> str:
    """A run's name and tags, as the text of a cell."""
    labels = labels_of(run.id)
    return " ".join([labels["name"] or "", *(f"#{tag}" for tag in labels["tags"])]).strip()


def tag(argv: list[str]) -> int:
    """`nemotron runs tag`: add tags to a run, or remove some; returns 0."""
    options = ToolParser("runs", "tag").parse(argv)
    run = open_run(options.id)
    Labels(tags=tuple(options.tags))  # raises UserError for an invalid one
    if not (options.tags or options.remove):
        raise UserError("nemotron runs tag: no tag is given.", hint=f"nemotron runs tag {options.id} baseline")

    def edited(known: list[str]) -> list[str]:
        for text in options.remove:
            if text not in known:
                raise UserError(f"{run.id} has no tag {text!r}.", hint=near(text, known) if known else "It has none.")
        return [text for text in dict.fromkeys([*known, *options.tags]) if text not in options.remove]

    kept = run.label(edit_tags=edited)["tags"]
    write_lines([f"{run.id}: {', '.join(kept) or 'no tags'}"])
    return 0


def note(argv: list[str]) -> int:
    """`nemotron runs note ID TEXT`: set the note of a run; returns 0."""
    return _set_label("note", "note", argv)


def rename(argv: list[str]) -> int:
    """`nemotron runs rename ID NAME`: give a run a name in addition to its id; returns 0."""
    return _set_label("rename", "name", argv)


def _set_label(command: str, label: str, argv: list[str]) -> int:
    options = ToolParser("runs", command).parse(argv)
    Labels(**{label: options.text})  # raises UserError for an invalid one
    run = open_run(options.id)
    text = options.text.strip() or None
    run.label(**{label: text})
    write_lines([f"{run.id}: {text or f'no {label}'}"])
    return 0


def _filtered(options: Any) -> bool:
    return bool(options.recipe or options.stage or options.state or options.since or options.tag)


def _print_none(options: Any) -> None:
    write_lines(["No runs match." if _filtered(options) else f"No runs yet in {runs_root()}."])


def _print_omitted(options: Any, limit: int, shown: int) -> None:
    """Print a line about the runs that the limit may have left out: with filters, their number is not known."""
    if _filtered(options):
        if shown == limit:
            write_lines([f"the newest {shown} that match: --limit 0 lists all"])
    elif (more := len(run_ids()) - shown) > 0:
        write_lines([f"and {more} older: --limit 0 lists all"])
