"""nemotron's own commands that are no recipes, and their subcommands: one table for dispatch, help, completion and the
index, which takes no recipe of such a name. Nothing heavy is imported.
"""

from __future__ import annotations

from nemotron_kit.errors import UserError, nearest, sentence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Kinds of positional arguments: completion offers them, and ToolParser parses them by these names.
RUN, RUNS, JOB, JOBS, ANY_JOBS = "run", "runs", "job", "jobs", "any jobs"
PROFILE, ARTIFACT, FIELDS, NEW, VERSIONS = "profile", "artifact", "fields", "new", "versions"
ID = "a run's id, the start of one, its last six digits, or latest (the last launch)"
JOB_ID = f"{ID}; ID/N is its job N"


class Subcommand:
    """A subcommand of `nemotron runs` and the like. `function` is "module:name", called with the arguments after it;
    `usage` describes these; `takes` names their kind; `options` are the long options, for completion; `says` is the
    text of its help page, if the summary does not suffice."""

    __slots__ = ("function", "options", "says", "summary", "takes", "usage")

    def __init__(
        self, function: str, takes: str, usage: str, summary: str, options: tuple[str, ...] = (), says: str = ""
    ) -> None:
        self.function, self.takes, self.usage, self.summary = function, takes, usage, summary
        self.options, self.says = options, says or f"{summary[:1].upper()}{summary[1:]}."


class OwnCommand:
    """One of nemotron's own commands. `function` is called without a subcommand; `page` is its help page, with
    {commands} in place of their list; `words` are arguments that are no subcommands."""

    __slots__ = ("commands", "function", "options", "page", "summary", "takes", "words")

    def __init__(
        self,
        function: str,
        summary: str,
        page: str,
        commands: dict[str, Subcommand] | None = None,
        *,
        takes: str = "",
        options: tuple[str, ...] = (),
        words: tuple[str, ...] = (),
    ) -> None:
        self.function, self.summary, self.page, self.commands = function, summary, page, commands or {}
        self.takes, self.options, self.words = takes, options, words


