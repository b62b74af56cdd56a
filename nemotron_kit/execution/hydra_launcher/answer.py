"""The way back from a job: JSON alone. What the job's side wrote is read as data; nothing of it is unpickled or run."""

from __future__ import annotations

import builtins
import json
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from nemotron_kit import files
from nemotron_kit.execution.values import carried, restored
from nemotron_kit.masking import masked
from nemotron_kit.runs.job import JobFolder
from nemotron_kit.runs.records import DamagedRecord, read_object

FILE = "answer.json"


class JobFailed(RuntimeError):
    """A job failed in its own process. `exit_code` is that process's: 137 for one that SIGKILL ended."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text, exit_code)
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Failure:
    """An exception as data: its type's name, its arguments where JSON has them, and what its traceback looked like."""

    type: str
    text: str
    args: list[Any] | None = None
    traceback: str = ""
    types: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        kind = type(error)
        args, types = None, dict[str, str]()
        with suppress(TypeError):
            args, types = carried(list(error.args))
        shown = "".join(traceback.format_exception(kind, error, _from_the_task_on(error.__traceback__)))
        return cls(f"{kind.__module__}.{kind.__qualname__}", f"{kind.__name__}: {error}", args, shown, types)

    def rebuild(self, exit_code: int) -> Exception:
        """A built-in exception as it was raised, any other as JobFailed; the job's traceback is a note on both."""
        error = self._built_in() or JobFailed(self.text, exit_code)
        if self.traceback:
            error.add_note(f"In the job:\n{self.traceback.rstrip()}")
        return error

    def _built_in(self) -> Exception | None:
        module, _, name = self.type.rpartition(".")
        kind = getattr(builtins, name, None) if module == "builtins" else None
        # Exception alone: SystemExit and KeyboardInterrupt would end the sweep, and no sweeper expects them.
        if self.args is None or not (isinstance(kind, type) and issubclass(kind, Exception)):
            return None
        try:
            made = kind(*restored(self.args, self.types))
        except Exception:  # noqa: BLE001 — such as UnicodeDecodeError, whose bytes JSON doesn't have
            return None
        return made if isinstance(made, Exception) else None


def _from_the_task_on(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the launcher's and Hydra's frames, which say nothing about the mistake."""
    at = trace
    while at is not None:
        if at.tb_frame.f_code.co_name == "run_job":
            return at.tb_next or trace
        at = at.tb_next
    return trace


@dataclass(frozen=True)
class Answer:
    """How a task function ended: the exit code of its process, what it returned or raised, and Hydra's folders there.

    `value` is as JSON carries it, `types` what its parts were; `left_out` says why it could not come along.
    """

    code: int = 0
    value: Any = None
    types: dict[str, str] = field(default_factory=dict)
    left_out: str | None = None
    failure: Failure | None = None
    working_dir: str | None = None
    output_dir: str | None = None
    job_id: str | None = None

    @property
    def result(self) -> Any:
        """What the function returned, in its own types."""
        return restored(self.value, self.types)

    def write(self, folder: Path, *, scheduled: bool = False) -> None:
        """Where a scheduler's worker is above, it takes the answer into the exit record, which comes back from another
        machine too, and drops that of an earlier attempt."""
        if not scheduled:
            files.write_text(folder / FILE, json.dumps(files.encoded(masked(asdict(self)))) + "\n")
            return
        from nemotron_kit.execution.scheduled_ends import VALUE

        files.write_text(folder / VALUE, json.dumps(files.encoded({"answer": masked(asdict(self))})) + "\n")


def read_answer(job: JobFolder) -> Answer | None:
    """The answer of a job; None where there is none. Raises DamagedRecord."""
    try:
        record = read_object(job.path / FILE)
    except FileNotFoundError:
        record = (job.exit_record() or {}).get("answer") or {}
    try:
        failure = record.get("failure")
        return Answer(**{**record, "failure": Failure(**failure) if failure else None}) if record else None
    except TypeError as error:
        raise DamagedRecord(f"{job.path / FILE}: {error}.") from error


def sendable(value: Any) -> dict[str, Any]:
    """`value` and `types` as a record holds them, or `left_out`: why the value can't come along."""
    try:
        plain, types = carried(value)
    except TypeError as error:
        return {"left_out": f"it returned {error}, which JSON can't carry"}
    return {"value": plain, "types": types} if types else {"value": plain}
