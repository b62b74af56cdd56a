"""Pure functions from record to record; None drops the record. Any callable of that shape serves as a transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NotRequired, TypedDict

Record = dict[str, Any]
Transform = Callable[[Record], Record | None]


class Message(TypedDict):
    """One turn, as OpenAI's API spells it."""

    role: str
    content: str


class SftRecord(TypedDict):
    """A prompt and its answer."""

    input: str
    output: str
    system: NotRequired[str]


class OpenAIChatRecord(TypedDict):
    """A conversation, with the tools that it may call."""

    messages: list[Message]
    tools: NotRequired[list[Record]]


class ShareGPTRecord(TypedDict):
    """A conversation of `{"from": …, "value": …}` turns."""

    conversations: list[Record]


def sft(*, input: str = "input", output: str = "output", system: str | None = None) -> Transform:
    """{input, output[, system]} from the fields named; a record without input or output is dropped."""
    fields = {"input": input, "output": output}

    def transform(record: Record) -> Record | None:
        taken = _take(record, fields)
        if taken is not None and system is not None and record.get(system):
            taken["system"] = record[system]
        return taken

    return transform


def openai_chat(*, messages: str = "messages") -> Transform:
    """{messages} from the field named; a record without any message is dropped."""
    return _list_field("messages", messages)


def sharegpt(*, conversations: str = "conversations") -> Transform:
    """{conversations} from the field named; a record without any turn is dropped."""
    return _list_field("conversations", conversations)


def nemotron_rl() -> Transform:
    """{messages[, tools]} from `responses_create_params`; a record without its `input` is dropped."""

    def transform(record: Record) -> Record | None:
        params = record.get("responses_create_params")
        messages = params.get("input") if isinstance(params, dict) else None
        if not isinstance(params, dict) or not isinstance(messages, list) or not messages:
            return None
        tools = params.get("tools")
        return {"messages": messages, "tools": tools} if tools else {"messages": messages}

    return transform


def passthrough() -> Transform:
    """Every record as it is."""
    return lambda record: record


def select(*fields: str) -> Transform:
    """Only the fields named; one that a record lacks is left out of it."""
    return lambda record: {name: record[name] for name in fields if name in record}


def rename(**fields: str) -> Transform:
    """`new="old"` pairs; a record that lacks one of the old fields is dropped."""
    return lambda record: _take(record, fields)


def _take(record: Record, fields: dict[str, str]) -> Record | None:
    if any(record.get(old) is None for old in fields.values()):
        return None
    return {new: record[old] for new, old in fields.items()}


def _list_field(new: str, old: str) -> Transform:
    def transform(record: Record) -> Record | None:
        found = record.get(old)
        return {new: found} if isinstance(found, list) and found else None

    return transform
