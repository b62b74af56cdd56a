"""Shapes of `@hydra.main` programs and settings, each run by Hydra's basic launcher and by another: the same values,
files, log lines and exit code, or what stands here as its reason.

`TASKS` are things that a task function does, all of them jobs of one sweep. `PROGRAMS` are programs of their own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .project import write_files

# What a task function does → the lines of its body.
TASKS = {
    "none": "pass",
    "bool": "return True",
    "int": "return 3",
    "float": "return 0.1",
    "nan": "return float('nan')",
    "text": "return 'a\\n\\u00e4'",
    "tuple": "return (1, [2, (3,)], {'a': (4,)})",
    "decimal": "return decimal.Decimal('0.10')",
    "complex": "return 1 + 2j",
    "bytes": "return b'\\xff'",
    "path": "return pathlib.Path('a/b')",
    "set": "return {1}",
    "keys": "return {1: 'a', (2, 3): None}",
    "date": "return datetime.datetime(2026, 1, 2, 3)",
    "config": "return cfg.opt",
    "numpy": "import numpy; return [numpy.float32(0.1), numpy.int64(3), numpy.bool_(True)]",
    "array": "import numpy; return numpy.arange(6.0).reshape(2, 3)",
    "object": "return LOCK",
    "value error": "raise ValueError('bad', cfg.opt.lr)",
    "key error": "raise KeyError('k')",
    "os error": "raise FileNotFoundError(2, 'No such file', 'x')",
    "unicode error": "b'\\xff'.decode()",
    "own error": "raise Odd('only this program knows me')",
    "assertion": "assert cfg.opt.lr > 1, 'too small'",
    "unknown key": "cfg.opt.nothing",
    "exit": "sys.exit(3)",
    "exit text": "sys.exit('stopped')",
    "exit 0": "sys.exit()",
    "typed": "o = OmegaConf.to_object(cfg); return [type(o) is Config, o.opt == Opt(0.5), cfg.color is Color.RED]",
    "resolvers": "return [cfg.double, cfg.job, cfg.env, cfg.choice, cfg.year]",
    "hydra": (
        "h = HydraConfig.get(); return [h.job.name, h.job.num, h.mode.name, list(h.overrides.task), h.runtime.cwd, "
        "h.runtime.output_dir, h.sweep.dir, h.sweep.subdir, h.job.override_dirname, h.runtime.choices['opt']]"
    ),
    "folders": "return [os.getcwd(), hydra.utils.get_original_cwd(), hydra.utils.to_absolute_path('x'), __file__]",
    "program": "return [sys.argv[0], __name__, sibling.VALUE, os.environ['SET_BEFORE'], LOCK.locked()]",
    "relative": "open('relative.txt', 'a').write('x')",
    "output dir": "open(HydraConfig.get().runtime.output_dir + '/out.txt', 'w').write('x')",
    "own folder": "(pathlib.Path(__file__).parent / 'beside.txt').write_text((HERE / 'data' / 'd').read_text())",
    "logging": "log.debug('d'); log.info('i %s', 1); logging.getLogger('a.b').warning('w'); logging.error('e')",
    "pool": "return sum(multiprocessing.get_context('spawn').Pool(1).map(square, [1, 2]))",
    "child": "return subprocess.run([sys.executable, '-c', 'print(5)'], capture_output=True, text=True).stdout",
    "stdin": "return sys.stdin.read()",
}  # fmt: skip
# What comes back another way, and why.
DIFFERENT = {
    "object": "a lock is no value that JSON carries: a warning names it, and the sweeper gets None",
    "own error": "only built-in exceptions are rebuilt: JobFailed, with the type's name in its text",
    "unknown key": "only built-in exceptions are rebuilt: JobFailed, with the type's name in its text",
    "exit": "SystemExit would end the sweeper: JobFailed with the exit code",
    "exit text": "SystemExit would end the sweeper: JobFailed with the exit code",
    "exit 0": "a job that exits with 0 has succeeded: None",
}
# What hydra-submitit-launcher can't do, and why.
NOT_BY_SUBMITIT = {
    "object": "it pickles the task with the module's lock",
    "program": "it pickles the task with the module's lock",
    "exit": "a job that exits leaves no result: the whole sweep ends",
    "exit text": "a job that exits leaves no result: the whole sweep ends",
    "exit 0": "a job that exits leaves no result: the whole sweep ends",
    "pool": "__main__ is its own program, in which a child process finds no function of this one",
}

APP = """
import datetime, decimal, enum, logging, multiprocessing, os, pathlib, subprocess, sys, threading
from dataclasses import dataclass, field
import hydra, sibling
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