_RUNS = {
    "show": Subcommand(
        "nemotron_kit.cli.runs.show:show",
        JOB,
        "ID[/N] [--sort METRIC] [--top N] [--csv|--json]",
        "the plan, inputs, outputs, states, metrics and folder of a run",
        ("--job", "--json", "--sort", "--top", "--csv"),
        """\
A run: its plan, inputs, outputs, states, metrics and folder. Of a sweep also a table of its jobs, best first, by what
they returned, else by the last value of the first loss, or by --sort. The least is the best of a metric with loss,
error or perplexity in its name, and of a returned value unless the sweeper maximizes it; else the greatest is.""",
    ),
    "attach": Subcommand(
        "nemotron_kit.cli.runs.show_logs:attach",
        JOB,
        "ID[/N] [--all]",
        "its logs from where they were last shown, until it ends",
        ("--job", "--all"),
    ),
    "logs": Subcommand(
        "nemotron_kit.cli.runs.show_logs:logs",
        JOB,
        "ID[/N] [-f] [-n N] [--rank N]",
        "what it printed, each job of a sweep; -f follows until it ends",
        ("--follow", "--tail", "--job", "--rank"),
    ),
    "wait": Subcommand(
        "nemotron_kit.cli.runs.control:wait",
        JOBS,
        "ID[/N] … [--patience S]",
        "waits until all have ended, and exits as they did",
        ("--patience",),
    ),
    "cancel": Subcommand(
        "nemotron_kit.cli.runs.control:cancel",
        JOB,
        "ID[/N] [--grace S]",
        "stops it: TERM, then KILL",
        ("--job", "--grace"),
        "Stops a run: TERM, then KILL; on a cluster as its scheduler does that.",
    ),
    "resume": Subcommand(
        "nemotron_kit.cli.runs.control:resume",
        JOB,
        "ID[/N]",
        "a job goes on from its last checkpoint; of a sweep, what waits is submitted",
        says="""\
Goes on with what has stopped, under the same record. A job that failed, was cancelled or was preempted, or whose launch
was killed before it started, begins another attempt in the same folder: training goes on from its last checkpoint
there, and what keeps nothing begins from the beginning. Of a sweep on a cluster, the jobs that wait are submitted:
those that there was no room for, and those whose launch ended too early; none twice, and none that has begun begins
again (for that one is named: ID/N). A job that is to start after another run, and whose waiting process has ended,
waits again. A pipeline goes on by its own line, typed again; its stage N, which is a job, as ID/N.
`nemotron runs rerun` starts anew, under a new record.""",
    ),
    "shell": Subcommand(
        "nemotron_kit.cli.runs.control:shell",
        JOB,
        "ID[/N] [-- COMMAND]",
        "a shell where it runs",
        ("--job", "--node"),
        "A shell where a run is, or the command behind --.",
    ),
    "rerun": Subcommand(
        "nemotron_kit.cli.runs.rerun:rerun",
        JOB,
        "ID[/N] [KEY=VALUE …]",
        "the same anew: same config, same artifacts; overrides on top",
        ("--run", "--batch", "--dry-run"),
    ),
    "diff": Subcommand(
        "nemotron_kit.cli.runs.show:diff",
        JOBS,
        "A B [C …] [--json]",
        "what differs: config, artifacts, code, environment, launch, results",
        ("--json",),
        """\
What runs differ in, a column for each, and what they returned and measured. Exit code 0: nothing; 1: something else
than their results.""",
    ),
    "plot": Subcommand(
        "nemotron_kit.cli.runs.plot:plot",
        JOBS,
        "ID[/N] … [--metric NAME] [--x step|time|tokens]",
        "draws the curves of a metric in the terminal",
        ("--metric", "--x", "--height"),
        """\
Draws the curve of a metric for each job, in the terminal: nemotron runs plot latest --metric loss --x tokens. Needs the
extra plot. Over time is over the metric elapsed, in seconds; over tokens, over the metric tokens.""",
    ),
    "tag": Subcommand(
        "nemotron_kit.cli.runs.list:tag",
        RUN,
        "ID TAG … [--remove TAG]",
        "puts tags on it, to list it by",
        ("--remove",),
    ),
    "note": Subcommand("nemotron_kit.cli.runs.list:note", RUN, "ID TEXT", "sets its note"),
    "rename": Subcommand("nemotron_kit.cli.runs.list:rename", RUN, "ID NAME", "gives it a name beside its id"),
    "rm": Subcommand(
        "nemotron_kit.cli.runs.remove:remove",
        ANY_JOBS,
        "ID … | --older-than 30d [--state S] [--keep N] [--dry-run]",
        "deletes their folders",
        (
            *("--older-than", "--recipe", "--stage", "--state", "--tag", "--keep", "--with-artifacts", "--dry-run"),
            *("--force", "--here", "--json"),
        ),
        """\
Deletes the folders of runs that are over: those that are named, or all that match --older-than, --recipe, --stage,
--state and --tag, without the newest --keep. A run in whose folder a version of an artifact lies stays, unless the
version goes with it (--with-artifacts), which one stays that others were made from or that an alias names.""",
    ),
}
_RUNS["du"] = Subcommand(
    "nemotron_kit.cli.runs.remove:usage",
    "",
    "[--limit N] [--json]",
    "the space that each takes, the largest first",
    ("--limit", "--json"),
)
_RUNS["watch"] = Subcommand(
    "nemotron_kit.cli.runs.list:watch",
    "",
    "[--recipe R] [--state S] [--since 2h] …",
    "the table of nemotron runs, refreshed while something goes on",
    ("--recipe", "--stage", "--state", "--since", "--tag", "--limit"),
    """\
The table of nemotron runs, refreshed every 2 seconds until none of its runs goes on any more, or until Ctrl-C (exit
code 130; the runs go on): nemotron runs watch --recipe nano3 --since 1d. Not on a terminal it is printed once.""",
)
_PROFILES = {
    "show": Subcommand(
        "nemotron_kit.cli.profile_commands:show",
        PROFILE,
        "NAME [--all] [--json]",
        "one profile as it is resolved, and where each value comes from",
        ("--all", "--json"),
    ),
    "check": Subcommand(
        "nemotron_kit.cli.profile_commands:check",
        PROFILE,
        "NAME [--node] [--json]",
        "connect to its target and report whether a launch would work there",
        ("--node", "--json"),
    ),
    "login": Subcommand(
        "nemotron_kit.cli.profile_commands:login",
        PROFILE,
        "NAME [--close]",
        "open its ssh connection on this terminal (passwords, second factors)",
        ("--close",),
    ),
    "clean": Subcommand(
        "nemotron_kit.cli.profile_commands:clean_target",
        PROFILE,
        "NAME [--unused 30d] [--dry-run] [--json]",
        "remove from its target what launches left there and no run needs",
        ("--unused", "--dry-run", "--json"),
        """\
Removes from a profile's target the code, kits and repositories that launches left there, that have not been used for
a while, and that no unfinished run names. Runs and artifacts stay: nemotron runs rm, nemotron artifacts.""",
    ),
}
_ARTIFACTS = {
    "rm": Subcommand(
        "nemotron_kit.cli.artifacts:remove",
        VERSIONS,
        "NAME:vN … [--files] [--dry-run] [--force]",
        "takes versions out of the registry",
        ("--files", "--dry-run", "--force"),
        """\
Takes versions out of the registry; their numbers are not given again. One that others were made from, or that an alias
names, stays unless --force is given. The files stay where they are, unless --files is given; files that another version
has, too, are never deleted.""",
    ),
    "du": Subcommand(
        "nemotron_kit.cli.artifacts:usage", "", "[--json]", "the bytes of each name's versions", ("--json",)
    ),
    "gc": Subcommand(
        "nemotron_kit.cli.artifacts:collect",
        "",
        "[--dry-run] [--json]",
        "repairs or drops damaged records; removes what killed saves left",
        ("--dry-run", "--json"),
        """\
Repairs damaged records where their own sha256 proves what they were, drops the others (their numbers are not given
again; no artifact's files are touched), and removes what killed saves left behind more than a day ago. An artifact
that is called gc is art://gc.""",
    ),
}
_RUNS_PAGE = """\
usage: nemotron runs [--recipe R] [--stage S] [--state S,…] [--since 2h] [--tag T] [--limit N] [--json]
       nemotron runs [filters] [--columns C,…] [--sort METRIC] [--top N] [--csv]
       nemotron runs COMMAND ID …

The launches of this machine, newest first: what ran, how it ended, how long it took; of what runs, the step, the time
left and the last loss. What runs elsewhere is asked about there. ID is a run's id, the start of one, its last six
digits, or latest, what was launched last; ID/N is its job N (as --job N is), of a pipeline its stage N; ID/2-5 are its
jobs 2 to 5.

commands
{commands}

options
  --recipe NAME    only of this recipe
  --stage STAGE    only this stage, or those below it: data/prep
  --state STATE    only in these states, with commas between them
  --since SPAN     only of the last 90s, 30m, 2h, 3d, 1w, or since a date
  --tag TAG        only with this tag; again for another one, too
  --limit N        at most so many (20; 0 for all)
  --columns C,…    with these columns: metrics, value, step, keys of overrides (train.lr)
  --sort METRIC    best first by its last value; of a sweep that of its best job
  --top N          so many of them
  --csv            all of them, with every metric
  --json           for programs

exit codes of wait, attach and resume: 0 succeeded, 1 failed, 3 unreachable or unknown, 4 cancelled, 75 preempted; of
show: 3 where the state is not known, else 0; of diff: 0 the same, 1 different
"""
_PROFILES_PAGE = """\
usage: nemotron profiles [--json]
       nemotron profiles COMMAND NAME …

The profiles of env.toml: where and how `--run NAME` and `--batch NAME` start a job.

commands
{commands}

options
  --json   for programs
"""
_ARTIFACTS_PAGE = """\
usage: nemotron artifacts [REFERENCE] [--alias WORD] [--verify] [--json]
       nemotron artifacts COMMAND …

Without a reference: every name in the registry. With a name: its versions. With a version (Name:v3, Name:alias): where
it lies, what it was made from and by which run. Versions whose files are gone or changed, or whose record is damaged,
are marked.

commands
{commands}

options
  --alias WORD   make WORD stand for the version: nemotron artifacts Name:v3 --alias production
  --verify       read all of its files again and compare them with what was registered
  --json         for programs
"""
_UI_PAGE = """\
usage: nemotron ui [--port N] [--no-browser] [--json]
       nemotron ui --export FILE ID[/N] …

A page in the browser with the runs, their logs, metrics and configs, the tables of sweeps, what runs differ in, and the
artifacts with their lineage. It only shows, and only to whoever has the address with its key: it listens on 127.0.0.1.
Over ssh it prints the line that opens a tunnel. --export writes the same pages of some runs to one file, to be mailed:

  nemotron ui --export sweep.html latest

It needs the extra ui: pip install 'nemotron-kit[ui]'.

options
  --port N        listen there (8321, or the next that is free)
  --no-browser    open no browser
  --export FILE   write the pages of these runs to one HTML file
  --json          print the address as JSON, and open no browser
"""
_DOCTOR_PAGE = """\
usage: nemotron doctor [--json]

Looks at what launches and jobs need on this machine: Python, packages and pairs of them that don't work together, torch
and GPUs, recipes, profiles, the registry, disk, W&B's login, the clock. Each is ok, warn or fail, with what to type.
Starts no job and asks no other machine: nemotron profiles check NAME does that.

options
  --json   for programs

exit code: 1 where something fails, else 0
"""
_INIT_PAGE = """\
usage: nemotron init NAME
       nemotron init --profile NAME [KEY=VALUE …] [--no-check]

Writes a recipe of your own into the working folder: two commands with typed configs and an artifact between them, a
pipeline of both, a test that passes, and its line in env.toml. Or a profile into env.toml, asking for what a terminal
can be asked for, and then checks it.

  nemotron init my_recipe
  nemotron init --profile cluster executor=slurm account=lab partition=batch nodes=2
  nemotron init --profile away executor=slurm host=login.example.org user=me

options
  --profile NAME  write the profile NAME; KEY is any field of a profile
  --no-check      don't run `nemotron profiles check` on it
"""
_EXPLAIN_PAGE = """\
usage: nemotron explain [--json] [FIELD …] RECIPE COMMAND [options] [key=value …]

What a command line sets a field to: its value, type and meaning, and every layer that sets it, the last one over the
others: the dataclass's default, each config file with its line, the profile, the command line. A block is all of its
fields; without a field, those that more than a default sets. With two configs: what differs between them.

  nemotron explain train.lr nano3 pretrain -c tiny
  nemotron explain run.env.nodes nano3 pretrain --batch MY-CLUSTER
  nemotron explain nano3 pretrain -c tiny -c default

options
  --json   for programs; before the recipe
"""
_COMPLETION_PAGE = """\
usage: nemotron completion bash|zsh|fish

Prints a completion script. To have it in every new shell:

  bash   echo 'eval "$(nemotron completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(nemotron completion zsh)"' >> ~/.zshrc   (after compinit)
  fish   nemotron completion fish > ~/.config/fish/completions/nemotron.fish
"""
TOOLS = {
    "runs": OwnCommand(
        "nemotron_kit.cli.runs.list:list_all",
        "list runs; show one, read its logs",
        _RUNS_PAGE,
        _RUNS,
        options=(
            "--recipe",
            "--stage",
            "--state",
            "--since",
            "--tag",
            "--limit",
            "--columns",
            "--sort",
            "--top",
            "--csv",
            "--json",
        ),
    ),
    "profiles": OwnCommand(
        "nemotron_kit.cli.profile_commands:list_all",
        "list the profiles of env.toml",
        _PROFILES_PAGE,
        _PROFILES,
        options=("--json",),
    ),
    "artifacts": OwnCommand(
        "nemotron_kit.cli.artifacts:look",
        "list artifacts, versions and lineage",
        _ARTIFACTS_PAGE,
        _ARTIFACTS,
        takes=ARTIFACT,
        options=("--alias", "--verify", "--json"),
    ),
    "ui": OwnCommand(
        "nemotron_kit.ui.command:main",
        "look at runs, sweeps and artifacts in the browser",
        _UI_PAGE,
        takes=ANY_JOBS,
        options=("--port", "--no-browser", "--export", "--json"),
    ),
    "doctor": OwnCommand(
        "nemotron_kit.cli.doctor:doctor",
        "check this machine: packages, GPUs, profiles, registry",
        _DOCTOR_PAGE,
        options=("--json",),
    ),
    "init": OwnCommand(
        "nemotron_kit.cli.init:init",
        "write a recipe of your own, or a profile",
        _INIT_PAGE,
        takes=NEW,
        options=("--profile", "--no-check"),
    ),
    "explain": OwnCommand(
        "nemotron_kit.cli.explain:explain",
        "where the values of a command line's config come from",
        _EXPLAIN_PAGE,
        takes=FIELDS,
        options=("--json",),
    ),
    "completion": OwnCommand(
        "nemotron_kit.cli.completion:main",
        "print the completion script of bash, zsh or fish",
        _COMPLETION_PAGE,
        words=("bash", "zsh", "fish"),
    ),
}


