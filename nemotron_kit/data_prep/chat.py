"""Turns chat records into token sequences with a loss mask: a chat template, and which parts of its text the model is
trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError, near
from nemotron_kit.files import read_regular
from nemotron_kit.home import expand_user
from nemotron_kit.installed import require_packages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Messages = list[dict[str, Any]]
NANO3 = "nano3"
TEMPLATES = {NANO3: Path(__file__).parent / "templates" / "nano3.jinja"}
# Unicode noncharacters, reserved for internal use: no text may contain them.
_OPEN, _CLOSE, _SHIELD = "\ufdd0", "\ufdd1", "\ufdd2"
_RESERVED = re.compile(f"[{_OPEN}{_CLOSE}{_SHIELD}]")
# Special tokens that may occur in messages; all others are reserved for the template.
_ALLOWED = frozenset(f"<{end}{name}>" for name in ("think", "tools", "tool_call", "tool_response") for end in ("", "/"))


@dataclass(frozen=True)
class Chunk:
    """A part of a sequence that is encoded by itself: `pieces` of text, and whether the model is trained on them."""

    pieces: tuple[str, ...]
    counts: bool

    @property
    def text(self) -> str:
        """The pieces as one text."""
        return "".join(self.pieces)


def load_template(given: str) -> str:
    """The text of a template: the name of a built-in one, a path of a .jinja file, or the text itself.

    Raises UserError for a missing file, and for a text that is no template.
    """
    if given in TEMPLATES:
        return TEMPLATES[given].read_text(encoding="utf-8")
    text = given
    if "{{" not in given and "{%" not in given:
        path = expand_user(given)
        if not path.is_file():
            hint = f"{near(given, TEMPLATES)} Or a path of a .jinja file, or a template's text."
            raise UserError(f"chat_template: there is no template {given!r}.", hint=hint)
        try:
            text = read_regular(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"chat_template: {path} is not UTF-8 text (byte {error.start}).") from error
    _compiled(text)
    return text


def render(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    template: str = NANO3,
    add_generation_prompt: bool = False,
    enable_thinking: bool = True,
    **variables: Any,
) -> str:
    """The text of a conversation, equal to that of transformers' `apply_chat_template` with the same template."""
    prepared, given = _prepared(messages, tools)
    text = _compiled(load_template(template)).render(
        prepared, given, add_generation_prompt=add_generation_prompt, enable_thinking=enable_thinking, **variables
    )
    return text.replace(_OPEN, "").replace(_CLOSE, "")


