"""Whatever is typed arrives exactly: judged by Hydra's own parser, and by OmegaConf."""

from __future__ import annotations

import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemotron_kit.errors import UserError
from nemotron_kit.quoting import (
    hydra_data,
    hydra_field,
    hydra_number,
    hydra_quoted,
    hydra_text,
    hydra_unquoted,
    hydra_untyped,
    omegaconf_escaped,
    omegaconf_unescaped,
    shell_path,
)

from ..conftest import examples

PARSER = OverridesParser.create()
NASTY = st.text(
    alphabet=st.one_of(
        st.sampled_from("'\"\\ ${}()[],=:~-+\n\taA1.@/|?*%&;#`<>!^"), st.characters(exclude_categories=["Cs"])
    )
)


def hydra_reads(word: str) -> object:
    return PARSER.parse_override(word).value()


@settings(max_examples=examples(400), deadline=None)
@given(NASTY)
def test_any_text_arrives_as_that_string(text: str) -> None:
    read = hydra_reads(f"x={hydra_text(text)}")
    assert isinstance(read, str)
    assert read == text


@settings(max_examples=examples(200), deadline=None)
@given(NASTY)
def test_quoting_is_hydras_own(text: str) -> None:
    assert hydra_quoted(text) == QuotedString(text, Quote.single).with_quotes()


@settings(max_examples=examples(200), deadline=None)
@given(NASTY)
def test_unquoting_undoes_it(text: str) -> None:
    assert hydra_unquoted(hydra_text(text)) == text
    assert hydra_unquoted(QuotedString(text, Quote.double).with_quotes()) == text


@settings(max_examples=examples(150), deadline=None)
@given(NASTY)
@example("true")
@example("null")
@example("a,b c")
def test_a_key_is_said_exactly_or_refused(key: str) -> None:
    try:
        word = hydra_data({key: 1})
    except UserError:
        assert not key.isidentifier() or not key.isascii() or key.lower() in ("true", "false", "null", "inf", "nan")
        return
    assert hydra_reads(f"x={word}") == {key: 1}


@settings(max_examples=examples(150), deadline=None)
@given(NASTY)
@example("\\${a}\\\\${")
def test_what_omegaconf_would_read_as_an_interpolation_is_text(text: str) -> None:
    escaped = omegaconf_escaped(text)
    assert OmegaConf.create({"x": escaped}).x == text
    assert OmegaConf.create({"x": hydra_reads(f"x={hydra_text(escaped)}")}).x == text
    assert omegaconf_unescaped(escaped) == text


@settings(max_examples=examples(200), deadline=None)
@given(NASTY, st.sampled_from(["int", "float", "bool", "str", "path", "literal", "enum"]))
def test_a_scalar_of_any_kind_is_a_word_of_hydras_grammar(text: str, kind: str) -> None:
    PARSER.parse_override(f"x={hydra_field(text, kind)}")


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("nvidia/Nemotron-Nano", "nvidia/Nemotron-Nano"),
        ("X:v2", "X:v2"),
        ("./config/a.yaml", "./config/a.yaml"),
        ("~/data", "'~/data'"),
        ("5", "'5'"),
        ("1e3", "'1e3'"),
        ("null", "'null'"),
        ("True", "'True'"),
        ("", "''"),
        ("it's", r"'it\'s'"),
        ("a,b", "'a,b'"),
        ("a b", "'a b'"),
        ("$(touch x)", "'$(touch x)'"),
        ("${oc.env:PWD}/x", "'${oc.env:PWD}/x'"),
        ("back\\", r"'back\\'"),
    ],
)
def test_strings(text: str, spelled: str) -> None:
    assert hydra_text(text) == spelled


@pytest.mark.parametrize("text", ["4", "-5", "1e-3", "1_000", "null", "1,2", "1, 2", "range(1,5)", "inf", "true"])
def test_numbers_and_sweeps_stay(text: str) -> None:
    assert hydra_number(text) == text


@pytest.mark.parametrize("text", ["${x}", "4;5", "a b", "", "$(x)", "f(g(x))"])
def test_what_is_no_number_becomes_a_string(text: str) -> None:
    assert hydra_reads(f"x={hydra_number(text)}") == text


@pytest.mark.parametrize(
    ("text", "read"),
    [("8", 8), ("1.5", 1.5), ("true", True), ("null", None), ("[a,1]", ["a", 1]), ("{a:1}", {"a": 1}),
     ("04:00:00", "04:00:00"), ("a,b", "a,b"), ("batch", "batch"), ("-5", -5)],
)  # fmt: skip
def test_untyped_values(text: str, read: object) -> None:
    assert hydra_reads(f"x={hydra_untyped(text)}") == read


@pytest.mark.parametrize("raw", ["a,b", "[a]", "f(x)", "'a','b'", r"a\,b", "a b", "'open", "'", ""])
def test_unquoting_refuses_what_is_more_than_one_text(raw: str) -> None:
    assert hydra_unquoted(raw) is None


def test_a_home_folder_is_expanded_by_the_shell_and_nothing_else() -> None:
    for path, inside in (
        ("~/my $x/py", "/home/me/my $x/py"),
        ("/a b", "/a b"),
        ("py~/", "py~/"),
        ("~/$(id)", "/home/me/$(id)"),
    ):
        shown = subprocess.run(
            ["sh", "-c", f"printf %s {shell_path(path)}"], env={"HOME": "/home/me"}, capture_output=True, text=True
        )
        assert shown.stdout == inside
