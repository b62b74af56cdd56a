"""What jobs returned and measured, in `runs show`, its table of a sweep, and `runs --json`."""

from __future__ import annotations

import csv
import io
import json
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest

from nemotron_kit.cli.output import aligned, cells, fit, fold, hanging, print_csv, print_table
from nemotron_kit.cli.runs.results import JobResult, sparkline
from nemotron_kit.cli.runs.results_table import print_sweep_end
from nemotron_kit.cli.tools import run as run_tool
from nemotron_kit.errors import UserError
from nemotron_kit.home import new_run_id
from nemotron_kit.runs.folder import RunFolder, create_run
from nemotron_kit.sweep.objective import record_objective, sweeper_direction

PLAN = {"recipe": "demo", "stage": "go", "executor": "local", "kind": "sweep", "place": {"run": "/r"}}


pytestmark = pytest.mark.usefixtures("home")


def sweep(*jobs: dict[str, Any]) -> RunFolder:
    """Each job with its `overrides`, rows of `metrics`, and the facts of its exit record; without, it is pending."""
    texts = [
        {
            "config.yaml": "a: 1\n",
            ".hydra/overrides.yaml": json.dumps(job.get("overrides", [])),
            "metrics.jsonl": "".join(f"{json.dumps(row)}\n" for row in job.get("metrics", [])),
        }
        for job in jobs
    ]
    run = create_run(new_run_id("demo", "go"), PLAN, texts)
    for folder, job in zip(run.jobs(), jobs, strict=True):
        if "end" in job:
            folder.finish(**job["end"])
    return run


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    run_tool("runs", list(words))
    return capsys.readouterr().out


LOSSES = (
    {"overrides": ["lr=1", "seed=3"], "metrics": [{"step": 1, "loss": 2.0, "acc": 0.9}], "end": {"code": 0}},
    {
        "overrides": ["lr=2", "seed=3"],
        "metrics": [{"step": 1, "loss": 0.5, "acc": 0.2}, {"step": 2, "loss": 1.0, "acc": 0.1}],
        "end": {"code": 0},
    },
    {
        "overrides": ["+lr=3", "seed=3"],
        "metrics": [{"step": 1, "loss": "NaN"}],
        "end": {"code": 1, "error": "it broke"},
    },
)


class Direction(Enum):
    """As Optuna's sweeper has it."""

    maximize = 2


def table(text: str) -> list[list[str]]:
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("JOB"))
    return [line.split() for line in lines[start:]]


def test_a_sweep_is_a_table_sorted_by_its_first_loss(capsys) -> None:
    run = sweep(*LOSSES)
    assert table(said(capsys, "show", run.id)) == [
        ["JOB", "STATE", "lr", "STEP", "loss", "acc", "WHY"],
        ["1", "*", "succeeded", "2", "2", "1", "0.1"],
        ["0", "succeeded", "1", "1", "2", "0.9"],
        ["2", "failed", "3", "1", "nan", "it", "broke"],
        ["sorted", "by", "the", "last", "loss,", "lowest", "first;", "*", "is", "the", "best"],
    ]


def test_sorted_by_another_metric_and_only_the_first(capsys) -> None:
    run = sweep(*LOSSES)
    shown = table(said(capsys, "show", run.id, "--sort", "acc", "--top", "1"))
    assert shown[1] == ["0", "*", "succeeded", "1", "1", "0.9", "2"]
    assert [" ".join(line) for line in shown[2:]] == [
        "sorted by the last acc, highest first; * is the best",
        "and 2 more: --top 3 prints all",
    ]
    with pytest.raises(UserError, match="--sort los: none of these jobs has this metric") as wrong:
        said(capsys, "show", run.id, "--sort", "los")
    assert "loss" in str(wrong.value.hint)
    for asked, first in (("acc:min", "1"), ("acc:max", "0"), ("loss:max", "0"), ("loss:min", "1")):
        assert table(said(capsys, "show", run.id, "--sort", asked))[1][:2] == [first, "*"]
    assert "lowest first" in said(capsys, "--sort", "acc:min", "--columns", "acc")
    with pytest.raises(UserError, match="--sort loss:less: none of these jobs has this metric"):
        said(capsys, "show", run.id, "--sort", "loss:less")
    named = sweep({"metrics": [{"a:min": 1.0}]}, {"metrics": [{"a:min": 2.0}]})  # a metric of that name
    assert table(said(capsys, "show", named.id, "--sort", "a:min"))[1][:2] == ["1", "*"]