HERE, LOCK, log = pathlib.Path(__file__).resolve().parent, threading.Lock(), logging.getLogger(__name__)
os.environ["SET_BEFORE"] = "yes"
OmegaConf.register_new_resolver("twice", lambda x: 2 * x)
class Odd(Exception): pass
class Color(enum.Enum): RED = 1
@dataclass
class Opt: lr: float = 0.1
@dataclass
class Config:
    how: str = "none"
    color: Color = Color.RED
    double: float = "${twice:${opt.lr}}"
    job: str = "${hydra:job.num}"
    env: str = "${oc.env:SET_BEFORE}"
    choice: str = "${hydra:runtime.choices.opt}"
    year: str = "${now:%Y}"
    opt: Opt = field(default_factory=Opt)
ConfigStore.instance().store("schema", Config)
def square(x): return x * x
TASKS
@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg): return HOWS[cfg.how](cfg)
if __name__ == "__main__": main()
"""

SWEEPER = """
import json, os
from dataclasses import dataclass
from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper

@dataclass
class Conf:
    _target_: str = "hydra_plugins.told.Told"
ConfigStore.instance().store(group="hydra/sweeper", name="told", node=Conf)

def said(returned):
    try:
        value = returned.return_value
        return ["value", type(value).__name__, repr(value)]
    except Exception as error:
        return ["raised", type(error).__name__, repr(error.args)]

class Told(Sweeper):
    def setup(self, *, hydra_context, task_function, config):
        from hydra.core.plugins import Plugins
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config)
    def sweep(self, arguments):
        hows = json.loads(os.environ["HOWS"])
        jobs = [["opt=fast", f"how={how}"] for how in hows]
        if os.environ["BATCH"] == "1":
            told = [said(returned) for returned in self.launcher.launch(jobs, 0)]
        else:  # in this process an exit would end the sweep
            told = []
            for number, job in enumerate(jobs):
                try:
                    told.append(said(self.launcher.launch([job], number)[0]))
                except SystemExit as error:
                    told.append(["exit", "SystemExit", repr(error.code)])
        with open(os.environ["TOLD"], "w") as file:
            json.dump(dict(zip(hows, told)), file)
"""

_SAY = """import argparse, functools, os, sys, threading, hydra
from hydra.core.hydra_config import HydraConfig
HERE = os.environ["PROJECT"]
def say(*words):
    with open(HERE + "/said", "a") as file: print(*words, file=file)
