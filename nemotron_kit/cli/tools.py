"""The commands of nemotron that are no recipes, and their subcommands: one table for dispatch, help, completion and the
index, which accepts no recipe with such a name. Nothing heavy is imported.
"""

from __future__ import annotations

from nemotron_kit.cli.options import SEVERAL, SPAN, Option
from nemotron_kit.errors import UserError, near

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Kinds of positional arguments: completion offers them, and ToolParser parses them by these names.
RUN_TAGS, RUN_NOTE, RUN_NAME, JOB, JOBS, ANY_JOBS = "run, tags", "run, note", "run, name", "job", "jobs", "any jobs"
PROFILE, ARTIFACT, FIELDS, NEW, VERSIONS = "profile", "artifact", "fields", "new", "versions"
FOLDERS = "folders"
ID = "a run's id, the start of one, its last six digits, its name, or latest (the last launch)"
JOB_ID = f"{ID}; ID/N is its job N"


class ToolCommand:
    """A command of nemotron that is no recipe, or a subcommand of one. `function` is "module:name", called with the
    arguments after the command (and if it has subcommands, when none is given). `takes` is the kind of its positional
    arguments, or `choices` are these; `options` are by their long names.

    A subcommand has a `usage` of its arguments, and `description` is the text of its help page, by default the summary;
    the other commands have a `page`, with {commands} and {options} in place of their lists."""

    __slots__ = ("choices", "commands", "description", "function", "options", "page", "summary", "takes", "usage")

    def __init__(
        self,
        function: str,
        summary: str,
        *options: Option,
        takes: str = "",
        usage: str = "",
        description: str = "",
        page: str = "",
        commands: dict[str, ToolCommand] | None = None,
        choices: tuple[str, ...] = (),
    ) -> None:
        self.function, self.summary, self.takes, self.choices = function, summary, takes, choices
        self.options = {option.flag: option for option in options}
        self.usage, self.description = usage, description or f"{summary[:1].upper()}{summary[1:]}."
        self.page, self.commands = page, commands or {}


class HelpPrinted(Exception):
    """The help page of a subcommand has been printed: there is nothing else to do."""


