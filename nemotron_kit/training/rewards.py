"""Verifiers: functions that score an answer from 0 to 1. A row's `agent_ref.name` names its verifier.

A verifier is called with the answer's text (without its reasoning) and the row, which holds the reference answer. The
verifiers of NeMo-Gym that need no server are implemented here, under the same names; a recipe registers more.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

from nemotron_kit.errors import NemotronError, UserError, error_text, near, nearest

Row = Mapping[str, Any]
Verifier = Callable[[str, Row], float]
TARGET = "_target_"
# NeMo-Gym calls the agent of a server "<server>_simple_agent".
_ENDING = "_simple_agent"
_KNOWN: dict[str, Verifier] = {}
# What a verifier needs that is not always installed, by its name.
_PACKAGES = {"math": "math_verify", "math_with_judge": "math_verify"}

_IMPORTABLE = 'A recipe\'s folder is importable if env.toml names it: [cli] recipes = ["my_recipe"]; or install it.'


def register_verifier(name: str, verifier: Verifier) -> None:
    """Use `verifier(answer, row) -> reward` for rows whose `agent_ref.name` is `name`."""
    _KNOWN[name] = verifier


def known_name(agent: str) -> str | None:
    """The name of the agent's registered verifier, None without one."""
    return next((name for name in (agent, agent.removesuffix(_ENDING)) if name in _KNOWN), None)


def find_verifiers(agents: Iterable[str], given: Mapping[str, Mapping[str, Any]]) -> dict[str, Verifier]:
    """The verifier of each agent: one of the config's (`given`: name → {_target_: …, and its arguments}), else a
    registered one. Raises UserError for an agent without one, and for a missing package."""
    problems = missing_verifiers(agents, given)
    if problems:
        raise UserError(problems[0])
    found: dict[str, Verifier] = {}
    for agent in agents:
        if agent in given:
            found[agent] = _own(agent, given[agent])
        else:
            name = known_name(agent)
            assert name is not None  # noqa: S101  (checked above)
            found[agent] = _KNOWN[name]
    return found


