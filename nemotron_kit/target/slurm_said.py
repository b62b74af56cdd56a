"""Why a job has no record of its own: what srun, slurmstepd and their plugins wrote beside its script."""

from __future__ import annotations

import re
from pathlib import Path

from nemotron_kit.runs.logs import neutralise
from nemotron_kit.target.submissions import FOLDER

_READ = 20_000
_LONGEST = 300
# A word of Slurm's or, behind it, of Pyxis' (which passes on enroot's).
_SLURM = re.compile(r"(?:srun|slurmstepd(?:-([^\s:]+))?|pyxis): (?:fatal: |error: )?(?:pyxis: *)?")
# What stands around the reason: progress, and that something failed.
_AROUND = re.compile(
    r"\[INFO\]|warning: |cluster configuration lacks|spank: |Failed to invoke spank|printing enroot log|child \d+ |"
    r"import(?:ing|ed) docker image|created \d+ |Parallel unsquashfs|\d+ inodes|couldn't create enroot start|"
    r"container was not started|\[ERROR\] \S+ exited|(?:\S+: )?tasks? [\d,-]+: |Terminating|\*\*\* |launch/slurm|\Z"
)
# The script's own line, since srun names its output by a number that a task of an array has besides its id.
_NUMBER = re.compile(r"^nemotron: job (\d+) ", re.MULTILINE)


def said(run: Path, job: int, name: str, slurm_id: str) -> str | None:
    """`, before the job began: …` or `: …`, a reason of a line or two for a job that left no record; None where none is
    to be found. `name` and `slurm_id` are those of the submission.

    A worker that began (it has a log) may have been ended because another node's could not.
    """
    began = (run / "jobs" / str(job) / "logs" / "job.log").exists()
    folder = run / FOLDER
    script = _text(folder / f"sbatch_{name}_{slurm_id}.out")
    number = (_NUMBER.findall(script) or [slurm_id])[-1]
    logs = sorted(folder.glob(f"log-{name}_{number}_*.out"), key=lambda path: path.stat().st_mtime)
    lines = telling(_text(logs[-1]), slurm_only=began) if logs else []
    lines = lines or telling(script, slurm_only=True)
    return f"{'' if began else ', before the job began'}: {'; '.join(lines)}" if lines else None


def telling(text: str, *, slurm_only: bool = False) -> list[str]:
    """The first two lines of Slurm's that say why, the node in front; without such, the program's last error, unless
    `slurm_only`."""
    lines = [neutralise(line.strip())[:_LONGEST] for line in text.splitlines() if line.strip()]
    found: dict[str, str] = {}
    for match in filter(None, map(_SLURM.match, lines)):
        word = match.string[match.end() :].strip()
        if not _AROUND.match(word):
            found.setdefault(word, f"{match[1]}: {word}" if match[1] and not found else word)
    others = [line for line in lines if not _SLURM.match(line)]
    errors = [line for line in others if "rror" in line] or others
    own = [line.removeprefix("error: ") for line in errors[-1:]]
    return list(found.values())[:2] or ([] if slurm_only else own)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_READ).decode(errors="replace")
    except OSError:
        return ""
