"""What a job reads: all resolved but artifacts and secrets, and read back exactly as it was meant."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nemotron_kit.config.freeze import freeze, keep_variables, resolve, slots_used, to_yaml
from nemotron_kit.errors import UserError


def frozen(**values: Any) -> dict[str, Any]:
    return freeze(OmegaConf.create(values), "/job")


def test_artifacts_and_secrets_stay_and_all_else_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLOUR", "blue")
    values = frozen(
        a="${art:data,path}/blend.json", b="${a}", c="${oc.env:COLOUR}", d="${secret:HF_TOKEN}", e="${f}", f=3
    )
    assert values == {
        "a": "${art:data,path}/blend.json", "b": "${art:data,path}/blend.json", "c": "blue",
        "d": "${secret:HF_TOKEN}", "e": 3, "f": 3,
    }  # fmt: skip
    assert slots_used(values) == {"data"}


def test_the_job_folder_is_fixed_at_launch() -> None:
    assert frozen(a="${oc.env:NEMO_RUN_DIR,.}/x") == {"a": "/job/x"}


def test_for_a_rerun_the_launchs_own_variables_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWD", "/here")
    OmegaConf.register_new_resolver("parts_of", lambda text: text.strip("/").split("/"), replace=True)
    texts = {
        "out": "${oc.env:NEMO_RUN_DIR}/out",
        "log": "${out}/log",
        "code": "${oc.env:PWD,/}",
        "computed": "${parts_of:${oc.env:NEMO_RUN_DIR}/x}",
        "escaped": r"\${oc.env:PWD}",
        "typed": "/job/out",
        "nested": [{"a": "${log} in ${oc.env:PWD}"}],
        "n": 3,
    }
    config = OmegaConf.create(texts)
    found = keep_variables(freeze(config, "/job"), config, {"NEMO_RUN_DIR": "/job", "PWD": "/here"})
    assert found == {
        "out": "${oc.env:NEMO_RUN_DIR}/out",
        "log": "${oc.env:NEMO_RUN_DIR}/out/log",
        "code": "${oc.env:PWD}",
        "computed": ["job", "x"],  # of what a resolver makes of it nobody knows what it would make of another
        "escaped": r"\${oc.env:PWD}",
        "typed": "/job/out",
        "nested": [{"a": "${oc.env:NEMO_RUN_DIR}/out/log in ${oc.env:PWD}"}],
        "n": 3,
    }
    plain = freeze(config, "/job")
    assert keep_variables(plain, OmegaConf.create({"a": "${oc.env:HOME}"}), {"PWD": "/here"}) is plain


def test_a_secret_by_its_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    with pytest.raises(UserError, match=r"write \$\{secret:WANDB_API_KEY\}|Write \$\{secret:WANDB_API_KEY\}"):
        frozen(a="${oc.env:WANDB_API_KEY}")


@pytest.mark.parametrize("text", ["secret:", "secret:A,b", "secret:a-b", "art:", "art:x,path,3"])
def test_an_interpolation_that_the_job_could_not_resolve_is_refused(text: str) -> None:
    from omegaconf import OmegaConf

    with pytest.raises(UserError, match=r"^key: \$\{.*\}: that can't be resolved"):
        freeze(OmegaConf.create({"key": f"${{{text}}}"}), "/job")


def test_total_tokens_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOTAL_TOKENS", "5")
    assert frozen(a="${oc.env:TOTAL_TOKENS}") == {"a": "5"}


def test_an_interpolation_to_nothing_names_its_key() -> None:
    with pytest.raises(UserError, match="a: "):
        frozen(a="${nowhere}")


@given(text=st.text(max_size=60))
def test_any_text_from_the_environment_arrives_exactly(text: str) -> None:
    if "\0" in text or any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANY_TEXT", text)
        values = frozen(a="${oc.env:ANY_TEXT}", b="x${oc.env:ANY_TEXT}y")
    again = OmegaConf.to_container(OmegaConf.create(to_yaml(values)), resolve=False)
    assert resolve(again) == {"a": text, "b": f"x{text}y"}
