"""`hydra/launcher=nemo_run` under other people's @hydra.main apps: what a job sees, what comes back, what is left."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..conftest import until
from ..programs import TOLD_SWEEPER
from ..project import Project, files_with

APP = """
import enum, logging, multiprocessing, os, signal, sys, threading, time
from dataclasses import dataclass, field
import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, OmegaConf
import sibling

LOCK = threading.Lock()          # nothing that a pickle of the program could carry
OmegaConf.register_new_resolver("twice", lambda x: 2 * x)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Optimizer:
    lr: float = 0.1


@dataclass
class Config:
    x: float = 1.0
    double: float = "${twice:${x}}"
    color: Color = Color.RED
    optimizer: Optimizer = field(default_factory=Optimizer)
    how: str = "return"
    job: str = "${hydra:job.num}"


class Odd(Exception):
    pass


ConfigStore.instance().store("config", Config)


def square(x):
    return x * x


@hydra.main(version_base="1.3", config_path=None, config_name="config")
def main(cfg):
    typed = OmegaConf.to_object(cfg)
    assert type(typed) is Config and type(typed.optimizer) is Optimizer and typed.color in Color
    assert sibling.VALUE == 7 and cfg.job == str(HydraConfig.get().job.num)
    logging.getLogger("app").info("pid %d double %s", os.getpid(), cfg.double)
    with LOCK:
        match cfg.how:
            case "value": raise ValueError("x is bad", cfg.x)
            case "odd": raise Odd("only this program knows me")
            case "exit": sys.exit(3)
            case "exit0": sys.exit()
            case "kill": os.kill(os.getpid(), signal.SIGKILL)
            case "object": return LOCK
            case "pool":
                with multiprocessing.get_context("spawn").Pool(2) as pool:
                    return sum(pool.map(square, [1, 2, 3]))
            case "env": print("env", os.environ["DEMO_TOKEN"], os.environ["PLAIN"], os.environ["SET"])
            case "sleep":
                print("sleeping", flush=True); time.sleep(60)
    return {"x": cfg.x, "double": cfg.double, "list": [1, (2, 3)], "color": cfg.color.name}


if __name__ == "__main__":
    print("before")
    main()
    print("after")
