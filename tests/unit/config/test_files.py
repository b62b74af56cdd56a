"""Config files: three formats, one mapping, and the place of every mistake."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_kit.config.config_files import key_location, load_mapping
from nemotron_kit.errors import UserError


def write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "a: 1\nb: {c: x}\nlr: 1e-3\n"),
        ("c.toml", 'a = 1\nlr = 1e-3\n[b]\nc = "x"\n'),
        ("c.json", '{"a": 1, "b": {"c": "x"}, "lr": 1e-3}'),
    ],
)
def test_three_formats_one_mapping(tmp_path: Path, name: str, text: str) -> None:
    assert load_mapping(write(tmp_path, name, text)) == {"a": 1, "b": {"c": "x"}, "lr": 0.001}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "a: 1\nb: [1\n", "c.yaml:3:1: not valid YAML"),
        ("c.yaml", "a: 1\na: 2\n", "c.yaml:2:1: not valid YAML: found duplicate key a"),
        ("c.yaml", "a:\n\t- b\n", "c.yaml:2:1: not valid YAML"),
        ("c.yaml", "- a\n", "must hold a mapping at the top, not a list"),
        ("c.yaml", "just text\n", "must hold a mapping at the top, not a str"),
        ("c.yaml", "a: !!python/object/apply:os.system [x]\n", "c.yaml:1:4: not valid YAML"),
        ("c.yaml", "x: " + "[" * 100 + "]" * 100, "nested deeper than 64 levels"),
        ("c.toml", "a = \n", "c.toml: not valid TOML: Invalid value (at line 1"),
        ("c.json", '{"a": 1,\n "b" 2}', "c.json:2:6: not valid JSON"),
        ("c.json", '{"a": 1, "a": 2}', "'a' is given twice"),
        ("c.ini", "a=1", "unknown ending '.ini'"),
    ],
)
def test_a_broken_file_says_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_mapping(write(tmp_path, name, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [" + "x," * 1000 + "]\nb: [" + "*a," * 200 + "]\n", "unfold to more than 100000 values"),
        ("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
         + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)), r"bomb\.yaml:5: its"),
        ("a: &a " + "x" * 100_000 + "\nb: [" + "*a," * 110 + "]\n", "unfold to more than 100000 values"),
        # A comment for libyaml, a key for the Python parser, which reads the file after libyaml's "duplicate key".
        ("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
         + "".join(f"\ufeff#{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)) + "d: 1\nd: 2\n",
         r"bomb\.yaml:5: its"),
        ("a: &a {b: [*a]}\n", r"bomb\.yaml:1: the alias \*a is inside of the value that it refers to"),
    ],
)  # fmt: skip
def test_an_alias_bomb_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        load_mapping(write(tmp_path, "bomb.yaml", text))


def test_honest_aliases_are_read(tmp_path: Path) -> None:
    text = "base: &base {lr: 1}\nprompt: &prompt " + "x" * 20_000 + "\n"
    text += "".join(f"k{n}: *base\np{n}: *prompt\n" for n in range(300))
    assert load_mapping(write(tmp_path, "many.yaml", text))["k299"] == {"lr": 1}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("half.json", '{"a": "\\ud800"}', "half a character"),
        ("half.yaml", 'a: "\\ud800"', "half a character|invalid Unicode|not valid YAML"),
        ("digits.json", '{"a": 1' + "0" * 5000 + "}", "not valid JSON: Exceeds the limit"),
        ("digits.toml", "a = 1" + "0" * 5000, "not valid TOML: Exceeds the limit"),
        ("deep.toml", "a = " + "[" * 5000, "nested too deeply"),
    ],
)
def test_what_a_parser_chokes_on(name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        load_mapping(write(tmp_path, name, text))


def test_a_date_is_a_text(tmp_path: Path) -> None:
    for name, text in (("d.toml", "t = 2020-01-01\nu = [07:32:00]\n"), ("d.yaml", "t: 2020-01-01\nu: [07:32:00]\n")):
        assert load_mapping(write(tmp_path, name, text)) == {"t": "2020-01-01", "u": ["07:32:00"]}


def test_the_line_of_a_nested_key(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", "a: 1\nb:\n  c: 2\n  d:\n    e: 3\n")
    assert key_location(path, "b.d.e") == f"{path}:5"


@given(text=st.text(max_size=200))
def test_any_text_is_a_mapping_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    for ending in (".yaml", ".toml", ".json"):
        path = tmp_path_factory.getbasetemp() / f"any{ending}"
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            assert isinstance(load_mapping(path), dict)
        except UserError as error:
            assert str(path) in str(error)
