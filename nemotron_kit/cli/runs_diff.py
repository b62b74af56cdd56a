"""`nemotron runs diff A B`: what two runs differ in. Exits like diff(1): 0 the same, 1 different."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_kit.cli.grid import aligned, clean, print_json, write_lines
from nemotron_kit.cli.runs_reference import open_job
from nemotron_kit.cli.toolargs import ToolParser
from nemotron_kit.runs.folder import RunFolder
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.records import DamagedRecord, read_object

Facts = dict[str, dict[str, Any]]
_ABSENT = object()
# What every run has of its own.
_OWN = ("NEMO_RUN_DIR", "NEMOTRON_RUN_ID", "PYTHONPATH")


def diff(argv: list[str]) -> int:
    """Compare two runs, or two jobs of sweeps (`ID/3`)."""
    parser = ToolParser("nemotron runs diff", "What two runs differ in. Exit code 0: nothing; 1: something.")
    for name in ("a", "b"):
        parser.add_argument(name, metavar=name.upper(), help="a run as elsewhere; of a sweep ID/N, its job N")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse(argv)
    if options is None:
        return 0
    jobs = [open_job(reference) for reference in (options.a, options.b)]
    found = differences(*(facts(run, job) for run, job in jobs))
    if options.json:
        names = [f"{run.id}/{job.number}" for run, job in jobs]
        print_json({"a": names[0], "b": names[1], "same": not found, "differences": found})
    else:
        write_lines(list(_lines(found)) or ["no difference"])
    return 1 if found else 0


def differences(a: Facts, b: Facts) -> dict[str, dict[str, dict[str, Any]]]:
    """Section → key → `{"a": …, "b": …}` of what is not the same; a side that lacks the key is left out."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for section in a:
        for key in dict.fromkeys([*a[section], *b[section]]):
            sides = {"a": a[section].get(key, _ABSENT), "b": b[section].get(key, _ABSENT)}
            if sides["a"] is _ABSENT or sides["b"] is _ABSENT or sides["a"] != sides["b"]:
                there = {side: value for side, value in sides.items() if value is not _ABSENT}
                found.setdefault(section, {})[key] = there
    return found


def facts(run: RunFolder, job: JobFolder) -> Facts:
    """What a job was, by section, with the run's own folders written as `<run>` and `<job>`."""
    from nemotron_kit.config.files import load_mapping

    plan, spec = run.plan(), job.spec()
    place = plan.get("place") or {}
    there = str(place.get("run") or run.path)
    own = {f"{folder}/jobs/{job.number}": "<job>" for folder in (there, str(run.path))}
    own |= dict.fromkeys((there, str(run.path)), "<run>")
    config = {key: value for key, value in load_mapping(job.config_path).items() if key != "run"}
    variables = {k: v for k, v in (spec.get("environment") or {}).items() if k not in _OWN}
    code = plan.get("code") or {}
    sections = {
        "command": {"recipe": plan.get("recipe"), "stage": plan.get("stage")},
        "config": dict(flat(config)),
        "artifacts": {slot: _pin(pin) for slot, pin in (job.artifacts()["inputs"] or {}).items()},
        "code": {**{key: code.get(key) for key in ("kit", "commit", "dirty")}, "digest": _digest(run)},
        "environment": {
            "python": code.get("python"),
            **dict(flat(plan.get("captured_at_launch") or {})),
            **variables,
            "secrets": plan.get("secrets") or [],
        },
        "launch": {
            **{key: plan.get(key) for key in ("executor", "profile", "mode")},
            **dict(flat(plan.get("settings") or {})),
        },
    }
    return {name: {key: _general(value, own) for key, value in of.items()} for name, of in sections.items()}


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in a config that is no block; an empty block is a value."""
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            yield from flat(value, name)
        else:
            yield name, value


def _general(value: Any, own: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _general(item, own) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_general(item, own) for item in value]
    if isinstance(value, str):
        for folder, mark in own.items():
            value = value.replace(folder, mark)
    return value


def _digest(run: RunFolder) -> str | None:
    """That of the code that was sent along, where its record is on this machine."""
    try:
        return str(read_object(run.path / "code.json").get("digest"))
    except (FileNotFoundError, DamagedRecord):
        return None


def _pin(pin: object) -> object:
    if not isinstance(pin, Mapping) or pin.get("version") is None:
        return pin.get("path") if isinstance(pin, Mapping) else pin
    return f"{pin.get('name')}:v{pin['version']} sha256 {str(pin.get('digest'))[:12]}"


def _lines(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[str]:
    for section, keys in found.items():
        yield section
        rows = [[f"  {clean(key)}", _shown(sides, "a"), "→", _shown(sides, "b")] for key, sides in keys.items()]
        yield from aligned(rows)


def _shown(sides: Mapping[str, Any], side: str) -> str:
    if side not in sides:
        return "(not there)"
    value = sides[side]
    return clean(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))
