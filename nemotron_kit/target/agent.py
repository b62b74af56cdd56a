"""The door by which a launch reaches the machine where jobs run: operations by name, here or over a connection.

A request is a JSON line `{"op": NAME, "args": {…}, "payload": N}`, then N bytes. The answer is a line `MARK JSON`, the
JSON being `{"ok": true, "result": …, "payload": N}` or `{"ok": false, "error": {…}, "payload": 0}`, then N bytes. The
mark tells answers from what a login shell prints around them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, BinaryIO

from nemotron_kit import errors
from nemotron_kit.errors import NemotronError
from nemotron_kit.runs.logs import neutralise

Answer = tuple[Any, bytes]

# name → "module:function"; a function takes the payload first, then the request's args by name, and gives JSON data
# and bytes. A new operation is one function and a line here.
OPS: dict[str, str] = {
    "ping": "nemotron_kit.target.hello:ping",
    "hello": "nemotron_kit.target.hello:hello",
    "python_facts": "nemotron_kit.target.inspect:python_facts",
    "writable": "nemotron_kit.target.inspect:writable",
    "docker_facts": "nemotron_kit.target.inspect:docker_facts",
    "slurm_facts": "nemotron_kit.target.inspect:slurm_facts",
    "slurm_accepts": "nemotron_kit.target.inspect:slurm_accepts",
    "exist": "nemotron_kit.target.hello:exist",
    "resolve": "nemotron_kit.target.registry:resolve",
    "registry_facts": "nemotron_kit.target.registry:registry_facts",
    "make_mounted": "nemotron_kit.target.registry:make_mounted",
    "code_of": "nemotron_kit.target.code:code_of",
    "has_code": "nemotron_kit.target.code:has_code",
    "put_code": "nemotron_kit.target.code:put_code",
    "place_code": "nemotron_kit.target.code:place_code",
    "commit_of": "nemotron_kit.target.repositories:commit_of",
    "fetch_repository": "nemotron_kit.target.repositories:fetch_repository",
    "clean": "nemotron_kit.target.clean:clean",
    "make_run": "nemotron_kit.target.folders:make_run",
    "log_names": "nemotron_kit.target.logs:names",
    "read_logs": "nemotron_kit.target.logs:read",
    "log_offset": "nemotron_kit.target.records:log_offset",
    "begin_again": "nemotron_kit.target.records:begin_again",
    "job_records": "nemotron_kit.target.records:job_records",
    "saved_in": "nemotron_kit.target.records:saved_in",
    "remove_run": "nemotron_kit.target.records:remove_run",
    "slurm_submit": "nemotron_kit.target.slurm:submit",
    "slurm_observe": "nemotron_kit.target.slurm_states:observe",
    "slurm_cancel": "nemotron_kit.target.slurm:cancel",
    "slurm_limits": "nemotron_kit.target.slurm:limits",
}


def perform(op: str, payload: bytes, args: Mapping[str, Any]) -> Answer:
    """Do one operation in this process. Raises NemotronError for whatever the machine refuses."""
    if op not in OPS:
        raise NemotronError(f"No operation {op!r} on the target.", hint=errors.nearest(op, OPS).capitalize())
    module, _, name = OPS[op].partition(":")
    function: Callable[..., Answer] = getattr(import_module(module), name)
    try:
        return function(payload, **args)
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        raise NemotronError(f"{op}:{where} {error.strerror or error}.") from error


def serve(source: BinaryIO, sink: BinaryIO, mark: str) -> None:
    """Answer requests until there are no more. What goes wrong in one is its answer; a request cut off ends it."""
    while line := source.readline():
        request = json.loads(line)
        payload = source.read(request["payload"])
        if len(payload) != request["payload"]:
            return
        head, data = _answer(request["op"], payload, request["args"])
        sink.write(b"\n%s %s\n" % (mark.encode(), json.dumps(head).encode()))
        sink.write(data)
        sink.flush()


def _answer(op: str, payload: bytes, args: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    try:
        result, data = perform(op, payload, args)
        json.dumps(result)
    except NemotronError as error:
        return {"ok": False, "error": error_to_dict(error), "payload": 0}, b""
    # A bug over there must be readable here.
    except Exception as error:  # noqa: BLE001
        wrapped = NemotronError(f"{op} failed on the target: {type(error).__name__}: {error}")
        return {"ok": False, "error": error_to_dict(wrapped), "payload": 0}, b""
    return {"ok": True, "result": result, "payload": len(data)}, data


def error_to_dict(error: NemotronError) -> dict[str, Any]:
    """An error as JSON data; its class travels by name, as the nearest of those in nemotron_kit.errors."""
    known = next(cls for cls in type(error).__mro__ if vars(errors).get(cls.__name__) is cls)
    return {"type": known.__name__, "message": error.message, "hint": error.hint}


def error_from_dict(data: Mapping[str, Any]) -> NemotronError:
    """The error that `error_to_dict` wrote, on a machine that is not trusted with this one's terminal."""
    cls = vars(errors).get(str(data.get("type")))
    made = cls if isinstance(cls, type) and issubclass(cls, NemotronError) else NemotronError
    hint = data.get("hint")
    return made(neutralise(str(data.get("message"))), hint=neutralise(str(hint)) if hint else None)
