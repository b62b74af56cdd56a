"""RunConfig: where and how a job runs. One field for each key of a profile, with its type and what it may hold."""

from __future__ import annotations

import datetime
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from nemotron_kit import installed
from nemotron_kit.envfile import FITS, FLAG, INT, TABLE, TABLES, TEXT, TEXTS
from nemotron_kit.errors import UserError, nearest, sentence
from nemotron_kit.spec import MOST_PROCESSES


class ProfileError(UserError, ValueError):
    """A profile, or a value given for one, is wrong."""


# Executor → its class. Those of other packages are entry points in the group ENTRY_POINTS.
EXECUTORS = {
    "local": "nemotron_kit.executors.local:Local",
    "docker": "nemotron_kit.executors.docker:Docker",
    "slurm": "nemotron_kit.executors.slurm.client:Slurm",
    "skypilot": "nemotron_kit.executors.cloud:SkyPilot",
    "dgxcloud": "nemotron_kit.executors.cloud:DGXCloud",
    "lepton": "nemotron_kit.executors.cloud:Lepton",
    "kubeflow": "nemotron_kit.executors.cloud:Kubeflow",
}
ENTRY_POINTS = "nemotron_kit.executors"


def installed_executors() -> dict[str, str]:
    """The executors of other installed packages: name → "module:Class". They can't replace one of EXECUTORS."""
    return {name: target for name, target in installed.entry_points(ENTRY_POINTS) if name not in EXECUTORS}


# A slug, as every name that a scheduler gets.
_SLUG = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
# Never what ssh could take for an option.
_HOST, _USER = r"[A-Za-z0-9_\[:][^\s]*", r"[A-Za-z0-9_][^\s@]*"
# Never what `module load` or `conda activate` could take for an option.
_WORD = r"[^\s-]\S*"
_GPU_MEMORY = r"[1-9][0-9]{0,4}(\.[0-9]{1,2})? ?(G|GB|GiB)"
_AMOUNT = 'Write a number with K, M, G or T, as in "64G".'


# `_field` calls dataclasses.field:
# ruff: noqa: RUF009
def _field(
    help_text: str,
    default: Any = None,
    *,
    flag: str | None = None,
    choices: tuple[str, ...] = (),
    pattern: str | None = None,
    called: str | None = None,
    hint: str | None = None,
    least: int = 0,
    most: int | None = None,
    script: bool = False,
    commas: bool = False,
) -> Any:
    """A field of RunConfig, with all that its values must be besides its type.

    A text is what sbatch takes for --`flag`, one of `choices`, and matches `pattern`: a message calls it `called` and
    says in `hint` how to write one. `script`: it is code of a shell, which may be empty or have several lines. A number
    is `least` to `most`: 0 nodes are a mistake, 0 GPUs are not. `commas`: a list may be written `a,b`.
    """
    texts = {"flag": flag, "choices": choices, "pattern": pattern, "called": called, "hint": hint, "script": script}
    rules = {"help": help_text, **texts, "least": least, "most": most, "commas": commas}
    return field(default=default, metadata=rules)


