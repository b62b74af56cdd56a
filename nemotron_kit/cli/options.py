"""The options that every command has, and those of Hydra: one table each for `nemotron` and `python -m nemotron_kit`.

Help, completion and parsing all read these tables. Nothing heavy is imported: help must answer in milliseconds.
"""

from __future__ import annotations

NOTHING, VALUE, MAYBE = "nothing", "value", "maybe"
CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
WANDB = ("project", "entity", "run_name", "tags", "notes")
# Options with a dot (`--art.X V`): the part before the dot → (the rest of the usage, the help text).
PREFIXES = {
    "art": ("SLOT REF", "use this artifact: v3, Name, Name:v3, an alias, or a path"),
    "run": ("KEY VALUE", "set one field of the profile for this job (also --batch.KEY)"),
    "batch": ("", ""),
    "wandb": ("KEY VALUE", "W&B: project, entity, run-name, tags, notes"),
}

# The settings of `hydra/launcher=nemo_run` for a recipe's sweep (hydra.launcher.KEY=VALUE).
LAUNCHER = {
    "profile": ("NAME", "send the jobs to a profile of env.toml, as --run NAME does"),
    "max_parallel": ("N", "at most N jobs at a time"),
    "via": ("nemo_run|kit", "start jobs on this machine by NeMo-Run or as plain processes"),
    "detach": ("true", "submit the jobs and return, as --batch does"),
    "objective": ("METRIC", "the metric whose last value a job gives the sweeper"),
}


# Kinds of an option's value: a span of time, and a text of an option that may be given again.
SPAN, SEVERAL = "span", "several"


class Option:
    """One option. `spelled` has its short form, if there is one, its long form and, unless it is a switch, what its
    value is called: "-n --tail N"; a value in brackets may be left out. It is a text, or by `kind` a SPAN, a text of
    SEVERAL, one of a tuple of texts, or a whole number from `kind` on; `default` is one as typed.

    `name` has underscores, `flag` is the long form as typed (--dry-run); `takes` is NOTHING, VALUE or MAYBE."""

    __slots__ = ("choices", "default", "flag", "help", "kind", "metavar", "name", "short", "takes")

    def __init__(
        self, spelled: str, help_text: str = "", kind: str | int | tuple[str, ...] = "", default: str | None = None
    ) -> None:
        *forms, value = spelled.split()
        if value[0] == "-":
            forms, value = [*forms, value], ""
        self.flag, self.short = forms[-1], forms[0] if len(forms) > 1 else ""
        self.name = self.flag[2:].replace("-", "_")
        self.metavar, self.help = value.strip("[]"), help_text
        self.takes = MAYBE if value[:1] == "[" else VALUE if value else NOTHING
        self.kind, self.choices, self.default = kind, kind if isinstance(kind, tuple) else (), default

    def respelled(self, short: str) -> Option:
        """The same option with another short form, or with none."""
        value = f"[{self.metavar}]" if self.takes == MAYBE else self.metavar
        return Option(f"{short} {self.flag} {value}", self.help, self.kind, self.default)


_OURS = (
    Option("-r --run PROFILE", "run the job on a profile of env.toml, wait for it and print its log"),
    Option("-b --batch PROFILE", "submit the job to a profile and return at once"),
    Option("--after RUN", "start when that run has succeeded (may be given again)"),
    Option("--name NAME", "a name for the run, in addition to its id"),
    Option("--tag TAG", "a tag, by which nemotron runs can list the run (may be given again)"),
    Option("--note TEXT", "a note on the run, printed by nemotron runs show"),
    Option("-d --dry-run", "print the plan and its problems; start and write nothing"),
    Option("--json", "print the run's end as JSON (with --dry-run: the whole plan)"),
)
# If a command has a field with one of these names, `--NAME` sets the field.
LABELS = ("name", "tag", "note")
_CONFIG = Option("-c --config NAME|PATH", "the config file, by name or by path")
_HELP = Option("-h --help", "show this help")
_HYDRA = (
    Option("-m --multirun", "sweep: one job for each value of `key=a,b`"),
    Option(f"--cfg {'|'.join(CFG)}", "print the composed config instead of running", CFG),
    Option("--resolve", "with --cfg: resolve interpolations"),
    Option("--package KEY", "with --cfg: only this part of the config"),
    Option("--info [TOPIC]", "print Hydra's information: " + ", ".join(INFO), INFO),
    Option("--config-dir DIR", "an additional folder of configs"),
    Option("--hydra-help", "print Hydra's help"),
)
# Hydra's short options: valid in `python -m nemotron_kit`; in `nemotron` a command's fields may use them.
_HYDRA_SHORT = {"cfg": "-c", "package": "-p", "info": "-i", "config_dir": "-cd", "multirun": "-m"}

