"""The grammar of references: what each spelling means, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nemotron_kit.artifacts.reference import Reference, parse_override, registry_name
from nemotron_kit.errors import UserError

DIGEST = "1f" * 32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Data", Reference("Data", alias="latest")),
        ("Data:latest", Reference("Data", alias="latest")),
        ("Data:prod", Reference("Data", alias="prod")),
        ("Data:v3", Reference("Data", version=3)),
        ("Data:3", Reference("Data", version=3)),
        ("art://Data:v0", Reference("Data", version=0)),
        (f"Data@{DIGEST}", Reference("Data", digest=DIGEST)),
        ("Data@sha256:1F00", Reference("Data", digest="1f00")),
        ("Data@run:2026-run.1", Reference("Data", run="2026-run.1")),
        ("team/proj/Data:v3", Reference("Data", version=3, entity="team", project="proj")),
        ("own/data", Reference("own-data", alias="latest")),
        ("pretrain:latest", Reference("ModelArtifact-pretrain", alias="latest")),
        ("sft:v2", Reference("ModelArtifact-sft", version=2)),
        ("rl", Reference("ModelArtifact-rl", alias="latest")),
        ("/data/x:v3", Reference(path="/data/x:v3")),
        ("./x", Reference(path="./x")),
        ("../x", Reference(path="../x")),
        ("~/x y", Reference(path="~/x y")),
        ("art:///abs/path", Reference(path="/abs/path")),
        ("  Data:v1 ", Reference("Data", version=1)),
    ],
)
def test_each_spelling(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "Data:", ":v3", "Data:v03", "Data:V3", "Data:v1234567890", "Data:a:b", "Data:v1@abcd"),
        *("Data@", "Data@xyz", "Data@12", "Data@run:", "Data@run:../x", "a..b", "-x", ".x", "a b", "Däta", "x" * 65),
        *("a/", "a//b", "/a\x00b", "x\ny", "s3://bucket/x", "hf://a/b", "file:///x", "art://", "art://art://x"),
    ],
)
def test_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UserError) as error:
        Reference.parse(text)
    assert error.value.hint


def test_other_things_than_text_are_refused() -> None:
    for value in (10, None, ["Data"]):
        with pytest.raises(UserError, match="no artifact reference"):
            Reference.parse(value)  # type: ignore[arg-type]


def test_slashed_names_are_stored_with_dashes() -> None:
    assert Reference.parse("nano3/pretrain/model").slug == "nano3-pretrain-model"
    assert registry_name("nano3/pretrain/model") == "nano3-pretrain-model"
    assert registry_name("pretrain") == Reference.parse("pretrain").slug == "ModelArtifact-pretrain"
    for name in ("Data:v1", "Data@run:x", "../x", "", "a b", "x" * 65):
        with pytest.raises(UserError):
            registry_name(name)


slugs = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True).filter(lambda s: ".." not in s)
names = slugs.filter(lambda s: s not in {"pretrain", "sft", "rl"})
selectors = st.one_of(
    st.fixed_dictionaries({"version": st.integers(0, 999_999_999)}),
    st.fixed_dictionaries({"alias": slugs.filter(lambda s: not s.lstrip("vV").isdigit())}),
    st.fixed_dictionaries({"digest": st.text("0123456789abcdef", min_size=4, max_size=64)}),
    st.fixed_dictionaries({"run": slugs}),
)
owners = st.one_of(st.just({}), st.fixed_dictionaries({"entity": slugs, "project": slugs}))
printable = st.text(st.characters(exclude_categories=["Cc"]), max_size=20)
references = st.one_of(
    st.builds(lambda n, s, o: Reference(name=n, **s, **o), names, selectors, owners),
    st.builds(lambda p, t: Reference(path=p + t), st.sampled_from(["/", "./", "../", "~"]), printable),
)


@given(references)
def test_round_trip(ref: Reference) -> None:
    assert Reference.parse(str(ref)) == ref
    assert Reference.parse(f"art://{ref}") == ref


@given(st.text() | st.text("abv01:@/.~-\n run", max_size=12))
@example("Data:" + "9" * 5000)
def test_arbitrary_text_parses_or_is_a_user_error(text: str) -> None:
    try:
        ref = Reference.parse(text)
    except UserError:
        return
    assert Reference.parse(str(ref)) == ref


@given(st.text() | st.text("abv01:@/.~-\n run", max_size=12), st.sampled_from([None, "Data:prod", "./x", "a/b/Data"]))
def test_arbitrary_overrides_parse_or_are_user_errors(text: str, default: str | None) -> None:
    try:
        ref = parse_override(text, default, aliases=lambda name: ["prod"])
    except UserError:
        return
    assert Reference.parse(str(ref)) == ref


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v10", "Data:v10"),
        ("10", "Data:v10"),
        (":v3", "Data:v3"),
        (":prod", "Data:prod"),
        ("prod", "Data:prod"),
        ("latest", "Data:latest"),
        ("@1f00", "Data@1f00"),
        ("@run:R1", "Data@run:R1"),
        ("Other", "Other:latest"),
        ("pretrain", "ModelArtifact-pretrain:latest"),
        ("Other:v5", "Other:v5"),
        ("team/proj/Other:v1", "team/proj/Other:v1"),
        ("art://Other:v1", "Other:v1"),
        ("/data/x", "/data/x"),
        ("./x", "./x"),
        ("~/x", "~/x"),
    ],
)
def test_overrides_relative_to_a_default(text: str, expected: str) -> None:
    assert str(parse_override(text, "Data:v1", aliases=lambda name: {"prod": 1} if name == "Data" else {})) == expected


def test_an_override_keeps_the_owner_of_its_default() -> None:
    assert str(parse_override("v2", "team/proj/Data:v1")) == "team/proj/Data:v2"


@pytest.mark.parametrize("default", [None, "./folder"])
def test_a_version_alone_needs_a_default_name(default: str | None) -> None:
    with pytest.raises(UserError, match="has a version but no name"):
        parse_override("v10", default)
    assert str(parse_override("prod", default)) == "prod:latest"
