"""The prompts of reinforcement learning: rows of a JSONL file as tokens, in an order determined by seed and step."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError, nearest
from nemotron_kit.files import open_regular

Row = dict[str, Any]
# Inserted into special tokens that a user wrote, so that they are encoded as text. No text may contain it: Unicode
# reserves it for a program's own use.
_SHIELD = "\ufdd2"
# Special tokens that may occur in messages; all others are reserved for the template.
_ALLOWED = re.compile(r"</?(?:think|tools|tool_call|tool_response)>\Z")


def read_rows(path: Path, key: str) -> list[Row]:
    """The rows of a file. Raises UserError, with `key` (the setting that names it), if it is missing or invalid."""
    rows = []
    for number, line in _lines(path, key):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: malformed JSON: {error}.") from error
        at = f"{path}, line {number}"
        params = row.get("responses_create_params") if isinstance(row, dict) else None
        if not isinstance(params, dict) or not params.get("input"):
            raise UserError(f"{at}: there is no responses_create_params.input: the row has no prompt.")
        if not agent_of(row):
            raise UserError(f"{at}: there is no agent_ref.name: no verifier is named for its answers.")
        rows.append(row)
    if not rows:
        raise UserError(f"{key}: {path} has no row.")
    return rows


def _lines(path: Path, key: str) -> Iterator[tuple[int, str]]:
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror}.", hint="nemotron nano3 data prep rl makes it.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {path} is not UTF-8 text.") from error


def agent_of(row: Mapping[str, Any]) -> str:
    """The name of the row's verifier (agent_ref.name); "" for none."""
    agent = row.get("agent_ref")
    return str(agent.get("name") or "") if isinstance(agent, dict) else ""


def agents_in(path: Path, most: int) -> list[str]:
    """The verifiers named in the first `most` rows of a file, which need not exist."""
    found: dict[str, None] = {}
    try:
        for number, line in _lines(path, ""):
            if number > most:
                break
            row = json.loads(line)
            found.setdefault(agent_of(row) if isinstance(row, dict) else "")
    except (UserError, ValueError):
        return []
    return [name for name in found if name]


@dataclass(frozen=True)
class Prompts:
    """Rows and their prompts as token ids. `left_out`: the number of prompts that were too long."""

    rows: Sequence[Row]
    ids: Sequence[tuple[int, ...]]
    left_out: int = 0

    @property
    def agents(self) -> list[str]:
        """The verifiers' names, each once, in the rows' order."""
        return list(dict.fromkeys(map(agent_of, self.rows)))


def encode(rows: Sequence[Row], tokenizer: Any, most: int, settings: Mapping[str, Any]) -> Prompts:
    """The prompts of at most `most` tokens, by the tokenizer's chat template (`settings` are its variables)."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template: it is that of no chat model.",
            hint="Start from an SFT model: policy.model_name.",
        )
    kept: list[Row] = []
    ids: list[tuple[int, ...]] = []
    for number, row in enumerate(rows, 1):
        given = row["responses_create_params"]
        try:
            encoded = chat_ids(tokenizer, given["input"], given.get("tools"), settings)
        except UserError as error:
            raise UserError(f"Prompt {number}: {error.message}", hint=error.hint) from error
        if len(encoded) <= most:
            kept.append(row)
            ids.append(tuple(encoded))
    if not kept:
        raise UserError(
            f"Every prompt has more than {most} tokens.",
            hint="Set policy.max_total_sequence_length higher, or policy.generation.max_new_tokens lower.",
        )
    return Prompts(kept, ids, len(rows) - len(kept))


def chat_ids(
    tokenizer: Any,
    asked: str | Sequence[Mapping[str, Any]],
    tools: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> list[int]:
    """The tokens of a question, or of a conversation up to the model's answer, by the tokenizer's chat template, whose
    variables are `settings`. A special token inside a message is encoded as text; the role `developer` is the
    template's `system`. Raises UserError for messages that the template refuses."""
    from jinja2 import TemplateError

    own = _reserved_tokens(tokenizer)
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    try:
        text: str = tokenizer.apply_chat_template(
            [_shielded(_for_template(message), own) for message in messages],
            tools=_shielded(tools or None, own),
            tokenize=False,
            add_generation_prompt=True,
            # The published templates ask for the one or the other.
            **{"chat_template_kwargs": dict(settings or {}), **(settings or {})},
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"The chat template does not take this conversation: {error}.") from error
    return [
        token for piece in text.split(_SHIELD) if piece for token in tokenizer.encode(piece, add_special_tokens=False)
    ]


