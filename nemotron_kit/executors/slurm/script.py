"""The sbatch script of a job or an array, rendered by NeMo-Run's classes, with its values checked flag by flag."""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nemotron_kit.errors import Problem, UserError, near
from nemotron_kit.executors.base import missing_secrets
from nemotron_kit.executors.nemo_run import ask, build_executor, shell_lines
from nemotron_kit.executors.slurm import apptainer
from nemotron_kit.quoting import shell_word
from nemotron_kit.remote.agent.slurm_commands import time_seconds
from nemotron_kit.spec.resources import Resources
from nemotron_kit.spec.runconfig import FIELDS, ProfileError, RunConfig, check_header, check_srun_arguments
from nemotron_kit.worker import WORKER_KILLED


def answer(request: dict[str, Any]) -> str:
    """Render NeMo-Run's script; called in the NeMo-Run helper process."""
    script: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in request["script"].items()
    }
    config, resources = RunConfig(**request["config"]), Resources(**request["resources"])
    return render_in_process(config, resources, Script(**script), request["batch"])


SUBFOLDER = "slurm"
_PATH = re.compile(r"/[A-Za-z0-9._/+=@,-]*\Z")
# How many seconds before its time limit a job gets the signal to save; Slurm checks every 30 s.
_LEAD_SECONDS = 300
_MOST_LINKS = 100

# Constant text. bash ends at TERM and USR1 unless it has a handler; with one it waits for srun to end.
# `marker` is the file by which a worker asks to be requeued. It holds `always`, or `told` after TERM, which means a
# preemption, or srun after another node failed: then the job is requeued only after a checkpoint on all nodes (75), or
# if Slurm reports a PreemptTime. The same holds where TERM ended the program (143) or the worker (15) before it saved.
# A job that Slurm is ending (cancelled, out of time) is not RUNNING any more, and is not requeued. A controller that
# does not answer is queried again for a minute. The script writes the file first, since a container may take minutes to
# unpack; the worker removes it once it runs, or writes `killed` where the job may be retried: then KILL, to which no
# worker can react (137, or 9 of srun's), is a failure like another, and the next worker is told by a variable.
_SETUP = """\
export NEMOTRON_HEAD_ADDRESS="$head_node_ip"
unset SLURM_EXPORT_ENV
trap : TERM USR1
if rm "{killed}" 2>/dev/null; then export {variable}=1; fi
nemotron_end() {{
  echo "nemotron: job $SLURM_JOB_ID ended with $1"
  # An array's last task has the number of the whole array: by that, all of its tasks would be meant.
  task=$SLURM_JOB_ID
  [ -z "${{SLURM_ARRAY_TASK_ID:-}}" ] || task="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
  again=$(cat "{marker}" 2>/dev/null)
  rm -f "{marker}"
  killed=
  case "$again $1" in
    *killed" 137" | *killed" 9") killed=yes ;;
    " 143" | " 15" | "killed 143" | "killed 15" | told* | always*) ;;
    *) return "$1" ;;
  esac
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    state=$(squeue --noheader --jobs="$task" --format=%T) && break
    sleep 3
  done
  if scontrol show job "$task" | grep -q "PreemptTime=[0-9]"; then preempted=yes; else preempted=; fi
  if [ "$preempted$killed" ] || [ "$again" = always ] || [ "${{again%% *}} $1" = "told 75" ]; then
    if [ "$state" = RUNNING ]; then
      if [ "$killed" ] && [ -z "$preempted" ]; then : >"{killed}"; fi
      scontrol requeue "$task"
    fi
  fi
  return "$1"
}}
echo told >"{marker}"
"""
# With `chain` a job is not requeued: Slurm starts the next job of the name once this one has ended. If it ended by
# itself, the remaining ones are cancelled; not if it has saved to go on (75), is to be retried (always), or was ended
# by TERM. Each job counts as a restart: that number is in the names of its files.
_CHAIN = """\
if [ -e "{over}" ]; then exit 0; fi
: >"{link}-$SLURM_JOB_ID"
nemotron_links=("{link}"-*)
export SLURM_RESTART_COUNT=$((${{#nemotron_links[@]}} - 1))
nemotron_over() {{
  : >"{over}"
  scancel --quiet --name="$SLURM_JOB_NAME" --user="$(id -un)" --state=PENDING || :
}}
nemotron_end() {{
  echo "nemotron: job $SLURM_JOB_ID ended with $1"
  again=$(cat "{marker}" 2>/dev/null)
  rm -f "{marker}"
  case "$again $1" in
    *killed" 137" | *killed" 9") : >"{killed}" ;;
    always* | told*" 75" | *" 143" | *" 15") ;;
    *) nemotron_over ;;
  esac
  return "$1"
}}
"""
# Ends the job when a command before it fails, on its first node, whose environment srun passes to all nodes: $1 is the
# exit code, $2 the command. A job that is preempted meanwhile is requeued; 75 means no checkpoint here.
_STOP = """\
nemotron_stop() {
  echo "nemotron: setup: ${2%%$'\\n'*} failed with exit code $1 on $(hostname), and the job was not started"
  if declare -F nemotron_end >/dev/null; then nemotron_end "$(($1 == 75 ? 1 : $1))"; fi
  exit "$(($1 == 255 ? 1 : $1))"
}
"""
# A batch script's shell has no function `module` where the job was submitted from a shell that isn't a login shell.
_MODULES = """\
if ! type module >/dev/null 2>&1; then
  for nemotron_file in "${LMOD_PKG:-/usr/share/lmod/lmod}/init/bash" "${MODULESHOME:-/usr/share/modules}/init/bash" \\
    /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh /etc/profile.d/modules.sh; do
    if [ -r "$nemotron_file" ]; then . "$nemotron_file" && break; fi
  done
fi
"""
_CONDA = """\
for nemotron_file in "$(type -P conda)" "${CONDA_EXE:-}" "$HOME/miniforge3/bin/conda" "$HOME/miniconda3/bin/conda" \\
  "$HOME/anaconda3/bin/conda" /opt/conda/bin/conda conda; do
  if [ -x "$nemotron_file" ]; then break; fi
done
nemotron_hook=$("$nemotron_file" shell.bash hook) || nemotron_stop "$?" "conda shell.bash hook"
eval "$nemotron_hook"
"""
# Like `set -e`, but not inside files that a line sources: a site's files may not be written for it.
_TRAP = """\
nemotron_depth=${#BASH_SOURCE[@]}
trap 'nemotron_code=$?
[ "${#BASH_SOURCE[@]}" -gt "$nemotron_depth" ] || nemotron_stop "$nemotron_code" "$BASH_COMMAND"' ERR
"""


