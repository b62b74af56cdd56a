"""--dry-run: the plan, printed for a person or for a program. Nothing is started and no file is written."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from nemotron_kit.errors import printable
from nemotron_kit.files import finite
from nemotron_kit.plan.plan import Plan

DEFAULT_THEME = "monokai"


def show_plan(plan: Plan, *, as_json: bool, theme: str | None = None) -> int:
    """Print the plan; 0, since the job composes. What would stop the real run stands under Problems."""
    if as_json:
        print(json.dumps(finite(plan.to_dict()), indent=2, ensure_ascii=False))  # noqa: T201
        return 0
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    for title, lines in _sections(plan):
        print(f"\x1b[1m{title}\x1b[0m" if colour else title)  # noqa: T201
        text = printable("\n".join(lines))
        if title == "Config" and colour:
            _highlighted(text, theme or DEFAULT_THEME)
        else:
            print("\n".join(f"  {line}" if line else "" for line in text.splitlines()))  # noqa: T201
        print()  # noqa: T201
    return 0


def _sections(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    source = plan.config_file or "the dataclass's defaults"
    yield (
        "Job",
        [
            f"{plan.recipe} {plan.stage.replace('/', ' ')}   (config {plan.config_name}: {source})",
            f"in Hydra's words: {plan.hydra_command}",
        ],
    )
    yield "Config", plan.files["config.yaml"].splitlines()
    if plan.references:
        yield "Artifacts", [_input(slot, plan) for slot in plan.references]
    yield "Launch", list(_launch(plan))
    if plan.files.get("sbatch.sh"):
        yield "Script", plan.files["sbatch.sh"].splitlines()
    if container := plan.extra.get("container"):
        yield "Container", [shlex.join(container["words"])]
    if request := plan.extra.get("request"):
        yield "Request", _yaml(request)
    yield "Would write", [f"{plan.job_folder}/", *(f"  {name}" for name in plan.files)]
    if plan.notes:
        yield "Notes", list(plan.notes)
    if plan.problems:
        yield "Problems", [f"- {line}" for problem in plan.problems for line in problem.splitlines()]


def _yaml(value: Mapping[str, Any]) -> list[str]:
    from nemotron_kit.config.freeze import to_yaml

    return to_yaml(value).splitlines()


def _input(slot: str, plan: Plan) -> str:
    pin, reference = plan.inputs.get(slot), plan.references[slot]
    if pin:
        return f"{slot}: {reference} → {pin.label} at {pin.path}"
    later = any(note.startswith(f"{slot}: ") for note in plan.notes)
    return f"{slot}: {reference} → {'pinned at launch' if later else 'not there (see Problems)'}"


def _launch(plan: Plan) -> Iterator[str]:
    where = f"profile {plan.profile} ({plan.executor})" if plan.profile else "this machine"
    yield f"{plan.launch} on {where}: {shlex.join(plan.launch_command)}"
    if tree := plan.place.get("tree"):
        yield f"code, as it is now: {tree['root']} → {plan.place['code']} (packager {tree['packager']})"
    if plan.settings.get("env_vars") or plan.environment:
        yield "environment: " + ", ".join(f"{k}={v}" for k, v in sorted(plan.environment.items()))
    if plan.secrets:
        yield "secrets, by name: " + ", ".join(plan.secrets)
    if plan.captured:
        yield "fixed at launch: " + ", ".join(f"{k}={v}" for k, v in plan.captured.items())


def _highlighted(text: str, theme: str) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.syntax import Syntax

    Console().print(Padding(Syntax(text, "yaml", theme=theme, background_color="default"), (0, 2)))
