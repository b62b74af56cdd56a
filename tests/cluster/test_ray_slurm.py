"""A job on a Ray cluster of its own, over two nodes of the real Slurm: joined, ran, prepared data, stopped, and nothing
left."""

# ruff: noqa: F811
from __future__ import annotations

from pathlib import Path

import pytest

from nemotron_kit.data_prep import DataPrepConfig, run_data_prep

from .slurm_world import World, until, world  # noqa: F401
from .test_data_prep_array import shards, sources

TOKENIZER = Path(__file__).parents[2] / "recipes" / "nano3" / "tokenizers" / "tiny"

SPREAD = '''
def prepare(folder: str) -> None:
    """Shards as docs/how-to/data-prep.md makes them on Ray: by tasks of its own, and by datatrove's executor."""
    from dataclasses import replace

    import ray
    from datatrove.executor.ray import RayPipelineExecutor
    from nemotron_kit.data_prep import DataPrepConfig, freeze_plan, run_data_prep
    from nemotron_kit.data_prep.datatrove_step import MegatronShards

    config = DataPrepConfig(
        blend_path=f"{folder}/blend.json", output_dir=Path(folder, "tasks"), num_shards=4, num_workers=1,
        tokenizer_model="TOKENIZER",
    )

    @ray.remote(num_cpus=0.1)
    def make(task):
        run_data_prep(replace(config, step="shards", task=task, tasks=2))

    freeze_plan(config)
    ray.get([make.remote(task) for task in range(2)])
    steps = [MegatronShards(f"{folder}/executor")]
    freeze_plan(replace(config, output_dir=Path(folder, "executor")))
    RayPipelineExecutor(steps, tasks=2, mem_per_cpu_gb=0.1, logging_dir=f"{folder}/logs").run()


def spread(cfg: Config) -> int:
    """Run a task on each node; then wait to be told, and save."""
    import ray

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    if cfg.text:
        prepare(cfg.text)
    told = []
    signal.signal(signal.SIGUSR1, lambda number, _: told.append("USR1"))

    @ray.remote(num_cpus=0.1, scheduling_strategy="SPREAD")
    def node():
        time.sleep(0.5)
        return ray.get_runtime_context().get_node_id()

    print("ran on", len(set(ray.get([node.remote() for _ in range(6)]))), "nodes in", os.getcwd(), flush=True)
    while cfg.sleep and not told:
        time.sleep(0.1)
    print("told", told, "and Ray is there:", bool(ray.get(node.remote())), flush=True)
    return 75 if told else cfg.code


app.command("spread", Config, spread, ray=True)
'''


@pytest.fixture
def program(world: World) -> World:
    work = world.folder / "work.py"
    before, main, after = work.read_text().partition("\nif __name__")
    work.write_text(before + SPREAD.replace("TOKENIZER", str(TOKENIZER)) + main + after)
    return world


def ray_processes(home: Path) -> list[str]:
    """The command lines of this machine's processes (both nodes' are) that belong to a job of `home`, or to Ray."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment, line = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(home).encode() in environment and (b"ray" in line or b"nemotron_kit.worker" in line):
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_two_nodes_join_save_at_usr1_and_leave_nothing(program: World, tmp_path: Path) -> None:
    place = tmp_path / "of the program"
    place.mkdir()
    data = tmp_path / "data"
    data.mkdir()
    sources(data)
    job = program.batch(
        "spread", "sleep=1", f"text={data}", f"run.env.ray_working_dir={place}", "run.env.max_segments=1", profile="two"
    )
    log = job.path / "logs" / "job.log"
    until(lambda: (log.exists() and "ran on" in log.read_text()) or job.state().terminal, 120)
    assert f"ran on 2 nodes in {place}" in log.read_text()
    assert ray_processes(program.home)
    with program.seen():
        config = DataPrepConfig(data / "blend.json", data / "alone", num_shards=4, tokenizer_model=str(TOKENIZER))
        run_data_prep(config)
    assert shards(data / "alone") == shards(data / "tasks") == shards(data / "executor") != {}
    program.slurm.run("scancel", "--signal=USR1", job.state().facts["scheduler"]["job"])
    assert program.wait(job) == "failed"  # the last of its segments
    assert job.exit_record()["code"] == 75
    assert "told ['USR1'] and Ray is there: True" in log.read_text()
    until(lambda: not ray_processes(program.home), 20, lambda: ray_processes(program.home))
    until(lambda: not list(Path("/tmp").glob("nk-ray-*")), 60)  # another lane's Ray test may have one
    assert not list((job.path / "nodes").glob("*.token"))
