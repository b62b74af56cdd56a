"""Sweeps over a recipe in all of Hydra's syntax for them: what runs is what a dry-run shows, or one error says
why not. All of them run in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from ..project import write_files

RECIPE = """
from dataclasses import dataclass, field
from nemotron.kit import App

@dataclass
class Opt:
    lr: float = 0.1

@dataclass
class C:
    n: int = 1
    m: str = "a"
    opt: Opt = field(default_factory=Opt)

def go(cfg: C) -> None:
    print("GOT", cfg.n, cfg.m, cfg.opt.lr)

app = App("r")
app.command("go", C, go)
app.command("other", C, go)
app.command("script", C, module="r.script")
"""

CALLS = """
from hydra.experimental.callback import Callback

class Calls(Callback):
    def say(self, what, config, *facts):
        with open(f"calls-{config.m}", "a") as file:
            print(what, config.n, *facts, file=file)
    def on_run_start(self, config, **kwargs): self.say("run start", config)
    def on_run_end(self, config, job_return, **kwargs): self.say("run end", config, job_return.status.name)
    def on_multirun_start(self, config, **kwargs): self.say("multirun start", config)
    def on_multirun_end(self, config, **kwargs): self.say("multirun end", config)
    def on_job_start(self, config, **kwargs): self.say("start", config, config.hydra.runtime.output_dir[-7:])
    def on_job_end(self, config, job_return, **kwargs):
        self.say("end", config, job_return.status.name, job_return.overrides, job_return.cfg.n)
"""
CALLING = [
    "-c calls m=same n=1,2",
    "-c calls m=same n=1,2 hydra/launcher=nemo_run hydra.launcher.via=kit hydra.launcher.max_parallel=1",
]

FILES = {
    "r/calls.py": CALLS,
    "r/script.py": "import sys\n\ndef main(cfg=None): return 3\n\nif __name__ == '__main__': sys.exit(main())\n",
    "r/config/calls.yaml": "hydra: {callbacks: {calls: {_target_: r.calls.Calls}}}\n",
    "r/__init__.py": RECIPE,
    "env.toml": '[cli]\nrecipes = ["r"]\n\n[here]\nexecutor = "local"\n',
    "r/config/default.yaml": "n: 1\n",
    "r/config/a1.yaml": "n: 2\n",
    "r/config/a2.yaml": "n: 3\n",
    "r/config/grp.yaml": "defaults: [opt: adam, _self_]\nn: 5\n",
    "r/config/params.yaml": "hydra: {sweeper: {params: {m: 'x,y'}}}\n",
    "r/config/mode.yaml": "hydra: {mode: MULTIRUN, sweeper: {params: {m: 'x,y'}}}\n",
    "r/config/dir.yaml": "hydra: {sweep: {dir: mine, subdir: 'job-${hydra.job.num}'}}\n",
    "r/config/run.yaml": "hydra: {run: {dir: mine}}\n",
    "r/config/subdir.yaml": "hydra: {output_subdir: mine}\n",
    "r/config/broken.yaml": "n: [\n",
    "r/config/wrong.yaml": "nn: 1\n",
    "r/config/opt/adam.yaml": "lr: 0.5\n",
    "r/config/opt/sgd.yaml": "lr: 0.7\n",
    "r/config/bad/x.yaml": "lr: [\n",
}  # fmt: skip

# Words after `nemotron r go -m`, or Hydra's own behind `hydra` → what the jobs print, or the error.
SWEEPS: dict[str, list[str] | str] = {
    "n=1,2": ["1 a 0.1", "2 a 0.1"],
    "n=choice(1,2) m=x,y": ["1 x 0.1", "1 y 0.1", "2 x 0.1", "2 y 0.1"],
    "n=range(3)": ["0 a 0.1", "1 a 0.1", "2 a 0.1"],
    "n=1 m=b": ["1 b 0.1"],
    "-c a1,a2": ["2 a 0.1", "3 a 0.1"],
    "config=glob(a*)": ["2 a 0.1", "3 a 0.1"],
    "config=glob(a*,exclude=*1)": ["3 a 0.1"],
    "config=choice(a2,default) m=z": ["3 z 0.1", "1 z 0.1"],
    "config=glob(z*)": "config=glob(z*): chooses nothing.",
    "config=choice(a1,a9)": "no config called 'a9'",
    "config=glob(": "Hydra's grammar can't read the value",
    "-c grp opt=sgd,adam": ["5 a 0.7", "5 a 0.5"],
    "-c grp opt=choice(sgd,adam)": ["5 a 0.7", "5 a 0.5"],
    "-c grp opt=glob(*)": ["5 a 0.5", "5 a 0.7"],
    "-c params": ["1 x 0.1", "1 y 0.1"],
    "-c params m=z": ["1 z 0.1"],
    "-c mode": ["1 x 0.1", "1 y 0.1"],
    "-c dir n=1,2": ["1 a 0.1", "2 a 0.1"],
    "hydra.sweeper.params.n='3,4'": ["3 a 0.1", "4 a 0.1"],
    "hydra.sweeper.max_batch_size=1 n=1,2": ["1 a 0.1", "2 a 0.1"],
    "-c broken": "broken.yaml:2:1: not valid YAML",
    "-c a1,broken": "broken.yaml:2:1: not valid YAML",
    "-c a1,wrong": "nn: `r go` has no such field",
    "hydra recipe=r stage=go,other": ["1 a 0.1", "1 a 0.1"],
    "hydra recipe=r stage=choice(go,other) config=glob(a*)": ["2 a 0.1", "3 a 0.1", "2 a 0.1", "3 a 0.1"],
    "hydra recipe=r stage=glob(o*)": ["1 a 0.1"],
    "hydra recipe=glob(r*) stage=go n=1,2": ["1 a 0.1", "2 a 0.1"],
    "hydra recipe=r stage=go,other config=broken": "broken.yaml:2:1: not valid YAML",
    "hydra recipe=r stage=glob(z*)": "stage=glob(z*): chooses nothing.",
}
# Single jobs, by the words after `nemotron r go`: what a config file says that a job would not do is refused.
SINGLE = {
    "-c mode": "hydra.mode: has no effect on a single job",
    "-c run": "hydra.run.dir: has no effect on a single job",
    "-c subdir": "hydra.output_subdir: has no effect on a single job",
    "-c grp opt=sgd": ["5 a 0.7"],
    "-c calls m=single": ["1 single 0.1"],
    "-c a1": ["2 a 0.1"],
}  # fmt: skip

DRIVER = """
import contextlib, io, json, os, shlex, sys
from nemotron_kit.cli.main import hydra, nemotron

