"""Secrets are masked by value, in whatever form they are written."""

import json
import logging

import pytest

from nemotron_kit import masking
from nemotron_kit.masking import MaskedStream, is_secret_name, mask, mask_logging, masked, note_secrets, secret_in

VALUE = 'hf_Ab1\\2"3é€%/x'


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_noted", set())
    monkeypatch.setenv("HF_TOKEN", VALUE)
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("OTHER", "plainly-visible")


@pytest.mark.parametrize(
    "form",
    [
        VALUE,
        repr(VALUE),
        json.dumps(VALUE),
        json.dumps({"a": [VALUE]}, ensure_ascii=False),
        "hf_Ab1%5C2%223%C3%A9%E2%82%AC%25%2Fx",
    ],
)
def test_a_value_is_masked_as_text_repr_json_and_in_an_address(form: str) -> None:
    assert "Ab1" not in mask(f"before {form} after")
    assert mask(f"before {form} after").startswith("before ")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("see https://me:pw@h/x and", "see https://me:***@h/x and"), ("s3://AKIA:a+b@c=@bucket", "s3://AKIA:***@bucket"),
        ('{"a":"postgres://:pw@h:5432/d","b":"x@y"}', '{"a":"postgres://:***@h:5432/d","b":"x@y"}'),
        ("https://github_pat_0123456789abcdef@github.com/a", "https://***@github.com/a"),
        ("https://me:${secret:PW}@h", None), ("https://me:$PW@h", None),
        ("https:/me:pw@h/x", "https:/me:***@h/x"), ("/a:/b:c@d", None), ("https://me:***@h", None),
        ("ssh://git@h:22/a@b", None),
        ("http://h:80/a@b", None), ("http://h:80?mail=a@b", None), ('["http://h:80","x@y"]', None),
        ("art://N:v3", None), ("github://owner:repo@main/a.jsonl", None),
    ],
)  # fmt: skip
def test_the_password_in_an_address(text: str, written: str | None) -> None:
    assert mask(text) == (written or text) and masked({text: [text]}) == {mask(text): [mask(text)]}
    data = f"{text}\n".encode()
    for cut in range(1, len(data)):
        stream = MaskedStream()
        assert stream.feed(data[:cut]) + stream.feed(data[cut:]) == f"{mask(text)}\n".encode()
    stream = MaskedStream()
    assert b"".join(stream.feed(data[at : at + 1]) for at in range(len(data))) == f"{mask(text)}\n".encode()


def test_short_values_and_other_variables_stay() -> None:
    assert mask("abc plainly-visible") == "abc plainly-visible"


def test_a_noted_variable_is_masked_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_THING", "wxyz")
    assert mask("wxyz") == "wxyz"
    note_secrets(["MY_THING"])
    assert mask("wxyz") == "***"


def test_the_name_of_a_file_is_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    assert mask(str(tmp_path)) == str(tmp_path)
    assert secret_in(f"at {VALUE}") == "HF_TOKEN"
    assert secret_in(str(tmp_path)) is None


def test_lines_of_a_secret_of_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_PRIVATE_KEY", "-----BEGIN-----\nMIIEpAIBAAKCAQEA7bq\n-----END-----\n")
    assert mask("line: MIIEpAIBAAKCAQEA7bq") == "line: ***"


def test_json_like_values_at_every_depth() -> None:
    value = {"a": [1, {"b": (VALUE, None, True)}], VALUE: 2.5}
    assert masked(value) == {"a": [1, {"b": ["***", None, True]}], "***": 2.5}


@pytest.mark.parametrize("cut", range(1, len(VALUE.encode())))
def test_a_secret_that_two_parts_share(cut: int) -> None:
    stream = MaskedStream()
    data = f"one {VALUE} two\n".encode()
    out = stream.feed(data[: 4 + cut]) + stream.feed(data[4 + cut :]) + stream.rest()
    assert out == b"one *** two\n"


@pytest.mark.parametrize("form", [json.dumps(VALUE), repr(VALUE), "hf_Ab1%5C2%223%C3%A9%E2%82%AC%25%2Fx"])
def test_a_quoted_secret_that_two_parts_share(form: str) -> None:
    data = f"one {form} two\n".encode()
    for cut in range(5, len(data) - 5):
        stream = MaskedStream()
        assert b"Ab1" not in stream.feed(data[:cut]) + stream.feed(data[cut:]) + stream.rest()


def test_a_stream_holds_back_no_more_than_a_beginning() -> None:
    stream = MaskedStream()
    assert stream.feed(b"loss 1.5 hf_A") == b"loss 1.5 "
    assert stream.feed(b"\n") == b"hf_A\n"
    assert stream.feed(b"hf_") == b""
    assert stream.rest() == b"hf_"


def test_logging_handlers_are_masked_once(caplog: pytest.LogCaptureFixture) -> None:
    handler = caplog.handler
    logger = logging.getLogger("a.b")
    logger.addHandler(handler)
    try:
        mask_logging()
        mask_logging()
        try:
            raise ValueError(VALUE)
        except ValueError:
            logger.exception("with %s", VALUE)
    finally:
        logger.removeHandler(handler)
    assert "Ab1" not in caplog.text
    assert caplog.text.count("with ***") >= 1


@pytest.mark.parametrize(
    "name",
    [
        "total_tokens",
        "tokenizer_model",
        "use_cls_token",
        "max_tokens",
        "eos_token",
        "path",
        "bos_token_id",
        "num_tokens",
    ],
)
def test_names_that_only_look_like_a_secret(name: str) -> None:
    assert not is_secret_name(name)
    assert not is_secret_name(f"model.{name}")


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "api_key", "hub.api_key", "token", "WANDB_API_KEY", "x.password", "aws_secret_access_key"),
        *("headers.Authorization", "X-Api-Key", "x-auth-token"),
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
