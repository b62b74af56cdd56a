"""Lines of keys in a TOML text, against tomllib as the judge of what keys there are."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nemotron_kit.envfile import key_lines, line_of

TEXT = '''\
top = 1 # [not.a.table]
"quoted.key" = "a # b ] ["
a.b = { x = 1, y = [
  1, 2, # ]
] }
multi = """
[fake]
key = 2 \\"""
"""
literal = \'\'\'
[fake2]'\'\'\'
[ table . "with space" ]
key = [
  "]", # comment with ] and "
  '[',
]
after = 1979-05-27

[[array]]
x = 1
[[array]]
y = 2
'''


def test_everything_odd_at_once() -> None:
    assert key_lines(TEXT) == {
        ("top",): 1,
        ("quoted.key",): 2,
        ("a", "b"): 3,
        ("multi",): 6,
        ("literal",): 10,
        ("table", "with space"): 12,
        ("table", "with space", "key"): 13,
        ("table", "with space", "after"): 17,
        ("array",): 19,
        ("array", "x"): 20,
        ("array", "y"): 22,
    }
    tomllib.loads(TEXT)


def test_nearest_table() -> None:
    lines = key_lines(TEXT)
    assert line_of(lines, "a", "b", "x") == 3 and line_of(lines, "nowhere") is None


KEYS = st.text("abc-_1", min_size=1, max_size=4) | st.sampled_from(["a.b", "a b", 'q"q', "[x]", "#"])
VALUES = st.sampled_from(
    [
        "1",
        "true",
        '"x"',
        '"[a]\\nb = 1 # \\""',
        "'l # ['",
        '"""\n[m]\nk = 1\n"""',
        "'''\n]'''",
        "[1,\n 2]",
        "{ k = [ '}' ] }",
    ]
)


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4), st.sampled_from(["\n", "\r\n"]))
def test_every_key_is_on_its_line(tables: dict[str, dict[str, str]], newline: str) -> None:
    text, expected, number = "", {}, 1
    for table, entries in tables.items():
        for key, value in ((None, ""), *entries.items()):
            line = f"[{_quote(table)}]" if key is None else f"{_quote(key)} = {value}"
            expected[(table,) if key is None else (table, key)] = number
            text += line.replace("\n", newline) + newline
            number += line.count("\n") + 1
    assert key_lines(text) == expected
    parsed: dict[str, Any] = tomllib.loads(text)
    assert {table: set(entries) for table, entries in parsed.items()} == {t: set(e) for t, e in tables.items()}


def _quote(key: str) -> str:
    return '"' + key.replace('"', '\\"') + '"'
