"""What may stand behind each flag of a batch script's header, and on its srun line, which NeMo-Run quotes nowhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from nemotron_kit.plan.runconfig import ProfileError, RunConfig

_NAME = r"[A-Za-z0-9][A-Za-z0-9._,:@+-]{0,127}"
_COUNT = r"[0-9]{1,9}"
_MEMORY = r"[0-9]{1,12}[KMGTkmgt]?[Bb]?"
_PATH = r"/[A-Za-z0-9._/+=@,%-]{0,1023}"
_PATTERNS = {
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
    "job-name": r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    "mem": _MEMORY,
    "mem-per-cpu": _MEMORY,
    "mem-per-gpu": _MEMORY,
    "nodelist": r"[A-Za-z0-9._,\[\]-]{1,4096}",
    "nodes": _COUNT,
    "ntasks-per-node": _COUNT,
    "open-mode": r"append|truncate",
    "output": _PATH,
    "error": _PATH,
    "signal": r"([RB]{1,2}:)?[A-Z0-9]{1,8}(@[0-9]{1,6})?",
    "time": r"([0-9]{1,4}-)?[0-9]{1,6}(:[0-9]{1,2}){0,2}|UNLIMITED|INFINITE",
}
# The rest of sbatch's flags, which a profile can only give in `extra`.
_OTHER = re.compile(_NAME)
_ALL = {flag: re.compile(pattern) for flag, pattern in _PATTERNS.items()}
_FLAG = re.compile(r"#SBATCH --([a-z][a-z-]*)(?:=(.*))?\Z")
_IMAGE = re.compile(r"[A-Za-z0-9./][A-Za-z0-9._/:@#+-]{0,1023}\Z")
_MOUNT = re.compile(r"/?[A-Za-z0-9._/@+=-]{1,1023}(:/[A-Za-z0-9._/@+=-]{0,1023}(:[A-Za-z0-9+]{1,32})?)?\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}\Z")
_WORD = re.compile(r"--?[A-Za-z][A-Za-z-]*(=[A-Za-z0-9._,:@+=/%-]*)?\Z|[A-Za-z0-9._,:@+=/%-]+\Z")


def flag_fits(flag: str, value: str) -> bool:
    """Whether sbatch would take `value` for --flag."""
    return _ALL.get(flag, _OTHER).fullmatch(value) is not None


def check_header(script: str) -> None:
    """Every line between the shebang and the first command is a comment or a flag with a value of its kind.

    Raises ProfileError with the flag. A value with a newline in it is a line that is neither.
    """
    for line in script.partition("\nset -")[0].splitlines():
        if line.startswith("#SBATCH"):
            _check_flag(line)
        elif line and not line.startswith("#"):
            raise ProfileError(f"The batch script's header has a line that is no flag: {line[:80]!r}.")


def check_words(srun_args: Sequence[object], config: RunConfig) -> None:
    """What reaches the srun line: a container's image, mounts and variables, and `extra = {srun_args = […]}`."""
    for name, pattern, values in (
        ("container_image", _IMAGE, [config.container_image] if config.container_image else []),
        ("mounts", _MOUNT, config.mounts or []),
        ("extra.srun_args", _WORD, srun_args),
        ("secrets", _VARIABLE, (config.secrets if config.container_image else None) or []),
        ("extra.container_env", _VARIABLE, (config.extra or {}).get("container_env") or []),
    ):
        for value in values:
            if not isinstance(value, str) or not pattern.match(value):
                raise ProfileError(
                    f"{name}: {value!r} can't stand on srun's command line, where nothing is quoted.",
                    hint="Letters, digits and ._/:@+=- can.",
                )


def _check_flag(line: str) -> None:
    match = _FLAG.match(line)
    if match is None:
        raise ProfileError(f"The batch script's header has a line that is no flag: {line[:80]!r}.")
    flag, quoted = match.groups()
    if quoted is None:
        return
    try:
        words = shlex.split(quoted)
    except ValueError:
        words = []
    if len(words) != 1 or not flag_fits(flag, words[0]):
        raise ProfileError(f"{flag.replace('-', '_')}: {quoted[:80]} is no value that sbatch --{flag} takes.")