"""
_MAIN = '@hydra.main(version_base="1.3", config_path=None)\n'
_RUN = 'if __name__ == "__main__": main()\n'
_PLAIN = f"{_SAY}{_MAIN}def main(cfg): say(cfg, sys.argv[0], __name__, os.getcwd())\n{_RUN}"
_GROUPS = {
    "conf/config.yaml": "defaults: [db: a, _self_]\nn: 1\n",
    "conf/db/a.yaml": "name: a\n",
    "conf/db/b.yaml": "name: b\nhome: ${hydra:runtime.output_dir}\n",
    "app.py": f"{_SAY}{_MAIN.replace('None', repr('conf') + ', config_name=' + repr('config'))}"
    f"def main(cfg): say(cfg); open('here', 'a').write('x'); print(cfg.db.name)\n{_RUN}",
}


@dataclass(frozen=True)
class Program:
    """`words` follow the interpreter; `-m` of Hydra's among them, and `+x=…` for the jobs. `differs`: the reason why it
    does not end as under the basic launcher."""

    words: str
    files: Mapping[str, str] = field(default_factory=lambda: {"app.py": _PLAIN})
    differs: str | None = None
    code: int = 0


PROGRAMS = {
    "plain": Program("app.py -m +x=1,2"),
    "a module": Program("-m pkg.train -m +x=1", {"pkg/__init__.py": "", "pkg/train.py": _PLAIN}),
    "a package": Program("-m pkg -m +x=1", {"pkg/__init__.py": "", "pkg/__main__.py": _PLAIN}),
    "a folder": Program("tool -m +x=1", {"tool/__main__.py": _PLAIN}),
    "another folder": Program("sub/../sub/app.py -m +x=1", {"sub/app.py": _PLAIN}),
    "an imported task": Program("tool.py -m +x=1", {
        "tool.py": "from pkg.lib import main\nmain()\n", "pkg/__init__.py": "", "pkg/lib.py": _PLAIN}),
    "own arguments": Program("app.py --tag a -m +x=1", {"app.py": f"""{_SAY}
p = argparse.ArgumentParser(add_help=False); p.add_argument("--tag")
known, sys.argv[1:] = p.parse_known_args()
{_MAIN}def main(cfg): say(known.tag, sys.argv[0])
{_RUN}"""}),
    "a sub-command": Program("app.py train -m +x=1", {"app.py": f"""{_SAY}
command = sys.argv.pop(1)
{_MAIN}def train(cfg): say(command)
if __name__ == "__main__" and command == "train": train()
"""}),
    "after two dashes": Program("app.py --background -- -m +x=1", {"app.py": f"""{_SAY}
sys.argv = [sys.argv[0], *sys.argv[sys.argv.index("--") + 1:]]
{_MAIN}def main(cfg): say()
{_RUN}"""}),
    "changes its folder": Program("app.py -m +x=1", {"sub/x": "", "app.py": f"""{_SAY}
os.chdir("sub")
{_MAIN}def main(cfg): say(os.getcwd())
{_RUN}"""}),
    "the same task twice": Program("app.py -m +x=1", {"app.py": f"""{_SAY}
for WORD in ("one", "two"):
    {_MAIN.strip()}
    def main(cfg): say(WORD)
    main()
"""}),
    "all kinds of tasks": Program("app.py -m +x=1", {"app.py": f"""{_SAY}
class Trainer:
    word = threading.Lock() and "instance"
    def __call__(self, cfg): say(self.word)
    def run(self, cfg): say("bound", self.word)
def job(word, cfg): say("partial", word)
def loud(task):
    def wrapper(cfg): say("loud"); task(cfg)
    return wrapper
def wrapped(task):
    @functools.wraps(task)
    def wrapper(cfg): say("wraps"); task(cfg)
    return wrapper
{_MAIN}@loud
def decorated(cfg): say("decorated")
{_MAIN}@wrapped
def also(cfg): say("also")
made = hydra.main(version_base="1.3", config_path=None)
made(lambda cfg: say("lambda"))()
decorated(); also()
made(Trainer().run)()
for task in (functools.partial(job, "a"), Trainer()):
    task.__module__ = __name__
    made(task)()
"""}),
    "a partial of no module": Program("app.py -m +x=1", {"app.py": f"""{_SAY}