class ChatFormat:
    """A template and the special tokens that are reserved for it."""

    def __init__(self, template: str, special_tokens: Iterable[str] = ()) -> None:
        self._template = _compiled(template)
        # A token of one character can't be taken apart.
        own = [token for token in special_tokens if token not in _ALLOWED and len(token) > 1]
        self._own = re.compile(_any_of(own)) if own else None

    def sequences(self, messages: Any, tools: Any = None) -> list[list[Chunk]]:
        """The sequences of one conversation; none without an assistant's message.

        If no message has reasoning, that is one sequence, and all assistant messages count for the loss. Otherwise it
        is one for each user turn, with the earlier messages but without the reasoning of earlier turns; only the
        answers to that turn count. Raises UserError for an invalid conversation.
        """
        prepared, given = _prepared(messages, tools)
        prepared, given = self._shielded(prepared), self._shielded(given)
        if not any(message["role"] == "assistant" for message in prepared):
            return []
        if not any(map(has_reasoning, prepared)):
            return [_without_rest(self._chunks(prepared, given, first=0))]
        sequences = []
        # A turn is what follows a user's message, up to the next user's; without any user all is one.
        starts = [number + 1 for number, message in enumerate(prepared) if message["role"] == "user"] or [0]
        for start, end in zip(starts, [*(start - 1 for start in starts[1:]), len(prepared)], strict=True):
            if any(message["role"] == "assistant" for message in prepared[start:end]):
                sequences.append(_without_rest(self._chunks(prepared[:end], given, first=start)))
        return sequences

    def _shielded(self, value: Any) -> Any:
        """`value` with the template's special tokens, where messages contain them, split so that they are encoded as
        text."""
        if isinstance(value, str):
            text = _RESERVED.sub("\ufffd", value)
            return self._own.sub(lambda m: m[0][:-1] + _SHIELD + m[0][-1], text) if self._own else text
        if isinstance(value, dict):
            return {self._shielded(key): self._shielded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._shielded(item) for item in value]
        return value

    def _chunks(self, messages: Messages, tools: Any, *, first: int) -> list[Chunk]:
        """The conversation's text in chunks; assistant messages count for the loss from message number `first` on."""
        spoken = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if self._template.is_nano3 and _is_plain(messages, tools):
            parts = _plain_parts(messages)
        elif self._template.marks:
            parts = _marked(self._template.render(messages, tools))
        else:
            parts = self._by_growing(messages, tools, spoken)
        if len(parts) // 2 != len(spoken):
            raise UserError(
                f"the chat template marks {len(parts) // 2} answers, where the assistant has {len(spoken)}."
            )
        chunks: list[Chunk] = []
        for number, part in enumerate(parts):
            counts = number % 2 == 1 and spoken[number // 2] >= first
            if chunks and not counts and not chunks[-1].counts:
                part = chunks.pop().text + part  # what doesn't count is one chunk
            chunks.append(Chunk((part,), counts))
        return [Chunk(tuple(filter(None, chunk.text.split(_SHIELD))), chunk.counts) for chunk in chunks]

    def _by_growing(self, messages: Messages, tools: Any, spoken: list[int]) -> list[str]:
        """Find the answers for a template that does not mark them, by rendering the conversation without and with each
        answer."""
        parts, done = [], ""
        whole = self._template.render(messages, tools)
        for number in spoken:
            upto = self._template.render(messages[: number + 1], tools)
            asks = (
                self._template.render(messages[:number], tools, add_generation_prompt=True, enable_thinking=thinking)
                for thinking in (has_reasoning(messages[number]), not has_reasoning(messages[number]))
            )
            prompt = next((text for text in asks if upto.startswith(text)), None)
            if prompt is None or not whole.startswith(upto) or not prompt.startswith(done):
                raise UserError(
                    f"the chat template gives message {number} another text once more follows.",
                    hint="Put {% generation %} … {% endgeneration %} around what the assistant says.",
                )
            parts += [prompt[len(done) :], upto[len(prompt) :]]
            done = upto
        return [*parts, whole[len(done) :]]


def encoded_sequences(
    sequences: Iterable[Sequence[Chunk]], ids: Iterable[list[int]]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
    """(token ids, mask) of each sequence, whose pieces have these ids. Each piece is encoded by itself, so no token
    spans the border of prompt and answer: training sees the same prompt tokens as generation."""
    import numpy as np

    of_piece = iter(ids)
    for sequence in sequences:
        tokens: list[int] = []
        lengths = []
        for chunk in sequence:
            before = len(tokens)
            for _ in chunk.pieces:
                tokens += next(of_piece)
            lengths.append(len(tokens) - before)
        counts = np.asarray([chunk.counts for chunk in sequence], dtype=np.uint8)
        yield np.asarray(tokens, dtype=np.int32), np.repeat(counts, lengths)


def special_tokens(tokenizer: Any) -> list[str]:
    """The special tokens of a `tokenizers.Tokenizer`."""
    return [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]


def has_reasoning(message: Mapping[str, Any]) -> bool:
    """Whether an assistant message has reasoning that is not blank, in its own field or in the content."""
    if message["role"] != "assistant":
        return False
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning.strip():
        return True
    content = message.get("content")
    head, end, _ = content.partition("</think>") if isinstance(content, str) else ("", "", "")
    return bool(end and head.replace("<think>", "").strip())


def texts_of(messages: Iterable[Any]) -> Iterator[str]:
    """The texts of a conversation: contents and reasoning."""
    for message in messages:
        if isinstance(message, dict):
            for value in (message.get("content"), message.get("reasoning_content")):
                if isinstance(value, str):
                    yield value
                elif isinstance(value, list):
                    texts = (part.get("text") for part in value if isinstance(part, dict))
                    yield from (text for text in texts if isinstance(text, str))


def _prepared(messages: Any, tools: Any) -> tuple[Messages, list[dict[str, Any]] | None]:
    """Messages and tools in the form that a template takes. Raises UserError naming the invalid message."""
    messages, tools = from_json(messages, "messages"), from_json(tools, "tools")
    if not isinstance(messages, list | tuple):
        raise UserError(f"messages is a {type(messages).__name__}, not a list of messages.")
    if tools is not None and not isinstance(tools, list | tuple):
        raise UserError(f"tools is a {type(tools).__name__}, not a list of tools.")
    prepared = [_message(message, number) for number, message in enumerate(messages)]
    return prepared, [_tool(tool, number) for number, tool in enumerate(tools)] if tools else None


def _message(message: Any, number: int) -> dict[str, Any]:
    where = f"messages[{number}]"
    if not isinstance(message, Mapping):
        raise UserError(f"{where} is a {type(message).__name__}, not an object with role and content.")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise UserError(f"{where}.role is {role!r}, not text.")
    # A table's row has every column: what is null is not there.
    kept = {key: value for key, value in message.items() if value is not None}
    kept["content"] = _content(kept.get("content"), where)
    calls = from_json(kept.pop("tool_calls", None), f"{where}.tool_calls")
    if calls:
        if not isinstance(calls, list | tuple):
            raise UserError(f"{where}.tool_calls is a {type(calls).__name__}, not a list.")
        kept["tool_calls"] = [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return kept


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise UserError(f"{where}.content is a {type(content).__name__}, not text or a list of texts.")
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise UserError(f"{where}.content has a part of type {kind!r}: only text can be used.")
        parts.append(text)
    return "".join(parts)


def _function(given: Any, fault: str) -> Mapping[str, Any]:
    """The function in a call or a tool of the chat API; of the Responses API's flat form that itself."""
    inner = given.get("function") if isinstance(given, Mapping) else None
    inner = given if inner is None else inner
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise UserError(fault)
    return inner


def _call(call: Any, where: str) -> dict[str, Any]:
    inner = _function(call, f"{where} names no function.")
    arguments = from_json(inner.get("arguments"), f"{where}.arguments")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise UserError(f"{where}.arguments is a {type(arguments).__name__}, not an object.")
    found = {"type": "function", "function": {"name": inner["name"], "arguments": dict(arguments or {})}}
    return found if call.get("id") is None else {"id": call["id"], **found}


def _tool(tool: Any, number: int) -> dict[str, Any]:
    """A tool in the form of the chat API; the flat form of the Responses API is converted."""
    where = f"tools[{number}]"
    inner = _function(tool, f"{where} has no name.")
    # `strict` tells an API how to check calls; it is no part of the prompt.
    known = {key: value for key, value in inner.items() if value is not None and key not in ("type", "strict")}
    if isinstance(known.get("parameters"), str):
        known["parameters"] = from_json(known["parameters"], f"{where}.parameters")
    return {"type": "function", "function": known}


def from_json(value: Any, where: str) -> Any:
    """The JSON value of a text, None for a blank one; any other value unchanged. Raises UserError naming `where`."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is text, and not JSON: {error}.") from error


def _without_rest(chunks: list[Chunk]) -> list[Chunk]:
    """The chunks up to the last answer: what follows it does not count for the loss."""
    while chunks and not chunks[-1].counts:
        chunks.pop()
    return chunks


def _any_of(words: Iterable[str]) -> str:
    """A pattern that matches the longest of some texts, built as a prefix tree, since a tokenizer may have a thousand
    of them."""
    tails: dict[str, list[str]] = {}
    ends = False
    for word in sorted(set(words)):
        if word:
            tails.setdefault(word[0], []).append(word[1:])
        ends = ends or not word
    if not tails:
        return ""
    inner = "|".join(re.escape(first) + _any_of(rest) for first, rest in tails.items())
    return f"(?:{inner}){'?' if ends else ''}"


def _marked(text: str) -> list[str]:
    """Prompt, answer, prompt, …, rest of a text in which answers are marked."""
    return re.split(f"[{_OPEN}{_CLOSE}]", text)


def _is_plain(messages: Messages, tools: Any) -> bool:
    return not tools and not any(message["role"] == "tool" or "tool_calls" in message for message in messages)


def _plain_parts(messages: Messages) -> list[str]:
    """The parts of nano3's template for a conversation without tools, equal to those of `_marked` (a test compares the
    two): the template takes ten times as long, more than the tokenizer if messages are short."""
    has_system = bool(messages) and messages[0]["role"] == "system"
    turns = messages[1:] if has_system else messages
    last_user = max((number for number, message in enumerate(turns) if message["role"] == "user"), default=-1)
    parts: list[str] = []
    text = f"<|im_start|>system\n{messages[0]['content'] if has_system else ''}<|im_end|>\n"
    for number, message in enumerate(turns):
        content, reasoning = message["content"], message.get("reasoning_content")
        if message["role"] != "assistant":
            text += f"<|im_start|>{message['role']}\n{content}<|im_end|>\n"
            continue
        if isinstance(reasoning, str) and reasoning.strip():
            answer = f"<think>\n{reasoning}\n</think>\n{content}"
        elif "<think>" in content:
            answer = content
        else:
            answer = ("<think>\n" if "</think>" in content else "<think></think>") + content
        if number < last_user:
            visible = answer.rpartition("</think>")[2] if "</think>" in answer else answer.partition("<think>")[0]
            answer = f"<think></think>{visible}"
        answer = answer.strip()
        opening = next((start for start in _OPENINGS if answer.startswith(start)), "")
        parts += [f"{text}<|im_start|>assistant\n{opening}", f"{answer[len(opening) :]}<|im_end|>\n"]
        text = ""
    return [*parts, text]


_OPENINGS = ("<think></think>", "<think>\n", "<think>")


class _Compiled:
    """A compiled template; `marks` is whether it marks assistant messages."""

    def __init__(self, text: str) -> None:
        require_packages(["jinja2"], "Chat templates need", hint='Run: pip install "nemotron-kit[data]"')
        from jinja2 import TemplateError

        self.is_nano3 = text == load_template(NANO3)
        self.marks = bool(re.search(r"\{%-?\s*generation\s*-?%\}", text))
        try:
            self._template = _environment(sandboxed=not self.is_nano3).from_string(text)
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            raise UserError(f"chat_template{f', line {line}' if line else ''}: {error}.") from error

    def render(self, messages: Any, tools: Any, **variables: Any) -> str:
        from jinja2 import TemplateError

        # The reference's own template reads chat_template_kwargs; others take each variable by its name.
        named = {key: value for key, value in variables.items() if key != "add_generation_prompt"}
        try:
            return str(self._template.render(messages=messages, tools=tools, chat_template_kwargs=named, **variables))
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"the chat template can't show this conversation: {error}.") from error


_compiled = lru_cache(maxsize=8)(_Compiled)


@lru_cache(maxsize=2)
def _environment(*, sandboxed: bool) -> Any:
    """A Jinja environment as chat templates expect it: blocks take no line, `tojson` keeps non-ASCII letters,
    `generation` marks an answer. The built-in template needs no sandbox, which would double its time."""
    import datetime

    from jinja2 import Environment, TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Callable[[], str]) -> str:
            return f"{_OPEN}{caller()}{_CLOSE}"

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    kind = ImmutableSandboxedEnvironment if sandboxed else Environment
    environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment
