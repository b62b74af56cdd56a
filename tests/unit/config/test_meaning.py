"""A config means what users of Python and of YAML mean by it: times, texts and names in YAML, `__post_init__`, fields
that are computed, blocks that may be null. A script that reads the same file by itself gets the same."""

import enum
import re
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NewType

import pytest

from nemotron_kit.app import App
from nemotron_kit.cli.indexing import rows
from nemotron_kit.config.compose import compose, prepare
from nemotron_kit.config.config_files import load_mapping
from nemotron_kit.config.freeze import freeze, typed
from nemotron_kit.discovery import Tree
from nemotron_kit.envfile import EnvFile
from nemotron_kit.errors import UserError
from nemotron_kit.train_script import (
    apply_hydra_overrides,
    init_wandb_from_env,
    load_omegaconf_yaml,
    omegaconf_to_dataclass,
    parse_config_and_overrides,
)


class Switch(enum.Enum):
    on = 1
    off = 2


@dataclass
class Steps:
    steps: int = 1
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.steps *= 10
        self.names.append("seen")


@dataclass
class Longer(Steps):
    def __post_init__(self) -> None:
        super().__post_init__()
        self.steps += 1


@dataclass(frozen=True)
class Fixed:
    size: int = 2
    scale: InitVar[int] = 2

    def __post_init__(self, scale: int) -> None:
        object.__setattr__(self, "size", self.size * scale)


@dataclass
class Outer:
    inner: Steps = field(default_factory=lambda: Steps(3))
    more: Fixed = Fixed(5)


MADE_BEFORE = Steps(7)


@dataclass
class Config:
    text: str = "t"
    version: str | None = None
    switch: Switch = Switch.on
    mode: Literal["yes", "no"] = "yes"
    number: float = 1.0
    flag: bool = False
    free: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    plain: Steps = field(default_factory=Steps)
    base: Steps = field(default_factory=Longer)
    outer: Outer = field(default_factory=Outer)
    shared: Steps = field(default_factory=lambda: MADE_BEFORE)
    maybe: Outer | None = None
    table: dict[str, int] | None = None
    seed: InitVar[int] = 4
    total: int = field(init=False)

    def __post_init__(self, seed: int) -> None:
        self.total = self.outer.inner.steps + seed


Handler = Callable[..., Config]


@pytest.fixture
def given(tmp_path: Path) -> Handler:
    """The typed config of a command, from a YAML text and overrides."""
    app = App("demo")
    app.command("go", Config, print)

    def make(text: str = "", *words: str) -> Config:
        (tmp_path / "c.yaml").write_text(text)
        config = f"config={tmp_path}/c.yaml"
        composed = compose(Tree(apps={"demo": app}), ["recipe=demo", "stage=go", config, *words], EnvFile())
        return typed(freeze(composed.config, "/job"), Config)

    return make


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("text: 12:00:00", "text", "12:00:00"),
        ("free: {time: 1:30}", "free", {"time": "1:30"}),
        ("text: 1.10", "text", "1.10"),
        ("version: 0123", "version", "0123"),
        ("text: 1_000", "text", "1_000"),
        ("text: yes", "text", "yes"),
        ("texts: [on, 2.50, x]", "texts", ["on", "2.50", "x"]),
        ("mode: no", "mode", "no"),
        ("switch: off", "switch", Switch.off),
        ("flag: on", "flag", True),
        ("number: 1e-3", "number", 0.001),
        ("free: {flag: yes, n: 1_000, v: 1.10}", "free", {"flag": True, "n": 1000, "v": 1.1}),
        ("free: {on: push, no: 1}", "free", {"on": "push", "no": 1}),
        ("version: null", "version", None),
    ],
)
def test_a_value_of_yaml(given: Handler, tmp_path: Path, text: str, name: str, expected: object) -> None:
    assert getattr(given(text), name) == expected
    script = omegaconf_to_dataclass(load_omegaconf_yaml(tmp_path / "c.yaml"), Config)
    assert getattr(script, name) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("on: 1", r"on: `demo go` has no such field \(given in .*c.yaml:1\)"),
        ("free:\n  null: 1", r"c.yaml:2: null can't be a key"),
        ("'': 1", r"c.yaml:1: an empty text can't be a key"),
        ("table: {1: 2}", r'table: 1 is no text.*\nQuote it: "1"'),
        ("number: 12:00", r"number: expected float, got '12:00' \(given in .*c.yaml:1\)"),
        # libyaml takes the TAB, Python's own parser does not.
        ("text\t: x\nflag: maybe", r"flag: expected bool, got 'maybe' \(given in .*c.yaml:2\)"),
        ("total: 1", r"total: `demo go` has no such field"),
        ("texts: {a: 1}", r"texts: expected list\[str\] \(given in .*c.yaml:1\)"),
        ("run: {env: [1]}", r"^run\.env: expected a block \(given in .*c.yaml:1\)"),
        ("run: 3", r"^run: expected a block \(given in .*c.yaml:1\)"),
        ("free: {}\nplain: on", r"plain: expected Steps \(given in .*c.yaml:2\)"),
        ("outer: {inner: [1]}", r"outer.inner: .* \(given in .*c.yaml:1\)"),
        ("maybe: '${nothing}'", r"maybe: Interpolation key 'nothing' not found \(given in .*c.yaml:1\)"),
        ("text: '${oc.env:NOT_THERE_AT_ALL}'", r"text: Environment variable 'NOT_THERE_AT_ALL' not found"),
        ("hydra: [1, x]", r"."),
    ],
)
def test_a_wrong_key_or_value_of_yaml(given: Handler, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        given(text)
    assert not {"full_key", "object_type", "reference_type", "raised while"} & set(
        re.findall(r"\w+|raised while", str(error.value))
    )


def test_a_whole_file_of_nothing_is_empty(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load_mapping(tmp_path / "c.yaml") == {}


def test_post_init_has_run_once_for_what_a_handler_gets(given: Handler) -> None:
    plain, mine = Config(), given()
    assert mine == plain
    assert type(mine.base) is type(plain.base) is Longer
    assert (mine.plain.steps, mine.base.steps, mine.outer.inner.steps, mine.outer.more.size) == (10, 11, 30, 10)
    assert mine.total == 34
    assert mine.shared.names == MADE_BEFORE.names == ["seen"]


def test_post_init_has_run_once_where_something_was_set(given: Handler) -> None:
    mine = given("outer: {inner: {steps: 5}}", "plain.names=[a]", "seed=1", "outer.more.scale=3", "outer.more.size=1")
    assert mine.outer.inner == Steps(5)
    assert mine.plain == Steps(1, ["a"])
    assert given("base: {steps: 2}").base == Longer(2)
    assert mine.outer.more == Fixed(1, 3)
    assert mine.total == 51


def test_help_shows_what_one_would_give() -> None:
    shown = {row["name"]: row.get("default") for row in rows(Config)}
    assert (shown["plain.steps"], shown["outer.inner.steps"], shown["plain.names"]) == ("1", "3", "[]")
    assert shown["seed"] == "4"
    assert "total" not in shown


def test_a_computed_field_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("total: 1\n")
    with pytest.raises(UserError, match="total: Config computes it itself"):
        omegaconf_to_dataclass(load_omegaconf_yaml(tmp_path / "c.yaml"), Config)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["maybe.inner.steps=2"], Outer(inner=Steps(2))),
        (["maybe={inner: {steps: 2}}"], Outer(inner=Steps(2))),
        (["maybe={}"], Outer()),
        (["maybe.inner.steps=2", "maybe=null"], None),
        (["maybe=null", "maybe.more.size=1"], Outer(more=Fixed(1))),
    ],
)
def test_an_optional_block_is_filled(given: Handler, words: list[str], expected: object) -> None:
    assert given("", *words).maybe == expected
    assert given("maybe: null", *words).maybe == expected


def test_an_optional_table_is_filled(given: Handler) -> None:
    assert given("", "+table.a=1").table == given("", "table={a: 1}").table == given("table: {a: 1}").table == {"a": 1}
    with pytest.raises(UserError, match=r"maybe\.inner\.stepz: `demo go` has no such field"):
        given("", "maybe.inner.stepz=1")