def missing_verifiers(agents: Iterable[str], given: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each agent without a usable verifier here."""
    problems = []
    for agent in agents:
        name = known_name(agent)
        if agent in given:
            package, inside, _ = str(given[agent].get(TARGET) or "").replace(":", ".").partition(".")
            if inside and package.isidentifier() and package not in sys.modules and find_spec(package) is None:
                problems.append(f"env.verifiers.{agent}.{TARGET}: there is no package {package!r} here. {_IMPORTABLE}")
            continue
        if name is None:
            problems.append(
                f"No verifier is called {agent!r} (agent_ref.name of the rows): {near(agent, _KNOWN)} "
                "NeMo-Gym's servers are not called by this engine: name a function, "
                f"env.verifiers.{agent}._target_=module.name, or leave those rows out."
            )
        elif name in _PACKAGES and find_spec(_PACKAGES[name]) is None:
            problems.append(
                f"The verifier {name!r} needs math-verify, which is not installed: pip install 'nemotron-kit[rl]'."
            )
    return problems


def _own(agent: str, settings: Mapping[str, Any]) -> Verifier:
    """The function that the config names, with its other settings bound as arguments."""
    target = str(settings.get(TARGET) or "")
    where = f"env.verifiers.{agent}.{TARGET}"
    module, _, name = target.replace(":", ".").rpartition(".")
    if not module:
        raise UserError(f"{where} is {target!r}; it must be module.function.")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        hint = _IMPORTABLE if isinstance(error, ModuleNotFoundError) else None
        raise UserError(f"{where}: {target} can't be imported: {error}.", hint=hint) from error
    if not callable(function):
        raise UserError(f"{where}: {target} is no function.")
    arguments = {key: value for key, value in settings.items() if key != TARGET}
    return partial(function, **arguments) if arguments else function


def reward(verifier: Verifier, text: str, row: Row, agent: str, *, reasons: bool = False) -> float:
    """The reward of an answer. `reasons`: the prompt has opened its reasoning (`<think>`). Raises NemotronError if the
    verifier fails or returns no number."""
    try:
        value = float(verifier(without_reasoning(f"{_THINK}{text}" if reasons else text), row))
    except NemotronError:
        raise
    except Exception as error:  # a user's own function raises whatever it does
        raise NemotronError(f"The verifier of {agent!r} failed: {error_text(error)}.") from error
    if not math.isfinite(value):
        raise NemotronError(f"The verifier of {agent!r} gave {value} for a reward.")
    return value


def check_rows(rows: Iterable[Row], agents: Mapping[str, Verifier], where: str) -> None:
    """Raises UserError, with the row's number, for a row that its verifier can't read; only for verifiers with a fast
    check."""
    quick = {
        agent for agent in agents if known_name(agent) in _QUICK and agents[agent] is _KNOWN[known_name(agent) or ""]
    }
    for number, row in enumerate(rows, 1):
        agent = _agent(row)
        if agent in quick:
            try:
                reward(agents[agent], "x", row, agent)
            except NemotronError as error:
                raise UserError(f"{where}, row {number}: {error.message}", hint=error.hint) from error


_QUICK = ("exact_match", "numeric", "mcqa", "instruction_following")


_THINK = "<think>"


def without_reasoning(text: str) -> str:
    """The answer's text after its reasoning (`<think>…</think>`); none where the reasoning has not ended."""
    _, end, answer = text.rpartition("</think>")
    return "" if not end and answer.lstrip().startswith(_THINK) else answer.strip()


def _field(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise UserError(f"A row has no {name!r}, which its verifier {_agent(row)!r} reads.")
    return row[name]


def _agent(row: Row) -> Any:
    agent = row.get("agent_ref")
    return agent.get("name") if isinstance(agent, dict) else agent


def exact_match(text: str, row: Row) -> float:
    """1 if the answer is exactly `expected_answer`."""
    expected = str(_field(row, "expected_answer")).strip()
    if not expected:  # reasoning that was cut off, too, has no text after it
        raise UserError("expected_answer is empty: an answer without text would be right.")
    return float(text == expected)


# A sign that follows on a digit, a letter or a bracket is an operator or a dash: 3-4.
_NUMBER = re.compile(
    r"((?:(?<![\w)\]}])[-+])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?)(?:/(0*[1-9]\d*))?"
)
_MINUS = "\u2212"
# LaTeX's fraction of two whole numbers; behind a digit it is a part of a mixed number.
_FRACTION = re.compile(r"(?<!\d)\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")


def numeric(text: str, row: Row) -> float:
    """1 if the last number of the answer equals that of `expected_answer`; a fraction, 3/4 or \\frac{3}{4}, is a
    number."""
    expected, found = _last_number(str(_field(row, "expected_answer"))), _last_number(text)
    if expected is None or not math.isfinite(expected):
        raise UserError(f"expected_answer {row['expected_answer']!r} is no number, which the verifier numeric needs.")
    return float(found is not None and math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9))


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(_FRACTION.sub(r"\1/\2", text.replace(_MINUS, "-")))
    if not found:
        return None
    number, divisor = found[-1]
    return float(number.replace(",", "")) / float(divisor or 1)


_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")
# What follows on "Answer:" in its line; in a lookahead, so that the next one in the same line is found, too.
_COLON = re.compile(r"answer\s*:[\s*]*(?=(.+))", re.IGNORECASE)
MODES = ("strict_single_letter_boxed", "lenient_boxed", "lenient_answer_colon")


def mcqa(text: str, row: Row) -> float:
    """1 if the answer gives the letter `expected_answer` of the `options`, in a box or after "Answer:", as
    `grading_mode` specifies."""
    mode = row.get("grading_mode") or MODES[0]
    if mode not in MODES:
        raise UserError(f"grading_mode {mode!r}: {nearest(str(mode), MODES)}")
    expected = str(_field(row, "expected_answer")).strip().upper()
    if not (len(expected) == 1 and expected.isalpha()):
        raise UserError(f"expected_answer {row['expected_answer']!r} is no letter, which the verifier mcqa needs.")
    options = {
        str(letter).upper(): str(words).strip()
        for option in row.get("options") or ()
        for letter, words in (option.items() if isinstance(option, dict) else ())
    }
    if mode == MODES[2]:
        letters = [letter for match in _COLON.finditer(text) if (letter := _letter(match[1], options, lenient=True))]
    else:
        letters = [_letter(match[1], options, lenient=mode == MODES[1]) for match in _BOXED.finditer(text)]
    chosen = letters[-1] if letters else ""
    return float(chosen == expected and (not options or chosen in options))


def _letter(boxed: str, options: Mapping[str, str], *, lenient: bool) -> str:
    content = boxed.strip()
    if len(content) == 1 and content.isalpha():
        return content.upper()
    if not lenient:
        return ""
    content = re.sub(r"\\text\{([^{}]*)\}", r"\1", content).strip().rstrip("*")
    same = [letter for letter, words in options.items() if words.casefold() == content.casefold()]
    if same:
        return same[0]
    match = re.match(r"\(?([A-Za-z])\)?(?:[.:),;*\s]|\Z)", content)
    return match[1].upper() if match else ""


def math_answer(text: str, row: Row) -> float:
    """1 if math-verify finds the answer equal to `expected_answer`; 0 where it takes more than _MATH_SECONDS to see: an
    answer such as 10^{10^{10}} would take for ever."""
    expected = str(_field(row, "expected_answer"))
    gold = expected if "$" in expected or "\\boxed" in expected else f"${expected}$"
    return _math.judge(gold, text)


# CPU seconds for one answer, and bytes of memory of the process that judges.
_MATH_SECONDS, _MATH_BYTES = 5.0, 4 << 30


class _MathJudge:
    """math-verify in a process beside this one. What an answer makes it compute may take for ever in C code, where no
    alarm is heard: the process has a limit of time, at which the kernel ends it, and the next answer gets a new one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def judge(self, gold: str, text: str) -> float:
        """1 or 0. Raises NemotronError if the process can't be started."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = self._start()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - they are pipes
        try:
            process.stdin.write(json.dumps([gold, text]) + "\n")
            process.stdin.flush()
            found = process.stdout.readline().strip()
        except BrokenPipeError:
            found = ""
        except BaseException:  # such as Ctrl-C: its answer would be taken for that to the next question
            self._end()
            raise
        if not found:
            self._end()
        return float(found or 0)

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", f"from {__name__} import _judge_math; _judge_math({_MATH_SECONDS})"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
        )
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        if not process.stdout.readline():
            raise NemotronError(f"math-verify can't be started: its process has ended with code {process.wait()}.")
        return process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_math = _MathJudge()


