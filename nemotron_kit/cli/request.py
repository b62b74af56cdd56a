"""What a command line asks for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import NamedTuple

from nemotron_kit.cli.quoting import string


class Help(NamedTuple):
    """The help of the node at `path`. `asked` is False for a group that was named without a command: exit 2."""

    path: tuple[str, ...] = ()
    asked: bool = True


class Version(NamedTuple):
    """`--version`."""


class Tool(NamedTuple):
    """One of nemotron's own commands (tree.TOOLS), with the words after its name."""

    name: str
    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A job.

    `overrides` are Hydra's words in the order typed: fields given as flags, `--art.X` (`run.X=`), `--run.KEY`
    (`run.env.KEY=`) and `--wandb.KEY` (`run.wandb.KEY=`) among them. `config`, `profile` and `mode` are None where the
    command line leaves them to the config. `flags` are Hydra's own, by their long names: ("--cfg=job", "--multirun").
    `after` are the runs that must have succeeded before it starts.
    `recipe` and `stage` are "" only in Hydra's spelling, where a sweep or nothing stands in their place.
    """

    recipe: str = ""
    stage: str = ""
    config: str | None = None
    profile: str | None = None
    mode: str | None = None
    overrides: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    dry_run: bool = False
    json: bool = False

    @property
    def multirun(self) -> bool:
        return "--multirun" in self.flags

    @property
    def path(self) -> tuple[str, ...]:
        """The words of the command: ("nano3", "data", "prep", "pretrain")."""
        return (self.recipe, *self.stage.split("/"))

    def flag(self, name: str) -> str | None:
        """The value of one of Hydra's flags ("--cfg" → "job"; "" for one without a value), None if it isn't there."""
        return dict(flag.partition("=")[::2] for flag in self.flags).get(name)


Request = Help | Version | Tool | Job


def hydra_words(job: Job) -> list[str]:
    """The job as overrides of one composition: `recipe=nano3 stage=data/prep/pretrain config=tiny …`."""
    choices = {"recipe": job.recipe, "stage": job.stage, "config": job.config}
    words = [f"{key}={string(text)}" for key, text in choices.items() if text]
    words += [f"run.profile={string(job.profile)}"] if job.profile else []
    words += [f"run.mode={job.mode}"] if job.mode else []
    return words + _launcher(job) + list(job.overrides)


def hydra_spelling(job: Job) -> list[str]:
    """The words that `python -m nemotron_kit` takes for the same job (--dry-run and --json are left out)."""
    return hydra_words(job) + list(job.flags) + [f"--after={run}" for run in job.after]


def shell_line(job: Job) -> str:
    """`hydra_spelling` as a line to paste into a shell."""
    return shlex.join(["python", "-m", "nemotron_kit", *hydra_spelling(job)])


def _launcher(job: Job) -> list[str]:
    """A sweep that leaves this machine goes through the launcher plugin, unless another one is named."""
    if not (job.multirun and job.profile and job.mode in ("run", "batch")):
        return []
    given = {override.partition("=")[0].lstrip("+~") for override in job.overrides}
    if "hydra/launcher" in given:
        return []
    wanted = {"hydra/launcher": "nemo_run", "hydra.launcher.profile": string(job.profile)}
    return [f"{key}={text}" for key, text in wanted.items() if key not in given]