@dataclass
class RunConfig:
    """Where and how a job runs: the fields of a profile in env.toml. None: not set, the executor's default applies.

    `load_run_profile` gives one with its `extends` resolved (`extends` itself is None then).
    """

    executor: str = _field("what runs the job", "local", choices=tuple(EXECUTORS))
    # what runs
    nproc_per_node: int | None = _field(
        "processes on each node; more than one are started by torchrun", least=1, most=MOST_PROCESSES
    )
    nodes: int | None = _field("machines that the job takes", least=1)
    python: str | None = _field("the Python that runs the job, in its container if there is one")
    workdir: str | None = _field("the job's working folder; by default the copy of the code")
    modules: list[str] | None = _field(
        "environment modules that the batch script loads, in this order",
        pattern=_WORD,
        called="module's name",
        commas=True,
    )
    conda: str | None = _field(
        "conda environment that the batch script activates; its Python runs the job",
        pattern=_WORD,
        called="conda environment's name or folder",
    )
    startup_commands: list[str] | None = _field(
        "shell commands before the job; one that fails ends the job", script=True
    )
    setup: str | None = _field("shell text before the job, after startup_commands", script=True)
    env_vars: list[str] | None = _field("variables of the job: NAME=VALUE; VALUE may use those of its machine, $PATH")
    secrets: list[str] | None = _field(
        "environment variables to pass to the job; their values are stored nowhere", commas=True
    )
    # code
    packager: str | None = _field(
        "the code to send: worktree, git (the commit), pattern (files), hybrid (both), none",
        choices=("worktree", "git", "pattern", "hybrid", "none"),
    )
    packager_include_pattern: list[str] | None = _field("files for packager pattern or hybrid: src/**/*.py")
    subpath: str | None = _field("the folder of the repository that is sent; by default all of it")
    include_submodules: bool | None = _field("send git submodules, too (default: true)")
    allow_dirty: bool | None = _field("packager git: launch with uncommitted changes, which are not sent")
    # container
    container_image: str | None = _field("image to run the job in: a registry's, or a .sqsh or .sif file")
    container_runtime: str | None = _field(
        "what runs containers on Slurm (default: pyxis)", choices=("pyxis", "apptainer")
    )
    mounts: list[str] | None = _field(
        "folders of the container: /THERE:/INSIDE[:ro], or /FOLDER (Apptainer)", commas=True
    )
    runtime: str | None = _field("docker run --runtime, such as nvidia")
    ipc_mode: str | None = _field("docker run --ipc")
    shm_size: str | None = _field("docker run --shm-size")
    # Slurm
    account: str | None = _field("sbatch --account", flag="account")
    partition: str | None = _field("sbatch --partition", flag="partition")
    run_partition: str | None = _field("the partition for --run, instead of `partition`", flag="partition")
    batch_partition: str | None = _field("the partition for --batch, instead of `partition`", flag="partition")
    time: str = _field(
        "time limit of a job, as sbatch --time takes it",
        "04:00:00",
        flag="time",
        hint='Write hours, minutes and seconds, "04:00:00", with days "1-12:00:00", or minutes, "90".',
    )
    job_name: str = _field("part of the name that squeue prints", "nemo-run", pattern=_SLUG)
    ntasks_per_node: int | None = _field(
        "processes on each node; nproc_per_node takes precedence", least=1, most=MOST_PROCESSES
    )
    gpus_per_node: int | None = _field(
        "GPUs on each node; as many processes unless nproc_per_node is set", most=MOST_PROCESSES
    )
    gpu_memory: str | None = _field(
        "the memory of one GPU, as its vendor counts: 80GB; to refuse what does not fit",
        pattern=_GPU_MEMORY,
        called="GPU's memory",
        hint='Write it as the vendor does, "80GB".',
    )
    mem: str | None = _field("sbatch --mem", flag="mem", hint=_AMOUNT)
    exclusive: bool | None = _field("sbatch --exclusive: no other jobs on the nodes")
    cpus_per_task: int | None = _field("CPUs of each process", least=1)
    cpus_per_gpu: int | None = _field("sbatch --cpus-per-gpu", least=1)
    gpus_per_task: int | None = _field("GPUs of each process")
    mem_per_gpu: str | None = _field("sbatch --mem-per-gpu", flag="mem-per-gpu", hint=_AMOUNT)
    mem_per_cpu: str | None = _field("sbatch --mem-per-cpu", flag="mem-per-cpu", hint=_AMOUNT)
    qos: str | None = _field("sbatch --qos", flag="qos")
    constraint: str | None = _field("sbatch --constraint: features that the nodes must have", flag="constraint")
    exclude: str | None = _field("sbatch --exclude: nodes that the job must not get", flag="exclude")
    nodelist: str | None = _field("sbatch --nodelist: nodes that the job must get", flag="nodelist")
    reservation: str | None = _field("sbatch --reservation", flag="reservation")
    segment: int | None = _field("sbatch --segment: nodes of one NVLink domain, in block topology", least=1)
    gres: str | None = _field("sbatch --gres; its GPUs count as gpus_per_node if that is not set", flag="gres")
    array: str | None = _field("not supported: a sweep (-m key=1,2,3) makes the array", flag="array")
    comment: str | None = _field("sbatch --comment", flag="comment")
    mail_user: str | None = _field("sbatch --mail-user", flag="mail-user")
    mail_type: str | None = _field(
        "sbatch --mail-type",
        flag="mail-type",
        hint='Write one or more of BEGIN, END, FAIL, REQUEUE, TIME_LIMIT, ALL, as in "END,FAIL".',
    )
    signal_lead: int | None = _field(
        "seconds before its limit at which a signal has the job save (default: 300 at most)",
        least=1,
        most=65535,  # sbatch's limit
    )
    # the target: connection and folders
    tunnel: str = _field(
        "how the cluster is reached: its commands are on this machine, or ssh", "local", choices=("local", "ssh")
    )
    host: str | None = _field("the login node, for tunnel ssh", pattern=_HOST)
    user: str | None = _field("the user there", pattern=_USER)
    identity: str | None = _field("the private key for it")
    remote_job_dir: str | None = _field("the folder for jobs, where the jobs run (default: ~/.nemotron there)")
    artifacts_root: str | None = _field("the folder of the artifact registry, where the jobs run")
    # clouds
    cloud: str | None = _field("SkyPilot's cloud: aws, gcp, kubernetes, …")
    gpus: str | None = _field("SkyPilot's GPUs: NAME or NAME:COUNT")
    cluster_name: str | None = _field("SkyPilot's cluster to use, or to start")
    base_url: str | None = _field("the address of DGX Cloud's API")
    app_id: str | None = _field("DGX Cloud's application id")
    app_secret: str | None = _field("DGX Cloud's application secret, as ${secret:NAME}")
    project_name: str | None = _field("DGX Cloud's project")
    pvcs: list[Any] | None = _field("volume claims of DGX Cloud: CLAIM:/PATH, or tables", commas=True)
    resource_shape: str | None = _field("Lepton's machine type")
    node_group: str | None = _field("Lepton's node group")
    nemo_run_dir: str | None = _field("the folder for jobs on a cloud's volume")
    # Ray
    ray_working_dir: str | None = _field("the folder in which a Ray job's program starts (default: workdir)")
    ray_mode: str | None = _field(
        "job: the job has a Ray cluster of its own (default); cluster is not supported", choices=("job", "cluster")
    )
    # the launch
    dry_run: bool | None = _field("make every launch with this profile a dry-run")
    detach: bool | None = _field("make --run return at once, like --batch")
    cancel_on_interrupt: bool | None = _field("Ctrl-C on an attached launch cancels its jobs (default: it detaches)")
    retries: int | None = _field("how often in all a failed job is started again: its processes in place, or the job")
    max_segments: int | None = _field(
        "how often a time limit may end a job that saves and is queued again (no limit)", least=1
    )
    chain: int | None = _field("jobs of one name, one after another, where requeue is not allowed", least=1)
    max_parallel: int | None = _field("jobs of a sweep at a time", least=1)
    extends: str | None = _field("the profile whose fields this one has by default")
    extra: dict[str, Any] | None = _field(
        "other arguments; Slurm: additional_parameters, srun_args, apptainer_args, container_env"
    )


