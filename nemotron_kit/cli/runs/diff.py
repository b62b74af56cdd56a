"""`nemotron runs diff`: prints the differences between runs, and their results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_lowercase
from typing import Any

from nemotron_kit.cli.output import (
    aligned,
    cells,
    clean,
    hanging,
    narrow_lines,
    print_json,
    terminal_width,
    write_lines,
)
from nemotron_kit.cli.runs.list import chosen_jobs, open_job
from nemotron_kit.cli.runs.results import job_result
from nemotron_kit.cli.runs.show import versions_of
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.config.config_files import load_mapping
from nemotron_kit.config.freeze import flat
from nemotron_kit.errors import UserError
from nemotron_kit.files import finite
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import DamagedRunRecord, JobFolder, read_object
from nemotron_kit.spec.plan import stored_plan
from nemotron_kit.spec.runconfig import settings_dict

Facts = dict[str, dict[str, Any]]
_ABSENT = object()
# Environment variables that differ between all runs, and labels.
_RUN_VARIABLES = ("NEMO_RUN_DIR", "NEMOTRON_RUN_ID", "PYTHONPATH", "WANDB_NAME", "WANDB_NOTES", "WANDB_TAGS")


def diff(argv: list[str]) -> int:
    """`nemotron runs diff A B …`: print the differences between runs, or jobs of sweeps (`ID/3`), and their results.
    Returns 1 if anything but the results differs, else 0."""
    options = ToolParser("runs", "diff").parse(argv)
    jobs: list[tuple[RunFolder, JobFolder]] = []
    for reference in options.ids:
        run, chosen = chosen_jobs(reference)
        jobs += [(run, job) for job in chosen] if chosen and len(chosen) > 1 else [open_job(reference)]
    if not 2 <= len(jobs) <= len(ascii_lowercase):
        count = f"{len(jobs)} were given"
        raise UserError(f"nemotron runs diff compares 2 to {len(ascii_lowercase)} runs; {count}.")
    names = [f"{run.id}/{job.number}" for run, job in jobs]
    found = differences(*(facts(run, job) for run, job in jobs))
    results = differences(*({"results": _results(job)} for _, job in jobs))
    if options.json:
        sides = dict(zip(ascii_lowercase, names, strict=False))
        print_json({**sides, "same": not found, "differences": found, **(results and {"results": results["results"]})})
    else:
        print_lines = list(_lines({**found, **results}, names))
        write_lines([*([] if found else ["no difference"]), *print_lines])
    return 1 if found else 0


def _results(job: JobFolder) -> dict[str, Any]:
    """A job's returned value, and the last and the best value of each metric."""
    result = job_result(job, job.state())
    found: dict[str, Any] = {"value": finite(result.value)} if result.value is not None else {}
    found |= {"step": result.step} if result.step is not None else {}
    for name, metric in result.metrics.items():
        found[name] = finite(metric.last)
        if metric.best != metric.last:
            found[f"{name}, best"] = finite(metric.best)
    return found


def differences(*every: Facts) -> dict[str, dict[str, dict[str, Any]]]:
    """Section → key → `{"a": value, "b": value, …}` for each key that differs; without the sides that lack the key."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for section in every[0]:
        for key in dict.fromkeys(key for facts in every for key in facts[section]):
            values = [facts[section].get(key, _ABSENT) for facts in every]
            if any(value is _ABSENT or value != values[0] for value in values):
                sides = zip(ascii_lowercase, values, strict=False)
                found.setdefault(section, {})[key] = {side: value for side, value in sides if value is not _ABSENT}
    return found


def facts(run: RunFolder, job: JobFolder) -> Facts:
    """The facts of a job by section, for comparison: the run's folders are replaced by `<run>` and `<job>`."""
    plan, spec = stored_plan(run), job.spec()
    remote_folder = plan.paths.run
    placeholders = {f"{folder}/jobs/{job.number}": "<job>" for folder in (remote_folder, str(run.path))}
    placeholders |= dict.fromkeys((remote_folder, str(run.path)), "<run>")
    config = {key: value for key, value in load_mapping(job.config_path).items() if key != "run"}
    variables = {k: v for k, v in (spec.get("environment") or {}).items() if k not in _RUN_VARIABLES}
    code = plan.code or {}
    sections = {
        "command": {"recipe": plan.recipe, "stage": plan.stage},
        "config": dict(flat(config)),
        "artifacts": {slot: _pin_label(pin) for slot, pin in (job.artifacts()["inputs"] or {}).items()},
        "code": {**{key: code.get(key) for key in ("kit", "commit", "dirty")}, "digest": _digest(run)},
        "environment": {
            "python": code.get("python"),
            **versions_of(job),
            **dict(flat(plan.captured)),
            **variables,
            "secrets": list(plan.secrets),
        },
        "launch": {
            **{key: getattr(plan, key) for key in ("executor", "profile", "mode")},
            **dict(flat(settings_dict(plan.settings))),
        },
    }
    return {
        name: {key: _without_folders(value, placeholders) for key, value in of.items()} for name, of in sections.items()
    }


def _without_folders(value: Any, placeholders: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_folders(item, placeholders) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item, placeholders) for item in value]
    if isinstance(value, str):
        for folder, mark in placeholders.items():
            value = value.replace(folder, mark)
    return value


def _digest(run: RunFolder) -> str | None:
    """The digest of the code that was sent with the run, if it is recorded on this machine."""
    try:
        return str(read_object(run.path / "code.json").get("digest"))
    except (FileNotFoundError, DamagedRunRecord):
        return None


def _pin_label(pin: object) -> object:
    if not isinstance(pin, Mapping) or pin.get("version") is None:
        return pin.get("path") if isinstance(pin, Mapping) else pin
    return f"{pin.get('name')}:v{pin['version']} sha256 {str(pin.get('digest'))[:12]}"


def _lines(found: Mapping[str, Mapping[str, Mapping[str, Any]]], names: Sequence[str]) -> Iterator[str]:
    sides = ascii_lowercase[: len(names)]
    if len(names) > 2 and found:
        yield from aligned([[side, name] for side, name in zip(sides, names, strict=True)])
    for section, keys in found.items():
        if section == "results":
            keys = {key: _rounded(of) for key, of in keys.items()}
        if len(names) == 2:
            yield section
            rows = [[f"  {clean(key)}", _value_text(of, "a"), "→", _value_text(of, "b")] for key, of in keys.items()]
        else:
            rows = [[section, *sides]]
            rows += [[f"  {clean(key)}", *(_value_text(of, side) for side in sides)] for key, of in keys.items()]
        lines: list[str] | None = aligned(rows)
        columns = terminal_width()
        if max(map(cells, lines or [])) > columns:
            lines = narrow_lines(rows, columns)
        if lines is None:
            lines = [] if len(names) == 2 else [section]
            for key, of in keys.items():  # and below each the values of the sides
                lines += hanging("  ", clean(key), columns)
                for side in sides:
                    lines += hanging(f"    {side}  ", _value_text(of, side), columns)
        yield from lines


def _rounded(sides: Mapping[str, Any]) -> Mapping[str, Any]:
    """A result's sides with floats as in the tables, but where these would look the same though they differ."""
    texts = {side: f"{value:.6g}" if isinstance(value, float) else value for side, value in sides.items()}
    return texts if len(set(map(str, texts.values()))) == len(set(map(str, sides.values()))) else sides


def _value_text(sides: Mapping[str, Any], side: str) -> str:
    if side not in sides:
        return "(not there)"
    value = sides[side]
    return clean(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))
