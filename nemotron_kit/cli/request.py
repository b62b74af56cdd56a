"""The request that a command line makes, and the conversion of options to Hydra overrides."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from nemotron_kit.cli.options import WANDB, key
from nemotron_kit.errors import UserError, closest, near
from nemotron_kit.lazy import Value
from nemotron_kit.quoting import hydra_field, hydra_quoted, hydra_text, hydra_untyped, omegaconf_escaped

if TYPE_CHECKING:
    from nemotron_kit.spec.plan import Labels


class Help(NamedTuple):
    """The help of the node at `path`. `asked` is False for a group given without a command: exit code 2."""

    path: tuple[str, ...] = ()
    asked: bool = True


class Version(NamedTuple):
    """`--version`."""


class Tool(NamedTuple):
    """A command of tools.TOOLS, with the arguments after its name."""

    name: str
    argv: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Job(Value):
    """A job, or a sweep of jobs, as a command line describes it.

    `overrides` are Hydra overrides in the order typed, including fields given as flags, `--art.X` (`run.X=`),
    `--run.KEY` (`run.env.KEY=`) and `--wandb.KEY` (`run.wandb.KEY=`). `config`, `profile` and `mode` are None if the
    command line leaves them to the config. `flags` are those of Hydra by their long names: ("--cfg=job", "--multirun").
    `after` are the runs that must have succeeded before it starts. `recipe` and `stage` are "" only in Hydra's
    spelling, for a sweep over them or if they are not given.
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
    name: str | None = None
    tags: tuple[str, ...] = ()
    note: str | None = None

    @property
    def multirun(self) -> bool:
        """Whether it is a sweep (-m)."""
        return "--multirun" in self.flags

    @property
    def labels(self) -> Labels:
        """The run's name, tags and note. Raises UserError for invalid ones."""
        from nemotron_kit.spec.plan import Labels  # help reads no plans

        return Labels(self.name, self.tags, self.note)

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the command: ("nano3", "data", "prep", "pretrain")."""
        return (self.recipe, *self.stage.split("/"))

    def flag(self, name: str) -> str | None:
        """The value of one of Hydra's flags ("--cfg" → "job"; "" for one without a value), None if it is not given."""
        return dict(flag.partition("=")[::2] for flag in self.flags).get(name)


Request = Help | Version | Tool | Job


def hydra_overrides(job: Job) -> list[str]:
    """The job as overrides of one composition: `recipe=nano3 stage=data/prep/pretrain config=tiny …`."""
    choices = {"recipe": job.recipe, "stage": job.stage, "config": job.config}
    overrides = [f"{key}={hydra_text(text)}" for key, text in choices.items() if text]
    overrides += [f"run.profile={hydra_text(job.profile)}"] if job.profile else []
    overrides += [f"run.mode={job.mode}"] if job.mode else []
    given = {override.partition("=")[0].lstrip("+~") for override in job.overrides}
    # A sweep that leaves this machine goes through the launcher plugin, unless another one is named.
    if job.multirun and job.profile and job.mode in ("run", "batch") and "hydra/launcher" not in given:
        wanted = {"hydra/launcher": "nemo_run", "hydra.launcher.profile": hydra_text(job.profile)}
        overrides += [f"{key}={text}" for key, text in wanted.items() if key not in given]
    return overrides + list(job.overrides)


def hydra_spelling(job: Job) -> list[str]:
    """The arguments of `python -m nemotron_kit` for the same job, without --dry-run and --json."""
    labels = {"--name": [job.name], "--tag": job.tags, "--note": [job.note]}
    label_flags = [f"{flag}={text}" for flag, texts in labels.items() for text in texts if text]
    return hydra_overrides(job) + list(job.flags) + [f"--after={run}" for run in job.after] + label_flags


def shell_line(job: Job) -> str:
    """`hydra_spelling` as a line to paste into a shell."""
    return shlex.join(["python", "-m", "nemotron_kit", *hydra_spelling(job)])