def job(word, cfg): say(word)
hydra.main(version_base="1.3", config_path=None)(functools.partial(job, "a"))()
"""}, code=1),
    "groups": Program("app.py -m db=a,b n=2", _GROUPS),
    "a glob": Program("app.py -m db=glob(*)", _GROUPS),
    "a glob of nothing": Program("app.py -m db=glob(z*)", _GROUPS),
    "own sweep folders": Program("app.py -m n=1,2 hydra.sweep.subdir=${hydra.job.override_dirname}", _GROUPS),
    "chdir": Program("app.py -m n=1,2 hydra.job.chdir=true", _GROUPS),
    "no .hydra": Program("app.py -m n=1,2 hydra.output_subdir=null", _GROUPS),
    "no logging": Program("app.py -m n=1 hydra/job_logging=disabled", _GROUPS),
    "verbose": Program("app.py -m n=1 hydra.verbose=true", _GROUPS),
    "a name": Program("app.py -m n=1 hydra.job.name=other", _GROUPS),
    "parameters": Program("app.py -m", {**_GROUPS, "conf/config.yaml": "defaults: [db: a, _self_]\nn: 1\n"
                                        "hydra: {sweeper: {params: {n: '3,4'}}}\n"}),
    "the mode in the config": Program("app.py n=1,2", {
        **_GROUPS, "conf/config.yaml": "defaults: [db: a, _self_]\nn: 1\nhydra: {mode: MULTIRUN}\n"}),
    "variables": Program("app.py -m +x=1 +hydra.job.env_set.WORD=set hydra.job.env_copy=[COPIED]", {"app.py": f"""{_SAY}
{_MAIN}def main(cfg): say(os.environ["WORD"], os.environ["COPIED"])
{_RUN}"""}),
    "callbacks": Program("app.py -m +x=1,2 +hydra.callbacks.c._target_=back.Back", {"back.py": f"""{_SAY}
from hydra.experimental.callback import Callback
class Back(Callback):
    def on_multirun_start(self, config, **kwargs): say("multirun start")
    def on_multirun_end(self, config, **kwargs): say("multirun end")
    def on_job_start(self, config, **kwargs): say("start", config.hydra.job.num, kwargs["task_function"].__name__)
    def on_job_end(self, config, job_return, **kwargs):
        say("end", job_return.status.name, job_return.return_value, job_return.overrides, job_return.working_dir)
""", "app.py": f"{_SAY}{_MAIN}def main(cfg): return cfg.x\n{_RUN}"}),
    "a folder changed by version": Program("app.py -m +x=1", {"app.py": _PLAIN.replace("1.3", "1.1")}),
    "an interpreter's options": Program("-O -X utf8 -W error::UserWarning app.py -m +x=1", {"app.py": f"""{_SAY}
