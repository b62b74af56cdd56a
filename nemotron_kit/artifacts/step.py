"""What a step says when it is done: a panel for people on stderr, one line of JSON for the next step on stdout."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from nemotron_kit.artifacts.metadata import absolute
from nemotron_kit.artifacts.pipes import say_step
from nemotron_kit.errors import printable

if TYPE_CHECKING:
    from nemotron_kit.artifacts.models import Artifact


def print_step_complete(*args: dict[str, Artifact], title: str = "Complete", **artifacts: Artifact) -> None:
    """Announce named artifacts, as in `print_step_complete(data=artifact)`; a dict of them is taken too.

    Stdout gets `{"data": {"path": …, "type": …, "name": …}}` unless it is a terminal. On rank 0 only.
    """
    say_step()
    named = {name: artifact for given in (*args, artifacts) for name, artifact in given.items()}
    if os.environ.get("RANK", "0") != "0":
        return
    rows = {f"{name} ({artifact.type})": _rows(artifact) for name, artifact in named.items()}
    if sys.stderr is not None and sys.stderr.isatty():
        _print_panels(title, rows)
    else:
        _print_plain(title, rows)
    if sys.stdout is not None and not sys.stdout.isatty():
        _print_json({name: json.loads(artifact.to_json()) for name, artifact in named.items()})


def _rows(artifact: Artifact) -> dict[str, str]:
    rows = {"artifact": artifact.art_path, "path": str(absolute(artifact.path))}
    if artifact.metrics:
        rows["metrics"] = ", ".join(f"{key}={_number(value)}" for key, value in artifact.metrics.items())
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value, 0) and abs(value) < 1e15 else f"{value:.4g}"


def _print_plain(title: str, rows: dict[str, dict[str, str]]) -> None:
    lines = [title]
    for name, fields in rows.items():
        lines += [f"  {name}", *(f"    {key}: {value}" for key, value in fields.items())]
    print(printable("\n".join(lines)), file=sys.stderr, flush=True)  # noqa: T201


def _print_panels(title: str, rows: dict[str, dict[str, str]]) -> None:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    text = Text()
    for name, fields in rows.items():
        text.append(f"{name}\n", style="bold cyan")
        for key, value in fields.items():
            style = "yellow" if key == "artifact" else ""
            text.append(f"  {key:9}", style="dim").append(f"{printable(value)}\n", style=style)
    text.rstrip()
    Console(file=sys.stderr).print(Panel(text, title=Text(title), title_align="left", border_style="green"))


def _print_json(document: dict[str, object]) -> None:
    try:
        print(json.dumps(document), flush=True)  # noqa: T201
    except BrokenPipeError:
        # The reader is gone; the artifacts are saved. Python must not try to flush into the pipe once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("Nobody reads the JSON on standard output any more.", file=sys.stderr)  # noqa: T201
