"""The reference in the docs, made from the code by scripts/docs/reference.py: nothing is left out or unexplained."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from nemotron_kit import errors
from nemotron_kit.cli import tree
from nemotron_kit.cli.indexing import LiveIndex
from nemotron_kit.cli.options import LAUNCHER, NEMOTRON
from nemotron_kit.cli.tools import TOOLS
from nemotron_kit.discovery import discover
from nemotron_kit.envfile import KEYS, EnvFile
from nemotron_kit.spec.runconfig import RunConfig

REPOSITORY = Path(__file__).resolve().parents[3]


@cache
def _scripts() -> ModuleType:
    """mkdocs.yml's hook, and by it the module that makes the reference."""
    pytest.importorskip("mkdocs")
    folder = REPOSITORY / "scripts" / "docs"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("docs_hooks", folder / "hooks.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(folder))


@cache
def _pages() -> dict[str, str]:
    made: dict[str, str] = _scripts().reference.pages()
    return made


def _rows(page: str) -> list[list[str]]:
    """The cells of all rows of a page's tables."""
    lines = [line for line in _pages()[page].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r" \| ", line.strip("| \n"))] for line in lines]


def test_every_command_and_option_is_on_the_page_of_commands() -> None:
    page = _pages()["commands"]
    for name, tool in TOOLS.items():
        assert f"## nemotron {name}\n\n```text\nusage: nemotron {name}" in page
        for command in tool.commands:
            assert f"### nemotron {name} {command}\n\n```text\nusage: nemotron {name} {command}" in page
        for option in tool.options:
            assert option in page
    assert all(f"`{option.flag}" in page for option in NEMOTRON.options)


def test_every_field_of_a_profile_and_every_key_of_env_toml_has_a_row_with_a_meaning() -> None:
    rows = _rows("env-toml")
    described = {row[0].strip("`") for row in rows if len(row) >= 3 and all(row[:2]) and row[-1]}
    assert described >= {field.name for field in dataclasses.fields(RunConfig)}
    assert KEYS.keys() == set(tree.RESERVED)
    for name, keys in KEYS.items():
        section = _pages()["env-toml"].partition(f"\n## [{name}]\n")[2].partition("\n## ")[0]
        assert [key for key in keys if f"| `{key}` |" not in section] == []
    assert all(field.metadata["help"] for field in dataclasses.fields(RunConfig))


def test_every_field_of_nano3s_commands_has_a_row_with_a_meaning() -> None:
    found = discover(EnvFile())
    index = LiveIndex(found.apps, found.broken)
    for leaf in tree.leaves(index.root["children"]["nano3"]):
        section = _pages()["nano3"].partition(f"\n## {' '.join(leaf['path'])}\n")[2].partition("\n## ")[0]
        for row in index.detail(leaf)["fields"]:
            assert f"| `{row['name']}` | `" in section, (leaf["path"], row["name"])
            assert row.get("help"), (leaf["path"], row["name"])


def test_the_launchers_settings_are_those_that_help_lists_and_env() -> None:
    named = {row[0].strip("`").removeprefix("hydra.launcher.") for row in _rows("launcher")}
    assert named == {*LAUNCHER, "env"}


def test_exit_codes_are_those_of_the_errors_and_of_the_readme() -> None:
    kinds = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert kinds <= errors.EXIT_CODES.keys()
    readme = (REPOSITORY / "README.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    shown = dict(re.findall(r"^\| (\d+) \| (.+) \|$", readme, re.MULTILINE))
    assert {code: errors.EXIT_CODES[int(code)] for code in shown} == shown and len(shown) >= 6


def test_formats_are_described_where_they_are_written() -> None:
    page = _pages()["files"]
    sections = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert {"plan.json", "job.json", "metrics.jsonl", "Checkpoints", "Tokenized text: .bin and .idx"} <= set(sections)
    for text in page.split("\n## ")[1:]:
        assert len(text.split()) > 20, text
    assert "```text\n<run id>/  " in page and "`identified_by`" in page


def test_links_out_of_docs_lead_to_the_pages_of_the_site_and_nothing_is_loaded_from_elsewhere() -> None:
    hooks = _scripts()
    text = (
        "[a](../../SECURITY.md#x) [b](../../nemotron_kit/app.py) [c](runs.md#logs) [d](https://hydra.cc) `[e](../x.md)`"
    )
    made = hooks._relinked(text, "docs/how-to/sweeps.md", "how-to/sweeps.md")
    assert made == "[a](../security.md#x) b [c](runs.md#logs) [d](https://hydra.cc) `[e](../x.md)`"
    assert hooks._relinked("[f](docs/tutorial.md)", "CONTRIBUTING.md", "contributing.md") == "[f](tutorial.md)"
    loaded = (
        '<script src="https://a.b/c.js">',
        "<img alt=x src=//a.b/c.png>",
        '<link href="https://a" rel="stylesheet">',
    )
    assert [bool(hooks.LOADED.search(tag)) for tag in loaded] == [True] * 3
    assert not hooks.LOADED.search('<a href="https://hydra.cc">') and not hooks.LOADED.search('<img src="a/b.png">')


# British spellings and their American ones. `cancelled` is the name of a state, and stays.
BRITISH = (
    r"\b(?:un|re|de|mis)?(?:(?:colou|behaviou|honou|favou|neighbou|labou|flavou|endeavou)r\w*|cent(?:re|res|red)"
    r"|artefacts?|catalogues?|analys(?:e|ed|es|ing)|(?:learn|spel|burn|dream)t|grey\w*|model(?:led|ling)"
    r"|label(?:led|ling)|travel(?:led|ling|ler)|signal(?:led|ling)|fuel(?:led|ling)|whilst|amongst|judgements?"
    r"|for ever|licences?|defences?|fulfil|enrol|programmes?|maths|metres?"
    r"|(?:organ|recogn|initial|optim|normal|token|serial|synchron|summar|minim|maxim|special|general|util|real|custom"
    r"|author|categor|emphas|final|visual|parallel|quant|vector|material|sanit|random|capital)is(?:e|ed|es|er|ers|ing"
    r"|ation))\b"
)


def test_all_pages_are_in_american_english() -> None:
    files = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("examples/*.md"), *REPOSITORY.glob("docs/**/*.md")]
    pages = {str(file.relative_to(REPOSITORY)): file.read_text(encoding="utf-8") for file in files} | _pages()
    assert len(pages) >= 30
    found = [(name, word) for name, text in pages.items() for word in re.findall(BRITISH, text, re.IGNORECASE)]
    assert found == []
    words = "Colours, recognised and learnt, modelling the tokeniser: behaviour at the centre, for ever."
    assert len(re.findall(BRITISH, words, re.IGNORECASE)) == 8