def test_a_block_wandb_is_about_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Handler) -> None:
    """As the linked page has it, in YAML, TOML or JSON; env.toml's table stands beneath it, the command line above."""
    for name in ("WANDB_PROJECT", "NEMOTRON_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    app = App("demo")
    app.command("go", Config, print)
    text = 'text = "a"\n[wandb]\nproject = "mine"\nentity = "team"\nname = "x"\n'
    (tmp_path / "c.toml").write_text(text)
    env = EnvFile(tmp_path / "env.toml", {"wandb": {"project": "other", "notes": "n"}})
    words = ["recipe=demo", "stage=go", f"config={tmp_path}/c.toml", "run.wandb.entity=me"]
    run = freeze(compose(Tree(apps={"demo": app}), words, env).config, "/job")["run"]
    assert run["wandb"] == {"project": "mine", "notes": "n", "entity": "me", "run_name": "x"}
    started: list[Any] = []
    monkeypatch.setattr("nemotron_kit.train_script._wandb", {})
    monkeypatch.setattr("nemotron_kit.artifacts.init_wandb_if_configured", started.append)
    config = omegaconf_to_dataclass(load_omegaconf_yaml(tmp_path / "c.toml"), Config)
    assert config.text == "a" and not hasattr(config, "wandb")
    init_wandb_from_env()
    assert [(each.project, each.entity, each.run_name) for each in started] == [("mine", "team", "x")]

    @dataclass
    class Own:
        wandb: dict[str, Any] = field(default_factory=dict)

    (tmp_path / "c.yaml").write_text("wandb: {project: p}\n")
    assert omegaconf_to_dataclass(load_omegaconf_yaml(tmp_path / "c.yaml"), Own).wandb == {"project": "p"}


def test_what_env_toml_lacks_is_said(given: Handler, tmp_path: Path) -> None:
    added = r'text: Interpolation key .run.wandb.project. not found\nenv.toml .*:\n\[wandb\]\nproject = "…"'
    with pytest.raises(UserError, match=added):
        given("text: ${run.wandb.project}")
    with pytest.raises(UserError, match=added):
        omegaconf_to_dataclass(load_omegaconf_yaml(tmp_path / "c.yaml"), Config)
    assert given("text: ${run.wandb.project}", "+run.wandb.project=p").text == "p"


@dataclass
class Part:
    name: str = "none"
    rate: float = 0.5
    sizes: list[int] = field(default_factory=list)


@dataclass
class Parts:
    part: Part = field(default_factory=lambda: Part(rate=9, sizes=[1]))
    free: dict[str, Any] = field(default_factory=lambda: {"a": 1, "b": {"c": 2}})
    label: str = "x-${.count}"
    count: int = 4
    either: int | str = 0
    named: dict[str, Part] = field(default_factory=lambda: {"a": Part(rate=8)})
    listed: list[Part] = field(default_factory=lambda: [Part(rate=8)])
    maybe: Part | None = None


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("part: {name: x}", "part", Part("x", 9, [1])),  # the field's default, not the class's
        ("free: {b: {e: 3}}", "free", {"a": 1, "b": {"c": 2, "e": 3}}),
        ("count: 5", "label", "x-5"),
        ("label: ${part.name}-${count}", "label", "none-4"),
        ("part: {name: '${..label}'}", "part", Part("x-4", 9, [1])),
        ("maybe: {rate: 2}\nlabel: ${maybe.name}", "label", "none"),
        ("named: {a: {name: q}, z: {rate: 2}}", "named", {"a": Part("q", 8), "z": Part(rate=2)}),
        ("listed: [{name: '${count}'}]", "listed", [Part("4")]),
        ("part: ???\ncount: ???", "part", Part(rate=9, sizes=[1])),
        ("label: y", "listed", [Part(rate=8)]),
        ("either: 1.5", "either", UserError),
        ("either: x", "either", "x"),
        ("label: ${", "label", UserError),
        ("part: &p {name: 1.10}\nmaybe: *p", "maybe", Part("1.10")),
        ("part: &p {name: 1.10}\nmaybe: {<<: *p, rate: 2}", "maybe", Part("1.10", 2)),
        ("free: {x: {<<: [{a: 1}, {a: 2, b: 3}]}}", "free", {"a": 1, "b": {"c": 2}, "x": {"a": 1, "b": 3}}),
    ],
)
def test_a_file_over_defaults_is_the_same_in_a_launch_and_in_a_script(
    tmp_path: Path, text: str, name: str, expected: object
) -> None:
    app = App("demo")
    app.command("go", Parts, print)
    file = tmp_path / "c.yaml"
    file.write_text(text)

    def launched() -> Parts:
        composed = compose(Tree(apps={"demo": app}), ["recipe=demo", "stage=go", f"config={file}"], EnvFile())
        return typed(freeze(composed.config, "/job"), Parts)

    for get in (launched, lambda: omegaconf_to_dataclass(load_omegaconf_yaml(file), Parts)):
        if expected is UserError:
            with pytest.raises(UserError):
                get()
        else:
            assert getattr(get(), name) == expected


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("named: {a: {rate: 2}}", ["+named.b.name=q"], {"a": Part(rate=2), "b": Part("q")}),
        ("named: {a: {rate: 2}}", ["named.b={rate: 3}", "named.b.name=r"], {"a": Part(rate=2), "b": Part("r", 3)}),
        ("numbered: {1: 1.10}", [], {1: "1.10"}),
        ("named: {a: {rte: 2}}", [], r"named\.a\.rte: .* no such field .*\nDid you mean rate\?"),
        ("listed: [{rte: 2}]", [], r"^listed\[0\]\.rte: .* no such field .*\nDid you mean rate\?$"),
        ("", ["listed=[{rte: 2}]"], r"^listed\[0\]\.rte: .* no such field"),
        ("", ["listed=[{rate: x}]"], r"^listed\[0\]\.rate: expected float, got 'x'"),
        ("listed: [{rate: x}]", [], r"^listed\[0\]\.rate: expected float, got 'x' \(given in .*c\.yaml"),
        ("", ["named.b=5"], r"^named\.b: expected Part"),
        ("listed: [{rate: 2}]", ["listed.1.rate=2"], r"^listed has 1 item: there is no listed\.1\."),
        ("listed: [{rate: 2}]", ["listed.x=2"], r"^listed is a list: 'x' is no index"),
        ("numbered: {x: a}", [], r"^numbered: expected int as a key, got 'x' \(given in .*c\.yaml:1\)"),
        ("", ["free={1: a}"], r"^free: 1 is no text.*\nGive it by itself: free\.1=…"),
        ("", ["listed.0.rate=2"], r"^listed has 0 items.*\nTo add one"),
        ("", ["listed=4"], r"^listed: expected list\[Part\] \(given in listed=4\)\.$"),
        ("", ["part=big"], r"^part: expected Part \(given in part=big\)\.\nSet its fields: part\.name=… .*part=NAME"),
        ("", ["part=[1]"], r"^part: expected Part \(given in part=\[1\]\)\.\nSet its fields"),
        # A new entry whose type is a list or a dict.
        ("", ["+lists.a=[{rate: 2}]", "lists.a.0.name=q"], {"a": [Part("q", 2)]}),
        ("lists: {a: [{rate: 2}]}", ["lists.b=[]"], {"a": [Part(rate=2)], "b": []}),
        ("", ["nested.a.b.rate=2", "nested.c={d: {rate: 3}}"], {"a": {"b": Part(rate=2)}, "c": {"d": Part(rate=3)}}),
        ("", ["lists.a=[{rte: 2}]"], r"^lists\.a\[0\]\.rte: .* no such field .*\nDid you mean rate"),
        ("", ["lists.a={b: 2}"], r"^lists\.a: expected list\[Part\] \(given in"),
        ("", ["part=null"], r"^part: expected Part: it can't be null \(given in part=null\)"),
        ("", ["numbered.1=a"], r"^numbered: expected int as a key.*\n.*: numbered=\{1: …\}"),
        ("part: {rate: null}", [], r"^part\.rate: expected float: it can't be null"),
        ("", ["colours.PINK=2"], r"^colours: expected one of .* as a key, got 'PINK' \(given in colours\.PINK=2\)\.$"),
        ("part.rate: 3", [], r"^part\.rate: .*\nIn a file, a block has its keys below it: part: \{rate: …\}"),
    ],
)
def test_entries_of_tables_and_lists(tmp_path: Path, text: str, words: list[str], expected: Any) -> None:
    @dataclass
    class Tables:
        part: Part = field(default_factory=Part)
        named: dict[str, Part] = field(default_factory=dict)
        listed: list[Part] = field(default_factory=list)
        numbered: dict[int, str] = field(default_factory=dict)
        colours: dict[Switch, int] = field(default_factory=dict)
        free: dict[str, Any] = field(default_factory=dict)
        lists: dict[str, list[Part]] = field(default_factory=dict)
        nested: dict[str, dict[str, Part]] = field(default_factory=dict)

    app = App("demo")
    app.command("go", Tables, print)
    (tmp_path / "c.yaml").write_text(text)
    overrides = ["recipe=demo", "stage=go", f"config={tmp_path}/c.yaml", *words]
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            compose(Tree(apps={"demo": app}), overrides, EnvFile())
        return
    made = typed(freeze(compose(Tree(apps={"demo": app}), overrides, EnvFile()).config, "/job"), Tables)
    assert expected in (made.named, made.numbered, made.lists, made.nested)
    path, given = parse_config_and_overrides(tmp_path / "c.yaml", words)
    script = omegaconf_to_dataclass(apply_hydra_overrides(load_omegaconf_yaml(path), given), Tables)
    assert script == made