FIELDS = tuple(field.name for field in fields(RunConfig))
DEFAULTS = {field.name: field.default for field in fields(RunConfig)}
# Field → what `_field` says of it.
RULES = {field.name: field.metadata for field in fields(RunConfig)}
ALIASES = {"container": "container_image"}


def field_name(key: str, where: str) -> str:
    """The field that `key` means (`container`, `gpus-per-node`); ProfileError with the nearest names for none."""
    name = key.replace("-", "_")
    name = ALIASES.get(name, name)
    if name not in DEFAULTS:
        found = nearest(name, [*FIELDS, *ALIASES])
        raise ProfileError(f"{where}: no such field.", hint=found[:1].upper() + found[1:])
    return name


def settings_dict(config: RunConfig) -> dict[str, Any]:
    """The fields that are set, as JSON data."""
    return {key: value for key, value in asdict(config).items() if value not in (None, [], {})}


def stored_settings(values: Mapping[str, Any]) -> RunConfig:
    """The settings that a record holds. Fields of another version are left out; types are checked by SETTINGS_SHAPE."""
    return RunConfig(**{name: value for name, value in values.items() if name in DEFAULTS and value is not None})


def with_overrides(config: RunConfig, values: Mapping[str, Any], *, prefix: str = "--run.") -> RunConfig:
    """A copy of `config` with `values` in it: text (`--run.nodes 4`) or typed values (`run.env.nodes=4`).

    Each is converted to its field's type; None, or the text `null`, unsets it. `prefix` is what errors put before the
    key. Raises ProfileError for an unknown key (with the nearest ones) and for a value that isn't of the field's type.
    """
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = field_name(key, f"{prefix}{key}")
        if name == "extends":
            raise ProfileError(f"{prefix}{key}: a launch can't change what a profile extends.")
        if name in changes:
            raise ProfileError(f"{prefix}{key}: {name} is given twice.")
        changes[name] = convert(name, value, f"{prefix}{key}")
    return replace(config, **changes)