def opens_reasoning(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether a prompt (token ids) ends in `<think>`: the model's answer begins inside its reasoning."""
    return str(tokenizer.decode(prompt[-8:], skip_special_tokens=False)).rstrip().endswith("<think>")


def _for_template(message: Mapping[str, Any]) -> Row:
    message = dict(message)
    if not message.get("role"):
        raise ValueError("a message has no role")
    return {**message, "role": "system"} if message.get("role") == "developer" else message


@lru_cache(maxsize=4)
def _reserved_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    """A pattern that finds the special tokens reserved for the template."""
    own = [token for token in tokenizer.all_special_tokens if len(token) > 1]
    own += [str(added) for added in tokenizer.added_tokens_decoder.values() if added.special and len(str(added)) > 1]
    own = [token for token in dict.fromkeys(own) if not _ALLOWED.match(token)]
    return re.compile("|".join(map(re.escape, sorted(own, key=len, reverse=True)))) if own else None


def _shielded(value: Any, own: re.Pattern[str] | None) -> Any:
    if isinstance(value, str):
        text = value.replace(_SHIELD, "\ufffd")
        return own.sub(lambda found: found[0][:-1] + _SHIELD + found[0][-1], text) if own else text
    if isinstance(value, Mapping):
        return {key: _shielded(item, own) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shielded(item, own) for item in value]
    return value


class PromptOrder:
    """The rows of each step: a function of seed and step, without state.

    Without weights the rows are used epoch by epoch. With weights (a share for each environment) this holds for each
    environment's rows, and the environments alternate in proportion.
    """

    def __init__(
        self, agents: Sequence[str], seed: int, *, shuffle: bool, weights: Mapping[str, float] | None = None
    ) -> None:
        """`agents`: the environment of each row."""
        self._seed, self._shuffle = seed, shuffle
        known = Counter(agents)
        for name in weights or {}:
            if name not in known:
                raise UserError(f"env.weights.{name}: no row is of that environment; {nearest(name, known)}")
        shares = {name: float(weight) for name, weight in (weights or {}).items() if weight}
        if shares:
            groups = [[number for number, agent in enumerate(agents) if agent == name] for name in shares]
        else:
            groups = [list(range(len(agents)))]
        self._groups = groups
        total = sum(shares.values()) or 1.0
        self._shares = [share / total for share in shares.values()] or [1.0]
        self._orders: dict[tuple[int, int], list[int]] = {}
        self._taken = [0] * len(groups)
        self._slots: list[tuple[int, int]] = []  # (environment, how many of it came before)

    @property
    def rows(self) -> int:
        """The number of rows that can be used."""
        return sum(map(len, self._groups))

    def take(self, start: int, count: int) -> list[int]:
        """The row numbers at the positions `start` … `start + count` of the whole run."""
        while len(self._slots) < start + count:
            place = len(self._slots) + 1
            # The environment that is furthest behind its share comes next.
            group = max(range(len(self._groups)), key=lambda g: (self._shares[g] * place - self._taken[g], -g))
            self._slots.append((group, self._taken[group]))
            self._taken[group] += 1
        return [self._row(group, before) for group, before in self._slots[start : start + count]]

    def _row(self, group: int, before: int) -> int:
        rows = self._groups[group]
        epoch, at = divmod(before, len(rows))
        if not self._shuffle:
            return rows[at]
        if (group, epoch) not in self._orders:
            import numpy as np

            self._orders = {key: value for key, value in self._orders.items() if key[0] != group}
            self._orders[group, epoch] = np.random.default_rng([self._seed, group, epoch]).permutation(rows).tolist()
        return self._orders[group, epoch][at]