@dataclass
class Texts:
    name: str = ""
    path: Path = Path()
    maybe: str | None = None
    table: dict[str, str] = field(default_factory=dict)
    number: float = 0.0
    flag: bool = False
    free: Any = None


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("", ["name=1.10", "maybe=true", "table.a=1_000"], Texts("1.10", maybe="true", table={"a": "1_000"})),
        ("", ["name=1e3", "path=2024", "number=1e3", "flag=true"], Texts("1e3", Path("2024"), number=1000, flag=True)),
        ("", ["free=1.10", "path=1.10"], Texts(path=Path("1.10"), free=1.1)),
        ("path: 2024\nname: 1.10", ["name=1.1"], Texts("1.1", Path("2024"))),
        ("path: 1.5", ["maybe=null"], Texts(path=Path("1.5"))),
    ],
)
def test_a_text_on_the_command_line_is_what_was_written(
    tmp_path: Path, text: str, words: list[str], expected: Texts
) -> None:
    app = App("demo")
    app.command("go", Texts, print)
    (tmp_path / "c.yaml").write_text(text)
    overrides = ["recipe=demo", "stage=go", f"config={tmp_path}/c.yaml", *words]
    composed = compose(Tree(apps={"demo": app}), overrides, EnvFile())
    assert typed(freeze(composed.config, "/job"), Texts) == expected and composed.overrides == overrides
    path, given = parse_config_and_overrides(tmp_path / "c.yaml", words)
    assert omegaconf_to_dataclass(apply_hydra_overrides(load_omegaconf_yaml(path), given), Texts) == expected