# What other launchers, trackers and programs call an option → what it is here. Those that are a field of the profile
# (--partition, --gpus) are in config/wording.py.
_ELSEWHERE = {
    **dict.fromkeys(("dryrun", "test_only", "dry", "print_only"), "--dry-run"),
    **dict.fromkeys(("sweep", "grid", "hparams"), "-m KEY=VALUE"),
    **dict.fromkeys(("set", "override", "overrides", "opts", "args", "param"), "KEY=VALUE without an option"),
    **dict.fromkeys(("detach", "background", "no_wait", "submit", "async"), "--batch PROFILE"),
    **dict.fromkeys(("profile", "executor", "cluster", "target", "host", "on"), "--run VALUE, or --batch VALUE"),
    **dict.fromkeys(("local", "here", "standalone"), "a line without --run and --batch, which runs here"),
    **dict.fromkeys(("run_name", "experiment", "exp_name", "experiment_name", "wandb_name"), "--name VALUE"),
    **dict.fromkeys(("wandb", "wandb_project", "project", "project_name", "report_to"), "--wandb.project VALUE"),
    **dict.fromkeys(("wandb_entity", "entity", "team"), "--wandb.entity VALUE"),
    **dict.fromkeys(("wandb_tags", "tags", "group"), "--tag VALUE"),
    **dict.fromkeys(("description", "message", "comment"), "--note VALUE"),
    **dict.fromkeys(("dependency", "afterok", "depends_on"), "--after RUN"),
    **dict.fromkeys(("resume", "restart", "resume_from", "continue"), "nemotron runs resume ID"),
    **dict.fromkeys(("verbose", "debug", "log_level"), "hydra.verbose=true"),
    "version": "nemotron --version",
    "ntasks": "--run.ntasks_per_node=VALUE, or -d (--dry-run)",
    **dict.fromkeys(("print_config", "show_config", "config_only"), "--cfg job"),
}
# Short options of sbatch, srun, accelerate and others, as long names.
_SHORT_ELSEWHERE = {
    "-p": "partition", "-N": "nodes", "-t": "time", "-A": "account", "-J": "run_name", "-q": "qos", "-G": "gpus",
    "-w": "nodelist", "-C": "constraint", "-o": "override", "-v": "verbose", "-n": "ntasks",
}  # fmt: skip

# `run.X` for these is a key of the section run, not a field of the profile.
_SECTIONS = ("env", "profile", "mode", "recipe", "wandb")
_OPEN = ("dict", "any")
_GROUPS = ("recipe", "stage", "config")

Row = dict[str, Any]


