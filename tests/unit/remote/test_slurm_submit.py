"""Submitting and observing against stand-ins for Slurm's commands (the real one: tests/cluster)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron_kit.errors import NotSent, Unreachable, UserError
from nemotron_kit.remote.agent import slurm, slurm_status

INTENT = "0123456789ab"
Program = Callable[[str, str], None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(slurm, "_SETTLE_SECONDS", 0.05)
    folder = tmp_path / "runs" / "20261124-171204-nano3-pretrain-1f03a7"
    for number in range(3):
        (folder / "jobs" / str(number)).mkdir(parents=True)
    (folder / "jobs" / "0" / "sbatch.sh").write_text("#!/bin/bash\n")
    return folder


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")

    def make(name: str, script: str) -> None:
        path = bin_folder / name
        path.write_text(f'#!/bin/bash\necho {name} "$@" >> {tmp_path}/calls\n{script}\n')
        path.chmod(0o755)

    for name in ("sbatch", "squeue", "sacct", "scancel"):
        make(name, "exit 0")
    return make


def submit(run: Path, **more: Any) -> dict[str, Any]:
    given = {"secrets": more.pop("secrets", {})}
    asked = {"jobs": [0], "array": False, "name": f"nk-{INTENT}-x", "script": "jobs/0/sbatch.sh", **more}
    return slurm.submit(payload=json.dumps(given).encode(), folder=str(run), intent=INTENT, **asked)


def calls(run: Path, name: str) -> int:
    path = run.parents[1] / "calls"
    return sum(line.startswith(name) for line in path.read_text().splitlines()) if path.exists() else 0


def test_a_job_is_submitted_once(run: Path, program: Program) -> None:
    program("sbatch", "echo 42")
    assert submit(run)["job"] == "42"
    assert submit(run)["job"] == "42"
    assert calls(run, "sbatch") == 1


def test_the_intent_is_on_disk_before_sbatch_is_asked(run: Path, program: Program) -> None:
    program("sbatch", f"cp {run}/slurm/{INTENT}.json {run}/seen.json; echo 42")
    submit(run)
    assert json.loads((run / "seen.json").read_text())["job"] is None


def test_an_answer_that_says_nothing_is_looked_up_by_name(run: Path, program: Program) -> None:
    program("sbatch", "echo Thank you")
    program("squeue", 'echo "77|PENDING|N/A|name|None"')
    assert submit(run)["job"] == "77"


def test_what_left_the_queue_is_found_in_accounting(run: Path, program: Program) -> None:
    program("sbatch", "echo 'sbatch: error: Socket timed out' >&2; exit 1")
    program("sacct", 'echo "78|COMPLETED|x|name|0:0|0:0"')
    assert submit(run)["job"] == "78"


@pytest.mark.parametrize("silent", ["squeue", "sacct"])
def test_doubt_stays_doubt_while_one_of_them_is_silent(run: Path, program: Program, silent: str) -> None:
    program("sbatch", "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv' >&2; exit 1")
    program(silent, "echo down >&2; exit 1")
    with pytest.raises(Unreachable, match="isn't known whether"):
        submit(run)
    with pytest.raises(Unreachable):
        submit(run)
    assert calls(run, "sbatch") == 1, "it was not asked again"
    program(silent, "exit 0")
    program("sbatch", "echo 80")
    assert submit(run)["job"] == "80", "both have said that there is none"


@pytest.mark.parametrize(
    "said", ["Batch job submission failed: Unable to contact slurm controller (connect failure)", "Socket timed out"]
)
def test_a_controller_that_is_away_is_no_fault_of_the_jobs(run: Path, program: Program, said: str) -> None:
    program("sbatch", f"echo 'sbatch: error: {said}' >&2; exit 1")
    with pytest.raises(NotSent, match=rf"Not submitted: .*{said[-9:-1]}"):
        submit(run)
    assert calls(run, "squeue") == 2 and calls(run, "sacct") == 2, "neither has it"
    program("sbatch", "echo 80")
    assert submit(run)["job"] == "80"


def test_an_error_of_another_kind_is_the_commands_fault(run: Path, program: Program) -> None:
    program("sbatch", "echo 'sbatch: error: lua: no partition' >&2; exit 1")
    with pytest.raises(UserError, match=r"Slurm refused the job: .*lua: no partition"):
        submit(run)


def test_a_refusal_is_one_and_needs_no_lookup(run: Path, program: Program) -> None:
    program("sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1")
    program("sacct", "exit 1")
    with pytest.raises(UserError, match="Invalid account"):
        submit(run)
    assert calls(run, "squeue") == 0
    seen = slurm_status.observe(runs={str(run): [0]})[str(run)]["0"]
    assert seen["state"] == "failed" and "Invalid account" in seen["error"]


def test_the_job_inherits_neither_the_launchs_allocation_nor_its_secrets(
    run: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SRUN_X", "RANK", "HF_TOKEN", "SLURM_CONF", "PLAIN"):
        monkeypatch.setenv(name, "1")
    program("sbatch", f"env > {run}/env; echo 42")
    submit(run, hidden=["HF_TOKEN"], secrets={"WANTED": "s3cret"})
    seen = dict(line.split("=", 1) for line in (run / "env").read_text().splitlines() if "=" in line)
    assert seen["WANTED"] == "s3cret" and seen["PLAIN"] == "1" and seen["SLURM_CONF"] == "1"
    assert not {"SLURM_JOB_ID", "SBATCH_PARTITION", "SRUN_X", "RANK", "HF_TOKEN"} & set(seen)
    words = (run.parents[1] / "calls").read_text()
    assert "s3cret" not in words
    assert all(b"s3cret" not in path.read_bytes() for path in (run / "slurm").iterdir() if path.is_file())


def test_cancel_tells_the_job_before_slurm(run: Path, program: Program) -> None:
    program("sbatch", "echo 42")
    program("scancel", f"ls {run}/jobs/0 > {run}/at-scancel")
    submit(run)
    assert slurm.cancel(folder=str(run), jobs=[0]) == {"cancelled": ["42"]}
    assert "cancel.json" in (run / "at-scancel").read_text()


def test_one_task_of_an_array_is_cancelled_alone(run: Path, program: Program) -> None:
    program("sbatch", "echo 42")
    submit(run, jobs=[0, 1, 2], array=True)
    assert slurm.cancel(folder=str(run), jobs=[1]) == {"cancelled": ["42_1"]}
    assert slurm.cancel(folder=str(run), jobs=[0, 1, 2]) == {"cancelled": ["42"]}


def test_a_job_in_doubt_is_cancelled_by_its_name(run: Path, program: Program) -> None:
    (run / "slurm").mkdir()
    slurm.write(run, slurm.Submission(INTENT, "nk-name", [0], False, 0.0))
    program("squeue", "exit 1")
    slurm.cancel(folder=str(run), jobs=[0])
    assert any("--name=nk-name" in line for line in (run.parents[1] / "calls").read_text().splitlines())


# --- how jobs stand


def observe(run: Path, *numbers: int) -> dict[int, dict[str, Any]]:
    found = slurm_status.observe(runs={str(run): list(numbers)})[str(run)]
    return {int(number): seen for number, seen in found.items()}


def exit_record(run: Path, number: int, **record: Any) -> None:
    (run / "jobs" / str(number) / "exit.json").write_text(json.dumps({"code": 0, "error": None, **record}))


@pytest.fixture
def submitted(run: Path, program: Program) -> Path:
    program("sbatch", "echo 42")
    submit(run, jobs=[0, 1, 2], array=True)
    return run


def test_their_own_records_need_nobody(submitted: Path, program: Program) -> None:
    for number, state in enumerate(("succeeded", "failed", "cancelled")):
        exit_record(submitted, number, state=state)
    assert [observe(submitted, 0, 1, 2)[n]["state"] for n in range(3)] == ["succeeded", "failed", "cancelled"]
    assert calls(submitted, "squeue") == calls(submitted, "sacct") == 0


def test_queue_then_accounting_in_one_call_each(submitted: Path, program: Program) -> None:
    program("squeue", 'echo "42_0|PENDING|2026-11-24T20:00:00|n|Priority"')
    program("sacct", 'echo "42_1|TIMEOUT|x|n|0:0|0:0"; echo "42_2|OUT_OF_MEMORY|x|n|0:125|0:0"')
    seen = observe(submitted, 0, 1, 2)
    assert (seen[0]["state"], seen[0]["reason"], seen[0]["start"]) == ("pending", "Priority", "2026-11-24T20:00:00")
    assert seen[1]["state"] == seen[2]["state"] == "failed"
    assert "time limit" in seen[1]["error"] and "out of memory" in seen[2]["error"]
    assert (seen[1]["code"], seen[2]["code"]) == (128 + 15, 128 + 9)
    assert (calls(submitted, "squeue"), calls(submitted, "sacct")) == (1, 1)


@pytest.mark.parametrize(("shown", "state"), [("SPECIAL_EXIT", "pending"), ("POWER_UP_NODE", "pending"),
                                              ("UPDATE_DB", "running")])  # fmt: skip
def test_a_rare_state_of_a_live_job_is_no_unknown_one(
    submitted: Path, program: Program, shown: str, state: str
) -> None:
    program("squeue", f'echo "42_0|{shown}|N/A|n|None"')
    assert observe(submitted, 0)[0]["state"] == state
    assert calls(submitted, "sacct") == 0


def test_a_record_of_a_signal_is_explained_by_the_scheduler(submitted: Path, program: Program) -> None:
    exit_record(submitted, 0, state="failed", code=1, error="killed by SIGTERM", signalled=["TERM"])
    program("squeue", 'echo "42_0|COMPLETING|x|n|None"')
    assert observe(submitted, 0)[0]["state"] == "running", "not explained yet"
    program("squeue", "exit 0")
    program("sacct", 'echo "42_0|CANCELLED by 7|x|n|0:15|0:0"')
    assert observe(submitted, 0)[0]["state"] == "cancelled"
    program("sacct", 'echo "42_0|FAILED|x|n|1:0|0:0"')
    seen = observe(submitted, 0)[0]
    assert (seen["state"], seen["error"]) == ("failed", "killed by SIGTERM")


@pytest.mark.parametrize(
    ("line", "state", "code"),
    [
        ("CANCELLED by 7|x|n|0:0|0:0", "cancelled", 143),
        ("FAILED|x|n|9:0|0:9", "failed", 137),  # srun's way of saying KILL
        ("FAILED|x|n|9:0|0:0", "failed", 137),  # the step's end was heard of after the script's
        ("FAILED|x|n|9:0|1:0", "failed", 137),  # of two nodes, one of which exited with 1
        ("FAILED|x|n|9:0|9:0", "failed", 9),
        ("FAILED|x|n|127:0|255:0", "failed", 255),  # of a script's code above 128, sacct shows what is above
        ("FAILED|x|n|127:0|0:0", "failed", 127),
        ("FAILED|x|n|1:0|0:0", "failed", 1),
        ("FAILED|x|n|137:0|0:0", "failed", 137),
        ("FAILED|x|n|0:6|0:0", "failed", 134),
        ("NODE_FAIL|x|n|0:0|0:0", "failed", 1),
        ("PREEMPTED|x|n|0:15|0:0", "failed", 143),
        ("COMPLETED|x|n|0:0|0:9", "succeeded", 0),  # a step of the profile's own set-up
    ],
)
def test_the_exit_code_of_a_job_without_a_record(
    submitted: Path, program: Program, line: str, state: str, code: int
) -> None:
    program("sacct", f'echo "42_0|{line}"')
    seen = observe(submitted, 0)[0]
    assert (seen["state"], seen["code"]) == (state, code)


def test_a_preempted_job_is_pending_again_or_over(submitted: Path, program: Program) -> None:
    exit_record(submitted, 0, state="preempted", code=75, again=True)
    program("squeue", 'echo "42_0|PENDING|x|n|BeginTime"')
    assert observe(submitted, 0)[0]["state"] == "pending"
    program("squeue", "exit 0")
    program("sacct", 'echo "42_0|FAILED|x|n|75:0|0:0"')
    seen = observe(submitted, 0)[0]
    assert seen["state"] == "failed" and "not queued again" in seen["error"]


def test_silence_is_unreachable_and_never_an_end(submitted: Path, program: Program) -> None:
    program("squeue", "exit 1")
    program("sacct", 'echo "42_0|RUNNING|x|n|0:0|0:0"; echo "42_1|COMPLETED|x|n|0:0|0:0"')
    seen = observe(submitted, 0, 1)
    assert seen[0]["state"] == "unreachable", "accounting does not know how a live job stands"
    assert seen[1]["state"] == "succeeded", "but an end is an end"
    program("sacct", "exit 1")
    assert {observe(submitted, 0, 1)[n]["state"] for n in (0, 1)} == {"unreachable"}
    exit_record(submitted, 0, state="succeeded")
    assert observe(submitted, 0, 1)[0]["state"] == "succeeded"


def test_a_sites_queue_without_accounting_still_tells_ends(submitted: Path, program: Program) -> None:
    program("squeue", 'echo "42_0|TIMEOUT|x|n|TimeLimit"; echo "42_1|CANCELLED|x|n|None"')
    program("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    seen = observe(submitted, 0, 1, 2)
    assert [seen[n]["state"] for n in range(3)] == ["failed", "cancelled", "unreachable"]


def test_a_job_that_nobody_knows_is_unknown(submitted: Path, program: Program) -> None:
    assert observe(submitted, 0)[0]["state"] == "running", "Slurm may lag behind at first"
    record = slurm.read(submitted, INTENT)
    assert record is not None
    for at in (record.at - 3600, 1e300):  # a damaged time is not recent for ever
        slurm.write(submitted, slurm.Submission(**{**vars(record), "at": at}))
        assert observe(submitted, 0)[0]["state"] == "unknown"


def test_a_job_never_submitted_is_unknown(run: Path, program: Program) -> None:
    assert observe(run, 0)[0]["state"] == "unknown"
    assert os.environ["PATH"].endswith("/usr/bin:/bin")


@pytest.mark.parametrize(
    ("partition", "limit"),
    [
        *(("", "2:00:00"), ("debug", "30:00"), ("long", None), (None, None)),
        *(("a,b,c", "1-00:00:00"), ("a,long", None), ("b,a", "2:00:00")),
    ],
)
def test_the_limit_of_a_partition_or_of_the_default_one(
    run: Path, program: Program, partition: str | None, limit: str | None
) -> None:
    program("scontrol", "echo 'MaxArraySize = 1001'")
    every = "30:00 debug\\n2:00:00 batch*\\ninfinite long\\n"
    program(
        "sinfo",
        'case "$*" in *=a,b,c*) printf "30:00 a\\n1-00:00:00 c\\n2:00:00 b\\n";; '
        '*=b,a*) printf "30:00 a\\n2:00:00 b*\\n";; '
        '*=a,long*) printf "30:00 a\\ninfinite long\\n";; '
        f'*=debug*) echo "30:00 debug";; *=long*) echo "infinite long";; *) printf "{every}";; esac',
    )
    assert slurm.limits(partition=partition)["time"] == limit
    program("scontrol", "echo 'EnforcePartLimits       = ALL'")
    all_apply = {"a,b,c": "30:00", "a,long": "30:00", "b,a": "30:00"}.get(str(partition), limit)
    assert slurm.limits(partition=partition)["time"] == all_apply


NEXT = "n=$(cat {0}/n 2>/dev/null || echo 40); n=$((n + 1)); echo $n >{0}/n; "


def test_the_jobs_of_a_chain_are_submitted_once_and_after_a_break_the_rest(run: Path, program: Program) -> None:
    program("sbatch", NEXT.format(run) + "[ $n != 42 ] || exit 1; echo $n")
    with pytest.raises(Unreachable, match="1 of 3 jobs are submitted"):
        submit(run, links=3)
    done = submit(run, links=3)
    assert (done["job"], done["links"]) == ("41", ["43", "44"])
    assert submit(run, links=3) == done and calls(run, "sbatch") == 4
    slurm.cancel(folder=str(run), jobs=[0])
    assert f"scancel --quiet --name=nk-{INTENT}-x" in (run.parents[1] / "calls").read_text(), "all of the name"


def test_a_chain_of_which_slurm_takes_a_part_is_cancelled(run: Path, program: Program) -> None:
    refusal = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (submit limit)"
    program("sbatch", NEXT.format(run) + f"[ $n != 43 ] || {{ echo '{refusal}' >&2; exit 1; }}; echo $n")
    with pytest.raises(UserError, match=r"Slurm took 2 of the 3 jobs of this chain, which are cancelled: .*submit"):
        submit(run, links=3)
    assert calls(run, "scancel") == 1


@pytest.mark.parametrize(
    ("queue", "accounts", "state", "number"),
    [
        ("41|RUNNING|S|nk|None\n42|PENDING|N/A|nk|Dependency\n43|PENDING|N/A|nk|Dependency", "", "running", "41"),
        ("43|PENDING|N/A|nk|Dependency\n42|RUNNING|S|nk|None", "", "running", "42"),
        ("43|PENDING|N/A|nk|Resources\n41|NODE_FAIL|S|nk|None\n42|TIMEOUT|S|nk|None", "", "pending", "43"),
        ("", "41|TIMEOUT|S|nk|0:0|0:0\n42|NODE_FAIL|S|nk|0:0|0:0\n43|CANCELLED|None|nk|0:0|0:0", "failed", "42"),
    ],
)
def test_of_a_chain_the_job_is_seen_that_counts_now(
    run: Path, program: Program, queue: str, accounts: str, state: str, number: str
) -> None:
    program("sbatch", NEXT.format(run) + "echo $n")
    submit(run, links=3)
    program("squeue", f"printf '%s\\n' '{queue}'")
    program("sacct", f"printf '%s\\n' '{accounts}'")
    seen = slurm_status.observe(runs={str(run): [0]})[str(run)]["0"]
    assert (seen["state"], seen["slurm_id"]) == (state, number)


def test_what_accounting_knows_of_one_job_is_no_news_of_another_that_slurm_never_had(
    run: Path, program: Program
) -> None:
    """Job 0 has an id, job 1 was refused, job 2 was never submitted: only the first is sacct's to judge."""
    program("sbatch", "echo 42")
    submit(run)
    other = slurm.Submission("ba9876543210", "nk-ba9876543210-x", [1], False, 1.0, refused="Slurm refused the job: no")
    slurm.write(run, other)
    program("sacct", 'echo "42|COMPLETED|x|name|0:0|0:0"')
    seen = observe(run, 0, 1, 2)
    assert [seen[n]["state"] for n in range(3)] == ["succeeded", "failed", "unknown"]
    assert [seen[n]["error"] for n in (1, 2)] == ["Slurm refused the job: no", "not submitted yet"]


def test_an_array_whose_submission_had_no_answer_is_looked_up_once(run: Path, program: Program) -> None:
    (run / "slurm").mkdir()
    slurm.write(run, slurm.Submission(INTENT, f"nk-{INTENT}-x", [0, 1, 2], True, 1.0))
    assert {seen["state"] for seen in observe(run, 0, 1, 2).values()} == {"failed"}
    assert calls(run, "squeue") == 2 and calls(run, "sacct") == 1