def test_each_of_a_sweeps_texts_is_what_was_written() -> None:
    app = App("demo")
    app.command("go", Texts, print)
    words = ["recipe=demo", "stage=go", "name=1.10,1.2,x", "number=1.10,2"]
    prepared = prepare(Tree(apps={"demo": app}), words, EnvFile(), sweep=True)
    assert prepared.overrides[2:] == ["name='1.10',1.2,x", "number=1.10,2"]


@dataclass
class Adam:
    lr: float = 1.0
    beta: float = 0.9


@dataclass
class Sgd:
    lr: float = 1.0
    momentum: float = 0.5


@dataclass
class Same:
    lr: float = 7.0
    beta: float = 0.7


@dataclass
class KindA:
    kind: Literal["a"] = "a"
    rate: float = 1.0
    only_a: int = 1


@dataclass
class KindB:
    kind: Literal["b"] = "b"
    rate: float = 5.0
    size: int | None = None


@dataclass
class Holder:
    one: KindA | KindB | None = field(default_factory=KindA)


@dataclass
class OneOf:
    first: Adam | Sgd = field(default_factory=Sgd)
    alike: Adam | Same = field(default_factory=Same)
    maybe: Adam | Sgd | None = None
    listed: list[Adam | Sgd] = field(default_factory=list)
    text: Adam | str = "x"
    kind: KindA | KindB = field(default_factory=KindA)
    table: dict[str, Adam | Sgd] = field(default_factory=lambda: {"a": Sgd()})
    deep: Holder = field(default_factory=lambda: Holder())


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("", [], OneOf()),
        ("first: {lr: 3}\nalike: {lr: 3}", [], OneOf(Sgd(3), Same(3))),
        ("maybe: {momentum: 1}", ["first.momentum=4"], OneOf(Sgd(momentum=4), maybe=Sgd(momentum=1))),
        (
            "listed: [{beta: 1}, {momentum: 2}]\ntext: {lr: 2}",
            [],
            OneOf(listed=[Adam(beta=1), Sgd(momentum=2)], text=Adam(2)),
        ),
        # Keys that only another class has: its defaults hold, not those of the default's class.
        ("kind: {kind: b}", [], OneOf(kind=KindB())),
        ("kind: {kind: b, rate: 1.0}", ["kind.size=3"], OneOf(kind=KindB(rate=1.0, size=3))),
        ("", ["kind.kind=b"], OneOf(kind=KindB())),
        ("kind: {rate: 2}", ["kind={kind: b}"], OneOf(kind=KindB(rate=2))),
        ("kind: {kind: b}", ["kind.kind=a"], OneOf()),
        ("table: {a: {beta: 1}}", [], OneOf(table={"a": Adam(beta=1)})),
        ("deep: {one: {size: 2}}", ["deep.one.rate=3"], OneOf(deep=Holder(KindB(size=2, rate=3)))),
        ("", ["deep.one.size=2"], OneOf(deep=Holder(KindB(size=2)))),
        ("first: {beta: 1, momentum: 2}", [], r"^first: expected Adam \| Sgd, got"),
        ("maybe: {momentumm: 1}", [], r"^maybe: expected Adam \| Sgd \| None, got \{'momentumm': 1\}"),
        ("text: {lrr: 2}", [], r"^text\.lrr: no such field\.\nDid you mean lr\?$"),
        ("text: {lr: y}", [], r"^text\.lr: expected float, got 'y'"),
    ],
)
def test_one_of_several_dataclasses(tmp_path: Path, text: str, words: list[str], expected: Any) -> None:
    """The default's class where it has the given keys, else the first one that has them."""
    app = App("demo")
    app.command("go", OneOf, print)
    (tmp_path / "c.yaml").write_text(text)

    def launched() -> OneOf:
        overrides = ["recipe=demo", "stage=go", f"config={tmp_path}/c.yaml", *words]
        return typed(freeze(compose(Tree(apps={"demo": app}), overrides, EnvFile()).config, "/job"), OneOf)

    def script() -> OneOf:
        path, given = parse_config_and_overrides(tmp_path / "c.yaml", words)
        return omegaconf_to_dataclass(apply_hydra_overrides(load_omegaconf_yaml(path), given), OneOf)

    for get in (launched, script):
        if isinstance(expected, str):
            with pytest.raises(UserError, match=expected):
                get()
        else:
            assert get() == expected


