"""Rendering sbatch scripts in a process beside the launch: it imports NeMo-Run, which takes seconds, while the launch
composes. A launch that did not start one renders by itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemotron_kit.plan.resources import Resources
    from nemotron_kit.plan.runconfig import RunConfig
    from nemotron_kit.plan.slurm import Script

_beside: list[subprocess.Popen[str]] = []


def start() -> None:
    """Start the process, unless there is one. It ends with this one."""
    if not _beside:
        _beside.append(
            subprocess.Popen(
                [sys.executable, "-P", "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )
        )


def ask(config: RunConfig, resources: Resources, script: Script, batch: bool) -> str | None:
    """NeMo-Run's script; None where no process was started, or it could not: rendering here then says why."""
    if not _beside:
        return None
    process = _beside[0]
    assert process.stdin is not None and process.stdout is not None  # noqa: S101 — Popen was given pipes
    request = {"config": asdict(config), "resources": asdict(resources), "script": asdict(script), "batch": batch}
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        text: str | None = json.loads(process.stdout.readline())["text"]
    except (OSError, ValueError):  # it has ended
        return None
    return text


def main() -> None:
    """Answer requests, one a line, until there are no more."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    without_torch()
    import nemo_run  # noqa: F401

    for line in sys.stdin:
        print(json.dumps({"text": _rendered(line)}), file=answers, flush=True)


def without_torch() -> None:
    """Hide torch from a process of our own: NeMo-Run imports it where it is installed, which is half of its time, and
    works without."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def _rendered(line: str) -> str | None:
    from nemotron_kit.plan.resources import Resources
    from nemotron_kit.plan.runconfig import RunConfig
    from nemotron_kit.plan.slurm import Script, render_here

    request = json.loads(line)
    script: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in request["script"].items()
    }
    try:
        return render_here(
            RunConfig(**request["config"]), Resources(**request["resources"]), Script(**script), request["batch"]
        )
    # The launch renders it again, and has the error then.
    except Exception:  # noqa: BLE001
        return None


if __name__ == "__main__":
    main()