_JSON, _FOR_PROGRAMS = Option("--json", "print JSON"), Option("--json", "for programs")
_NAMED = (
    Option("--recipe NAME", "only runs of this recipe"),
    Option("--stage STAGE", "only runs of this stage, or of those below it: data/prep"),
    Option("--state STATE,…", "only runs in one of these states", SEVERAL),
)
_TAGGED = Option("--tag TAG", "only runs with this tag (may be given again: with all of them)", SEVERAL)
_FILTERS = (
    *_NAMED,
    Option("--since SPAN", "only runs of the last 90s, 30m, 2h, 3d, 1w, or since a date", SPAN),
    _TAGGED,
    Option("--limit N", "at most N runs (20; 0 for all)", 0),
)
_ONE_JOB = Option("--job N", "only this job of a run with several", 0)
_RUNS = {
    "show": ToolCommand(
        "nemotron_kit.cli.runs.show:show",
        "the plan, inputs, outputs, states, metrics and folder of a run",
        Option("--job JOB", "only this job of a run with several", 0),
        _JSON,
        Option("--sort METRIC", "sort a sweep's jobs, best first, by this metric or by value"),
        Option("--top N", "only the best N jobs of a sweep (20)", 1),
        Option("--csv", "print a sweep's table as CSV, with every job and metric"),
        takes=JOB,
        usage="ID[/N] [--sort METRIC] [--top N] [--csv|--json]",
        description="""\
Prints a run: its plan, inputs, outputs, states, metrics and folder. For a sweep also a table of its jobs, best first:
by --sort METRIC, by default by the values that they returned, else by the last value of the first loss, else accuracy,
reward or score. The lowest value is the best for a metric with loss, error or perplexity in its name (also as nll, ppl,
mse, rmse, mae, mape, wer, cer or bpb), and for a returned value unless the sweeper maximizes it; for all others the
highest is. --sort METRIC:min and METRIC:max say it.""",
    ),
    "attach": ToolCommand(
        "nemotron_kit.cli.runs.show_logs:attach",
        "follow its logs, from where the last attach stopped, until it ends",
        _ONE_JOB,
        Option("--all", "from the first line, not from where the last attach stopped"),
        takes=JOB,
        usage="ID[/N] [--all]",
    ),
    "logs": ToolCommand(
        "nemotron_kit.cli.runs.show_logs:logs",
        "print its log, or each job's log; -f follows until it ends",
        Option("-f --follow", "follow the log until the job ends"),
        Option("-n --tail N", "only the last N lines of each log", 0),
        _ONE_JOB,
        Option("--rank N", "the log of this rank", 0),
        takes=JOB,
        usage="ID[/N] [-f] [-n N] [--rank N]",
    ),
    "wait": ToolCommand(
        "nemotron_kit.cli.runs.control:wait",
        "wait until all have ended; the exit code is theirs",
        Option(
            "--patience S", "give up (exit code 3) when a run's state could not be read for S seconds (600)", 0, "600"
        ),
        takes=JOBS,
        usage="ID[/N] … [--patience S]",
    ),
    "cancel": ToolCommand(
        "nemotron_kit.cli.runs.control:cancel",
        "stop it: SIGTERM, then SIGKILL",
        Option("--job N", "only this job of the run", 0),
        Option("--grace S", "seconds between SIGTERM and SIGKILL", 0, "10"),
        takes=JOB,
        usage="ID[/N] [--grace S]",
        description="""\
Stops a run by SIGTERM, and by SIGKILL after the grace period; on a cluster, its scheduler does so.""",
    ),
    "resume": ToolCommand(
        "nemotron_kit.cli.runs.control:resume",
        "continue a stopped job from its checkpoint; submit a sweep's waiting jobs",
        takes=JOB,
        usage="ID[/N]",
        description="""\
Continues a stopped run under the same record. A job that failed, was cancelled or preempted, or whose launch was killed
before it started, gets another attempt in the same folder: training continues from the last checkpoint in it, and a job
without checkpoints starts from the beginning. For a sweep on a cluster, the jobs that were not submitted yet are: those
above the limit of jobs at a time, and those whose launch ended before. No job is submitted twice, and none that has
started is started again, unless it is named: ID/N. A job that waits for another run, and whose waiting
process has ended, waits again. To continue a pipeline, repeat its command; for its stage N, which is a run, give ID/N.
`nemotron runs rerun` launches a run again under a new record.""",
    ),
    "shell": ToolCommand(
        "nemotron_kit.cli.runs.control:shell",
        "open a shell where it runs, or run COMMAND there",
        Option("--job N", "the job of a run with several (0)", 0),
        Option("--node NAME", "the node of a job on several"),
        takes=JOB,
        usage="ID[/N] [--node NAME] [-- COMMAND]",
        description="Opens a shell on the machine and in the container of a run, or runs the command after -- there.",
    ),
    "rerun": ToolCommand(  # its function reads its arguments, and has its page
        "nemotron_kit.cli.runs.rerun:rerun",
        "launch it again with the same config and artifacts, and these overrides",
        Option("--run PROFILE"),
        Option("--batch PROFILE"),
        Option("--dry-run"),
        takes=JOB,
        usage="ID[/N] [KEY=VALUE …]",
    ),
    "diff": ToolCommand(
        "nemotron_kit.cli.runs.diff:diff",
        "print their differences: config, artifacts, code, environment, launch, results",
        _JSON,
        takes=JOBS,
        usage="A B [C …] [--json]",
        description="""\
Prints what differs between runs, one column for each, and their results. The exit code is 1 if anything but the results
differs, else 0.""",
    ),
    "plot": ToolCommand(
        "nemotron_kit.cli.runs.plot:plot",
        "draw the curves of a metric in the terminal",
        Option("--metric NAME", "the metric (by default the first loss, else the first metric)"),
        Option("--x AXIS", "the horizontal axis (step)", ("step", "time", "tokens"), "step"),
        Option("--height N", "lines, at most 200 (20)", 5, "20"),
        takes=JOBS,
        usage="ID[/N] … [--metric NAME] [--x step|time|tokens]",
        description="""\
Draws the curve of a metric for each job in the terminal: nemotron runs plot latest --metric loss --x tokens. Needs the
extra plot. --x time is the metric elapsed in seconds, else the time since the
first row; --x tokens the metric tokens.""",
    ),
    "tag": ToolCommand(
        "nemotron_kit.cli.runs.list:tag",
        "add tags, by which it can be listed",
        Option("--remove TAG", "remove this tag (may be given again)", SEVERAL),
        takes=RUN_TAGS,
        usage="ID TAG … [--remove TAG]",
    ),
    "note": ToolCommand("nemotron_kit.cli.runs.list:note", "set its note", takes=RUN_NOTE, usage="ID TEXT"),
    "rename": ToolCommand(
        "nemotron_kit.cli.runs.list:rename", "give it a name in addition to its id", takes=RUN_NAME, usage="ID NAME"
    ),
    "rm": ToolCommand(
        "nemotron_kit.cli.runs.remove:remove",
        "delete the folders of runs that have ended",
        Option("--older-than SPAN", "runs launched longer ago than: 12h, 30d", SPAN),
        *_NAMED,
        _TAGGED,
        Option("--keep N", "keep the newest N of the runs that match", 0),
        Option("--with-artifacts", "also remove the artifacts in these folders"),
        Option("--dry-run", "print what would be removed and what would be kept"),
        Option(
            "--force",
            "also runs that never started, of unknown state, whose files others need, or whose jobs wrote files into "
            "their copy of the code",
        ),
        Option("--here", "remove only the records on this machine, not the folders on the target"),
        _JSON,
        takes=ANY_JOBS,
        usage="ID … | --older-than 30d [--state S] [--keep N] [--dry-run]",
        description="""\
Deletes the folders of runs that have ended: those that are named, or all that match --older-than, --recipe, --stage,
--state and --tag, except the newest N (--keep N). A run whose folder contains a version of an artifact is kept;
--with-artifacts removes the version, too, unless another version was made from it or an alias names it.""",
    ),
    "du": ToolCommand(
        "nemotron_kit.cli.runs.remove:usage",
        "print the disk space of each run, the largest first",
        Option("--limit N", "at most N runs (20, as JSON all; 0 for all)", 0),
        _JSON,
        usage="[--limit N] [--json]",
    ),
    "watch": ToolCommand(
        "nemotron_kit.cli.runs.list:watch",
        "print the table of nemotron runs, refreshed until all have ended",
        *_FILTERS,
        usage="[--recipe R] [--state S] [--since 2h] …",
        description="""\
Prints the table of nemotron runs and refreshes it every 2 seconds, until all of its runs have ended or until Ctrl-C
(exit code 130; the runs continue): nemotron runs watch --recipe nano3 --since 1d. If standard output is no terminal,
the table is printed once.""",
    ),
}
_PROFILES = {
    "show": ToolCommand(
        "nemotron_kit.cli.profile_commands:show",
        "print a resolved profile, and where each value comes from",
        Option("--all", "also the fields that are not set"),
        Option("--json"),
        takes=PROFILE,
        usage="NAME [--all] [--json]",
    ),
    "check": ToolCommand(
        "nemotron_kit.cli.profile_commands:check",
        "connect to its target and check whether a launch would work",
        Option("--node", "run modules, conda, setup and the image's Python on a node, too (Slurm)"),
        _FOR_PROGRAMS,
        takes=PROFILE,
        usage="NAME [--node] [--json]",
    ),
    "login": ToolCommand(
        "nemotron_kit.cli.profile_commands:login",
        "open its ssh connection on this terminal (passwords, second factors)",
        Option("--close", "end the connection instead"),
        takes=PROFILE,
        usage="NAME [--close]",
    ),
    "clean": ToolCommand(
        "nemotron_kit.cli.profile_commands:clean_target",
        "remove files of past launches from its target that no run needs",
        Option("--unused SPAN", "unused for so long: 12h, 30d (default)", SPAN, "30d"),
        Option("--dry-run", "only print what would be removed"),
        _FOR_PROGRAMS,
        takes=PROFILE,
        usage="NAME [--unused 30d] [--dry-run] [--json]",
        description="""\
Removes from a profile's target the copies of code, packages and repositories of past launches that have not been used
for a while (--unused) and that no unfinished run needs. Runs and artifacts are not removed: see nemotron runs rm and
nemotron artifacts rm.""",
    ),
}
_ARTIFACTS = {
    "rm": ToolCommand(
        "nemotron_kit.cli.artifacts:remove",
        "remove versions from the registry",
        Option("--files", "delete the files that were registered, too"),
        Option("--dry-run", "print what would be removed"),
        Option("--force", "also one that others were made from, that a run read, or an alias names"),
        takes=VERSIONS,
        usage="NAME:vN … [--files] [--dry-run] [--force]",
        description="""\
Removes versions from the registry; their numbers are not used again. A version that others were made from, or that an
alias names, is only removed with --force. The files are kept unless --files is given; files that another version has,
too, are never deleted.""",
    ),
    "du": ToolCommand(
        "nemotron_kit.cli.artifacts:usage", "print the size of each name's versions", _FOR_PROGRAMS, usage="[--json]"
    ),
    "gc": ToolCommand(
        "nemotron_kit.cli.cleanup:collect",
        "remove leftovers, versions whose files are gone, and failed runs that nothing refers to",
        Option("--dry-run", "print what would be removed"),
        Option("--yes", "do not ask"),
        Option("--older-than SPAN", "which failed runs: 12h, 30d (30d)", SPAN, "30d"),
        Option("--unmounted", "also versions whose whole file system may be missing at the moment"),
        _FOR_PROGRAMS,
        usage="[--dry-run|--yes] [--older-than 30d] [--unmounted] [--json]",
        description="""\
Removes what nothing refers to: versions of which no file is left; runs that failed or were cancelled more than 30 days
ago (--older-than), have no name, tag or note, and contain no version; leftovers of commands that were killed. A version
that another version was made from, that a run read or that an alias names is kept, and so is a run that a kept version
or run refers to. Damaged records are repaired if their sha256 proves what they were, else dropped; numbers of versions
are not used again. Lists everything first and asks; without a terminal, --yes is needed: nemotron artifacts gc
--dry-run. To name an artifact that is called gc, write art://gc.""",
    ),
    "relocate": ToolCommand(
        "nemotron_kit.cli.cleanup:relocate",
        "record the new folder of files that were moved",
        Option("--dry-run", "compare the files, and print what would be changed"),
        _FOR_PROGRAMS,
        takes=FOLDERS,
        usage="OLD NEW [--dry-run] [--json]",
        description="""\
Records that files of versions which were in the folder OLD are now in NEW: nemotron artifacts relocate /data/old
/lustre/new. Each version's files are read and compared with the registered sizes and checksums; a version whose files
are not in NEW is left as it is, listed with why, and the exit code is 1. Versions in NEMOTRON_HOME need this only if
their files leave it: the home can be moved as a whole.""",
    ),
}
_RUNS_PAGE = """\
usage: nemotron runs [--recipe R] [--stage S] [--state S,…] [--since 2h] [--tag T] [--limit N] [--json]
       nemotron runs [filters] [--columns C,…] [--sort METRIC] [--top N] [--csv]
       nemotron runs COMMAND ID …

Lists the runs launched from this machine, newest first: recipe, state and duration; for running ones the step, the time
left and the last loss. The states of jobs on other machines are read from there. ID is a run's id, the start of one,
its last six digits, its name, or latest, the last launch; ID/N is its job N (the same as --job N), or stage N of a
pipeline; ID/2-5 are its jobs 2 to 5.

commands
{commands}

options
{options}

exit codes of wait, attach and resume: 0 succeeded, 1 failed, 3 unreachable or unknown, 4 cancelled, 75 preempted; of
show: 3 if the state is not known, else 0; of diff: 0 no difference, 1 different
"""
_PROFILES_PAGE = """\
usage: nemotron profiles [--json]
       nemotron profiles COMMAND NAME …

Lists the profiles of env.toml: where and how `--run NAME` and `--batch NAME` start a job.

commands
{commands}

options
{options}
"""
_ARTIFACTS_PAGE = """\
usage: nemotron artifacts [REFERENCE] [--alias ALIAS] [--verify] [--json]
       nemotron artifacts COMMAND …

Without a reference: lists the names in the registry. With a name: its versions. With a version (Name:v3, Name:alias):
its path, its inputs and the run that made it. Versions whose files are missing or changed, or whose record is damaged,
are marked.

commands
{commands}

options
{options}
"""
_UI_PAGE = """\
usage: nemotron ui [--port N] [--no-browser] [--json]
       nemotron ui --export FILE ID[/N] …

Opens a dashboard in the browser: runs with their logs, metrics and configs, tables of sweeps, differences between runs,
and artifacts with their lineage. It is read-only, listens on 127.0.0.1, and needs the key in the printed address. Over
ssh it also prints the command that opens a tunnel. --export writes the pages of some runs to one HTML file:

  nemotron ui --export sweep.html latest

Needs the extra ui: pip install 'nemotron-kit[ui]'.

options
{options}
"""
_DOCTOR_PAGE = """\
usage: nemotron doctor [--json]

Checks what launches and jobs need on this machine: Python, the versions of packages, torch and GPUs, recipes, profiles,
the registry, disk space, W&B's login, the clock. Each is ok, warn or fail; for the latter two a fix is printed. Starts
no job and contacts no other machine: nemotron profiles check NAME does that.

options
{options}

exit code: 1 if a check fails, else 0
"""
_INIT_PAGE = """\
usage: nemotron init NAME
       nemotron init --profile NAME [KEY=VALUE …] [--no-check]

Writes a new recipe into the working folder: two commands with typed configs and an artifact between them, a pipeline of
both, a test that passes, and its entry in env.toml. With --profile, writes a profile into env.toml, asking for missing
fields on a terminal, and checks it.

  nemotron init my_recipe
  nemotron init --profile cluster executor=slurm account=lab partition=batch nodes=2
  nemotron init --profile away executor=slurm host=login.example.org user=me

options
{options}
"""
_EXPLAIN_PAGE = """\
usage: nemotron explain [--json] [FIELD …] RECIPE COMMAND [options] [key=value …]

Prints a field's value for a command line, its type and meaning, and every layer that sets it, in order of precedence
(the last one is in effect): the dataclass's default, each config file with its line, the profile, the command line. For
a block, prints all of its fields; without FIELD, those that differ from their defaults. With two configs, prints the
differences between them.

  nemotron explain train.lr nano3 pretrain -c tiny
  nemotron explain run.env.nodes nano3 pretrain --batch MY-CLUSTER
  nemotron explain nano3 pretrain -c tiny -c default

options
{options}
"""
_COMPLETION_PAGE = """\
usage: nemotron completion bash|zsh|fish

Prints a completion script. To load it in every new shell:

  bash   echo 'eval "$(nemotron completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(nemotron completion zsh)"' >> ~/.zshrc   (after compinit)
  fish   nemotron completion fish > ~/.config/fish/completions/nemotron.fish
"""
TOOLS = {
    "runs": ToolCommand(
        "nemotron_kit.cli.runs.list:list_all",
        "list runs; print one, or its logs",
        *_FILTERS,
        Option("--columns C,…", "print these columns: metrics, value, step, keys of overrides (train.lr)", SEVERAL),
        Option("--sort METRIC", "best first, by the metric's last value (of a sweep, its best job's)"),
        Option("--top N", "only the best N", 1),
        Option("--csv", "print all runs with every metric as CSV"),
        _JSON,
        page=_RUNS_PAGE,
        commands=_RUNS,
    ),
    "profiles": ToolCommand(
        "nemotron_kit.cli.profile_commands:list_all",
        "list the profiles of env.toml",
        _JSON,
        page=_PROFILES_PAGE,
        commands=_PROFILES,
    ),
    "artifacts": ToolCommand(
        "nemotron_kit.cli.artifacts:show",
        "list artifacts, versions and lineage",
        Option("--alias ALIAS", "point this alias at the version: nemotron artifacts Name:v3 --alias production"),
        Option("--verify", "read all of the version's files and compare them with the registered checksums"),
        _JSON,
        takes=ARTIFACT,
        page=_ARTIFACTS_PAGE,
        commands=_ARTIFACTS,
    ),
    "ui": ToolCommand(
        "nemotron_kit.ui.command:main",
        "show runs, sweeps and artifacts in the browser",
        Option("--port N", "the port to listen on (8321, or the next free one)", 1),
        Option("--no-browser", "print the address only"),
        Option("--export FILE", "write the pages of these runs to one HTML file"),
        Option("--json", "print the address as JSON, and open no browser"),
        takes=ANY_JOBS,
        page=_UI_PAGE,
    ),
    "doctor": ToolCommand(
        "nemotron_kit.cli.doctor:doctor",
        "check this machine: packages, GPUs, profiles, registry",
        _JSON,
        page=_DOCTOR_PAGE,
    ),
    "init": ToolCommand(
        "nemotron_kit.cli.init:init",
        "write a new recipe, or a profile",
        Option("--profile NAME", "write the profile NAME; KEY is any field of a profile"),
        Option("--no-check", "don't run `nemotron profiles check` on it"),
        takes=NEW,
        page=_INIT_PAGE,
    ),
    "explain": ToolCommand(
        "nemotron_kit.cli.explain:explain",
        "print where the values of a command line's config come from",
        Option("--json", "print JSON (give it before the recipe)"),
        takes=FIELDS,
        page=_EXPLAIN_PAGE,
    ),
    "completion": ToolCommand(
        "nemotron_kit.cli.completion:main",
        "print the completion script of bash, zsh or fish",
        page=_COMPLETION_PAGE,
        choices=("bash", "zsh", "fish"),
    ),
}