def test_help_of_a_list_of_blocks() -> None:
    assert {row["name"]: row.get("default") for row in rows(Parts)}["listed"] == "[{name: none, rate: 8, sizes: []}]"


Name = NewType("Name", str)


@dataclass
class Branch:
    value: int = 0
    below: "Branch | None" = None
    more: "dict[str, Branch]" = field(default_factory=dict)


@dataclass
class Wrapped:
    tree: Branch | None = None
    side: Literal[Switch.on, Switch.off] = Switch.on
    raw: bytes = b"ab"
    final: Final[int] = 4
    name: Name = Name("n")
    names: list[Name] | None = None
    rate: float | Literal["auto"] = "auto"
    whole: float | str = "x"
    mixed: list[int | str] = field(default_factory=list)
    nested: list[list[float]] = field(default_factory=list)
    numbers: set[int] = field(default_factory=set)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tree: {below: {value: 2, more: {a: {value: 3}}}}", ("tree", Branch(below=Branch(2, more={"a": Branch(3)})))),
        ("tree: {below: {value: x}}", r"^tree\.below\.value: expected int, got 'x'"),
        ("side: off", ("side", Switch.off)),
        ("side: up", r"^side: expected one of on, off, got 'up'"),
        ("raw: !!binary YWJj", ("raw", b"abc")),
        ("final: 7", ("final", 7)),
        ("name: 1.10", ("name", "1.10")),
        ("name: .nan", ("name", ".nan")),
        ("names: [on, .NaN]", ("names", ["on", ".NaN"])),
        ("rate: 5", ("rate", 5.0)),
        ("whole: 5", ("whole", 5.0)),
        ("mixed: [1.5]", r"^mixed\[0\]: expected int \| str, got '1\.5' \(given in .*c\.yaml"),
        ("nested: [1]", r"^nested\[0\]: expected list\[float\]"),
        ("numbers: [a]", r"^numbers\[0\]: expected int, got 'a'"),
    ],
)
def test_wrapped_and_mixed_types(tmp_path: Path, text: str, expected: Any) -> None:
    app = App("demo")
    app.command("go", Wrapped, print)
    (tmp_path / "c.yaml").write_text(text)

    def frozen() -> dict[str, Any]:
        words = ["recipe=demo", "stage=go", f"config={tmp_path}/c.yaml"]
        return freeze(compose(Tree(apps={"demo": app}), words, EnvFile()).config, "/job")

    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            typed(frozen(), Wrapped)
    else:
        value = getattr(typed(frozen(), Wrapped), expected[0])
        assert (value, type(value)) == (expected[1], type(expected[1]))
