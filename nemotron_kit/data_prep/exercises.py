"""Exercises: generated short questions with one right answer, for chat and RL data without a download.

`exercises://last-digit?n=3000&seed=1` is 3,000 distinct conversations for supervised fine-tuning. With `form=rl` they
are rows for RL. Each question belongs to one of the two forms, whatever the seeds are, so RL never uses a question that
fine-tuning was trained on.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from nemotron_kit.errors import UserError, near
from nemotron_kit.files import write_changed

SCHEME = "exercises://"
CHAT, RL = "chat", "rl"
DEFAULT_COUNT = 3000
_MOST = 1_000_000
_TRIES = 100  # attempts for each exercise before too few distinct ones is an error
_SUBJECTS = "The parser|A module|This function|The compiler|A thread|The server|One object|The class|A file|The method"
_VERBS = "reads|returns|closes|checks|opens|calls|writes|stores|changes|finds"
_OBJECTS = (
    "value|list|string|name|number|error|line|path|key|type|code|index|result|message|event|table|header|format|stream|"
    "package"
)
_ADJECTIVES = "first|last|new|old|same|other|empty|current|given|next|whole|small|large|open|local|global"


def write_exercises(url: str, folder: Path) -> Path:
    """Write the exercises that `url` names to `folder` and return their file. The bytes depend on the URL alone; a file
    that holds them already is left as it is. Raises UserError for a URL that names none."""
    task, count, seed, form = parse(url)
    lines = [json.dumps(_record(task, *pair, form), ensure_ascii=False) for pair in exercises(task, count, seed, form)]
    path = folder / f"exercises-{task}-{form}-{count}-{seed}.jsonl"
    write_changed(path, ("\n".join(lines) + "\n").encode("utf-8"), mode=0o666)
    return path


def parse(url: str) -> tuple[str, int, int, str]:
    """(task, how many, seed, form) of a URL. Raises UserError for one that names no exercises."""
    task, _, query = url.removeprefix(SCHEME).partition("?")
    if task not in _TASKS:
        raise UserError(f"{url}: no such exercises. {near(task, _TASKS)}")
    words = dict(parse_qsl(query, keep_blank_values=True))
    for key in words:
        if key not in ("n", "seed", "form"):
            raise UserError(f"{url}: unknown {key!r}. {near(key, ('n', 'seed', 'form'))}")
    numbers = {"n": DEFAULT_COUNT, "seed": 0}
    for key in numbers:
        text = words.get(key, str(numbers[key]))
        if not text.isdecimal() or not (key == "seed" or 1 <= int(text) <= _MOST):
            raise UserError(
                f"{url}: {key}={text}: expected a whole number{'' if key == 'seed' else f', 1 to {_MOST:,}'}."
            )
        numbers[key] = int(text)
    form = words.get("form", CHAT)
    if form not in (CHAT, RL):
        raise UserError(f"{url}: form={form}. {near(form, (CHAT, RL))}")
    return task, numbers["n"], numbers["seed"], form


def exercises(task: str, count: int, seed: int, form: str) -> Iterator[tuple[str, str]]:
    """`count` distinct (question, answer) pairs that belong to this form."""
    rng = random.Random(f"{task} {seed} {form}")  # noqa: S311  (no secret)
    seen: set[str] = set()
    for _ in range(count):
        for _ in range(_TRIES):
            question, answer = _TASKS[task](rng)
            belongs_to = (CHAT, RL)[hashlib.blake2b(question.encode("utf-8"), digest_size=1).digest()[0] & 1]
            if question not in seen and belongs_to == form:
                break
        else:
            raise UserError(f"{SCHEME}{task}: there are hardly more than {len(seen):,} of these.", hint="Lower n.")
        seen.add(question)
        yield question, answer


def _record(task: str, question: str, answer: str, form: str) -> dict[str, Any]:
    asked = {"role": "user", "content": question}
    if form == CHAT:
        return {"messages": [asked, {"role": "assistant", "content": answer}]}
    return {
        "responses_create_params": {"input": [asked]},
        "agent_ref": {"type": "responses_api_agents", "name": "exact_match"},
        "expected_answer": answer,
        "question": question,
        "task": task,
    }


def _last_digit(rng: random.Random) -> tuple[str, str]:
    number = str(rng.randrange(10, 10 ** rng.randrange(2, 7)))
    return f"Last digit of {number}?", number[-1]


def _last_word(rng: random.Random) -> tuple[str, str]:
    def pick(words: str) -> str:
        return rng.choice(words.split("|"))

    sentence = f"{pick(_SUBJECTS)} {pick(_VERBS)} the {pick(_ADJECTIVES)} {pick(_OBJECTS)}"
    return f"Last word of: {sentence}?", sentence.rpartition(" ")[2]


_TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {"last-digit": _last_digit, "last-word": _last_word}
