"""Run ids: slugs that sort by time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from nemotron_kit.app import SLUG
from nemotron_kit.home import is_run_id, new_run_id, sort_key, started_at


def test_looks_as_the_design_says() -> None:
    run_id = new_run_id("nano3", "pretrain", now=datetime(2026, 11, 24, 17, 12, 4, 1, tzinfo=UTC))
    assert run_id[:-1] == "20261124-171204-nano3-pretrain-00001"


def test_a_nested_stage_and_another_time_zone() -> None:
    zone = datetime(2026, 11, 24, 17, 12, 4, tzinfo=UTC).astimezone()
    assert new_run_id("nano3", "data/prep/pretrain", now=zone).startswith(
        "20261124-171204-nano3-data-prep-pretrain-00000"
    )


@given(st.text(max_size=200), st.text(max_size=200), st.datetimes(min_value=datetime(1970, 1, 2)))
def test_any_names_give_a_slug(recipe: str, stage: str, now: datetime) -> None:
    run_id = new_run_id(recipe, stage, now=now.replace(tzinfo=UTC))
    assert SLUG.match(run_id) and ".." not in run_id and is_run_id(run_id)
    assert started_at(run_id) == now.replace(microsecond=0, tzinfo=UTC)


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1)), st.integers(1, 10**12))
def test_later_runs_sort_later(now: datetime, microseconds: int) -> None:
    now = now.replace(tzinfo=UTC)
    later = now + timedelta(microseconds=microseconds)
    assert sort_key(new_run_id("z", "z", now=now)) < sort_key(new_run_id("a", "a", now=later))


def test_a_thousand_in_a_row_differ() -> None:
    ids = [new_run_id("nano3", "pretrain") for _ in range(1000)]
    assert len(set(ids)) == 1000 and ids == sorted(ids, key=sort_key)


def test_what_is_no_run_id() -> None:
    for text in ("", "latest", "..", "20261124-171204-nano3-1f03a", "20261124-171204-../x-1f03a7", "x" * 100):
        assert not is_run_id(text)
