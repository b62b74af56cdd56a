"""Transforms: what each keeps, and which records it drops."""

from __future__ import annotations

from typing import Any

import pytest
from nemotron.data_prep.formats.transforms import (
    Transform,
    nemotron_rl,
    openai_chat,
    passthrough,
    rename,
    select,
    sft,
    sharegpt,
)

HI = [{"role": "user", "content": "Hi"}]
CASES: list[tuple[Transform, dict[str, Any], dict[str, Any] | None]] = [
    (sft(input="q", output="a"), {"q": "x", "a": "y", "z": 1}, {"input": "x", "output": "y"}),
    (sft(system="s"), {"input": "x", "output": "y", "s": "be"}, {"input": "x", "output": "y", "system": "be"}),
    (sft(system="s"), {"input": "x", "output": "y"}, {"input": "x", "output": "y"}),
    (sft(), {"input": "x"}, None),
    (openai_chat(messages="conversation"), {"conversation": HI}, {"messages": HI}),
    (openai_chat(), {"messages": []}, None),
    (sharegpt(conversations="turns"), {"turns": [{"from": "human"}]}, {"conversations": [{"from": "human"}]}),
    (nemotron_rl(), {"responses_create_params": {"input": HI, "tools": [{}]}}, {"messages": HI, "tools": [{}]}),
    (nemotron_rl(), {"responses_create_params": {"input": HI}}, {"messages": HI}),
    (nemotron_rl(), {"responses_create_params": {"input": "Hi"}}, None),
    (nemotron_rl(), {"messages": HI}, None),
    (passthrough(), {"any": "data"}, {"any": "data"}),
    (select("id", "text"), {"id": 1, "text": "t", "more": 2}, {"id": 1, "text": "t"}),
    (rename(input="question"), {"question": "What?"}, {"input": "What?"}),
    (rename(input="question"), {"answer": "This."}, None),
]


@pytest.mark.parametrize(("transform", "record", "expected"), CASES)
def test_transform(transform: Transform, record: dict[str, Any], expected: dict[str, Any] | None) -> None:
    before = dict(record)
    assert transform(record) == expected
    assert record == before