# Hydra's flags that are not supported: long name → (short form, what to use instead).
REFUSED = {
    "config_name": (
        "-cn",
        "The primary config is nemotron_kit's. A job's config is chosen by config=NAME, in `nemotron` by -c.",
    ),
    "config_path": (
        "-cp",
        "The primary config is nemotron_kit's. --config-dir DIR adds a folder of configs.",
    ),
    "shell_completion": (
        "-sc",
        "`nemotron completion bash` (zsh, fish) prints a completion script.",
    ),
    "experimental_rerun": ("", "It would load a pickle. `nemotron runs rerun ID` launches a recorded run again."),
}


class Table:
    """The options of one spelling, by long name (underscores) and by short form; `fields`: also a command's fields."""

    def __init__(self, options: tuple[Option, ...], *, fields: bool) -> None:
        self.options, self.fields = options, fields
        self.long = {option.name: option for option in options}
        self.short = {option.short: option for option in options if option.short}
        if "config" in self.long:
            self.long["config_file"] = self.long["config"]


NEMOTRON = Table((_CONFIG, *_OURS, *_HYDRA, _HELP), fields=True)
HYDRA = Table(
    (
        *(option.respelled("-b" if option.name == "batch" else "") for option in _OURS),
        *(option.respelled(_HYDRA_SHORT.get(option.name, "")) for option in _HYDRA),
        Option("-r --run-here", "Hydra's --run: the default"),
        Option("--version", "print the version"),
        _HELP,
    ),
    fields=False,
)
HYDRA_FLAGS = tuple(option.name for option in _HYDRA)


def key(name: str) -> str:
    """`--dry-run`, `--dry_run` and `dry-run` are one name: dry_run."""
    return name.lstrip("-").replace("-", "_")


def is_override(token: str) -> bool:
    """Whether an argument is in Hydra's override grammar: `key=value`, `+key=value`, `++key=value`, `~key`. `~/x` is a
    path; no key begins with a dash, also after `--`."""
    if token.startswith("-"):
        return False
    return "=" in token or (token.startswith("~") and len(token) > 1 and not token.startswith("~/"))


def is_option(token: str) -> bool:
    """Whether an argument begins with a dash; a single `-` does not count."""
    return len(token) > 1 and token[0] == "-"


def split(token: str) -> tuple[str, str | None]:
    """`--name=value` as (name, value); value is None without a `=`."""
    name, equals, value = token.partition("=")
    return name, value if equals else None


_DOTTED = Option("--dotted VALUE")


def known(token: str, table: Table = NEMOTRON) -> Option | None:
    """The option of `table` that `token` (`--config=x`, `-c`, `-cx`) names; None for a field's option or an unknown
    one; all options with a dot are one."""
    name, _ = split(token)
    if token.startswith("--"):
        prefix, dot, _ = name[2:].partition(".")
        if dot and prefix in PREFIXES:
            return _DOTTED
        return table.long.get(key(name))
    return table.short.get(name) or table.short.get(name[:2])


def takes_next(token: str) -> bool | None:
    """Whether the argument after `token` is its value; None if that is not known (a field's option, `--info`)."""
    option = known(token)
    if option is None or option.takes == MAYBE:
        return None
    joined = "=" in token or (not token.startswith("--") and token != option.short)
    return option.takes == VALUE and not joined
