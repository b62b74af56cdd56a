"""Secrets are judged after parsing, at every depth, from every source; what only looks like one is left alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from nemotron_kit import masking
from nemotron_kit.config.freeze import freeze, launch_environment
from nemotron_kit.config.secrets import masked_overrides, refuse_literal_secrets, refuse_secrets
from nemotron_kit.errors import UserError
from nemotron_kit.masking import masked_by_name

VALUE = "hf_canary-0123456789"


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_noted", set())
    monkeypatch.setenv("HF_TOKEN", VALUE)


@pytest.mark.parametrize(
    "config",
    [
        {"token": "${oc.env:'HF_TOKEN'}"},
        {"x": {"y": [{"z": '${oc.env:"HF_TOKEN",none}'}]}},
        {"part": "HF", "x": "${oc.env:${part}_TOKEN}"},
        {"x": "${oc.decode:${oc.env:'HF_TOKEN'}}"},
    ],
)
def test_a_variable_is_judged_however_its_name_is_spelt(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"HF_TOKEN is a secret by its name(.|\n)*Write \$\{secret:HF_TOKEN\}"):
        freeze(OmegaConf.create(config), "/job")


def test_a_quoted_name_of_another_variable_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOUR", "red")
    config = OmegaConf.create({"a": "${oc.env:'COLOUR'}"})
    assert freeze(config, "/job") == {"a": "red"}
    assert launch_environment(config) == {"COLOUR": "red"}


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("hf_token=abc", "hf_token"),
        ("+free={api_key: abc}", "free.api_key"),
        ("free={a: [{password: 12345678}]}", "free.a[0].password"),
        ("++x.y={b: {hub_token: 'q'}}", "x.y.b.hub_token"),
        ("api_key=one,two", "api_key"),
        ("token='abc'", "token"),
    ],
)
def test_a_literal_on_a_command_line_is_refused(word: str, key: str) -> None:
    with pytest.raises(UserError) as caught:
        refuse_literal_secrets([word])
    assert caught.value.message == f"{key}: a secret must not be given on a command line."


@pytest.mark.parametrize(
    "word",
    [
        "+free={api_key: '${secret:X}', n: 1}", "hf_token=null", "token=true", "total_tokens=5", "max_tokens=1,2",
        "a={tokenizer_model: gpt2, use_cls_token: true}", "note='{api_key: told}'", "hf_token='${secret:HF_TOKEN}'",
        "auth_token='Bearer ${secret:HF_TOKEN}'", "api_key=EMPTY", "bad=[",
    ],
)  # fmt: skip
def test_what_is_no_literal_secret_on_a_command_line(word: str) -> None:
    refuse_literal_secrets([word])


@pytest.mark.parametrize(
    "values",
    [
        {"api_key": "abc"}, {"a": [{"password": "hunter2"}]}, {"token": "a1b2c3d4e5f6"},
        {"hub": {"hf_token": "abcdef"}}, {"note": f"uses {VALUE}"},
        {"passwords": {"password": 123456789}}, {"api_key": ["k1", "k2"]},
    ],
)  # fmt: skip
def test_a_frozen_config_with_a_secret_is_refused_and_masked(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^file:3: .*secret by its name"):
        refuse_secrets(values, lambda _: "file:3: ")
    assert not {"abc", "hunter2", "a1b2c3d4e5f6", "abcdef", VALUE, "123456789", "k1"} & set(
        str(masked_by_name(values)).replace("'", " ").replace("}", " ").split()
    )


def test_a_password_in_an_address_is_refused() -> None:
    address, said = "https://me:hunter2@host/x", "https://me:${secret:URL_PASSWORD}@host/x"
    for word in (f"data.url={address}", f"+f={{a: ['{address}']}}", f"url={address},b"):
        with pytest.raises(UserError, match="a password must not be given on a command line") as caught:
            refuse_literal_secrets([word])
        assert "hunter2" not in str(caught.value) and "hunter2" not in masked_overrides([word])[0]
    with pytest.raises(UserError, match=r"file:3: a\.url: this address holds a password") as caught:
        refuse_secrets({"a": {"url": ["x", address]}}, lambda _: "file:3: ")
    assert said in (caught.value.hint or "") and "hunter2" not in str(caught.value)
    refuse_secrets({"url": said}, lambda _: "")
    refuse_literal_secrets([f"url='{said}'"])


@pytest.mark.parametrize(
    "values",
    [
        {"pad": {"token": "<pad>"}}, {"token": "endoftext"}, {"token": 103}, {"pat": "*.jsonl"}, {"EOS_TOKEN": "</s>"},
        {"credentials": "/home/me/key.json"}, {"private_key": "keys/id.pem"}, {"api_key": "EMPTY"}, {"password": ""},
        {"secret": "${secret:X}"}, {"auth_token": "Bearer ${secret:X}"}, {"hf_token": None}, {"token": True},
        {"total_tokens": 1000, "tokenizer_model": "abc12345678", "use_cls_token": "abc12345678"},
    ],
)  # fmt: skip
def test_what_only_looks_like_a_secret_is_left_alone(values: dict[str, Any]) -> None:
    refuse_secrets(values, lambda _: "")
    assert masked_by_name(values) == values


def test_words_on_record() -> None:
    words = ["hf_token=abc", "+free={api_key: 'a b', n: 3}", f"x={VALUE}", "n=1", "t='${secret:HF_TOKEN}'",
             "hydra.job.env_set.X=5", "+f={hf_token: ${secret:HF_TOKEN}}"]  # fmt: skip
    assert masked_overrides(words) == [
        "hf_token=***", "+free={api_key: ***, n: 3}", "x=***", "n=1", "t='${secret:HF_TOKEN}'",
        "hydra.job.env_set.X=***", "+f={hf_token: ${secret:HF_TOKEN}}",
    ]  # fmt: skip


@pytest.mark.parametrize("first", ["x", "x" * 2000], ids=["count", "text"])
def test_interpolations_that_multiply_are_one_error(first: str) -> None:
    config = {"k0": first, **{f"k{n}": f"${{k{n - 1}}}${{k{n - 1}}}" for n in range(1, 32)}}
    started = time.monotonic()
    with pytest.raises(UserError, match=r"k\d+: (the interpolations here multiply|an interpolation gives more)"):
        freeze(OmegaConf.create(config), "/job")
    assert time.monotonic() - started < 30


def test_many_interpolations_that_do_not_multiply_are_fine(tmp_path: Path) -> None:
    config = {"a": "x", **{f"k{n}": "${a}/${a}" for n in range(2000)}}
    assert freeze(OmegaConf.create(config), str(tmp_path))["k1999"] == "x/x"
