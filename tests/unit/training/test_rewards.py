"""Verifiers, by table; and what has none."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.training import rewards
from nemotron_kit.training.rewards import INSTRUCTIONS, find_verifiers, missing_verifiers, reward

FORM, LENGTH = "detectable_format", "length_constraints"
OPTIONS = [{"A": "red"}, {"B": "blue"}, {"C": "green"}]
MCQA = {"options": OPTIONS, "expected_answer": "B"}
BOXED = {**MCQA, "grading_mode": "lenient_boxed"}
COLON = {**MCQA, "grading_mode": "lenient_answer_colon"}


def follows(*instructions: tuple[str, dict[str, Any] | None]) -> dict[str, Any]:
    return {"instruction_id_list": [name for name, _ in instructions], "kwargs": [given for _, given in instructions]}


@pytest.mark.parametrize(
    ("agent", "text", "row", "expected"),
    [
        ("exact_match", " 7\n", {"expected_answer": "7"}, 1),
        ("exact_match", "<think>it is 8</think>7", {"expected_answer": 7}, 1),
        ("exact_match", "<think>\n7", {"expected_answer": "7"}, 0),
        ("exact_match", "7.", {"expected_answer": "7"}, 0),
        ("exact_match", "", {"expected_answer": "7"}, 0),
        ("numeric", "So 3 + 4 = 7.0", {"expected_answer": "7"}, 1),
        ("numeric", "1,234,000 people", {"expected_answer": "1.234e6"}, 1),
        ("numeric", "-3", {"expected_answer": "3"}, 0),
        ("numeric", "none", {"expected_answer": "3"}, 0),
        ("numeric", "see line1", {"expected_answer": "1"}, 1),  # no exponent: it was the end of a run
        ("numeric", "from 3-4", {"expected_answer": "4"}, 1),
        ("numeric", "x=-4, or \u22124", {"expected_answer": "-4"}, 1),
        ("numeric", "0.5", {"expected_answer": "1/2"}, 1),
        ("numeric", "2", {"expected_answer": "1/2"}, 0),
        ("numeric", "2", {"expected_answer": r"\frac{1}{2}"}, 0),
        ("numeric", r"so $-\dfrac{ 1 }{2}$", {"expected_answer": "-0.5"}, 1),
        ("mcqa", r"It is \boxed{B}.", MCQA, 1),
        ("mcqa_simple_agent", r"\boxed{A}, no: \boxed{b}", MCQA, 1),
        ("mcqa", "B", MCQA, 0),
        ("mcqa", r"\boxed{blue}", MCQA, 0),
        ("mcqa", r"\boxed{\text{Blue}}", BOXED, 1),
        ("mcqa", r"\boxed{(B) blue}", BOXED, 1),
        ("mcqa", r"\boxed{D}", {**MCQA, "expected_answer": "D"}, 0),  # no option
        ("mcqa", "Answer: **B**", COLON, 1),
        ("mcqa", "The answer: because", COLON, 0),
        ("mcqa", "Answer: a blue one. **Answer:** blue", COLON, 1),
        ("math", r"The answer is $\frac{1}{2}$", {"expected_answer": "0.5"}, 1),
        ("math_with_judge_simple_agent", r"\boxed{x^2+2x+1}", {"expected_answer": "(x+1)^2"}, 1),
        ("math", "The answer is $3$", {"expected_answer": "4"}, 0),
        ("math", "\\boxed{\ud800", {"expected_answer": "4"}, 0),
        ("instruction_following", "no commas here", follows(("punctuation:no_comma", None)), 1),
        ("instruction_following", "", follows(("punctuation:no_comma", None)), 0),
        (
            "instruction_following",
            "ONE, two",
            follows(("punctuation:no_comma", {}), ("keywords:existence", {"keywords": ["two"]})),
            0,
        ),
        # As IFEval: keywords are found inside of words too, forbidden words are whole ones.
        ("instruction_following", "Running", follows(("keywords:existence", {"keywords": ["run"]})), 1),
        (
            "instruction_following",
            "reruns, run. RUN",
            follows(("keywords:frequency", {"keyword": "run ", "frequency": 3, "relation": "at least"})),
            1,
        ),
        ("instruction_following", "Running", follows(("keywords:forbidden_words", {"forbidden_words": ["run"]})), 1),
        (
            "instruction_following",
            "a b c",
            follows(("length_constraints:number_words", {"num_words": 3, "relation": "at least", "other": None})),
            1,
        ),
        ("instruction_following", '```json\n{"a": 1}\n```', follows(("detectable_format:json_format", None)), 1),
        ("instruction_following", "* a\n* b", follows((f"{FORM}:number_bullet_lists", {"num_bullets": 2})), 1),
        (
            "instruction_following",
            "*a* and **b c**",
            follows((f"{FORM}:number_highlighted_sections", {"num_highlights": 2})),
            1,
        ),
        (
            "instruction_following",
            "* * *\n** **",
            follows((f"{FORM}:number_highlighted_sections", {"num_highlights": 1})),
            0,
        ),
        ("instruction_following", "<<T>> x", follows(("detectable_format:title", None)), 1),
        ("instruction_following", "a *** b", follows((f"{LENGTH}:number_paragraphs", {"num_paragraphs": 2})), 1),
        ("instruction_following", "[" * 100_000, follows(("detectable_format:json_format", None)), 0),
        ("instruction_following", "a *** *** b", follows((f"{LENGTH}:number_paragraphs", {"num_paragraphs": 2})), 0),
        ("instruction_following", "a ****** a", follows(("combination:two_responses", {})), 0),
        ("instruction_following", "a ****** b", follows(("combination:two_responses", {})), 1),
        ("instruction_following", "all lower", follows(("change_case:english_lowercase", None)), 1),
        ("instruction_following", '"quoted"', follows(("startend:quotation", None)), 1),
        ("instruction_following", "Thus. The End", follows(("startend:end_checker", {"end_phrase": "the end"})), 1),
    ],
)  # fmt: skip
def test_verifiers(agent: str, text: str, row: dict[str, Any], expected: float) -> None:
    verifier = find_verifiers([agent], {})[agent]
    assert reward(verifier, text, {**row, "agent_ref": {"name": agent}}, agent) == expected


@pytest.mark.parametrize(
    ("agent", "row", "words"),
    [
        ("exact_match", {}, "no 'expected_answer'"),
        ("exact_match", {"expected_answer": " "}, "expected_answer is empty"),
        ("numeric", {"expected_answer": "x"}, "is no number"),
        ("mcqa", {**MCQA, "grading_mode": "odd"}, "grading_mode 'odd'"),
        ("mcqa", {**MCQA, "expected_answer": "blue"}, "'blue' is no letter"),
        ("instruction_following", follows(("language:response_language", {})), "'language:response_language' can't be"),
        ("instruction_following", follows(("keywords:existence", {})), "needs 'keywords'"),
        (
            "instruction_following",
            follows(("keywords:existence", {"keywords": "run"})),
            "keywords must be a list of texts",
        ),
        ("instruction_following", follows((f"{FORM}:number_bullet_lists", {"num_bullets": "2"})), "must be a number"),
        ("instruction_following", follows(("combination:repeat_prompt", {"prompt_to_repeat": ""})), "must be a text"),
        ("instruction_following", {"instruction_id_list": ["a"], "kwargs": []}, "1 instructions, but 0 kwargs"),
    ],
)
def test_a_row_that_its_verifier_cant_read_is_an_error(agent: str, row: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        reward(find_verifiers([agent], {})[agent], "text", row, agent)


def test_agents_without_a_verifier_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'code_gen_simple_agent'.*env\.verifiers\.code_gen_simple_agent\._target_"):
        find_verifiers(["exact_match", "code_gen_simple_agent"], {})
    monkeypatch.setattr(rewards, "find_spec", lambda name: None)
    assert missing_verifiers(["math", "exact_match"], {}) == [
        "The verifier 'math' needs math-verify, which is not installed: pip install 'nemotron-kit[rl]'."
    ]


def brief(answer: str, row: Any, *, most: int) -> float:
    return float(len(answer) <= most)


def test_verifiers_of_ones_own() -> None:
    own = {"brief": {"_target_": f"{__name__}.brief", "most": 3}}
    verifier = find_verifiers(["brief"], own)["brief"]
    assert [reward(verifier, text, {}, "brief") for text in ("abc", "abcd")] == [1.0, 0.0]
    for target, words in (("json.at_all", "can't be imported"), ("alone", "must be module.function")):
        with pytest.raises(UserError, match=rf"env\.verifiers\.x\._target_.*{words}"):
            find_verifiers(["x"], {"x": {"_target_": target}})
    absent = missing_verifiers(["x"], {"x": {"_target_": "no_such_package.rewards.brief"}})
    assert len(absent) == 1 and "no package 'no_such_package' here. A recipe's folder is importable" in absent[0]
    failing = find_verifiers(["x"], {"x": {"_target_": "builtins.divmod"}})["x"]
    with pytest.raises(NemotronError, match="The verifier of 'x' failed: TypeError"):
        reward(failing, "a", {}, "x")


def test_rows_are_looked_at_before_the_first_step() -> None:
    row = {"agent_ref": {"name": "instruction_following"}, **follows(("language:response_language", {}))}
    with pytest.raises(UserError, match=r"^rows\.jsonl, row 2: The instruction 'language:response_language' can't"):
        rows = [{**row, **follows(("punctuation:no_comma", {}))}, row]
        rewards.check_rows(rows, find_verifiers(["instruction_following"], {}), "rows.jsonl")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (follows(("detectable_format:title", None), (f"{LENGTH}:number_words", None)), "needs 'num_words'"),
        (follows((f"{LENGTH}:number_words", {"num_words": "9", "relation": "at least"})), "can't be checked with"),
        ({"instruction_id_list": "punctuation:no_comma"}, "must be a list"),
    ],
)
def test_every_instruction_of_a_row_is_looked_at_though_the_first_is_not_followed(
    row: dict[str, Any], words: str
) -> None:
    given = {"agent_ref": {"name": "instruction_following"}, **row}
    with pytest.raises(UserError, match=rf"^rows\.jsonl, row 1: .*{words}"):
        rewards.check_rows([given], find_verifiers(["instruction_following"], {}), "rows.jsonl")


def test_an_answer_that_takes_for_ever_to_compute_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "_MATH_SECONDS", 0.5)
    monkeypatch.setattr(rewards, "_math", rewards._MathJudge())
    row = {"expected_answer": "4"}
    found = [rewards.math_answer(text, row) for text in ("$4$", r"\boxed{10^{10^{10}}}", "$4$")]
    rewards._math._end()
    assert found == [1.0, 0.0, 1.0]


def test_every_instruction_can_be_checked() -> None:
    given = {
        "keywords": ["a"], "forbidden_words": ["b"], "keyword": "a", "frequency": 1, "relation": "at least",
        "letter": "a", "let_frequency": 1, "let_relation": "less than", "num_words": 1, "num_sentences": 1,
        "num_paragraphs": 1,
        "num_bullets": 1, "num_highlights": 1, "section_spliter": "Section", "num_sections": 1, "num_placeholders": 1,
        "postscript_marker": "P.S.", "end_phrase": "a", "capital_frequency": 1, "capital_relation": "at least",
        "prompt_to_repeat": "a",
    }  # fmt: skip
    assert all(isinstance(check("Some text, *a* [b].", given), bool) for check in INSTRUCTIONS.values())
