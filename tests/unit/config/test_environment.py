"""A profile's variables may refer to others: `$NAME` is put in where the job runs, and nothing else of a shell is."""

import os
import subprocess

import pytest

from nemotron_kit.config.freeze import environment
from nemotron_kit.quoting import expanded, refers, shell_word

CASES = [
    ("/opt/x:$GIVEN", "/opt/x:v 1"),
    ("${GIVEN}/a", "v 1/a"),
    ("$NOT_THERE", ""),
    (r"\$GIVEN", "$GIVEN"),
    ("$(touch x) `y` $ $1 ${1} ${GIVEN:-d} *", "$(touch x) `y` $ $1 ${1} ${GIVEN:-d} *"),
    ('it\'s "$GIVEN"\n', 'it\'s "v 1"\n'),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_references_and_nothing_else(text: str, expected: str) -> None:
    assert expanded(text, {"GIVEN": "v 1"}) == expected
    shell = subprocess.run(
        ["bash", "-c", f'A={shell_word(text)}; printf %s "$A"'], env={"GIVEN": "v 1"}, capture_output=True, check=True
    )
    assert shell.stdout.decode() == expected
    assert refers(text) == ("GIVEN" in text.replace("${GIVEN:-d}", "") or "NOT_THERE" in text)


def test_variables_are_set_in_order_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", "before")
    monkeypatch.delenv("OTHER", raising=False)
    with environment({"GIVEN": "first:$GIVEN", "OTHER": "$GIVEN", "PLAIN": "$GIVEN"}, expand=["GIVEN", "OTHER"]):
        assert (os.environ["GIVEN"], os.environ["OTHER"]) == ("first:before", "first:before")
        assert os.environ["PLAIN"] == "$GIVEN"
    assert os.environ["GIVEN"] == "before" and "OTHER" not in os.environ