@pytest.mark.parametrize(("direction", "order"), [(None, "10"), ("minimize", "10"), ("maximize", "01")])
def test_the_returned_value_comes_first_and_its_sweeper_says_which_is_best(
    capsys, direction: str | None, order: str
) -> None:
    jobs = [{"overrides": [f"x={n}"], "metrics": [{"loss": n}], "end": {"code": 0, "value": 5.0 - n}} for n in (0, 1)]
    run = sweep(*jobs)
    record_objective(run, SimpleNamespace(sweeper={"direction": direction}, launcher={}))
    assert run.plan().get("direction") == direction
    rows = list(csv.DictReader(io.StringIO(said(capsys, "show", run.id, "--csv"))))
    assert [row["job"] for row in rows] == list(order)
    assert {(row["x"], row["VALUE"], row["loss"], row["state"]) for row in rows} == {
        ("0", "5.0", "0", "succeeded"),
        ("1", "4.0", "1", "succeeded"),
    }


@pytest.mark.parametrize(("state", "number"), [("succeeded", 3), ("failed", None), ("preempted", None)])
def test_an_exit_code_is_no_result(state: str, number: float | None) -> None:
    assert JobResult(0, state, None, [], 3, {}).number_of("value") == number


def test_in_csv_no_text_is_a_formula(capsys) -> None:
    """A spreadsheet would compute it; numbers stay numbers."""
    print_csv(
        [["+seed", "=1+1", "@a", "-x y", "\tb"], ["-1.5", "+2e-3", "-inf", -3, None], ["a=1", "x@y", "", "'", "~k"]]
    )
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["'+seed", "'=1+1", "'@a", "'-x y", "'\tb"]
    print_csv([["a\x1b[2Jb", 'x "y"\nz']])
    assert capsys.readouterr().out == 'a^[[2Jb,"x ""y""\nz"\n'
    assert rows[1:] == [["-1.5", "+2e-3", "-inf", "-3", ""], ["a=1", "x@y", "", "'", "~k"]]
    run = sweep({"overrides": ["+x=-lr"], "metrics": [{"loss": -1}], "end": {"code": 0}})
    run.label(name="=cmd()")
    (row,) = csv.DictReader(io.StringIO(said(capsys, "--csv")))
    assert (row["name"], row["overrides"], row["loss"]) == ("'=cmd()", "'+x=-lr", "-1")


def test_columns_of_wide_characters_stay_under_each_other() -> None:
    lines = aligned([["名前", "x"], ["é", "😀"], ["ab", "y"]])
    assert lines == ["名前  x", "é     😀", "ab    y"]
    assert fold("日本語の実験 名前 ab", 9) == ["日本語の", "実験 名前", "ab"]


def test_a_direction_is_one_name() -> None:
    assert sweeper_direction(SimpleNamespace(sweeper={"direction": Direction.maximize})) == "maximize"
    for none in ({}, {"direction": ["minimize", "maximize"]}):
        assert sweeper_direction(SimpleNamespace(sweeper=none)) is None


def test_json_has_value_last_and_best(capsys) -> None:
    run = sweep(*LOSSES)
    found = json.loads(said(capsys, "show", run.id, "--json"))
    assert (found["objective"], found["best_job"]) == ("loss", 1)
    assert [job["number"] for job in found["job_records"]] == [0, 1, 2]
    job = found["job_records"][1]
    assert job["results"] == {
        "loss": {"last": 1.0, "step": 2, "best": 0.5, "best_step": 1},
        "acc": {"last": 0.1, "step": 2, "best": 0.2, "best_step": 1},
    }
    assert (job["overrides"], job["value"], job["step"]) == (["lr=2", "seed=3"], None, 2)
    assert "loss 1 at step 2, best 0.5 at step 1" in said(capsys, "show", f"{run.id}/1")