@dataclass(frozen=True)
class Script:
    """What one sbatch call submits. `folder` is the run's folder on the target, `command` what srun starts on each
    node, `mounts` the folders that a container needs at the same path."""

    name: str
    folder: str
    command: tuple[str, ...]
    array: str | None = None
    mounts: tuple[str, ...] = ()


def intent_of(run_id: str, jobs: Sequence[int], attempt: int = 0) -> str:
    """The intent: 12 hex digits that identify the submission of these jobs of this run, equal in every process and
    every repetition."""
    text = f"{run_id} {attempt} {','.join(map(str, jobs))}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def job_name(intent: str, label: str) -> str:
    """`nk-<intent>-<label>`, a slug of at most 64 characters."""
    slug = re.sub(r"[^A-Za-z0-9._-]+|\.\.+", "-", label).strip("-.")
    return f"nk-{intent}-{slug}"[:64].rstrip("-.")


_NAME, _TARGET = "nk-000000000000-name", "/nk-000000000000-target"
_cache: dict[str, str] = {}


def render(config: RunConfig, resources: Resources, script: Script, *, batch: bool) -> str:
    """The sbatch script. Raises UserError for a value that can't be written into it, MissingExtra without NeMo-Run."""
    for path in (script.folder, *script.command, *script.mounts):
        if path.startswith("/") and not _PATH.match(path):
            raise UserError(
                f"{path!r}: a batch script takes paths of letters, digits and ._/+=@,- only.",
                hint="Set NEMOTRON_HOME, remote_job_dir or python to such a path; a container's inputs need one, too.",
            )
    for path in script.mounts:
        if "," in path:
            raise UserError(
                f"{path!r}: a container's mounts are separated by commas, so none of its folders can have one.",
                hint="That is NEMOTRON_HOME, remote_job_dir, the registry, or an input: give it another name.",
            )
    # The scripts of a sweep's jobs differ in name and target; rendering one takes 20 ms.
    template = replace(script, name=_NAME, command=(*script.command[:-1], _TARGET))
    key = repr((config, resources, template, batch))
    if key not in _cache:
        given = {"config": asdict(config), "resources": asdict(resources), "script": asdict(template), "batch": batch}
        _cache[key] = ask(__name__, given) or render_in_process(config, resources, template, batch)
    text = _cache[key].replace(_NAME, script.name).replace(_TARGET, script.command[-1])
    if " ".join(script.command) not in text:  # NeMo-Run replaces /nemo_run wherever it stands
        raise UserError(
            "/nemo_run can't be part of a path of this job: NeMo-Run replaces it by another path.",
            hint=f"The paths: {script.folder}, {script.command[0]}.",
        )
    check_header(text)
    return text