def run(name: str, argv: Sequence[str]) -> int:
    """Run the command for the arguments after `nemotron NAME`: its help page, a subcommand, or (without one, or for
    `list`) the command itself. Returns the exit code. Raises UserError for an unknown subcommand."""
    arguments, command = list(argv), TOOLS[name]
    first = arguments[0] if arguments else ""
    if first in command.commands:
        return _call(command.commands[first].function, arguments[1:])
    free = bool(command.takes or command.words)  # its own words may be any
    if {"-h", "--help"} & set(arguments) or (first == "help" and not free) or (command.words and not first):
        from nemotron_kit.cli.output import write_lines

        write_lines(command.page.replace("{commands}", "\n".join(_listed(command))).splitlines())
        return 0
    if first and not first.startswith("-") and first != "list" and not free:
        hint = (
            f"{sentence(nearest(first, [*command.commands, 'list']))} Of one {name[:-1]}: nemotron {name} show {first}"
        )
        raise UserError(f"nemotron {name} has no command {first!r}.", hint=hint)
    return _call(command.function, arguments[1:] if first == "list" and not free else arguments)


def _listed(command: OwnCommand) -> Iterator[str]:
    rows = [(f"{word} {entry.usage}", entry.summary) for word, entry in command.commands.items()]
    width = max((len(usage) for usage, _ in rows), default=0)
    yield from (f"  {usage:{width}}  {summary}" for usage, summary in rows)


def _call(spelled: str, arguments: list[str]) -> int:
    from importlib import import_module

    module, _, name = spelled.partition(":")
    return int(getattr(import_module(module), name)(arguments))
