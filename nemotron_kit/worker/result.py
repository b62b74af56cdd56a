"""The result of a sweep's job, sent back to the sweeper as JSON: nothing from the job's side is unpickled."""

from __future__ import annotations

import base64
import builtins
import datetime
import json
import math
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from nemotron_kit import files
from nemotron_kit.errors import error_text
from nemotron_kit.masking import masked
from nemotron_kit.runs.job import VALUE, DamagedRunRecord, JobFolder, read_object_if_any

_DEPTH = 32
# Type → (what JSON has of it, and what makes it again of that). A subclass is encoded as its base in this table.
_SIMPLE: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    complex: (lambda value: [repr(value.real), repr(value.imag)], lambda data: complex(*map(float, data))),
    bytes: (lambda value: base64.b64encode(value).decode("ascii"), base64.b64decode),
    Decimal: (str, Decimal),
    Fraction: (str, Fraction),
    Path: (str, Path),
    datetime.datetime: (datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    datetime.date: (datetime.date.isoformat, datetime.date.fromisoformat),
    datetime.time: (datetime.time.isoformat, datetime.time.fromisoformat),
    datetime.timedelta: (
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda data: datetime.timedelta(*data),
    ),
}
_NAMES = {kind.__name__: make for kind, (_, make) in _SIMPLE.items()}
_GROUPS: dict[str, type] = {kind.__name__: kind for kind in (tuple, set, frozenset)}


def encode_value(value: Any) -> tuple[Any, dict[str, str]]:
    """(the value as JSON data, the types of the parts that JSON lacks: JSON pointer → name). Raises TypeError, which
    names what can't be converted."""
    types: dict[str, str] = {}
    return _plain(value, "", types, 0), types


def decode_value(value: Any, types: Mapping[str, str]) -> Any:
    """The inverse of `encode_value`. Raises ValueError for data that it did not write."""
    try:
        return _typed(value, "", types)
    except (TypeError, AttributeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"a value of a job that can't be read: {error}") from error


def _plain(value: Any, at: str, types: dict[str, str], depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of an enum that is a string, its value
    if type(value).__module__.partition(".")[0] in _ARRAYS and hasattr(value, "dtype"):
        return _plain_array(value, at, types)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):  # JSON has none of these
            types[at] = "float"
            return repr(float(value))
        return float(value)
    if depth >= _DEPTH:
        raise TypeError(f"something more than {_DEPTH} levels deep")
    for kind, (write, _) in _SIMPLE.items():
        if isinstance(value, kind):
            types[at] = kind.__name__
            return write(value)
    return _plain_group(value, at, types, depth)


def _plain_group(value: Any, at: str, types: dict[str, str], depth: int) -> Any:
    if type(value).__module__.startswith("omegaconf."):
        from omegaconf import OmegaConf

        if OmegaConf.is_config(value):
            values = OmegaConf.to_container(value, resolve=False)
            plain = _plain(values, f"{at}/{_INSIDE}", types, depth + 1)
            types[at] = "config"
            return plain
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value):
            return {key: _plain(item, f"{at}/{_escaped(key)}", types, depth + 1) for key, item in value.items()}
        types[at] = "dict"
        pairs = [[*pair] for pair in value.items()]
        return [_plain(pair, f"{at}/{number}", types, depth + 1) for number, pair in enumerate(pairs)]
    if isinstance(value, list | tuple | set | frozenset):
        if not isinstance(value, list):
            types[at] = next(name for name, kind in _GROUPS.items() if isinstance(value, kind))
        return [_plain(item, f"{at}/{number}", types, depth + 1) for number, item in enumerate(value)]
    # A scalar of another library.
    if callable(getattr(value, "item", None)) and not getattr(value, "shape", ()):
        return _plain(value.item(), at, types, _DEPTH)
    kind = type(value)
    raise TypeError(f"a {kind.__module__}.{kind.__qualname__}")