def test_one_job_in_the_list_has_its_results_too(capsys) -> None:
    sweep({"metrics": [{"step": 4, "loss": 1.5}], "end": {"code": 0, "value": "nan", "types": {"": "float"}}})
    (listed,) = json.loads(said(capsys, "--json"))
    assert listed["results"]["loss"]["last"] == 1.5 and (listed["value"], listed["step"]) == ("NaN", 4)
    assert said(capsys, "show", "latest", "--csv").splitlines()[0] == "job,state,VALUE,STEP,loss"  # over one value
    run = create_run(new_run_id("demo", "go"), {**PLAN, "kind": None}, [{"config.yaml": "a: 1\n"}])
    with pytest.raises(UserError, match="is not a sweep: --sort, --top and --csv need one"):
        said(capsys, "show", run.id, "--csv")


def test_jobs_that_measured_nothing_stand_by_number(capsys) -> None:
    run = sweep({"overrides": ["a=1"]}, {"overrides": ["a=2"], "end": {"code": 0}})
    assert table(said(capsys, "show", run.id)) == [
        ["JOB", "STATE", "a"],
        ["0", "pending", "1"],
        ["1", "succeeded", "2"],
    ]


def test_names_tags_and_notes(capsys) -> None:
    first, second = sweep({}), sweep({})
    assert said(capsys, "tag", first.id, "baseline", "lr=1") == f"{first.id}: baseline, lr=1\n"
    said(capsys, "tag", second.id, "baseline", "draft")
    assert said(capsys, "tag", second.id, "--remove", "draft") == f"{second.id}: baseline\n"
    said(capsys, "note", first.id, "the one in the paper")
    said(capsys, "rename", first.id, "final")
    assert [line["id"] for line in json.loads(said(capsys, "--tag", "baseline", "--tag", "lr=1", "--json"))] == [
        first.id
    ]
    listed = said(capsys, "--tag", "baseline")
    assert (
        "final #baseline #lr=1" in listed and second.id in listed and said(capsys, "--tag", "no") == "No runs match.\n"
    )
    shown = said(capsys, "show", first.id)
    assert [line.split(None, 1)[1] for line in shown.splitlines()[1:4]] == [
        "final",
        "baseline, lr=1",
        "the one in the paper",
    ]
    said(capsys, "rename", first.id, "")
    found = json.loads(said(capsys, "show", first.id, "--json"))
    assert (found["name"], found["tags"], found["note"]) == (None, ["baseline", "lr=1"], "the one in the paper")


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["tag", "latest", "two words"], "'two words' can't be a tag"),
        (["tag", "latest"], "no tag is given"),
        (["tag", "latest", "--remove", "x"], "has no tag 'x'"),
        (["rename", "latest", "latest"], "'latest' can't be a name: wherever a run is named, it means the last launch"),
        (["rename", "latest", "lr/1-3"], "'lr/1-3' can't be a name: wherever a run is named, it means jobs of a run"),
        (["rename", "latest", "n" * 101], "has 101 characters; at most 100 are allowed"),
    ],
)
def test_a_label_that_makes_no_sense_changes_nothing(words: list[str], wrong: str) -> None:
    run = sweep({})
    with pytest.raises(UserError, match=wrong):
        run_tool("runs", words)
    assert not (run.path / "labels.json").exists()