import warnings
{_MAIN}def main(cfg):
    assert False
    say(sys.flags.optimize, sys.flags.utf8_mode)
    try: warnings.warn("w")
    except UserWarning: say("raised")
{_RUN}"""}),
    "an odd name": Program("app.py -m +x='\"a b, ${z}\"' +z=1 hydra.sweep.dir='\"o d $(x)\"'"),
    "a failing job": Program("app.py -m +x=1", {
        "app.py": f"{_SAY}{_MAIN}def main(cfg): say(1); raise ValueError(3)\n{_RUN}"}, code=1),
    "an exit": Program("app.py -m +x=1", {"app.py": f"{_SAY}{_MAIN}def main(cfg): say(1); sys.exit(3)\n{_RUN}"},
                       code=3, differs="a job's exit code is on its record; the sweep's is 1 for whatever failed"),
    "no such key": Program("app.py -m n=1 nn=2", _GROUPS, code=1),
    "no such choice": Program("app.py -m db=c", _GROUPS, code=1),
}  # fmt: skip
# The jobs come back as basic's do, in the time that one has in CI.
SHARE = (
    "all kinds of tasks", "own arguments", "a sub-command", "a module", "a folder", "changes its folder",
    "the same task twice", "groups", "chdir", "an interpreter's options", "a glob of nothing",
    "callbacks", "variables", "an exit",
)  # fmt: skip
_TIME = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+\]")


@dataclass
class Ended:
    """How a program ended: exit code, and the files that it left, without what no two runs have in common."""

    code: int
    files: dict[str, Any]
    said: str


def run_program(folder: Path, name: str, launcher: list[str], env: Mapping[str, str]) -> Ended:
    """Run one of PROGRAMS in a project of its own."""
    program, project = PROGRAMS[name], folder / "project"
    write_files(project, program.files)
    words = [*_split(program.words), *launcher, *(["hydra.sweep.dir=out"] if "sweep.dir" not in program.words else [])]
    code, said = _run(words, project, folder, {**env, "COPIED": "copied"})
    return Ended(code, _files(project), said)


def run_tasks(
    folder: Path, names: list[str], launcher: list[str], env: Mapping[str, str]
) -> tuple[dict[str, Any], Ended]:
    """Run these of TASKS as one sweep: what its sweeper was told of each, and what it left."""
    project = folder / "project"
    # submitit pickles what a task refers to: only what these tasks do.
    functions = {name: f"task_{name.replace(' ', '_')}" for name in names}
    tasks = "\n".join(f"def {function}(cfg): {TASKS[name]}" for name, function in functions.items())
    tasks += "\nHOWS = {" + ", ".join(f"{name!r}: {function}" for name, function in functions.items()) + "}"
    config = (
        "defaults: [schema, opt: slow, _self_]\n"
        "hydra: {job_logging: {formatters: {simple: {format: '%(levelname)s %(name)s %(message)s'}}}}\n"
    )
    write_files(project, {
        "app.py": APP.replace("TASKS", tasks), "sibling.py": "VALUE = 7\n", "data/d": "payload",
        "conf/config.yaml": config,
        "conf/opt/slow.yaml": "lr: 0.1\n", "conf/opt/fast.yaml": "lr: 0.5\n",
    })  # fmt: skip
    write_files(folder / "plugins", {"hydra_plugins/told.py": SWEEPER})
    told = folder / "told.json"
    own = {"HOWS": json.dumps(names), "TOLD": str(told), "BATCH": "1" if launcher else "0"}
    own["PYTHONPATH"] = str(folder / "plugins")
    words = ["app.py", "-m", "hydra/sweeper=told", "hydra.sweep.dir=out", *launcher]
    code, said = _run(words, project, folder, {**env, **own})
    assert code == 0, said
    return json.loads(told.read_text().replace(str(project), "PROJECT")), Ended(code, _files(project), said)


def _split(words: str) -> list[str]:
    import shlex

    return shlex.split(words)


def _run(words: list[str], project: Path, folder: Path, env: Mapping[str, str]) -> tuple[int, str]:
    variables = {"NEMOTRON_HOME": str(folder / "home"), "PROJECT": str(project)}
    done = subprocess.run(
        [sys.executable, *words], cwd=project, env={**os.environ, **variables, **env}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=240,
    )  # fmt: skip
    return done.returncode, done.stdout


def _files(project: Path) -> dict[str, Any]:
    return dict(_read(project))


def _read(project: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted(project.rglob("*")):
        name = path.relative_to(project).as_posix()
        if not path.is_file() or "__pycache__" in name or ".submitit" in name or name == "env.toml":
            continue
        text = _TIME.sub("[TIME]", path.read_text().replace(str(project), "PROJECT"))
        if path.suffix == ".log":  # hydra-submitit-launcher's own lines
            text = re.sub(r"(?m)^(\[TIME\]\[submitit\]\[INFO\] - |INFO submitit ).*\n", "", text)
        if path.name in ("hydra.yaml", "multirun.yaml"):
            yield name, _hydra(yaml.safe_load(text))
        elif name == "said":  # jobs of other launchers run at the same time
            yield name, sorted(text.splitlines())
        else:
            yield name, text


def _hydra(values: dict[str, Any]) -> dict[str, Any]:
    """Hydra's node without the launcher and what follows from it."""
    node = values["hydra"]
    for part, key in (("job", "id"), ("job", "env_set"), ("overrides", "hydra"), ("runtime", "config_sources")):
        node.get(part, {}).pop(key, None)
    node["runtime"].get("choices", {}).pop("hydra/launcher", None)
    return {**values, "hydra": {key: value for key, value in node.items() if key != "launcher"}}