def resolve_partition(config: RunConfig, is_launch: bool) -> str | None:
    """The partition of a detached launch (`--batch`: `is_launch`) or of an attached one (`--run`)."""
    chosen = config.batch_partition if is_launch else config.run_partition
    return chosen if chosen is not None else config.partition


def env_dict(config: RunConfig) -> dict[str, str]:
    """`env_vars` as a mapping; a later entry of the same name wins."""
    checked = check_value("env_vars", config.env_vars, "env_vars") if config.env_vars is not None else []
    return dict(entry.split("=", 1) for entry in checked)


_NAME = r"[A-Za-z0-9][A-Za-z0-9._,:@+-]{0,127}"
_COUNT = r"[0-9]{1,9}"
_MEMORY = r"[0-9]{1,12}[KMGTkmgt]?[Bb]?"
_PATH = r"/[A-Za-z0-9._/+=@,%-]{0,1023}"
_FLAG_PATTERNS = {
    "array": r"[0-9]{1,7}(-[0-9]{1,7})?(,[0-9]{1,7}(-[0-9]{1,7})?)*(%[0-9]{1,6})?",
    "comment": r"[A-Za-z0-9 ._,:;@+=/()\[\]{}#%-]{1,256}",
    "constraint": r"[A-Za-z0-9._&|,*()\[\]:!+-]{1,256}",
    "cpus-per-gpu": _COUNT,
    "cpus-per-task": _COUNT,
    "dependency": r"[a-z]+(:[0-9_+]+)*([,?][a-z]+(:[0-9_+]+)*)*",
    "exclude": r"[A-Za-z0-9._,\[\]-]{1,4096}",
    "exclusive": r"user|mcs|topo",
    "gpus-per-node": r"([A-Za-z0-9._-]{1,64}:)?" + _COUNT,
    "gpus-per-task": r"([A-Za-z0-9._-]{1,64}:)?" + _COUNT,
    "gres": r"[A-Za-z0-9._:,=-]{1,256}",
    "mail-type": r"(?i:{0}(,{0})*)".format(
        "(NONE|BEGIN|END|FAIL|REQUEUE|ALL|INVALID_DEPEND|STAGE_OUT|TIME_LIMIT(_90|_80|_50)?|ARRAY_TASKS)"
    ),
    "job-name": _SLUG,
    "mem": _MEMORY,
    "mem-per-cpu": _MEMORY,
    "mem-per-gpu": _MEMORY,
    "nodelist": r"[A-Za-z0-9._,\[\]-]{1,4096}",
    "nodes": _COUNT,
    "ntasks-per-node": _COUNT,
    "segment": _COUNT,
    "open-mode": r"append|truncate",
    "output": _PATH,
    "error": _PATH,
    "signal": r"([RB]{1,2}:)?[A-Z0-9]{1,8}(@[0-9]{1,6})?",
    "time": r"([0-9]{1,4}-)?[0-9]{1,6}(:[0-9]{1,2}){0,2}|UNLIMITED|INFINITE",
}
_FLAG = r"#SBATCH --([a-z][a-z-]*)(?:=(.*))?\Z"
_IMAGE = r"[A-Za-z0-9./][A-Za-z0-9._/:@#+-]{0,1023}\Z"
_MOUNT = r"/?[A-Za-z0-9._/@+=-]{1,1023}(:/[A-Za-z0-9._/@+=-]{0,1023}(:[A-Za-z0-9+]{1,32})?)?\Z"
_PYTHON = r"(~/)?[A-Za-z0-9./_][A-Za-z0-9._/+=@,-]{0,1023}\Z"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]{0,255}\Z"
_ARGUMENT = r"--?[A-Za-z][A-Za-z-]*(=[A-Za-z0-9._,:@+=/%-]*)?\Z|[A-Za-z0-9._,:@+=/%-]+\Z"