def test_runs_have_columns_of_metrics_and_the_best_comes_first(capsys) -> None:
    ids = [sweep(job).id for job in LOSSES] + [sweep(*LOSSES).id, sweep({}).id]

    def rows(*words: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(said(capsys, *words, "--csv"))))

    found = rows("--sort", "loss")
    assert {row["run"] for row in found[:2]} == {ids[1], ids[3]} and found[2]["run"] == ids[0]
    assert [row["loss"] for row in found] == ["1.0", "1.0", "2.0", "", "nan"]
    assert found[2]["overrides"] == "lr=1 seed=3" and found[2]["acc"] == "0.9"
    assert [row["run"] for row in rows("--sort", "acc", "--top", "1", "--state", "succeeded")] == [ids[0]]
    said(capsys, "tag", ids[1], "kept")
    shown = said(capsys, "--tag", "kept", "--columns", "lr,loss,step", "--sort", "acc")
    line, rule = shown.splitlines()[1:]
    assert line.split()[0] == ids[1] and line.split()[-5:] == ["#kept", "0.1", "2", "1", "2"]
    assert rule.startswith("sorted by the last acc, highest first")
    assert json.loads(said(capsys, "--sort", "loss", "--top", "1", "--json"))[0]["id"] in (ids[1], ids[3])
    (swept,) = [run for run in json.loads(said(capsys, "--json")) if run["id"] == ids[3]]
    assert (swept["best_job"], swept["overrides"][0], swept["results"]["loss"]["best"]) == (1, "lr=2", 0.5)
    # A sweep is listed by the job that is best by the metric asked for, also one that logs no loss.
    ran = sweep(
        {"overrides": ["lr=7"], "metrics": [{"acc": 0.95}]}, {"overrides": ["lr=8"], "metrics": [{"acc": 0.99}]}
    )
    best, second = rows("--sort", "acc", "--top", "2")
    assert (best["run"], best["acc"], second["acc"]) == (ran.id, "0.99", "0.9")
    assert rows("--sort", "acc:min", "--top", "4")[3]["overrides"] == "lr=7"
    assert {row["run"]: row["overrides"] for row in rows("--columns", "acc")}[ran.id] == "lr=8"
    with pytest.raises(UserError, match="--columns los: no listed run has it") as wrong:
        said(capsys, "--columns", "los")
    assert wrong.value.hint == "Did you mean loss?"
    with pytest.raises(UserError, match="two formats"):
        said(capsys, "--csv", "--json")


def test_results_of_ended_jobs_are_kept_and_read_again_when_they_change(capsys) -> None:
    run = sweep(
        *({"overrides": [f"n={n}"], "metrics": [{"step": n, "loss": n}], "end": {"code": 0}} for n in range(40))
    )
    shown = said(capsys, "show", run.id)
    kept = run.path / ".results.json"
    assert kept.is_file() and said(capsys, "show", run.id) == shown
    job = run.job(7)
    (job.path / "metrics.jsonl").write_text('{"step": 9, "loss": -5}\n')
    assert table(said(capsys, "show", run.id))[1][:2] == ["7", "*"]
    job.begin_again()
    assert ["7", "*", "pending", "7", "9", "-5"] in table(said(capsys, "show", run.id, "--top", "40"))
    kept.write_bytes(kept.read_bytes()[:-3])
    assert ["39", "succeeded", "39", "39", "39"] in table(said(capsys, "show", run.id, "--top", "40"))


def test_of_thousands_of_metrics_a_few_are_named(capsys) -> None:
    many = {"metrics": [{f"layer{n}": float(n) for n in range(60)} | {"loss": 1.0}], "end": {"code": 0}}
    run = sweep(many, many)
    for words in (("show", run.id), ("--columns", "loss"), ("--sort", "loss")):
        assert "layer40" not in said(capsys, *words)
    assert "layer8, layer9, layer10, layer11, layer12, layer13, layer14 and 45 more" in said(capsys, "show", run.id)
    shown = said(capsys, "show", f"{run.id}/0")
    assert "and 21 more, in --json" in shown and "layer45" not in shown
    assert "layer45" in said(capsys, "show", f"{run.id}/0", "--json")