def render_in_process(config: RunConfig, resources: Resources, script: Script, batch: bool) -> str:
    """NeMo-Run's rendering of the script, unchecked."""
    executor = _executor(config, resources, script, batch)
    from nemo_run import LocalTunnel
    from nemo_run.core.execution.slurm import SlurmBatchRequest, SlurmJobDetails

    folder = f"{script.folder}/{SUBFOLDER}"
    executor.tunnel = LocalTunnel(job_dir=script.folder)
    executor.job_dir = folder
    executor.job_details = SlurmJobDetails(job_name=script.name, folder=folder)
    end = ["&&", "nemotron_over", "||"] if config.chain else ["||"]
    return str(
        SlurmBatchRequest(
            launch_cmd=["sbatch", "--parsable"],
            jobs=[script.name],
            command_groups=[[*script.command, *end, "nemotron_end", "$?"]],
            executor=executor,
            max_retries=0,
            extra_env={},
            launcher=None,
        ).materialize()
    )


def sbatch_options(config: RunConfig, resources: Resources, *, batch: bool) -> list[str]:
    """sbatch's options in the script of a job with these settings, as arguments that no shell reads; without the names
    of its files and of the job. Raises like `render`."""
    text, found = render(config, resources, Script("nk", "/run", ("true", "/job")), batch=batch), list[str]()
    for line in text.splitlines():
        if line.startswith("#SBATCH --"):
            flag, equals, value = line.removeprefix("#SBATCH --").partition("=")
            if flag not in ("job-name", "output", "error"):
                found.append(f"--{flag}={shlex.split(value)[0]}" if equals else f"--{flag}")
    return found


def check_syntax(text: str) -> None:
    """Run `bash -n` on the script. Raises UserError with bash's message; only startup_commands and setup can be
    invalid."""
    found = subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, check=False)
    if found.returncode != 0:
        raise UserError(
            f"The batch script is no valid bash: {found.stderr.decode(errors='replace').strip()}",
            hint="See startup_commands and setup in the profile; --dry-run shows the script.",
        )


