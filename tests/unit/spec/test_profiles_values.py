"""Overrides of a profile's fields: whatever text or value is given, it ends as the field's type or as a clear error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron_kit.spec.resources import effective_settings, gpu_of
from nemotron_kit.spec.runconfig import FIELDS, RULES, ProfileError, RunConfig, check_value, with_overrides

PATTERNED = ("job_name", "gpu_memory", "host", "user", "conda")
TYPES = {field.name: str(field.type) for field in dataclasses.fields(RunConfig)}
INTS = [name for name, kind in TYPES.items() if kind.startswith("int")]
TEXTS = [
    name
    for name, kind in TYPES.items()
    if kind.startswith("str") and not RULES[name]["choices"] and name not in (*PATTERNED, "extends")
]
BOOLS = [name for name, kind in TYPES.items() if kind.startswith("bool")]
PRINTABLE = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40)


def test_two_keys_of_one_field_in_a_config_are_refused() -> None:
    run = {"mode": "local", "env": {"gpus-per-node": 3, "gpus_per_node": 4}}
    with pytest.raises(ProfileError, match=r"run\.env\.gpus_per_node: gpus_per_node is given twice"):
        effective_settings(run, [])


@pytest.mark.parametrize(
    ("override", "nodes"),
    [
        ("run.env.nodes=3", 3),
        ("run.env={nodes: 3}", 3),
        ("+run={env: {mem: 1G, 'nodes': 3}}", 3),
        ("run.env={mem: 1G}", 2),
        ("other={nodes: 3}", 2),
    ],
)
def test_a_block_on_the_command_line_overrides_the_profile(
    override: str, nodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env.toml").write_text("[C]\nnodes = 2\n")
    monkeypatch.setenv("NEMOTRON_ENV_FILE", str(tmp_path / "env.toml"))
    run = {"mode": "run", "profile": "C", "env": {"nodes": 3}}
    assert effective_settings(run, [override]).nodes == nodes


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("nodes", "8", 8),
        ("nodes", 8, 8),
        ("gpus-per-node", " 4 ", 4),
        ("container", "img", "img"),
        ("mem", 0, "0"),
        ("mem", "0", "0"),
        ("qos", True, "true"),
        ("exclusive", "true", True),
        ("exclusive", "False", False),
        ("detach", "1", True),
        ("nodes", "null", None),
        ("nodes", None, None),
        ("time", None, "04:00:00"),
        ("executor", "null", "local"),
        ("mounts", "/a:/a,/b:/b", ["/a:/a", "/b:/b"]),
        ("mounts", "[/a:/a, /b:/b]", ["/a:/a", "/b:/b"]),
        ("mounts", '["/a:/a", "/with,comma:/b"]', ["/a:/a", "/with,comma:/b"]),
        ("mounts", ("/a:/a",), ["/a:/a"]),
        ("mounts", "[]", []),
        ("startup_commands", "echo a, b", ["echo a, b"]),
        ("env_vars", "A=1,2", ["A=1,2"]),
        ("env_vars", {"A": 1, "B": "x"}, ["A=1", "B=x"]),
        ("env_vars", '{"A": "x"}', ["A=x"]),
        ("pvcs", [{"claim": "x"}, "y:/z"], [{"claim": "x"}, "y:/z"]),
        ("extra", '{"network": "host"}', {"network": "host"}),
        ("setup", "a\nb", "a\nb"),
    ],
)
def test_converted(key: str, value: Any, expected: Any) -> None:
    name = {"container": "container_image"}.get(key, key.replace("-", "_"))
    assert getattr(with_overrides(RunConfig(nodes=3), {key: value}), name) == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("nodess", "1", "--run.nodess: no such field.\nDid you mean nodes, nodelist, modules?"),
        ("nodes", "four", "--run.nodes: expected a whole number, got 'four' (str)"),
        ("nodes", "1.5", "expected a whole number"),
        ("nodes", 1.0, "expected a whole number, got 1.0 (float)"),
        ("nodes", "-1", "must be at least 1, got -1"),
        ("gpus_per_node", "80000", "must be at most 1024, got 80000"),
        ("nodes", "9" * 5000, "expected a whole number"),
        ("nodes", "٣", "expected a whole number"),
        ("nodes", True, "expected a whole number, got True"),
        ("exclusive", "maybe", "expected true or false, got 'maybe'"),
        ("exclusive", 1, "expected true or false, got 1"),
        ("mounts", '["/a', "expected a list of texts"),
        ("mounts", 3, "expected a list of texts, got 3"),
        ("tunnel", "shh", "is none of local, ssh.\nDid you mean ssh"),
        ("extends", "base", "can't change what a profile extends"),
        ("account", "a\nb", "control character"),
        ("job_name", "../x", "'../x' can't be a job_name"),
        ("job_name", "a b;c", "can't be a job_name"),
        ("host", "-oProxyCommand=x", "can't be a host"),
        ("user", "-l", "can't be a user"),
        ("account", ["a"], "expected text"),
        ("extra", "[1]", "expected a table"),
    ],
)
def test_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ProfileError) as caught:
        with_overrides(RunConfig(), {key: value})
    assert message in str(caught.value)


def test_the_same_field_twice() -> None:
    with pytest.raises(ProfileError, match="container_image is given twice"):
        with_overrides(RunConfig(), {"container": "a", "container_image": "b"})


def test_the_given_config_is_left_alone() -> None:
    config = RunConfig(nodes=3)
    assert with_overrides(config, {"nodes": 4}).nodes == 4 and config == RunConfig(nodes=3)
    assert with_overrides(config, {}) == config


@given(st.sampled_from(INTS), st.integers(1, 1024))
def test_numbers_come_through_as_text_and_as_numbers(name: str, value: int) -> None:
    assert getattr(with_overrides(RunConfig(), {name: str(value)}), name) == value
    assert getattr(with_overrides(RunConfig(), {name: value}), name) == value


# What becomes a flag of sbatch's must be one that it takes; every other text comes through as it is.
FREE_TEXTS = [name for name in TEXTS if not RULES[name]["flag"]]


@given(st.sampled_from(FREE_TEXTS), PRINTABLE.filter(lambda text: text != "null"))
def test_text_comes_through_byte_for_byte(name: str, value: str) -> None:
    assert getattr(with_overrides(RunConfig(), {name: value}), name) == value


@given(st.lists(PRINTABLE, max_size=5))
def test_lists_come_through_json(values: list[str]) -> None:
    assert with_overrides(RunConfig(), {"mounts": json.dumps(values)}).mounts == values
    assert with_overrides(RunConfig(), {"mounts": values}).mounts == values


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["[", "{", "[[", "[a,b]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([*FIELDS, "container", "no_such"]) | st.text(max_size=20), ANYTHING)
def test_anything_at_all_gives_the_right_type_or_a_profile_error(key: str, value: Any) -> None:
    try:
        config = with_overrides(RunConfig(), {key: value})
    except ProfileError as error:
        assert "--run." in error.message and "\n" not in repr(error.message)
        return
    for name, kind in TYPES.items():
        found = getattr(config, name)
        assert found is None or type(found).__name__ == kind.split(" ")[0].split("[")[0], (name, found)


@given(st.sampled_from(BOOLS), st.sampled_from(["true", "TRUE", "yes", "on", "1", "false", "no", "off", "0"]))
def test_every_word_for_true_and_false(name: str, word: str) -> None:
    expected = word.lower() in ("true", "yes", "on", "1")
    assert getattr(with_overrides(RunConfig(), {name: word}), name) is expected


@given(
    st.sampled_from([name for name in FIELDS if name != "extends"]), ANYTHING.filter(lambda value: value is not None)
)
def test_anything_in_a_file_gives_the_right_type_or_a_profile_error(name: str, value: Any) -> None:
    try:
        found = check_value(name, value, f"env.toml:1: [C] {name}")
    except ProfileError as error:
        assert error.message.startswith(f"env.toml:1: [C] {name}")
        return
    assert type(found).__name__ == TYPES[name].split(" ")[0].split("[")[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gpu_memory": "80GB"}, "a GPU of this profile (80GB) 80"),
        ({"gpu_memory": "94 GiB", "gres": "gpu:a100:4"}, "a GPU of this profile (94 GiB) 94"),
        ({"gres": "gpu:a100:4"}, "an A100 with 80 GB 80 40 or 80"),
        ({"gres": "gpu:a100-sxm4-40gb:8"}, "an A100 with 40 GB 40"),
        ({"gres": "gpu:nvidia_h100_80gb_hbm3:8"}, "an H100 with 80 GB 80"),
        ({"gres": "gpu:8,license:1", "constraint": "h200&ib"}, "an H200 with 141 GB 141"),
        ({"gpus": "B200:8"}, "a B200 with 180 GB 180"),
        ({"resource_shape": "gpu.8xh100-80gb"}, "an H100 with 80 GB 80"),
        ({"extra": {"instance_type": "p4d.24xlarge"}}, "an A100 with 40 GB 40"),
        ({"extra": {"instance_type": "a2-ultragpu-8g"}}, "an A100 with 80 GB 80"),
        ({"extra": {"instance_type": "p5en.48xlarge"}}, "an H200 with 141 GB 141"),
        ({"gres": "gpu:8", "gpus_per_node": 8, "constraint": "a1000"}, None),
        ({}, None),
    ],
)
def test_a_profile_says_which_gpus_it_has(fields: dict[str, Any], said: str | None) -> None:
    found = gpu_of(with_overrides(RunConfig(), fields))
    described = found and f"{found.name} {found.memory >> 30} {found.unsure or ''}".strip()
    assert described == said


def test_a_gpus_memory_is_a_size() -> None:
    for wrong in ("lots", "80", "0GB", "80TB"):
        with pytest.raises(ProfileError, match="can't be a GPU's memory") as caught:
            with_overrides(RunConfig(), {"gpu_memory": wrong})
        assert '"80GB"' in str(caught.value)