results = {}
for line in json.load(sys.stdin):
    if "m=same" in line and os.path.exists("calls-same"):
        os.rename("calls-same", "calls-basic")
    words, out, err = shlex.split(line), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = hydra(words[1:]) if words[0] == "hydra" else nemotron(words)
    results[line] = [code, out.getvalue(), err.getvalue()]
with open(sys.argv[1], "w") as file:
    json.dump(results, file)
"""


def _line(words: str, *flags: str) -> str:
    first, _, rest = words.partition(" ")
    return " ".join(["hydra", *flags, rest] if first == "hydra" else ["r go", *flags, words]).replace("'", '"\'"')


def _runs(words: str) -> bool:
    """Errors come from what a dry-run does, too."""
    return (isinstance(SWEEPS[words], list) and "glob(" not in words) or words == "-c broken"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("words")
    write_files(root, FILES)
    optuna = [_line(OPTUNA, "-m", "--dry-run")] if find_spec("optuna") else []
    lines = [
        *(_line(words, "-m") for words in SWEEPS),
        *(_line(words, "-m", "--dry-run", "--json") for words in SWEEPS),
    ]
    lines += [
        *map(_line, SINGLE),
        *optuna,
        *(_line(words, "-m") for words in CALLING),
        *("r script -c calls m=script --batch here", "runs wait latest"),
        _line("hydra/launcher=nemo_run hydra.launcher.profile=here n=1,2", "-m", "--dry-run"),
    ]
    env = {**os.environ, "NEMOTRON_HOME": str(root / "home")}
    out = root / "results.json"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(out)], input=json.dumps(lines), cwd=root, env=env, text=True, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {**json.loads(out.read_text()), "root": root}


def _configs(text: str) -> list[str]:
    """What `go` would print, from the JSON documents of a dry-run."""
    decoder, found = json.JSONDecoder(), []
    while text := text.strip():
        plan, end = decoder.raw_decode(text)
        found.append("{n} {m} {opt[lr]}".format(**plan["config"]))
        text = text[end:]
    return found


@pytest.mark.parametrize("words", SWEEPS)
def test_a_sweep_and_its_dry_run(results: Any, words: str) -> None:
    expected = SWEEPS[words]
    for flags in ([["-m"]] if _runs(words) else []) + [["-m", "--dry-run", "--json"]]:
        code, out, err = results[_line(words, *flags)]
        if isinstance(expected, str):
            assert (code, "Traceback" in err) == (2, False), out + err
            assert expected in err
        else:
            assert code == 0, out + err
            got = [line[4:] for line in out.splitlines() if line.startswith("GOT")]
            assert (got if len(flags) == 1 else _configs(out)) == expected


@pytest.mark.parametrize("words", SINGLE)
def test_a_single_job(results: Any, words: str) -> None:
    expected, (code, out, err) = SINGLE[words], results[_line(words)]
    if isinstance(expected, str):
        assert (code, expected in err) == (2, True), out + err
    else:
        assert (code, out.splitlines()) == (0, [f"GOT {line}" for line in expected]), out + err


def test_callbacks(results: Any) -> None:
    """As Hydra's own launcher calls them, so do single jobs and the jobs of the kit's launcher."""
    kit, basic, single = ((results["root"] / f"calls-{name}").read_text() for name in ("same", "basic", "single"))
    assert kit == basic
    assert kit.count("end 2 COMPLETED") == 1
    called = [" ".join(line.split()[:3]) for line in single.splitlines()]
    assert called == ["run start 1", "start 1 /jobs/0", "end 1 COMPLETED", "run end 1"]
    # A script in a process of its own, which ends by sys.exit(3), is no other job than main(), which returns 3.
    assert results["runs wait latest"][0] == 1
    script = (results["root"] / "calls-script").read_text().splitlines()
    assert [" ".join(line.split()[:3]) for line in script] == called


def test_a_sweeps_own_folders_stand_in_a_config_file(results: Any) -> None:
    assert sorted(path.name for path in (results["root"] / "mine").iterdir()) == ["job-0", "job-1", "multirun.yaml"]


def test_a_dry_run_shows_where_the_launcher_sends_the_jobs(results: Any) -> None:
    code, out, _ = results[_line("hydra/launcher=nemo_run hydra.launcher.profile=here n=1,2", "-m", "--dry-run")]
    assert (code, out.count("on profile here (local)")) == (0, 2)


OPTUNA = "hydra/sweeper=optuna n=range(1,5) hydra.sweeper.n_trials=2"


@pytest.mark.skipif(not find_spec("optuna"), reason="hydra-optuna-sweeper is not installed")
def test_a_sweeper_that_decides_as_it_goes(results: Any) -> None:
    code, out, err = results[_line(OPTUNA, "-m", "--dry-run")]
    assert code == 0, err
    assert "hydra/sweeper=optuna chooses values as jobs end: for n=range(1,5) this plan has the config's." in out