def test_jobs_by_range(capsys) -> None:
    run = sweep(*LOSSES)
    assert [row[0] for row in table(said(capsys, "show", f"{run.id}/0-1"))[1:3]] == ["1", "0"]
    for reference, wrong in (("1-7", "has no job 7"), ("2-1", "2-1 is not a range"), ("1-", "after the / comes")):
        with pytest.raises(UserError, match=wrong):
            said(capsys, "show", f"{run.id}/{reference}")
    with pytest.raises(UserError, match="both select jobs"):
        said(capsys, "show", f"{run.id}/0-1", "--job", "1")
    with pytest.raises(UserError, match=r"0-1 are 2 jobs; a shell is opened in one"):
        said(capsys, "shell", f"{run.id}/0-1")
    # The job that failed is reported, and not the first one of the range.
    assert said(capsys, "wait", f"{run.id}/1-2") == f"{run.id}/1-2: failed (exit code 1): it broke\n"
    assert said(capsys, "cancel", f"{run.id}/1-2") == f"{run.id}/1-2 have ended already: failed\n"


def test_what_the_limit_leaves_out_is_mentioned(capsys) -> None:
    for n in range(21):
        sweep({"metrics": [{"step": 1, "loss": n}], "end": {"code": 0}})
    mentioned = "the newest 20 that match: --limit 0 lists all\n"
    assert said(capsys, "--recipe", "demo").endswith(mentioned)
    assert said(capsys, "--recipe", "demo", "--columns", "loss").endswith(mentioned)
    assert said(capsys, "--columns", "loss").endswith("and 1 older: --limit 0 lists all\n")
    assert len(said(capsys, "--sort", "loss", "--limit", "0").splitlines()) == 1 + 21 + 1
    assert "--limit" not in said(capsys, "--recipe", "demo", "--limit", "0")


@pytest.mark.parametrize("long", ["60000w", "150000w", "0100-01-01"])
def test_a_time_before_all_runs_selects_all_or_none(capsys, long: str) -> None:
    run = sweep({"end": {"code": 0}})
    assert run.id in said(capsys, "--since", long)
    assert said(capsys, "rm", "--older-than", long) == "No runs match.\n"


def test_the_sweepers_objective_comes_before_what_was_returned(capsys) -> None:
    jobs = [{"metrics": [{"acc": n / 4, "loss": n}], "end": {"code": 0, "value": n}} for n in (1, 0, 2)]
    run = sweep(*jobs)
    record_objective(run, SimpleNamespace(sweeper={"direction": "minimize"}, launcher={"objective": "acc,loss"}))
    assert [row[0] for row in table(said(capsys, "show", run.id))[1:4]] == ["1", "0", "2"]
    print_sweep_end(run)
    assert f"best: {run.id}/1  acc 0" in capsys.readouterr().err


def test_every_rank_is_read(capsys) -> None:
    run = sweep({"metrics": [{"step": 1, "loss": 2.0}, {"step": 1, "loss": 2.5, "rank": 1}], "end": {"code": 0}})
    rows = '{"step": 1, "loss": 1.0, "gpu": 0.5, "rank": 8}\n{"step": 2, "loss": 3.0, "gpu": 0.25, "rank": 8}\n'
    (run.job().path / "metrics-rank-8.jsonl").write_text(rows)
    found = json.loads(said(capsys, "show", run.id, "--json"))["job_records"][0]
    assert found["results"]["loss"]["last"] == 2.0 and found["results"]["gpu"] == {
        "last": 0.25,
        "step": 2,
        "best": 0.5,
        "best_step": 1,
    }
    assert {rank: each["loss"]["last"] for rank, each in found["ranks"].items()} == {"0": 2.0, "1": 2.5, "8": 3.0}
    shown = said(capsys, "show", run.id)
    assert "loss 2 at step 1; of 3 ranks 2 (rank 0) to 3 (rank 8)" in shown


def test_the_objective_is_the_last_column_to_be_left_out() -> None:
    titles, rows = ["JOB", "STATE", "data.prompt", "acc", "loss"], [["0", "succeeded", "x" * 90, "0.123", "1.5"]]
    assert fit(titles, rows, 38)[1] == ["loss"]
    assert fit(titles, rows, 38, "loss")[1] == ["acc"]