class Assignments:
    """The overrides of one command line, in the order typed. `where` (`nano3 pretrain`) is used in errors."""

    def __init__(self, detail: dict[str, Any], where: str, help_line: str) -> None:
        self.where, self.help_line = where, help_line
        self.fields: dict[str, Row] = {row["name"]: row for row in detail["fields"]}
        self.groups: dict[str, list[str]] = detail["groups"]
        self.shorts: dict[str, Row] = {row["short"]: row for row in detail["fields"] if row.get("short")}
        self.interactive = bool(detail.get("interactive"))
        self.slots = [each["slot"] for each in detail["artifacts"]]
        self.overrides: list[str] = []
        self._lists: dict[str, tuple[int, list[str]]] = {}
        self._artifacts: dict[int, tuple[str, str]] = {}  # position in the overrides → slot, reference as typed

    def set(self, target: str, text: str) -> None:
        """`target=text`, where `text` is in Hydra's grammar already."""
        self.overrides.append(f"{target}={text}")

    def field(self, row: Row, text: str) -> None:
        """Set a field of the config from the typed text: `[a,b]` or one element of a list, else the value."""
        if row["name"] in _GROUPS:
            hint = f"Set its fields: {row['name']}.KEY=VALUE."
            raise UserError(f"{row['name']} is a block, and {row['name']}=… selects one of Hydra's groups.", hint=hint)
        choices = row.get("choices")
        optional_null = text == "null" and row["type"].endswith("|null")
        if choices and not row.get("free") and text not in choices and not optional_null and "${" not in text:
            hint = f"Sweep with -m {row['name']}={text}." if "," in text else near(text, choices)
            raise UserError(f"{row['name']} has no choice {text!r}.", hint=hint)
        if row.get("verbatim"):
            self.set(row["name"], hydra_quoted(omegaconf_escaped(text)))
        elif row["kind"] == "list":
            self._append(row["name"], text, row.get("of", "any"))
        else:
            self.set(row["name"], hydra_field(text, row["kind"]))

    def art(self, slot: str, text: str) -> None:
        """`--art.SLOT REFERENCE`. An undeclared slot may be one that the command's config file names; one similar to a
        declared slot is a typing error."""
        name = key(slot)
        if name not in self.slots and (name in _SECTIONS or not name.isidentifier() or closest(name, self.slots)):
            raise UserError(f"{self.where} has no artifact input {slot!r}.", hint=near(name, self.slots))
        self._artifacts[len(self.overrides)] = (name, text)
        self.set(f"run.{name}", hydra_field(text, "str"))

    def split_artifacts(self, *, swept: bool) -> None:
        """In a sweep, `--art.data A:v0,B:v0` is two references: no artifact's name has a comma. Raises UserError where
        one job is given several."""
        for position, (name, text) in self._artifacts.items():
            # Of single references, only an existing path may have a comma.
            if "," not in text or "${" in text or os.path.exists(os.path.expanduser(text)):  # noqa: PTH110, PTH111
                continue
            if not swept:
                raise UserError(f"--art.{name}: {text!r} names several artifacts.", hint="Add -m to sweep over them.")
            parts = [hydra_field(part.strip(), "str") for part in text.split(",")]
            self.overrides[position] = f"run.{name}={','.join(parts)}"

    def wandb(self, name: str, text: str) -> None:
        """`--wandb.project NAME`; `--wandb.tags a,b`, which may be repeated."""
        if key(name) not in WANDB:
            raise UserError(f"--wandb has no setting {name!r}.", hint=near(key(name), WANDB))
        if key(name) == "tags":
            for tag in filter(None, (part.strip() for part in text.split(","))):
                self._append("run.wandb.tags", tag, "str")
        else:
            self.set(f"run.wandb.{key(name)}", hydra_field(text, "str"))

    def run(self, name: str, text: str) -> None:
        """`--run.KEY VALUE`: a field of the profile (`run.env.KEY`), or a key of the section run (`run.KEY`)."""
        first, dot, below = name.partition(".")
        is_launcher_key = key(first) in (*_SECTIONS, *self.slots)
        self.set(f"run.{'' if is_launcher_key else 'env.'}{key(first)}{dot}{below}", hydra_untyped(text))

    def open_block(self, name: str) -> bool:
        """Whether `name` lies below a field that takes any key (`--model.hidden-size 64`)."""
        above = name.rpartition(".")[0]
        while above:
            if self.fields.get(above, {}).get("kind") in _OPEN:
                return True
            above = above.rpartition(".")[0]
        return False

    def unknown(self, name: str, known: Iterable[str], text: str | None = None) -> UserError:
        """The error for an unknown option with the value `text`; `known` are the global ones."""
        from nemotron_kit.config.wording import abbreviated, profile_field  # only needed for an error

        wanted, value = key(name), shlex.quote(text) if text else ""
        slots, options = [f"art.{slot}" for slot in self.slots], list(known)
        names = [*options, *self.fields, *self.groups, *slots]
        alike = [each for each in names if each == wanted or each.rpartition(".")[2] == wanted]
        alike = alike or abbreviated(wanted, self.fields)
        spelled = ["--" + each.replace("_", "-") for each in alike]
        if value and len(alike) == 1 and alike[0].startswith("art."):
            spelled = [f"{spelled[0]} {value}"]
        elif not alike and not self.interactive:
            meant = _SHORT_ELSEWHERE.get(name, wanted) if len(name) == 2 else wanted
            if field := profile_field(meant):
                spelled = [f"--run.{field}{f'={value}' if value else ''}"]
            elif meant in _ELSEWHERE:
                place = "KEY=VALUE" if "=" in value else "VALUE"
                spelled = [_ELSEWHERE[meant].replace(place, value or place)]
        # Without the dashes, which would make any two options more alike.
        spelled = spelled or [f"--{each}" for each in closest(wanted.replace("_", "-"), _dashed(names))]
        if spelled:
            hint = f"Did you mean {', '.join(dict.fromkeys(spelled))}?"
        else:
            # Where the command has fields, those, which no other program's options can be.
            fields = _dashed((*self.fields, *slots))
            shown = (fields or sorted(_dashed(options)))[:12]
            more = len(fields) + len(options) - len(shown)
            hint = f"There is: {', '.join(f'--{each}' for each in shown)}{f' and {more} more' if more else ''}."
        return UserError(f"{self.where} has no option {name}.", hint=f"{hint} `{self.help_line}` lists them all.")

    def _append(self, target: str, text: str, of: str) -> None:
        """One more element; `[a,b]` or `${…}`, given once, is the whole list."""
        whole = text[:1] + text[-1:] == "[]" or (text.startswith("${") and text.endswith("}"))
        position, elements = self._lists.setdefault(target, (len(self.overrides), []))
        if not elements:
            self.overrides.append("")
        elif of not in _OPEN and (whole or elements[0].startswith("[")):
            raise UserError(
                f"{target} is given as a whole list and by element.", hint="Give one [a,b], or each element."
            )
        elements.append(hydra_untyped(text) if whole else hydra_field(text, of))
        listed = elements[0] if whole and len(elements) == 1 else f"[{','.join(elements)}]"
        self.overrides[position] = f"{target}={listed}"


def _dashed(names: Iterable[str]) -> list[str]:
    return [name.replace("_", "-") for name in names]