# What other launchers and schedulers call what `nemotron runs` does: the word → the subcommand.
_RUNS_WORDS = {
    **dict.fromkeys(("stop", "kill", "terminate", "down", "abort", "scancel"), "cancel"),
    **dict.fromkeys(("delete", "remove", "del"), "rm"),
    **dict.fromkeys(("log", "tail", "output"), "logs"),
    **dict.fromkeys(("describe", "inspect", "get", "status", "best"), "show"),
    **dict.fromkeys(("ls", "ps", "queue", "squeue", "sacct", "jobs", "history"), "list"),
    **dict.fromkeys(("restart", "retry", "requeue", "continue"), "resume"),
    **dict.fromkeys(("relaunch", "repeat", "clone"), "rerun"),
    **dict.fromkeys(("compare",), "diff"),
    **dict.fromkeys(("top",), "watch"),
    **dict.fromkeys(("ssh",), "shell"),
}
# The same for nemotron's other commands.
_TOOL_WORDS = {
    "version": "--version",
    **dict.fromkeys(("new", "create", "scaffold", "startproject", "template"), "init NAME"),
    **dict.fromkeys(("setup", "configure", "profile"), "init --profile NAME"),
    **dict.fromkeys(("config", "cfg", "show-config"), "explain RECIPE COMMAND"),
    **dict.fromkeys(("dashboard", "web", "tensorboard", "server"), "ui"),
    **dict.fromkeys(("models", "model", "registry", "artifact"), "artifacts"),
    **dict.fromkeys(("env", "info", "system", "test", "debug"), "doctor"),
    **dict.fromkeys(("recipes", "commands", "tutorial", "docs"), "--help"),
}
_LAUNCH = "nemotron RECIPE COMMAND, with --run PROFILE or --batch PROFILE to send the job elsewhere"
_SCRIPT = (
    "a recipe, which starts your program (nemotron init NAME writes one; nproc_per_node is a field of a profile), or "
    "python APP.py -m hydra/launcher=nemo_run for an @hydra.main program"
)