@pytest.mark.parametrize("columns", [30, 80])
def test_a_metrics_name_is_neither_markup_nor_control_characters(columns: int, monkeypatch) -> None:
    """In a column's title, and in the line that names what is left out; rich raises MarkupError for [/top]."""
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("nemotron_kit.cli.output.terminal_width", lambda: columns)
    print_table(["RUN", "loss[/top]", "[b]x\x1b[31m\u202e", "z"], [["r" * 16, "1", "2", "3" * 16]], keep="z")
    shown = "".join(screen.getvalue().split())
    assert "loss[/top]" in shown and "[b]x\\u202e" in shown and "\x1b[31m" not in shown


def test_wide_names_fit_the_drawings_frame(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    run = sweep({"metrics": [{"step": n, "验证损失": 4.0 - n} for n in range(4)]}, {})
    run.label(name="日本語の実験😀" * 6)
    out = said(capsys, "plot", f"{run.id}/0")
    assert "日本語の実験😀" in out and "…" in out and "验证损失" in out.splitlines()[0]
    assert {cells(line) for line in out.splitlines() if "│" in line} == {60}


def test_curves_are_drawn_over_steps_seconds_or_tokens(capsys) -> None:
    rows = [{"step": n, "loss": 4.0 - n, "elapsed": n * 100.0, "lr": 1.0} for n in range(4)]
    run = sweep({"metrics": rows, "end": {"code": 0}}, {"metrics": [{"lr": 2.0}, {"lr": "NaN"}], "end": {"code": 0}})
    shown = said(capsys, "plot", run.id, "--height", "12")
    assert "loss" in shown and f"{run.id[-6:]}/0" in shown and "step" in shown
    assert f"without loss, or with NaN only: {run.id[-6:]}/1" in shown and "4.0" in shown and "1.0" in shown
    assert len(said(capsys, "plot", run.id, "--height", "60").splitlines()) == 61  # and a line on job 1
    over = said(capsys, "plot", f"{run.id}/0", "--x", "time")
    assert "300" in over and "seconds" in over
    timed = sweep({"metrics": [{"step": n, "loss": 4.0 - n, "_timestamp": 1e9 + n * 50.0} for n in range(4)]})
    over = said(capsys, "plot", f"{timed.id}/0", "--x", "time")
    assert "150" in over and "seconds" in over and "_timestamp" not in said(capsys, "show", f"{timed.id}/0")
    for words, wrong in (
        (["--metric", "los"], "--metric los: no job logged it"),
        (["--x", "tokens"], r"--x tokens: .*/0 logged no tokens"),
    ):
        with pytest.raises(UserError, match=wrong):
            said(capsys, "plot", run.id, *words)
    with pytest.raises(UserError, match="no metric was logged"):
        said(capsys, "plot", sweep({}).id)
    huge = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1e300}, {"step": 3, "loss": "NaN"}]
    wide = sweep({"metrics": huge}, {"metrics": huge[2:]})
    shown = said(capsys, "plot", wide.id, "--height", "12")
    assert "1e+300┤" in shown and "2┤" in shown and f"NaN only: {wide.id[-6:]}/1" in shown
    with pytest.raises(UserError, match="There is no curve of loss: it is NaN or infinite only"):
        said(capsys, "plot", f"{wide.id}/1")
    both = said(capsys, "plot", run.id, "--metric", "lr", "--height", "12")  # without colours, by letters
    assert "aa" in both and "bb" in both
    assert "loss 1 at step 3  █▆▃▁" in said(capsys, "show", f"{run.id}/0")


def test_a_sparkline_is_short_and_says_nothing_of_what_has_no_course() -> None:
    assert sparkline([1.0, 2.0, float("nan"), 3.0]) == "▁▅█" and len(sparkline(list(range(1000)))) == 24
    assert sparkline([1.0, 2.0]) == sparkline([1.0, 1.0, 1.0]) == sparkline([float("inf")] * 5) == ""


@pytest.mark.parametrize("columns", range(5))
def test_a_terminal_of_a_column_or_two_ends(columns: int) -> None:
    """`runs show` folded an empty text for ever, and took all memory, where the indent left no column."""
    for text in ("ab cd", "日本", ""):
        assert "".join("".join(hanging("name  ", text, columns)).split()) == "name" + text.replace(" ", "")