def flag_fits(flag: str, value: str) -> bool:
    """Whether sbatch would accept `value` for --flag."""
    # The values of other flags, which only `extra` can give, are names. The patterns are compiled on use: a local
    # launch needs none.
    return re.fullmatch(_FLAG_PATTERNS.get(flag, _NAME), value) is not None


def check_header(script: str) -> None:
    """Check that every line between the shebang and the first command is a comment or a flag with a valid value.

    Raises ProfileError with the flag, also for a value with a newline, whose second line is neither.
    """
    for line in script.partition("\nset -")[0].splitlines():
        is_flag = line.startswith("#SBATCH")
        match = re.match(_FLAG, line) if is_flag else None
        if match is None and (is_flag or (line and not line.startswith("#"))):
            raise ProfileError(f"The batch script's header has a line that is no flag: {line[:80]!r}.")
        if match is None or match[2] is None:  # a comment, or a flag without a value
            continue
        try:
            arguments = shlex.split(match[2])
        except ValueError:
            arguments = []
        if len(arguments) != 1 or not flag_fits(match[1], arguments[0]):
            key = match[1].replace("-", "_")
            raise ProfileError(f"{key}: {match[2][:80]} is no value that sbatch --{match[1]} takes.")


def check_srun_arguments(srun_args: Sequence[object], config: RunConfig) -> None:
    """Check what is written unquoted into the srun line: the Python, a container's image, mounts and variables, and
    `extra = {srun_args = […]}`. Raises ProfileError."""
    for name, pattern, values in (
        ("python", _PYTHON, [config.python] if config.python else []),
        ("container_image", _IMAGE, [config.container_image] if config.container_image else []),
        ("mounts", _MOUNT, config.mounts or []),
        ("extra.srun_args", _ARGUMENT, srun_args),
        ("extra.apptainer_args", _ARGUMENT, (config.extra or {}).get("apptainer_args") or []),
        ("secrets", _VARIABLE, (config.secrets if config.container_image else None) or []),
        ("extra.container_env", _VARIABLE, (config.extra or {}).get("container_env") or []),
    ):
        for value in values:
            if not isinstance(value, str) or not re.match(pattern, value):
                home = " ~/ at the beginning is the home folder there." if name == "python" else ""
                raise ProfileError(
                    f"{name}: {value!r} can't be written on srun's command line, where nothing is quoted.",
                    hint=f"Letters, digits and ._/:@+=- can.{home}",
                )


# A field's type → what its value must be.
_EXPECTED = {"str": TEXT, "int": INT, "bool": FLAG} | {
    "list[str]": TEXTS,
    "list[Any]": TABLES,
    "dict[str, Any]": TABLE,
}
_KINDS = {field.name: str(field.type).removesuffix(" | None") for field in fields(RunConfig)}
# What a record of settings holds, as runs.job.misshapen takes it.
_SHAPES = {"str": str, "int": int, "bool": bool, "list[str]": [str], "list[Any]": list, "dict[str, Any]": dict}
SETTINGS_SHAPE = {name: _SHAPES[kind] for name, kind in _KINDS.items()}
_ENV_NAME = r"[A-Za-z_][A-Za-z0-9_]*\Z"
_CONTROL = r"[\x00-\x1f\x7f]"
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def check_value(name: str, value: Any, where: str) -> Any:
    """`value` as field `name` holds it, where it is of the right type already (as a TOML file gives it)."""
    if name == "env_vars":
        return _env_vars(value, where)
    if name == "time" and isinstance(value, datetime.time):  # time = 04:00:00, without quotes, is a time of day in TOML
        return value.isoformat()
    kind = _KINDS[name]
    if name == "packager_include_pattern" and isinstance(value, str):
        value = [value]
    if not FITS[_EXPECTED[kind]](value):
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
        if name == "app_secret":
            shown = "a value"
        quotable = kind == "str" and isinstance(value, int | float) and not isinstance(value, bool)
        hint = f'Quote it: "{value}".' if quotable and name != "app_secret" else None
        if kind.startswith("list") and isinstance(value, str):
            hint = f"Write a list: [{json.dumps(value, ensure_ascii=False)}]."
        raise ProfileError(f"{where}: expected {_EXPECTED[kind]}, got {shown} ({type(value).__name__}).", hint=hint)
    if kind == "str":
        return _clean_text(name, value, where)
    if kind.startswith("list"):
        items = enumerate(value)
        return [_clean_text(name, each, f"{where}[{n}]") if isinstance(each, str) else each for n, each in items]
    if kind == "int":
        least, most = RULES[name]["least"], RULES[name]["most"]
        if value < least:
            raise ProfileError(f"{where}: must be at least {least}, got {value}.")
        if most is not None and value > most:
            raise ProfileError(f"{where}: must be at most {most}, got {value}.")
    return value


