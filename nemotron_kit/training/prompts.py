"""The prompts of reinforcement learning: rows of a JSONL file, as tokens, in an order that the seed and the step
decide."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.errors import UserError, nearest

Row = dict[str, Any]


def read_rows(path: Path, key: str) -> list[Row]:
    """The rows of a file. UserError, with `key` (the setting that names it), for one that is not there or is no such
    file."""
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
            raise UserError(f"{at}: there is no agent_ref.name: nothing says how an answer is judged.")
        rows.append(row)
    if not rows:
        raise UserError(f"{key}: {path} has no row.")
    return rows


def _lines(path: Path, key: str) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror}.", hint="nemotron nano3 data prep rl makes it.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {path} is not UTF-8 text.") from error


def agent_of(row: Mapping[str, Any]) -> str:
    """The name of who judges the row's answers; "" for none."""
    agent = row.get("agent_ref")
    return str(agent.get("name") or "") if isinstance(agent, dict) else ""


def agents_in(path: Path, most: int) -> list[str]:
    """The names of who judges, in the first `most` rows of a file that may not be there."""
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
    """Rows and their prompts as token ids. `left_out`: how many were longer than may be."""

    rows: Sequence[Row]
    ids: Sequence[tuple[int, ...]]
    left_out: int = 0

    @property
    def agents(self) -> list[str]:
        return list(dict.fromkeys(map(agent_of, self.rows)))


def encode(rows: Sequence[Row], tokenizer: Any, most: int, settings: Mapping[str, Any]) -> Prompts:
    """The prompts that have `most` tokens at most, by the tokenizer's chat template (`settings` are its variables)."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template: it is that of no chat model.",
            hint="Start from an SFT model: policy.model_name.",
        )
    kept: list[Row] = []
    ids: list[tuple[int, ...]] = []
    for row in rows:
        given = row["responses_create_params"]
        asked = given["input"]
        encoded = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}] if isinstance(asked, str) else asked,
            tools=given.get("tools") or None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **settings,
        )
        if len(encoded) <= most:
            kept.append(row)
            ids.append(tuple(encoded))
    if not kept:
        raise UserError(
            f"Every prompt has more than {most} tokens.",
            hint="Set policy.max_total_sequence_length higher, or policy.generation.max_new_tokens lower.",
        )
    return Prompts(kept, ids, len(rows) - len(kept))


class PromptOrder:
    """Which rows a step takes: a function of seed and step, with no state of its own.

    Without weights the rows are gone through epoch by epoch. With weights (a share for each environment) each
    environment's rows are, and the environments come up in proportion.
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
        """How many rows can come up."""
        return sum(map(len, self._groups))

    def take(self, start: int, count: int) -> list[int]:
        """The numbers of the rows in the places `start` … `start + count` of the whole run."""
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