def _judge_math(seconds: float) -> None:
    """What the process of _MathJudge runs: a line with 1 or 0 for each line of [gold, answer]."""
    import logging
    import resource
    import signal

    # They stop the training, which ends this process by closing its input.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    logging.disable()  # it warns of each answer that it gets no limit of time
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (_MATH_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    verify(parse("$1$", parsing_timeout=None), [], timeout_seconds=None)  # imports more
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        gold, text = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends a process
        try:
            same = verify(parse(gold, parsing_timeout=None), parse(text, parsing_timeout=None), timeout_seconds=None)
        except Exception:  # noqa: BLE001 - of an odd text sympy raises whatever it does
            same = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(int(same), flush=True)  # noqa: T201


def instruction_following(text: str, row: Row) -> float:
    """1 if the answer follows every instruction of `instruction_id_list`, whose arguments are `kwargs` (IFEval: Zhou et
    al., arXiv 2311.07911)."""
    ids = _field(row, "instruction_id_list")
    if not isinstance(ids, list):
        raise UserError(f"instruction_id_list is {ids!r}; it must be a list of names.")
    kwargs = row["kwargs"] if row.get("kwargs") is not None else [{}] * len(ids)
    if len(kwargs) != len(ids):
        raise UserError(f"A row has {len(ids)} instructions, but {len(kwargs)} kwargs.")
    for name in ids:
        if name not in INSTRUCTIONS:
            raise UserError(f"The instruction {name!r} can't be checked here: {nearest(str(name), INSTRUCTIONS)}")
    # All of them, so that a row is read as a whole before the first step (check_rows).
    followed = [_follows(name, text, one) for name, one in zip(ids, kwargs, strict=True)]
    return float(bool(text.strip()) and all(followed))


def _follows(name: str, text: str, given: Mapping[str, Any] | None) -> bool:
    try:
        arguments = _Arguments({key: value for key, value in (given or {}).items() if value is not None})
        return INSTRUCTIONS[name](text, arguments)
    except KeyError as error:
        raise UserError(f"The instruction {name!r} needs {error.args[0]!r} in its kwargs.") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The instruction {name!r} can't be checked with the kwargs {given!r}: {error}.") from error


class _Arguments(dict[str, Any]):
    """An instruction's kwargs. ValueError for one that is read and of the wrong kind: a text in place of a list would
    be read letter by letter, and no count equals the text "2"."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        fits: Any
        if key in ("keywords", "forbidden_words"):
            fits = isinstance(value, list | tuple) and value and all(isinstance(each, str) and each for each in value)
            wanted = "a list of texts"
        elif key.startswith("num_") or key.endswith("frequency"):
            fits, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        else:
            fits, wanted = isinstance(value, str) and value.strip(), "a text"
        if not fits:
            raise ValueError(f"{key} must be {wanted}")
        return value


def _related(count: int, wanted: int, relation: str) -> bool:
    if relation not in ("at least", "less than"):
        raise UserError(f"The relation {relation!r} is neither 'at least' nor 'less than'.")
    return count >= wanted if relation == "at least" else count < wanted


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _occurrences(text: str, keyword: str) -> int:
    """Also those inside of other words, as IFEval counts them: `run` occurs in `running`."""
    return len(re.findall(re.escape(keyword.strip()), text, re.IGNORECASE))


def _is_json(text: str) -> bool:
    inner = re.sub(r"\A```(?:json)?\s*|\s*```\Z", "", text.strip(), flags=re.IGNORECASE)
    try:
        json.loads(inner)
    except (ValueError, RecursionError):  # the latter: brackets by the thousand
        return False
    return True


def _sentences(text: str) -> int:
    return len([part for part in re.split(r"[.!?]+(?:\s|\Z)", text) if part.strip()])


def _parts(text: str, divider: str) -> list[str]:
    """The parts between dividers; none if one in the middle is empty."""
    parts = [part.strip() for part in re.split(divider, text.strip())]
    inner = parts[(not parts[0]) : len(parts) - (not parts[-1])]
    return inner if all(inner) else []


def _highlights(text: str) -> int:
    """Parts between stars that hold more than spaces: a line `* * *` highlights nothing."""
    return len(re.findall(r"\*\*[^\n*]*[^\s*][^\n*]*\*\*|(?<!\*)\*[^\n*]*[^\s*][^\n*]*\*(?!\*)", text))


# IFEval's instructions (Zhou et al., arXiv 2311.07911), by their ids; those that need a language model's or another
# package's judgement are not among them.
INSTRUCTIONS: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "keywords:existence": lambda t, a: all(_occurrences(t, word) for word in a["keywords"]),
    "keywords:forbidden_words": lambda t, a: (
        not any(re.search(rf"\b{re.escape(word)}\b", t, re.IGNORECASE) for word in a["forbidden_words"])
    ),
    "keywords:frequency": lambda t, a: _related(_occurrences(t, a["keyword"]), a["frequency"], a["relation"]),
    "keywords:letter_frequency": lambda t, a: _related(
        t.lower().count(a["letter"].lower()), a["let_frequency"], a["let_relation"]
    ),
    "length_constraints:number_words": lambda t, a: _related(len(_words(t)), a["num_words"], a["relation"]),
    "length_constraints:number_sentences": lambda t, a: _related(_sentences(t), a["num_sentences"], a["relation"]),
    "length_constraints:number_paragraphs": lambda t, a: len(_parts(t, r"\*{3}")) == a["num_paragraphs"],
    "detectable_format:number_bullet_lists": lambda t, a: (
        len(re.findall(r"^\s*(?:\*(?!\*)|-)\s?\S", t, re.MULTILINE)) == a["num_bullets"]
    ),
    "detectable_format:number_highlighted_sections": lambda t, a: _highlights(t) >= a["num_highlights"],
    "detectable_format:multiple_sections": lambda t, a: (
        len(re.findall(rf"{re.escape(a['section_spliter'])}\s?\d+", t)) >= int(a["num_sections"])
    ),
    "detectable_format:title": lambda t, a: bool(re.search(r"<<[^\n<>]*\S[^\n<>]*>>", t)),
    "detectable_format:json_format": lambda t, a: _is_json(t),
    "detectable_format:constrained_response": lambda t, a: any(
        f"My answer is {word}." in t for word in ("yes", "no", "maybe")
    ),
    "detectable_content:number_placeholders": lambda t, a: len(re.findall(r"\[[^\[\]]+\]", t)) >= a["num_placeholders"],
    "detectable_content:postscript": lambda t, a: (
        str(a["postscript_marker"]).replace(" ", "").lower() in t.replace(" ", "").lower()
    ),
    "startend:end_checker": lambda t, a: t.strip().strip('"').lower().endswith(str(a["end_phrase"]).strip().lower()),
    "startend:quotation": lambda t, a: len(t.strip()) > 1 and t.strip()[0] == t.strip()[-1] == '"',
    "change_case:english_capital": lambda t, a: t.isupper(),
    "change_case:english_lowercase": lambda t, a: t.islower(),
    "change_case:capital_word_frequency": lambda t, a: _related(
        sum(word.isupper() for word in _words(t)), a["capital_frequency"], a["capital_relation"]
    ),
    "punctuation:no_comma": lambda t, a: "," not in t,
    "combination:two_responses": lambda t, a: len(parts := _parts(t, r"\*{6}")) == len(set(parts)) == 2,
    "combination:repeat_prompt": lambda t, a: t.strip().lower().startswith(str(a["prompt_to_repeat"]).strip().lower()),
}

for _name, _verifier in (
    ("exact_match", exact_match),
    ("numeric", numeric),
    ("mcqa", mcqa),
    ("math", math_answer),
    ("math_with_judge", math_answer),
    ("instruction_following", instruction_following),
):
    register_verifier(_name, _verifier)
