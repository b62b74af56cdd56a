"""A home with something of everything that `nemotron ui` shows, and what the names of hostile users look like."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.reference import Pin
from nemotron_kit.artifacts.registry import LocalRegistry
from nemotron_kit.artifacts.store import Draft
from nemotron_kit.home import nemotron_home, new_run_id
from nemotron_kit.runs.folder import RunFolder, create_run

HOSTILE = "<script>window.hacked=1</script>\"'><img src=x onerror=window.hacked=1>\u202egpj.exe"
# A metric that is named by half a character, which UTF-8 has no bytes for.
HALF = '{"step": 1, "\\ud800": 1}\n'
_NOW = datetime.now(UTC)
_count = iter(range(1_000_000))


def rows(losses: Iterable[float], name: str = "loss") -> str:
    """The text of a metrics.jsonl."""
    start = _NOW.timestamp() - 3600
    lines = (
        {"step": step, name: value, "tokens_per_s": 1000 + step, "_timestamp": start + 2 * step}
        for step, value in enumerate(losses)
    )
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def falling(rate: float, steps: int = 40) -> list[float]:
    """Losses of a training: the rate closest to 0.003 is the best."""
    speed = 4 * math.exp(-(math.log10(rate / 0.003) ** 2))
    return [1.5 + 8 * math.exp(-speed * step / steps) + 0.05 * math.sin(step) for step in range(steps)]


def launched(
    stage: str,
    jobs: Iterable[Mapping[str, str]] = ({},),
    *,
    recipe: str = "nano3",
    minutes: int = 0,
    code: int | None = 0,
    log: str = "",
    error: str | None = None,
    repository: Mapping[str, Any] | None = None,
    **plan: Any,
) -> RunFolder:
    """A run with these jobs (file name → text); `code` None: it is still running, as this process."""
    run_id = new_run_id(
        recipe, stage.replace("/", "-"), now=_NOW - timedelta(minutes=minutes + 10, seconds=-next(_count))
    )
    texts = [{"config.yaml": f"train:\n  lr: 0.001\nstage: {stage}\n", **job} for job in jobs]
    if repository:
        plan["code"] = repository
    values = {"recipe": recipe, "stage": stage, "executor": "local", "place": {"run": "/r"}, "settings": {}}
    words = f"nemotron {recipe} {stage.replace('/', ' ')} -c tiny"
    run = create_run(run_id, {**values, "command_line": words, **plan}, texts)
    for job in run.jobs():
        job.transition("running")
        with job.open_log() as file:
            file.write(log.encode())
        if code is not None:
            job.finish(code, error=error)
    return run


def saved(registry: LocalRegistry, name: str, run: RunFolder, *inputs: Pin, text: str = "x") -> Pin:
    """A version with one file, saved by this run, which has read `inputs`."""
    folder = registry.root.parent / "files" / f"{name}-{next(_count)}"
    folder.mkdir(parents=True)
    (folder / "part-0.txt").write_text(text)
    pin = registry.commit(Draft(name, "Data", folder, folder, {}, {}, "2026-11-29T12:00:00", run.id, inputs))
    job = run.job()
    record = {"inputs": {f"in{at}": each.to_dict() for at, each in enumerate(inputs)}, "outputs": [pin.to_dict()]}
    (job.path / "artifacts.json").write_text(json.dumps(record))
    return pin


def fill() -> dict[str, RunFolder]:
    """Fill $NEMOTRON_HOME with runs, a sweep, a pipeline and a lineage; by their names here."""
    registry = LocalRegistry(nemotron_home() / "artifacts")
    found: dict[str, RunFolder] = {}
    raw = Pin("corpus", None, None, "Data", "/data/raw/corpus.jsonl")
    found["prep"] = launched("data/prep", minutes=90, log="tokenizing\n42 shards\n")
    shards = saved(registry, "PretrainData", found["prep"], raw)
    found["pretrain"] = launched(
        "pretrain", [{"metrics.jsonl": rows(falling(0.003, 400))}], minutes=60, log="step 1\nstep 2\ndone\n"
    )
    model = saved(registry, "Model", found["pretrain"], shards)
    found["slow"] = launched("pretrain", [{"metrics.jsonl": rows(falling(0.0002, 400))}], minutes=50)
    saved(registry, "Model", found["slow"], shards, text="y")
    found["sft"] = launched("sft", [{"metrics.jsonl": rows(falling(0.002, 120))}], minutes=30)
    tuned = saved(registry, "ChatModel", found["sft"], model)
    registry.set_alias("ChatModel", "production", tuned.version or 0)
    found["failed"] = launched("rl", minutes=25, code=1, error="RewardError: no verifier 'math'", log="starting\n")
    points = [(rate, size) for rate in (0.0003, 0.001, 0.003, 0.01) for size in (8, 16, 32)]
    found["sweep"] = launched(
        "pretrain",
        [
            {
                ".hydra/overrides.yaml": json.dumps([f"train.lr={rate}", f"train.batch={size}"]),
                "metrics.jsonl": rows(value + 3 / size for value in falling(rate)),
            }
            for rate, size in points
        ],
        minutes=20,
        kind="sweep",
    )
    found["hostile"] = launched(
        "sft",
        [{"metrics.jsonl": rows(falling(0.001), HOSTILE) + HALF, "config.yaml": f"name: {json.dumps(HOSTILE)}\n"}],
        recipe="demo",
        minutes=10,
        log=f"{HOSTILE}\n\x1b[31mred\x1b[0m\n",
        command_line=f"nemotron demo sft 'name={HOSTILE}'",
        error=None,
    )
    found["hostile"].label(name=HOSTILE, tags=[HOSTILE, "odd"], note=HOSTILE)
    found["running"] = launched("sft", [{"metrics.jsonl": rows(falling(0.002, 10))}], code=None, log="step 0\n")
    found["pretrain"].label(name="baseline", tags=["paper"], note="the one to beat")
    return found


def append(run: RunFolder, text: str, file: str = "logs/job.log") -> None:
    """Write to a running job's file, as the job does."""
    with Path(run.job().path / file).open("a") as opened:
        opened.write(text)
