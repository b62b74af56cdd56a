"""The frozen plan: its file, and what its digest covers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nemotron_kit.data_prep.shard_plan import (
    PLAN_FILE,
    FilePart,
    PlannedShard,
    PlannedSource,
    ShardPlan,
    SourceFile,
    TokenizerRecord,
)
from nemotron_kit.errors import UserError

FILE = SourceFile("/data/a.jsonl", 100, "sha256:ab")
SOURCE = PlannedSource("a", "/data", "all", 1.0, "text", (FILE,))
TOKENS = TokenizerRecord("m", "tokenizer/tokenizer.json", "cd", 4096, None, 2)
PLAN = ShardPlan(
    (SOURCE,),
    TOKENS,
    (PlannedShard("train", 0, 0, (FilePart(0, (0, 2), 3),)), PlannedShard("valid", 0, 0, (FilePart(0, (1,), 3),))),
)


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    assert ShardPlan.load(tmp_path) is None
    PLAN.save(tmp_path)
    assert ShardPlan.load(tmp_path) == PLAN


SAME = [
    replace(PLAN, sources=(replace(SOURCE, weight=3.0),)),
    replace(PLAN, sources=(replace(SOURCE, uri="/moved", files=(replace(FILE, path="/moved/a.jsonl"),)),)),
    replace(PLAN, tokens=replace(TOKENS, model="a copy")),
]
OTHER = [
    (replace(PLAN, sources=(replace(SOURCE, files=(replace(FILE, identity="sha256:ff"),)),)), "the sources"),
    (replace(PLAN, sources=(replace(SOURCE, text_field="body"),)), "the sources"),
    (replace(PLAN, sources=(replace(SOURCE, files=(replace(FILE, rows=5),)),)), "the sources"),
    (replace(PLAN, tokens=replace(TOKENS, sha256="ee")), "the tokenizer"),
    (replace(PLAN, tokens=replace(TOKENS, eos=None)), "the tokenizer"),
    (replace(PLAN, min_doc_chars=5), "min_doc_chars"),
    (replace(PLAN, shards=PLAN.shards[:1]), "the number of shards"),
]


@pytest.mark.parametrize("plan", SAME)
def test_place_and_weight_do_not_change_the_digest(plan: ShardPlan) -> None:
    assert plan.digest == PLAN.digest
    assert PLAN.differences(plan) == []


@pytest.mark.parametrize(("plan", "says"), OTHER)
def test_what_decides_the_bytes_changes_the_digest(plan: ShardPlan, says: str) -> None:
    assert plan.digest != PLAN.digest
    assert any(says in difference for difference in PLAN.differences(plan))


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    PLAN.save(tmp_path)
    path = tmp_path / PLAN_FILE
    whole = path.read_text()
    for keep in range(0, len(whole) - 2, 37):
        path.write_text(whole[:keep])
        with pytest.raises(UserError, match=PLAN_FILE):
            ShardPlan.load(tmp_path)
    changed = json.loads(whole)
    changed["shards"][0]["pieces"][0]["parts"] = [0]
    path.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="does not match its digest"):
        ShardPlan.load(tmp_path)


def test_number_type_is_chosen_by_megatrons_rule() -> None:
    assert [replace(TOKENS, vocab_size=n).dtype for n in (4096, 65499, 65500, 131072)] == ["uint16"] * 2 + ["int32"] * 2