"""

CANARY = "canary-a81c"
VIA = [
    pytest.param("nemo_run", marks=pytest.mark.skipif(not find_spec("nemo_run"), reason="NeMo-Run is not installed")),
    "kit",
]


class App(Project):
    """A sweep of a program with the launcher is `app("app.py", "x=1,2")`; `app.words` is that line."""

    def words(self, *words: str, via: str = "kit") -> list[str]:
        launcher = ["hydra/launcher=nemo_run", f"hydra.launcher.via={via}", "hydra.sweep.dir=out"]
        return ["python", *words, "-m", *launcher]

    def sweep(self, *words: str, code: int = 0, via: str = "kit", **env: str) -> subprocess.CompletedProcess[str]:
        program = next(i for i, word in enumerate(words) if "=" not in word and not word.startswith("-m"))
        return self(*self.words(*words[: program + 1], via=via), *words[program + 1 :], code=code, **env)

    def log(self, number: int) -> str:
        return (self.newest / "jobs" / str(number) / "logs" / "job.log").read_text()


@pytest.fixture
def app(tmp_path: Path) -> App:
    files = {
        "app.py": APP,
        "sibling.py": "VALUE = 7\n",
        "pkg/train.py": APP.replace("import sibling", "from . import sibling"),
        "pkg/sibling.py": "VALUE = 7\n",
        "pkg/__init__.py": "",
        "../plugins/hydra_plugins/told.py": TOLD_SWEEPER,
    }
    return App(tmp_path / "app", files, tmp_path / "home", PYTHONPATH=str(tmp_path / "plugins"))


@pytest.mark.parametrize("via", VIA)
def test_a_sweep_of_a_program(app: App, via: str) -> None:
    # In a locale whose encoding is not UTF-8, as any other: NeMo-Run writes sources in it.
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = app.sweep("app.py", "x=1,2,3", "optimizer.lr=0.5", "color=BLUE", via=via, **ascii_only)
    assert done.stdout.count("before") == 1
    assert done.stdout.count("after") == 1
    assert done.stderr.splitlines()[-4].split()[:4] == ["JOB", "STATE", "x", "VALUE"]
    pids = set()
    for number in range(3):
        log = app.log(number)
        assert f"double {2.0 * (number + 1)}" in log
        assert "after" not in log
        pids.add(log.split("pid ")[1].split()[0])
        folder = app.folder / "out" / str(number)
        assert "nemo_run_check" not in (folder / ".hydra/hydra.yaml").read_text()
        assert sorted(path.name for path in (folder / ".hydra").iterdir()) == [
            "config.yaml", "hydra.yaml", "overrides.yaml"]  # fmt: skip
        assert "double" in (folder / "app.log").read_text()
        answer = json.loads((app.newest / "jobs" / str(number) / "answer.json").read_text())
        assert answer["value"] == {"x": number + 1, "double": 2 * number + 2, "list": [1, [2, 3]], "color": "BLUE"}
    assert len(pids) == 3


def test_the_launcher_without_m_runs_nothing(app: App) -> None:
    done = app("python", "app.py", "hydra/launcher=nemo_run", code=2)
    assert (done.stdout, "has no effect without -m" in done.stderr) == ("before\n", True)
    assert not (app.folder / "outputs").exists()
    # In the program's own defaults list it is for its sweeps.
    (app.folder / "mine.yaml").write_text("defaults:\n- config\n- override hydra/launcher: nemo_run\n- _self_\n")
    assert "after" in app("python", "app.py", "--config-dir", ".", "--config-name", "mine", "hydra.job.num=0").stdout


def test_a_sweep_of_a_module(app: App) -> None:
    app.sweep("-m", "pkg.train", "x=4,5")
    assert "double 10" in app.log(1)


def test_an_app_whose_task_is_imported(app: App) -> None:
    """What an installed console script does: the program itself only calls a function of a module."""
    (app.folder / "tool").write_text("import sys\nfrom pkg.train import main\nsys.exit(main())\n")
    app.sweep("tool", "x=4,5")
    assert "double 10" in app.log(1)
    assert "before" not in app.log(1)


@pytest.mark.skipif(not find_spec("cloudpickle"), reason="cloudpickle is not installed")
def test_an_app_that_is_no_file(app: App) -> None:
    text = (
        "import hydra, sys\nWORD = 'sent'\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(cfg):\n    print(WORD, cfg.x)\n"
    )
    words = ["-m", "hydra/launcher=nemo_run", "hydra.launcher.via=kit", "+x=1,2"]
    program = f"{text}sys.argv[1:] = {words}\nmain()\n"
    app("python", "-c", program)
    assert "sent 2" in app.log(1)


def test_a_program_that_does_not_come_back_to_its_task(app: App) -> None:
    text = (app.folder / "app.py").read_text()
    leaving = '    if "NEMO_RUN_DIR" in os.environ: sys.exit(0)'
    (app.folder / "app.py").write_text(text.replace('    print("before")', leaving))
    done = app.sweep("app.py", "x=1", code=1)
    assert "ended without reaching its task function main" in done.stderr


def test_a_packet_that_others_can_write_is_not_run(app: App) -> None:
    app.sweep("app.py", "x=1")
    job = app.newest / "jobs" / "0"
    (job / "hydra.json").chmod(0o622)
    (job / "answer.json").unlink()
    done = app("python", "-m", "nemotron_kit.worker.hydra_job", str(job), code=None)
    assert done.returncode != 0
    assert "can be written by others" in done.stderr
    assert not (job / "answer.json").exists()


@pytest.mark.parametrize("via", VIA)
def test_what_comes_back_to_a_sweeper(app: App, via: str) -> None:
    hows = "how=return,value,odd,exit,exit0,kill,object,pool"
    done = app.sweep("app.py", "hydra/sweeper=told", "hydra.sweeper.batches=2", "x=2", hows, via=via)
    said = [line for line in done.stdout.splitlines() if line.startswith(("RETURNED", "RAISED"))]
    assert said == [
        "RETURNED {'x': 2.0, 'double': 4.0, 'list': [1, (2, 3)], 'color': 'RED'}",
        "RAISED ValueError ('x is bad', 2.0) None",
        "RAISED JobFailed ('Odd: only this program knows me', 1) 1",
        f"RAISED JobFailed {said[3].partition('JobFailed ')[2]}",
        "RETURNED None",
        f"RAISED JobFailed {said[5].partition('JobFailed ')[2]}",
        "RETURNED None",
        "RETURNED 14",
    ]
    assert re.findall(r"^NOTES (\d)", done.stdout, re.MULTILINE) == ["1", "1", "0", "0"]
    assert said[3].endswith("3) 3")
    assert "exit code 3" in said[3]
    assert said[5].endswith("137) 137")
    assert "#6 it returned a _thread.lock" in done.stdout
    # One sweep is one record, however many batches there were.
    states = [record["state"] for record in app.exits()]
    assert states == ["succeeded", *["failed"] * 3, "succeeded", "failed", "succeeded", "succeeded"]
    plan = json.loads((app.newest / "plan.json").read_text())
    assert (plan["kind"], plan["recipe"], plan["executor"]) == ("sweep", "app", "local")
    assert plan["command_line"].startswith("python app.py -m ")


def test_hydras_basic_sweeper_fails_with_the_jobs_error(app: App) -> None:
    done = app.sweep("app.py", "how=return,value", code=1)
    assert "ValueError: ('x is bad', 1.0)" in done.stderr
    assert "In the job:" in done.stderr
    assert 'raise ValueError("x is bad", cfg.x)' in done.stderr
    assert "succeeded: how=return" in done.stdout
    assert done.stderr.count("JOB  STATE ") == 1 and done.stderr.startswith("JOB  STATE ")
    assert [record.get("error") for record in app.exits()] == [None, "ValueError: ('x is bad', 1.0)"]


def test_secrets_of_the_environment_are_in_no_file(app: App) -> None:
    words = ["hydra.job.env_copy=[DEMO_TOKEN,PLAIN]", "+hydra.job.env_set.SET=fixed", "how=env"]
    app.sweep("app.py", *words, DEMO_TOKEN=CANARY, PLAIN="${no_key} seen")
    assert "env *** ${no_key} seen fixed" in app.log(0)
    assert files_with(CANARY, app.home, app.folder) == []
    assert all(path.stat().st_mode & 0o077 == 0 for path in (app.newest / "jobs").rglob("*") if path.is_file())


def test_a_literal_secret_of_a_config_is_in_no_record(app: App) -> None:
    (app.folder / "literal.py").write_text(
        "import hydra, os\n"
        "from hydra.core.config_store import ConfigStore\n"
        "def made(end): return {'api_key': 'canary-' + end, 'n': {'password': 1234567890, 'secret': True}}\n"
        "for end in ('one-1', 'two-2'): ConfigStore.instance().store(end, made(end), group='db')\n"
        "ConfigStore.instance().store('config', {'defaults': [{'db': 'one-1'}, '_self_']})\n"
        "@hydra.main(version_base='1.3', config_path=None, config_name='config')\n"
        "def main(cfg):\n"
        "    os.write(1, f'raw {cfg.db.api_key}\\n'.encode()); print('key', cfg.db.api_key)\n"
        "    return [cfg.db.n.password - 1234567889, cfg.db.n.secret, len(cfg.db.api_key)]\n"
        "if __name__ == '__main__': main()\n"
    )
    app.sweep("literal.py", "db=one-1,two-2")
    for number in (0, 1):
        job = app.newest / "jobs" / str(number)
        assert json.loads((job / "answer.json").read_text())["value"] == [1, True, 12]
        assert "raw ***" in app.log(number) and "key ***" in app.log(number)
        packet = json.loads((job / "hydra.json").read_text())
        assert b"canary" not in base64.b64decode(packet["config"])
    assert files_with("canary", app.home, *app.folder.rglob(".hydra")) == []
    (job / "answer.json").unlink()
    done = app("python", "-m", "nemotron_kit.worker.hydra_job", str(job), code=None)
    assert "The config has a literal secret, which is in no record: NEMOTRON_2_DB_API_KEY" in done.stderr


def test_text_travels_in_files_alone(app: App) -> None:
    text = 'a b\'c "d" $(touch PWN) `touch PWN` ; touch PWN'
    quoted = "'" + text.replace("'", "\\'") + "'"
    app.sweep("app.py", f"how={quoted}", "hydra.sweep.subdir='${hydra.job.num} $(touch PWN)'")
    assert (app.folder / "out" / "0 $(touch PWN)" / ".hydra").is_dir()
    assert text in json.dumps((app.newest / "jobs/0/config.yaml").read_text()).replace('\\"', '"').replace("''", "'")
    assert not list(app.folder.rglob("PWN"))


def test_so_many_at_a_time(app: App) -> None:
    (app.folder / "slow.py").write_text(
        "import hydra, time\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(cfg):\n    print(time.time()); time.sleep(0.5); print(time.time())\n"
        "if __name__ == '__main__': main()\n"
    )
    app.sweep("slow.py", "+n=range(5)", "hydra.launcher.max_parallel=2")
    spans = sorted(tuple(float(line) for line in app.log(number).split()) for number in range(5))
    at_once = [sum(1 for a, b in spans if a <= start < b) for start, _ in spans]
    assert max(at_once) == 2


def test_a_metric_as_the_value(app: App) -> None:
    (app.folder / "metric.py").write_text(
        "import hydra\n"
        "from hydra.core.config_store import ConfigStore\n"
        "from nemotron_kit import log_metrics\n"
        "ConfigStore.instance().store('config', {'how': 0})\n"
        "@hydra.main(version_base='1.3', config_path=None, config_name='config')\n"
        "def main(cfg):\n"
        "    for step in range(3): log_metrics({'loss': cfg.how - step}, step=step)\n"
        "if __name__ == '__main__': main()\n"
    )
    done = app.sweep("metric.py", "hydra/sweeper=told", "how=10", "hydra.launcher.objective=loss")
    assert "RETURNED 8" in done.stdout
    (recorded,) = app.home.glob("runs/*/jobs/0/.hydra/overrides.yaml")
    assert json.loads(recorded.read_text()) == ["how=10"]


def test_the_settings_stand_in_hydras_place(app: App) -> None:
    line = ["python", "app.py", "hydra/launcher=nemo_run", "hydra.launcher.max_parallel=8", "--cfg", "hydra"]
    page = app(*line, "--package", "hydra.launcher").stdout
    assert "max_parallel: 8" in page
    assert "profile: null" in page


@pytest.mark.parametrize(
    ("words", "text", "code"),
    [
        (["hydra.launcher.profile=nowhere"], "env.toml", 2),
        (["hydra.launcher.max_parallel=0"], "max_parallel: expected at least 1", 2),
        (["hydra.launcher.via=magic"], "expected one of nemo_run, kit", 2),
        (["+hydra.launcher.env.nodez=2"], "nodez", 2),
        (["hydra.launcher.nonsense=1"], "nonsense", 1),  # Hydra's own error
    ],
)
def test_a_wrong_setting_leaves_nothing(app: App, words: list[str], text: str, code: int) -> None:
    done = app.sweep("app.py", "x=1,2", *words, code=code)
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((app.home / "runs").glob("*"))


@pytest.mark.parametrize("via", VIA)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(app: App, via: str, number: signal.Signals) -> None:
    line = [*app.words("app.py", via=via), "how=sleep", "x=range(4)", "hydra.launcher.max_parallel=2"]
    process = app.start(*line)
    logs = "*/jobs/*/logs/job.log"
    until(lambda: sum("sleeping" in log.read_text() for log in (app.home / "runs").glob(logs)) == 2)
    process.send_signal(number)
    process.communicate(timeout=50)  # its jobs would sleep for longer
    assert process.returncode in ((-2, 130) if number == signal.SIGINT else (143,))
    assert [record["state"] for record in app.exits()] == ["cancelled"] * 4
    assert not _processes_of(app)


def test_killed_outright(app: App) -> None:
    """The launch gets no chance to say anything: its jobs end all the same."""
    line = [*app.words("app.py"), "how=sleep", "x=range(3)", "hydra.launcher.max_parallel=1"]
    process = app.start(*line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: list((app.home / "runs").glob("*/jobs/0/logs/job.log")))
    process.kill()
    process.wait()
    until(lambda: not _processes_of(app))
    assert [record["state"] for record in app.exits()] == ["cancelled"] * 3


def test_detached(app: App) -> None:
    words = ["hydra/sweeper=told", "hydra.sweeper.batches=2", "how=return,value", "hydra.launcher.detach=true"]
    done = app.sweep("app.py", *words)
    assert done.stdout.count("RETURNED None") == 2
    until(lambda: len(list(app.newest.glob("jobs/*/exit.json"))) == 2)
    states = [record["state"] for record in app.exits()]
    assert states == ["succeeded", "failed"]


def _processes_of(app: App) -> list[str]:
    """Command lines of processes that name this app's folders."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(app.home) in line:
            found.append(line)
    return found