def convert(name: str, value: Any, where: str) -> Any:
    """`value` as field `name` holds it: text is read as the field's type, None and `null` are the field's default."""
    if value is None or value == "null":
        return DEFAULTS[name]
    kind = _KINDS[name]
    if isinstance(value, str):
        value = value if kind == "str" else _from_text(name, value.strip())
    elif kind == "str" and isinstance(value, bool | int | float):
        value = str(value).lower() if isinstance(value, bool) else str(value)
    elif isinstance(value, Mapping):
        value = dict(value)
    elif isinstance(value, Sequence):
        value = list(value)
    return check_value(name, value, where)


def _from_text(name: str, text: str) -> Any:
    """The text of a command line as the field's type, where it is one: a list or table is JSON (`["a", "b"]`) or a bare
    list (`[a,b]`); a list may also be `a,b` where no item can hold a comma, else the text is its one item."""
    kind = _KINDS[name]
    if kind == "int":
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text
    if kind == "bool":
        return _BOOLEANS.get(text.lower(), text)
    if kind.startswith("list") and text[:1] not in ("[", "{"):
        return [part.strip() for part in text.split(",")] if RULES[name]["commas"] else [text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        inner = text[1:-1]
        bare = text.startswith("[") and text.endswith("]") and not set(inner) & set("\"'[]{}")
        return [part.strip() for part in inner.split(",")] if bare and inner.strip() else text


def _clean_text(name: str, value: str, where: str) -> str:
    rules = RULES[name]
    if rules["choices"] and value not in rules["choices"]:
        choices = [*rules["choices"], *(installed_executors() if name == "executor" else ())]
        if value not in choices:
            found = nearest(value, choices)
            hint = sentence(found) if found.startswith("did") else None
            raise ProfileError(f"{where}: {value!r} is none of {', '.join(choices)}.", hint=hint)
    # A newline would end a line of a batch script and begin a command.
    if "\x00" in value or (not rules["script"] and re.search(_CONTROL, value)):
        raise ProfileError(f"{where}: {value!r} holds a control character.")
    if not value and not rules["script"]:
        raise ProfileError(f"{where}: is empty.", hint="Leave the key out where nothing is meant.")
    if rules["flag"] and not flag_fits(rules["flag"], value):
        raise ProfileError(f"{where}: {value!r} is no value that sbatch --{rules['flag']} takes.", hint=rules["hint"])
    if rules["pattern"] and not re.fullmatch(rules["pattern"], value):
        raise ProfileError(f"{where}: {value!r} can't be a {rules['called'] or name}.", hint=rules["hint"])
    return value


def _env_vars(value: Any, where: str) -> list[str]:
    """A table or a list of KEY=VALUE, as a list. Values are never shown: they may be secrets."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, bool) or not isinstance(item, str | int | float):
                what = f"{where}.{key}: expected text or a number, got {type(item).__name__}."
                raise ProfileError(what, hint='Quote it: "true".')
        pairs = [(key, str(item)) for key, item in value.items()]
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        for number, item in enumerate(value):
            if "=" not in item:
                raise ProfileError(f"{where}[{number}]: expected KEY=VALUE.")
        pairs = [(item.partition("=")[0], item.partition("=")[2]) for item in value]
    else:
        raise ProfileError(f"{where}: expected a list of KEY=VALUE or a table, got {type(value).__name__}.")
    for key, text in pairs:
        if not re.match(_ENV_NAME, key):
            raise ProfileError(f"{where}: {key!r} is no name of an environment variable.")
        if "\x00" in text:
            raise ProfileError(f"{where}: the value of {key} holds a NUL.")
    return [f"{key}={text}" for key, text in pairs]