def meant(word: str) -> str:
    """The command line that does what `word`, which is no recipe, does elsewhere or below `nemotron runs`; "" for
    none."""
    if word in ("run", "launch", "submit", "exec", "srun", "sbatch", "train", "sweep"):
        return _LAUNCH
    if word in ("python", "python3", "torchrun", "accelerate", "deepspeed", "mpirun"):
        return _SCRIPT
    if word in _TOOL_WORDS:
        return f"nemotron {_TOOL_WORDS[word]}"
    if word in _RUNS or word in _RUNS_WORDS or word == "list":
        return f"nemotron runs {_RUNS_WORDS.get(word, word)}"
    return f"nemotron profiles {word}" if word in _PROFILES else ""


def run(name: str, argv: Sequence[str]) -> int:
    """Run `nemotron NAME ARGV`: print its help page, run a subcommand, or (without one, or for `list`) the command's
    function. Returns the exit code. Raises UserError for an unknown subcommand."""
    arguments, command = list(argv), TOOLS[name]
    first = arguments[0] if arguments else ""
    if first in command.commands:
        return _call(command.commands[first].function, arguments[1:])
    free = bool(command.takes or command.choices)  # the first argument need not be a subcommand
    if {"-h", "--help"} & set(arguments) or (first == "help" and not free) or (command.choices and not first):
        from nemotron_kit.cli.output import write_page

        commands = [(f"{name} {entry.usage}", entry.summary) for name, entry in command.commands.items()]
        options = [(f"{name} {option.metavar}".rstrip(), option.help) for name, option in command.options.items()]
        page = command.page
        for mark, rows in (("{commands}", commands), ("{options}", options)):
            width = max((len(name) for name, _ in rows), default=0)
            page = page.replace(mark, "\n".join(f"  {name:{width}}  {text}" for name, text in rows))
        write_page(page)
        return 0
    if first and not first.startswith("-") and first != "list" and not free:
        if "show" not in command.commands:
            raise UserError(f"nemotron {name} takes no argument {first!r}.", hint=f"See nemotron {name} --help.")
        other = _RUNS_WORDS.get(first, "")
        known = [*command.commands, "list"]
        likely = f"Did you mean {other}?" if other in known else near(first, known)
        hint = f"{likely} To print one {name[:-1]}: nemotron {name} show {first}"
        raise UserError(f"nemotron {name} has no command {first!r}.", hint=hint)
    # An artifact of such a name is art://list.
    listed = first == "list" or (first == "show" and bool(command.commands))
    return _call(command.function, arguments[1:] if listed and (not free or command.commands) else arguments)


def _call(spelled: str, arguments: list[str]) -> int:
    from importlib import import_module

    module, _, name = spelled.partition(":")
    try:
        return int(getattr(import_module(module), name)(arguments))
    except HelpPrinted:
        return 0