BOWL = """
import hydra, os, signal, sys
@hydra.main(version_base='1.3', config_path=None)
def main(cfg):
    if cfg.get('hard') and cfg.x > 8: os.kill(os.getpid(), signal.SIGKILL)
    if cfg.get('hard') and cfg.x < -8: raise ValueError('far', cfg.x)
    if cfg.get('hard') and -7.5 < cfg.x < -6: sys.exit(3)
    return (cfg.x - 2) ** 2
if __name__ == '__main__': main()
"""
STUDY = ["hydra/sweeper=optuna", "+x=interval(-10,10)", "hydra.sweeper.n_trials=12", "hydra.sweeper.n_jobs=4",
         "hydra.sweeper.sampler.seed=1"]  # fmt: skip


@pytest.fixture(scope="module")
def basic_study(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the study finds with Hydra's basic launcher."""
    app = App(tmp_path_factory.mktemp("basic"), {"bowl.py": BOWL})
    app("python", "bowl.py", "-m", *STUDY, "hydra.sweep.dir=basic")
    return (app.folder / "basic" / "optimization_results.yaml").read_text()


@pytest.mark.skipif(not find_spec("optuna"), reason="hydra-optuna-sweeper is not installed")
@pytest.mark.parametrize("via", VIA)
def test_optuna_learns_from_the_jobs(app: App, basic_study: str, via: str) -> None:
    """The same study as with Hydra's basic launcher; what fails is a failed trial, and the study goes on."""
    (app.folder / "bowl.py").write_text(BOWL)
    app.sweep("bowl.py", *STUDY, via=via)
    assert (app.folder / "out" / "optimization_results.yaml").read_text() == basic_study
    done = app.sweep("bowl.py", *STUDY, "+hard=true", "hydra.sweeper.max_failure_rate=1", via=via)
    assert "Best value" in done.stdout
    assert f"best: {app.newest.name}/" in done.stderr
    assert "alembic" not in done.stdout + done.stderr
    states = [json.loads(path.read_text())["state"] for path in sorted(app.home.glob("runs/*/jobs/*/exit.json"))]
    assert states.count("failed") >= 3
    assert "SystemExit" not in done.stderr