def _typed(value: Any, at: str, types: Mapping[str, str]) -> Any:
    kind = types.get(at, "")
    if kind == "float":
        return float(value)
    if kind in _NAMES:
        return _NAMES[kind](value)
    if kind.partition(".")[0] in _ARRAYS:
        return _typed_array(value, kind)
    if kind == "config":
        from omegaconf import OmegaConf

        return OmegaConf.create(_typed(value, f"{at}/{_INSIDE}", types))
    if isinstance(value, dict):
        return {key: _typed(item, f"{at}/{_escaped(key)}", types) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    items = [_typed(item, f"{at}/{number}", types) for number, item in enumerate(value)]
    if kind == "dict":
        return dict(items)
    return _GROUPS[kind](items) if kind else items


# Stands for the content of a config in a pointer: an escaped key never has `~2`.
_INSIDE = "~2"


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


# --- arrays: `numpy.array.float32`, `numpy.scalar.int64`, `torch.tensor.bfloat16`

_ARRAYS = ("numpy", "torch")
_NUMBERS = ("int", "uint", "float", "bfloat", "bool")


def _plain_array(value: Any, at: str, types: dict[str, str]) -> Any:
    library, name = type(value).__module__.partition(".")[0], type(value).__qualname__
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype.rstrip("0123456789") not in _NUMBERS or name == "MaskedArray":
        raise TypeError(f"a {library}.{name} of {dtype}")
    form = "tensor" if library == "torch" else "array" if value.shape or name == "ndarray" else "scalar"
    try:
        numbers = (value.detach().cpu() if form == "tensor" else value).tolist()
    except (RuntimeError, NotImplementedError) as error:  # such as one on the meta device
        raise TypeError(f"a {library}.{name} without numbers ({error})") from error
    types[at] = f"{library}.{form}.{dtype}"
    return files.map_leaves(numbers, lambda n: n if not isinstance(n, float) or math.isfinite(n) else repr(n))


def _typed_array(value: Any, kind: str) -> Any:
    library, form, dtype = kind.split(".")
    numbers = files.map_leaves(value, lambda n: float(n) if isinstance(n, str) else n)
    if dtype.rstrip("0123456789") not in _NUMBERS:
        raise ValueError(f"no type of numbers: {dtype}")
    try:
        module: Any = import_module(library)
    except ImportError:
        return numbers
    if form == "tensor":
        return module.tensor(numbers, dtype=getattr(module, dtype))
    array = module.array(numbers, dtype=dtype)
    return array if form == "array" else array[()]


FILE = "answer.json"


class JobFailed(RuntimeError):
    """A job failed. `exit_code` is that of its process: 137 for one that SIGKILL ended."""

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
        """The failure for an exception; `args` is None where JSON can't hold its arguments."""
        kind = type(error)
        args, types = None, dict[str, str]()
        with suppress(TypeError):
            args, types = encode_value(list(error.args))
        shown = "".join(traceback.format_exception(kind, error, _from_the_task_on(error.__traceback__)))
        return cls(f"{kind.__module__}.{kind.__qualname__}", error_text(error), args, shown, types)

    def rebuild(self, exit_code: int) -> Exception:
        """A built-in exception as it was raised, any other as JobFailed; the job's traceback is a note on both."""
        error = self._built_in() or JobFailed(self.text, exit_code)
        if self.traceback:
            error.add_note(f"In the job:\n{self.traceback.rstrip()}")
        return error

    def _built_in(self) -> Exception | None:
        module, _, name = self.type.rpartition(".")
        kind = getattr(builtins, name, None) if module == "builtins" else None
        # No BaseException: SystemExit and KeyboardInterrupt would end the sweep, and no sweeper expects them.
        if self.args is None or not (isinstance(kind, type) and issubclass(kind, Exception)):
            return None
        try:
            made = kind(*decode_value(self.args, self.types))
        except Exception:  # noqa: BLE001 — such as UnicodeDecodeError, whose bytes JSON doesn't have
            return None
        return made if isinstance(made, Exception) else None


def _from_the_task_on(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without the launcher's and Hydra's frames, which do not concern the user's code."""
    at = trace
    while at is not None:
        if at.tb_frame.f_code.co_name == "run_job":
            return at.tb_next or trace
        at = at.tb_next
    return trace


@dataclass(frozen=True)
class TaskResult:
    """How a task function ended: the exit code of its process, what it returned or raised, and Hydra's folders there.

    `value` is JSON data and `types` the Python types of its parts, from which `result` restores them; `left_out` says
    why a value could not be encoded.
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
        """What the function returned, with its original types. Raises ValueError for a damaged record."""
        return decode_value(self.value, self.types)

    def write(self, folder: Path, *, scheduled: bool = False) -> None:
        """Write the result into the job's folder.

        `scheduled`: into the file that the scheduler's worker copies into the exit record, which is also fetched from
        other machines, and drops with an earlier attempt.
        """
        record = masked(asdict(self))
        name, document = (VALUE, {"answer": record}) if scheduled else (FILE, record)
        files.write_text(folder / name, json.dumps(files.encoded(document)) + "\n")


def read_task_result(job: JobFolder) -> TaskResult | None:
    """The result of a job; None where there is none. Raises DamagedRunRecord."""
    record = read_object_if_any(job.path / FILE)
    if record is None:
        record = (job.exit_record() or {}).get("answer") or {}
    try:
        failure = record.get("failure")
        return TaskResult(**{**record, "failure": Failure(**failure) if failure else None}) if record else None
    except (TypeError, AttributeError) as error:
        raise DamagedRunRecord(f"{job.path / FILE}: {error}.") from error


def sendable(value: Any) -> dict[str, Any]:
    """`value` and `types` as a record holds them, or `left_out`: why the value can't be encoded."""
    try:
        plain, types = encode_value(value)
    except TypeError as error:
        return {"left_out": f"it returned {error}, which JSON can't carry"}
    return {"value": plain, "types": types} if types else {"value": plain}