def lead_seconds(limit: int | None, asked: int | None = None) -> int:
    """How many seconds before its time limit (in seconds; None: no limit) a job gets the signal to save: the profile's
    signal_lead (`asked`), at most half of the limit; else five minutes, at most a quarter of the limit."""
    if asked is not None:
        return asked if limit is None else max(1, min(asked, limit // 2))
    return _LEAD_SECONDS if limit is None else max(10, min(_LEAD_SECONDS, limit // 4))


def time_limit_options(config: RunConfig, limit: str | None) -> list[str]:
    """sbatch options that lower the time limit to the partition's (`limit`, in Slurm's format) if the profile asks for
    more: Slurm would leave such a job pending for ever. The job continues by itself in another segment."""
    allowed = time_seconds(limit) if limit else None
    wanted = time_seconds(config.time)
    if allowed is None or (wanted is not None and wanted <= allowed):
        return []
    return [f"--time={limit}", f"--signal=USR1@{lead_seconds(allowed, config.signal_lead)}"]


def _executor(config: RunConfig, resources: Resources, script: Script, batch: bool) -> Any:
    extra = checked_extra(config)
    for name in extra:
        if name in ("retries", "array") or not (name in _IN_A_SCRIPT or name in FIELDS):
            hint = "The profile has a field of that name." if name in FIELDS else near(name, _IN_A_SCRIPT)
            raise ProfileError(
                f"extra.{name}: has no effect on a batch script of nemotron's.",
                hint=hint or f"It takes {', '.join(sorted(_IN_A_SCRIPT))}.",
            )
    arguments = [*extra.pop("srun_args", [])]
    extra.pop("apptainer_args", None)
    check_srun_arguments(arguments, config)
    in_apptainer = apptainer.runs_in(config)
    if in_apptainer:
        extra.pop("container_env", None)
    executor = build_executor(
        replace(
            config,
            nodes=resources.nodes,
            ntasks_per_node=1,
            nproc_per_node=None,
            cpus_per_task=resources.cpus_per_task,
            gpus_per_task=resources.gpus_per_task,
            segment=config.segment if resources.nodes > 1 else None,
            array=script.array,
            # NeMo-Run's container is Pyxis'; Apptainer's is part of the command.
            container_image=None if in_apptainer else config.container_image,
            mounts=None if in_apptainer else [*(config.mounts or ()), *(f"{path}:{path}" for path in script.mounts)],
            container_runtime=None,
            detach=batch,
            # Both travel in the job's folder; and NeMo-Run's tunnel is never connected.
            env_vars=None,
            packager="none",
            tunnel="local",
            retries=None,
            chain=None,
            setup=None,
            modules=None,
            conda=None,
            startup_commands=None,
            extra=extra or None,
        )
    )
    executor.signal = executor.signal or f"USR1@{lead_seconds(time_seconds(config.time))}"
    flags = {"requeue": not config.chain, **(executor.additional_parameters or {})}
    if not flags["requeue"]:
        flags["no_requeue"] = not flags.pop("requeue")
    executor.additional_parameters = flags
    # No limit on how long one node may outlast another (rank 0 writes the checkpoint), and all of the node's CPUs for
    # the one task that starts the others.
    executor.srun_args = ["--wait=0", "--cpu-bind=none", *arguments]
    # With Pyxis an image's variables override those of the job, except these.
    executor.container_env = [*(executor.container_env or ()), *(config.secrets or ())] or None
    marker = f"{script.folder}/{SUBFOLDER}/again-$SLURM_JOB_ID"
    shell = shell_lines(config)
    guarded = [_STOP + _TRAP, *shell, "trap - ERR"] if shell else []
    contained = [_STOP, *apptainer.script_lines(config, resources.nodes, script.command)] if in_apptainer else []
    killed = f"{script.folder}/{SUBFOLDER}/killed-$SLURM_JOB_NAME${{SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}}"
    start = _SETUP.format(marker=marker, killed=killed, variable=WORKER_KILLED)
    if config.chain:
        links = f"{script.folder}/{SUBFOLDER}"
        start += _CHAIN.format(
            marker=marker, killed=killed, over=f"{links}/over-$SLURM_JOB_NAME", link=f"{links}/link-$SLURM_JOB_NAME"
        )
    executor.setup_lines = "\n".join([start, *environment_lines(config), *guarded, *contained])
    return executor


# NeMo-Run's fields that have an effect here. The others are for what NeMo-Run itself launches: groups of jobs
# (`heterogeneous`), monitors, Ray.
_IN_A_SCRIPT = frozenset({
    *("srun_args", "apptainer_args", "container_env", "additional_parameters"),
    *("signal", "open_mode", "network", "memory_measure", "dependencies"),
})  # fmt: skip
_EXTRA = {
    "dependencies": list,
    "memory_measure": bool,
    "srun_args": list,
    "apptainer_args": list,
    "container_env": list,
    "additional_parameters": dict,
}


def checked_extra(config: RunConfig) -> dict[str, Any]:
    """A copy of the profile's `extra` without nulls. Raises ProfileError for a value of a wrong type: each character of
    a text would become an argument."""
    extra = {name: value for name, value in (config.extra or {}).items() if value is not None}
    for name, kind in _EXTRA.items():
        if name in extra and not isinstance(extra[name], kind):
            expected = {dict: "a table", bool: "true or false"}.get(kind, "a list of texts")
            raise ProfileError(f"extra.{name}: expected {expected}, got {extra[name]!r}.")
    for handle in extra.get("dependencies") or ():
        if not re.match(r"[a-z_]+://[^/]*/[^/]", str(handle)):
            raise ProfileError(
                f"extra.dependencies: {handle!r} is not in NeMo-Run's form.",
                hint="Write slurm://nemo_run/JOB_ID; for a run of nemotron's use --after RUN.",
            )
    return extra


def environment_lines(config: RunConfig) -> list[str]:
    """The lines that load the profile's modules and then activate its conda environment. Tracing (`set -x`) is off
    meanwhile, since it would print thousands of lines. A command that fails ends the script."""
    conda = None if config.container_image else config.conda
    if not (config.modules or conda):
        return []
    lines = ["{ set +vx; } 2>/dev/null", _STOP]
    if config.modules:
        lines.append(_MODULES)
        lines += [_or_stop(f"module load {shlex.quote(name)}") for name in config.modules]
    if conda:
        lines += [_CONDA, _or_stop(f"conda activate {shell_word(conda)}")]
    return [*lines, "set -vx"]


def check_text(config: RunConfig, python: str, code: str) -> str:
    """A bash script for `profiles check --node`: what a job of this profile runs on its node before it begins, then
    `code` by the Python that would run the job. A container that srun starts is not part of it. Raises
    ProfileError for a value that can't be written into a script."""
    check_srun_arguments((config.extra or {}).get("srun_args") or (), config)
    shell = shell_lines(config)
    lines = ['echo "nemotron-node: $(hostname)"', "exec </dev/null", _STOP, *environment_lines(config)]
    lines += [_TRAP, *shell, "trap - ERR"] if shell else []
    if apptainer.runs_in(config):
        lines += apptainer.script_lines(config, 1)
    command = [*inside_of(config, "/tmp", ()), python]  # noqa: S108 — in the container
    if not config.container_image or apptainer.runs_in(config):
        lines.append(f"cd /; {' '.join(command)} -c {shlex.quote(code)}")
    return "\n".join("" if line == "set -vx" else line for line in lines)


def _or_stop(command: str) -> str:
    return f'{command} || nemotron_stop "$?" {shlex.quote(command)}'


def inside_of(config: RunConfig, folder: str, mounts: Sequence[str]) -> list[str]:
    """The arguments in front of a job's command that start its container; [] with Pyxis, whose container srun
    starts."""
    return apptainer.exec_arguments(config, folder, mounts) if apptainer.runs_in(config) else []


def with_modules(config: RunConfig, command: list[str]) -> list[str]:
    """The command line that runs `command` on a node; one that starts Apptainer's container is run by a shell in which
    the profile's modules are loaded, since they may bring Apptainer, and its settings of Apptainer's are set."""
    settings = apptainer.setting_lines(config)
    if not (apptainer.runs_in(config) and (config.modules or settings)):
        return command
    lines = [*(line for line in environment_lines(config) if line != "set -vx"), *settings]
    return ["bash", "-c", "\n".join([*lines, f"exec {shlex.join(command)}"])]


FILE = "sbatch.sh"


def problems_of(config: RunConfig, resources: Resources, mode: str, secrets: Sequence[str]) -> Iterator[Problem]:
    """The problems that would prevent a job of this profile from running."""
    if mode == "local":
        yield Problem("this profile's executor is slurm: launch with --run or --batch.")
    limit = time_seconds(config.time)
    if config.signal_lead and limit and config.signal_lead >= limit:
        what = f"the job would be signalled to save before it has begun: its time limit is {config.time}."
        yield Problem(
            what, field=f"signal_lead={config.signal_lead}", hint="Seconds before the limit, so less than it."
        )
    if config.segment and resources.nodes > 1 and resources.nodes % config.segment:
        what = f"sbatch takes a segment size that divides the number of nodes, {resources.nodes}."
        yield Problem(what, field=f"segment={config.segment}")
    if config.array:
        yield Problem("an array is launched as a sweep (-m key=1,2,3), for which nemotron sets it.", field="array")
    if (config.chain or 0) > _MOST_LINKS:
        yield Problem(f"a chain has at most {_MOST_LINKS} jobs.", field=f"chain={config.chain}")
    yield from apptainer.problems_of(config)
    yield from missing_secrets(secrets)
