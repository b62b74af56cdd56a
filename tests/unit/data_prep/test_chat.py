"""Conversations as text and as sequences of tokens: the template against its judge, what counts, and odd records."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from nemotron_kit.data_prep import chat
from nemotron_kit.data_prep.chat import ChatFormat, encoded_sequences, load_template, render, special_tokens
from nemotron_kit.errors import UserError

TINY = Path(__file__).parents[3] / "recipes" / "nano3" / "tokenizers" / "tiny" / "tokenizer.json"
TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": " Finds. ",
        "parameters": {
            "type": "object",
            "properties": {
                "key": {"type": "integer", "description": "x ", "enum": [1, 2], "minimum": 3},
                "where": {"type": ["string", "null"], "items": {"type": "string"}},
            },
            "required": ["key"],
            "additionalProperties": False,
        },
        "cache": True,
    },
}
BARE_TOOL = {"type": "function", "function": {"name": "stop"}}


@cache
def tokenizer() -> Any:
    return Tokenizer.from_file(str(TINY))


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: Any, reasoning: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **({"reasoning_content": reasoning} if reasoning else {}), **more}


def answers(messages: Any, tools: Any = None, template: str = "nano3") -> list[tuple[str, list[str]]]:
    """(whole text, parts that count) of each sequence."""
    form = ChatFormat(load_template(template), special_tokens(tokenizer()))
    return [
        ("".join(chunk.text for chunk in chunks), [chunk.text for chunk in chunks if chunk.counts])
        for chunks in form.sequences(messages, tools)
    ]


def conversation(rng: random.Random, *, reasoning: bool) -> list[dict[str, Any]]:
    texts = ["Hi", "  lead", "trail \n", "", "Ünï\n\ncode", '{"x": 1}', "日本"]
    call = {"function": {"name": "find", "arguments": {"key": 1, "b": [1, "ü"], "c": None, "d": True, "e": "x\ny"}}}
    messages = [{"role": "system", "content": rng.choice(texts)}] if rng.random() < 0.6 else []
    for _ in range(rng.randrange(1, 4)):
        messages += [user(rng.choice(texts)) for _ in range(rng.choice([1, 1, 2]))]
        for _ in range(rng.randrange(3)):
            answer = says(rng.choice([*texts, None]), rng.choice([None, "think", " t\n", " "]) if reasoning else None)
            messages.append(answer)
            if rng.random() < 0.4:
                answer["tool_calls"] = [call] * rng.choice([1, 2])
                messages += [{"role": "tool", "content": rng.choice(texts)} for _ in range(rng.choice([1, 2]))]
    return messages


def test_text_is_that_of_trls_template(monkeypatch: pytest.MonkeyPatch) -> None:
    import trl
    from transformers import PreTrainedTokenizerFast

    folder = Path(trl.__file__).parent / "chat_templates"
    theirs = (folder / "nemotron_3_nano_training.jinja").read_text(encoding="utf-8")
    plain = PreTrainedTokenizerFast(tokenizer_file=str(TINY))
    rng = random.Random(4)
    for number in range(300):
        messages = conversation(rng, reasoning=number % 3 == 0)
        tools = rng.choice([None, [TOOL, BARE_TOOL], [BARE_TOOL]])
        variables = {"add_generation_prompt": rng.random() < 0.5, "enable_thinking": rng.random() < 0.5}
        expected = plain.apply_chat_template(messages, tools, chat_template=theirs, tokenize=False, **variables)
        assert render(messages, tools, **variables) == expected
        ours = plain.apply_chat_template(
            messages, tools, chat_template=load_template("nano3"), tokenize=False, **variables
        )
        assert ours == expected


def test_without_tools_the_short_way_gives_what_the_template_gives() -> None:
    rng = random.Random(9)
    compiled, plain = chat._compiled(load_template("nano3")), 0
    odd = ["a <think> b", "a </think> b", "<think></think>c", "<think>\nd\n</think>\n\ne", " <think>f</think> g"]
    for number in range(400):
        messages, _ = chat._prepared(conversation(rng, reasoning=number % 2 == 0), None)
        for message in messages:
            if message["role"] == "assistant" and rng.random() < 0.3:
                message["content"] = rng.choice(odd)
        if chat._is_plain(messages, None):
            plain += 1
            assert chat._plain_parts(messages) == chat._marked(compiled.render(messages, None))
    assert plain > 100


def test_plain_transformers_finds_the_same_answers() -> None:
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_file=str(TINY), chat_template=load_template("nano3"))
    messages = [user("a"), says("b"), user("c"), says("d", "why")]
    shown = plain.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mask in zip(shown["input_ids"], shown["assistant_masks"], strict=True) if mask]
    assert plain.decode(marked) == "b<|im_end|>\nwhy\n</think>\nd<|im_end|>\n"


def test_without_reasoning_one_sequence_in_which_each_answer_counts() -> None:
    messages = [user("a"), says("b"), user("c"), user("d"), says("e"), user("left over")]
    [(text, counted)] = answers(messages)
    assert counted == ["b<|im_end|>\n", "e<|im_end|>\n"]
    assert text == render(messages[:-1])
    assert answers([user("a")]) == answers([]) == []


def test_with_reasoning_a_sequence_for_each_turn_of_the_user() -> None:
    messages = [
        {"role": "system", "content": "s"},
        user("a"),
        says("b", "why b"),
        user("one more"),
        user("c"),
        says("", "why", tool_calls=[{"function": {"name": "find", "arguments": {"key": 1}}}]),
        {"role": "tool", "content": "found"},
        says("d"),
    ]
    first, second = answers(messages)
    assert first[1] == ["why b\n</think>\nb<|im_end|>\n"]
    assert first[0].endswith("<|im_start|>assistant\n<think>\nwhy b\n</think>\nb<|im_end|>\n")
    assert second[1][0].startswith("why\n</think>\n<tool_call>\n<function=find>\n<parameter=key>\n1\n")
    assert second[1][1] == "d<|im_end|>\n"
    assert second[0] == render(messages)
    assert "why b" not in second[0]
    ((_, alone),) = answers([{"role": "system", "content": "s"}, says("b", "why")])  # no user at all
    assert alone == ["why\n</think>\nb<|im_end|>\n"]


@pytest.mark.parametrize("blank", [None, "", " \n", 7])
def test_blank_reasoning_is_none(blank: Any) -> None:
    [(text, counted)] = answers([user("a"), {**says("b"), "reasoning_content": blank}])
    assert counted == ["b<|im_end|>\n"]
    assert text.endswith("assistant\n<think></think>b<|im_end|>\n")


def test_thinking_within_the_content_is_reasoning() -> None:
    both = answers([user("a"), says("<think>\nwhy\n</think>\nb"), user("c"), says("d")])
    assert [counted for _, counted in both] == [["why\n</think>\nb<|im_end|>\n"], ["d<|im_end|>\n"]]
    # What a model said after its prompt's <think> begins without it.
    assert answers([user("a"), says("why\n</think>\nb")])[0] == both[0]
    assert "why" not in both[1][0]


def test_tools_and_calls_in_their_other_forms_are_the_same() -> None:
    call = {"name": "find", "arguments": {"key": 2, "where": ["x"]}}
    plain = answers([user("a"), says("", tool_calls=[{"type": "function", "function": call}])], [TOOL])
    as_text = {**call, "arguments": json.dumps(call["arguments"])}
    flat = {"type": "function", **TOOL["function"], "strict": True}  # type: ignore[dict-item]
    for calls, tools in (
        ([{"function": as_text}], [flat]),
        ([as_text], json.dumps([TOOL])),
        (json.dumps([call]), [flat]),
    ):
        assert answers([user("a"), says(None, tool_calls=calls)], tools) == plain
    assert "strict" not in plain[0][0]
    named = "{% for message in messages %}{{ message.tool_calls[0].id }}{% endfor %}"  # as Mistral's template
    assert render([says("", tool_calls=[{"id": "a1", "function": call}])], template=named) == "a1"
    assert answers([user([{"type": "text", "text": "a"}]), says(["b", {"text": "c"}])]) == answers(
        [user("a"), says("bc")]
    )


def chat_sequences(messages: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """(token ids, mask) of each sequence of a conversation, as a shard of packed rows encodes them."""
    sequences = ChatFormat(load_template("nano3"), special_tokens(tokenizer())).sequences(messages)
    texts = [piece for sequence in sequences for chunk in sequence for piece in chunk.pieces]
    ids = [found.ids for found in tokenizer().encode_batch_fast(texts, add_special_tokens=False)]
    return list(encoded_sequences(sequences, ids))


def test_a_control_token_within_what_is_said_is_text() -> None:
    text = "end <|im_end|>\n<|im_start|>assistant\n</s>\ufdd0\ufdd2"
    [(ids, mask)] = chat_sequences([user(text), says("say <|im_end|>")])
    plain = "end <|im_end|>\n<|im_start|>assistant\n</s>\ufffd\ufffd"
    assert tokenizer().decode(ids.tolist(), skip_special_tokens=False) == render([user(plain), says("say <|im_end|>")])
    assert [ids.tolist().count(token) for token in (2, 4, 5)] == [0, 3, 3]
    assert mask.sum() and mask[-1] == 1


def test_no_token_reaches_from_the_prompt_into_the_answer() -> None:
    [(ids, mask)] = chat_sequences([user("a"), says("\n\nb"), user("c"), says("d")])
    encode = tokenizer().encode
    first = encode(render([user("a")], add_generation_prompt=True, enable_thinking=False), add_special_tokens=False).ids
    answer = encode("\n\nb<|im_end|>\n", add_special_tokens=False).ids
    assert ids.tolist()[: len(first) + len(answer)] == first + answer
    assert mask.tolist()[: len(first) + len(answer)] == [0] * len(first) + [1] * len(answer)
    assert int(mask.sum()) == len(answer) + len(encode("d<|im_end|>\n", add_special_tokens=False).ids)
    assert {0, 1, 2}.isdisjoint(ids.tolist())  # no pad, BOS or EOS


OWN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}|{% endfor %}"
OWN += "{% if add_generation_prompt %}[assistant]{% endif %}"


def test_templates_of_ones_own(tmp_path: Path) -> None:
    messages = [user("a"), says("b"), user("c"), says("d")]
    expected = [("[user]a|[assistant]b|[user]c|[assistant]d|", ["b|", "d|"])]
    (tmp_path / "own.jinja").write_text(OWN)
    assert answers(messages, template=str(tmp_path / "own.jinja")) == answers(messages, template=OWN) == expected
    changing = OWN.replace("{{ m.content }}", "{{ m.content if loop.last else '…' }}")
    with pytest.raises(UserError, match="message 1 another text once more follows"):
        answers(messages, template=changing)
    for given, why in (("nano4", "no template 'nano4'"), ("{% for %}", "line 1"), ("{{ messages.x.y }}", "can't show")):
        with pytest.raises(UserError, match=why):
            answers(messages, template=given)


BAD = [
    (7, None, "messages is a int"),
    ("[{", None, "messages is text, and not JSON"),
    (["a"], None, r"messages\[0\] is a str"),
    ([{"content": "a"}], None, r"messages\[0\].role is None"),
    ([user({"a": 1})], None, r"messages\[0\].content is a dict"),
    ([user([{"type": "image_url"}])], None, "a part of type 'image_url'"),
    ([says("a", tool_calls=[{}])], None, r"messages\[0\].tool_calls\[0\] names no function"),
    ([says("a", tool_calls=[{"name": "f", "arguments": "[1]"}])], None, "arguments is a list"),
    ([says("a", tool_calls=[{"name": "f", "arguments": "{"}])], None, "arguments is text, and not JSON"),
    ([user("a")], [{"type": "function"}], r"tools\[0\] has no name"),
    ([user("a")], 7, "tools is a int"),
]


@pytest.mark.parametrize(("messages", "tools", "why"), BAD)
def test_what_is_no_conversation_is_named(messages: Any, tools: Any, why: str) -> None:
    with pytest.raises(UserError, match=why):
        answers(messages, tools)
