"""A command tree as data: App, Group, Command, Pipeline, ArtifactInput. Declaring one imports and runs nothing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from nemotron_kit.errors import UserError, nearest
from nemotron_kit.lazy import Value

# Names are used in paths, in scripts and as scheduler's job names: only these characters, and never `..`.
SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
RESERVED_SLOTS = frozenset({"env", "mode", "profile", "recipe", "wandb", "run"})
# An entry of the import path that belongs to a Python, not to the user.
_INSTALLED = r"/(?:site|dist)-packages(?:/|\Z)|/lib/python3[^/]*(?:/lib-dynload|\.zip)?\Z|/python3\d+\.zip\Z"
SINGLE_VALUE_CLASHES = frozenset({"batch", "config", "recipe", "stage"})
# Modules that every launch and job imports, or any may.
_LIBRARIES = frozenset({"hydra", "omegaconf", "antlr4", "yaml", "pydantic", "pydantic_core", "rich", "numpy"})
# Modules that Python itself imports when it starts.
_AT_START = frozenset({"sitecustomize", "usercustomize"})


@dataclass(frozen=True, eq=False, repr=False)
class ArtifactInput(Value):
    """An artifact that a command reads.

    `default_name` is the reference used when nothing else is given (`Name[:alias|:vN]`). `mappings` says which field of
    the artifact fills which field of the config: `{"path": "data_path"}`; `""` is the path, `metadata.K` a free field.
    `type` is the artifact's class name; it matches piped JSON, and is read off the default name when left out.
    An `optional` input is read only if it is given (--art.X, run.X, a pipe); `--art.X v3` is then a version of
    `default_name`. It has no mappings: the handler finds it in its job's inputs (`lineage.job_inputs`).
    """

    default_name: str
    mappings: Mapping[str, str] = field(default_factory=dict)
    type: str | None = None
    optional: bool = False


class _Leaf:
    """What a command and a pipeline have in common: `path` is its names from the recipe on."""

    path: tuple[str, ...]

    @property
    def recipe(self) -> str:
        return self.path[0]

    @property
    def stage(self) -> str:
        """The names below the recipe, in the form of Hydra's `stage=`: `data/prep/pretrain`."""
        return "/".join(self.path[1:])

    @property
    def full_name(self) -> str:
        return " ".join(self.path)


@dataclass
class Command(_Leaf):
    """One leaf of the tree. `path` is its names from the recipe on: ("nano3", "data", "prep", "pretrain")."""

    path: tuple[str, ...]
    config_cls: type | str
    handler: Callable[..., Any] | str
    script_path: Path | None = None
    description: str = ""
    artifacts: dict[str, ArtifactInput] = field(default_factory=dict)
    config_dir: Path | None = None
    aliases: tuple[str, ...] = ()
    produces: tuple[str, ...] = ()
    preflight: Callable[..., list[str]] | str | None = None
    torchrun: bool | None = None
    ray: bool | Mapping[str, str] = False
    targets: tuple[str, ...] = ()
    interactive: bool = False
    resources: str | None = None
    module: str = ""
    objective: str | None = None
    array: bool = False

    @property
    def stages(self) -> list[str]:
        """Its stage, and those of its aliases."""
        return ["/".join((*self.path[1:-1], leaf)) for leaf in (self.path[-1], *self.aliases)]

    def load_config_cls(self) -> type:
        """The dataclass of its config, imported if necessary. Raises UserError if it is no dataclass."""
        cls = load_object(self.config_cls) if isinstance(self.config_cls, str) else self.config_cls
        if not (isinstance(cls, type) and is_dataclass(cls)):
            raise UserError(
                f"{self.full_name}: config_cls must be a dataclass, got {cls!r}.", hint="Decorate it with @dataclass."
            )
        return cls

    def on_ray(self, config: Mapping[str, Any]) -> bool:
        """Whether a job with this config runs on its own Ray cluster."""
        if isinstance(self.ray, bool):
            return self.ray
        return any(config.get(name) == value for name, value in self.ray.items())

    def load_handler(self) -> Callable[..., Any]:
        """The function that runs a job, imported if necessary. Raises UserError if it can't be called."""
        handler = load_object(self.handler) if isinstance(self.handler, str) else self.handler
        if not callable(handler):
            raise UserError(f"{self.full_name}: handler {self.handler!r} is not callable.")
        return handler

    def load_outlook(self) -> Callable[..., list[str]] | None:
        """The function `outlook(config, tasks, cpus)` of the command's module: lines for a dry-run of an array."""
        return getattr(importlib.import_module(self.module), "outlook", None) if self.module else None

    def load_preflight(self) -> Callable[..., list[str]] | None:
        """The check `(config, *, connect: bool, here: bool = True) -> problems` that runs before a job."""
        if self.preflight is None and self.module:
            return getattr(importlib.import_module(self.module), "preflight", None)
        if self.preflight is None or callable(self.preflight):
            return self.preflight
        return load_object(self.preflight)  # type: ignore[no-any-return]

    @property
    def handler_name(self) -> str:
        """The handler as `module:name` that another process can import; "" if there is none."""
        if isinstance(self.handler, str):
            return self.handler
        module, name = self.handler.__module__, getattr(self.handler, "__qualname__", "")
        if module == "__main__":
            spec = getattr(sys.modules["__main__"], "__spec__", None)
            module = spec.name if spec else getattr(sys.modules["__main__"], "__file__", "")
        return "" if not module or not name or "<" in name else f"{module}:{name}"

    @property
    def config_folder(self) -> Path | None:
        """The folder in which `-c NAME` is found: `config_dir`, else `config/` beside the script, else beside the
        handler's module."""
        if self.config_dir is not None:
            return self.config_dir
        home = self.script_path or self.handler_file()
        return home.resolve().parent / "config" if home else None

    @property
    def job_script(self) -> Path | None:
        """The script that a job in a process of its own runs; None where it calls the handler. The file of a command's
        `module` is one only if it does something when it is run: without a `__main__` in it, nothing would be done, and
        the job would succeed."""
        if self.script_path is None or self.handler != f"{self.module}:main":
            return self.script_path
        try:
            return self.script_path if b"__main__" in self.script_path.read_bytes() else None
        except OSError:  # an error of the job that runs it
            return self.script_path

    def handler_file(self) -> Path | None:
        """The file of the handler's module, which is not imported; None if there is none."""
        if isinstance(self.handler, str):
            module = self.handler.rpartition(":")[0]
            if module.endswith(".py"):
                return Path(module)
            spec = importlib.util.find_spec(module)
            return Path(spec.origin) if spec and spec.origin else None
        module_file = getattr(sys.modules.get(self.handler.__module__), "__file__", None)
        return Path(module_file) if module_file else None


# The placeholder for the config's name in the names of artifacts that a command produces.
_CONFIG = "{config}"


@dataclass
class Pipeline(_Leaf):
    """Commands of one recipe, run in the order of their artifacts. `path` is its names from the recipe on."""

    path: tuple[str, ...]
    stages: tuple[Command, ...]
    description: str = ""

    def producers(self, stage: Command) -> dict[str, Command]:
        """Slot → the stage that saves the artifact which `stage` reads there, as declared; without slots that no stage
        fills."""
        found = {}
        for slot, artifact in stage.artifacts.items():
            name = artifact.default_name.partition(":")[0].partition("@")[0]
            for other in self.stages:
                if other is not stage and any(may_be(pattern, name) for pattern in other.produces):
                    found[slot] = other
        return found


def stage_prefix(command: Command) -> str:
    """The prefix of a stage's keys in a pipeline's overrides: `data.prep.sft` in `data.prep.sft.sample=50`."""
    return ".".join(command.path[1:])


def may_be(produced: str, name: str) -> bool:
    """Whether the artifact called `name` may have been saved by a command that saves `produced` (`Data-{config}`)."""
    if _CONFIG not in produced:
        return produced == name
    return re.fullmatch(re.escape(produced).replace(re.escape(_CONFIG), ".+"), name) is not None


def in_order(stages: Sequence[Command], producers: Callable[[Command], Mapping[str, Command]]) -> list[Command]:
    """The stages sorted such that each follows those that `producers` names for it (slot → stage), otherwise in the
    declared order.

    Raises ValueError, which names them, for stages that depend on each other.
    """
    ordered: list[Command] = []

    def add(stage: Command, waiting: list[Command]) -> None:
        if stage in ordered:
            return
        if stage in waiting:
            circle = [each.full_name for each in [*waiting[waiting.index(stage) :], stage]]
            raise ValueError(f"these stages read each other's artifacts: {' ← '.join(circle)}")
        for other in producers(stage).values():
            add(other, [*waiting, stage])
        ordered.append(stage)

    for stage in stages:
        add(stage, [])
    return ordered


class Group:
    """A named group of commands and groups."""

    def __init__(
        self, name: str, description: str = "", *, path: tuple[str, ...] = (), package: str | None = None
    ) -> None:
        """`package` is the recipe's package (`__name__` in its `__init__.py`), to which modules such as ".train" are
        relative."""
        _check_name(name, "group")
        self.name = name
        self.description = description
        self.package = package
        self.path = (*path, name)
        self.children: dict[str, Group | Command | Pipeline] = {}

    def group(self, name: str, description: str = "") -> Group:
        """The group `name` below this one, made on first use."""
        child = self.children.get(name)
        if isinstance(child, Command | Pipeline):
            kind = "command" if isinstance(child, Command) else "pipeline"
            raise ValueError(f"{' '.join(self.path)}: {name!r} is a {kind} already, not a group.")
        if name in self._aliases():
            raise ValueError(f"{' '.join(self.path)}: {name!r} is another name of a command already, not a group.")
        if child is None:
            child = self.children[name] = Group(name, description, path=self.path, package=self.package)
        child.description = child.description or description
        return child

    def command(
        self,
        name: str,
        config_cls: type | str | None = None,
        handler: Callable[..., Any] | str | None = None,
        script_path: str | Path | None = None,
        description: str = "",
        artifacts: Mapping[str, ArtifactInput] | None = None,
        config_dir: str | Path | None = None,
        *,
        module: str | None = None,
        config: type | str | None = None,
        aliases: Sequence[str] = (),
        produces: Sequence[str] = (),
        preflight: Callable[..., list[str]] | str | None = None,
        torchrun: bool | None = None,
        distributed: bool = True,
        ray: bool | Mapping[str, str] = False,
        targets: Sequence[str] = (),
        interactive: bool = False,
        resources: str | None = None,
        objective: str | None = None,
        array: bool = False,
    ) -> Command:
        """Register a command.

        name: the command's name; `aliases` are others for it.
        config_cls: a dataclass, or "module:name", which keeps a heavy import out of the tree. `config` is an older
            name of this argument.
        handler: the function that is called with an instance of `config_cls`, or its "module:name".
        module: "package.module", or ".module" relative to the App's `package`; it isn't imported. Then `config_cls`,
            `handler` and `preflight` are names in it (by default its functions `main` and, if it has one,
            `preflight`), `config_dir` is relative to it, and without `handler` its file is the script. For instance:
            `app.command("train", "TrainConfig", module=".train")`.
        produces: the names of the artifacts that the handler saves (`{config}` is replaced by the config's name), so
            that an error can name the command that makes a missing one.
        preflight: `preflight(config, connect=bool)` returns the problems that would stop the job; a `Note` among them
            stops nothing. It is called for jobs on this machine; if it has a parameter `here`, also with `here=False`
            for jobs on other machines, where values that are not known yet are texts with `${art:…}`. It gets the
            following if it has parameters of these names: `processes`, their number on all nodes; `gpu`, the kind of
            the profile's GPUs (`name`, `memory` in bytes), or None; `home`, the home folder of the job, or None;
            `free(folder)`, which returns the free bytes in a folder of the job's machine, or None; and `job`, these
            two and its time limit (training.cost.JobFacts).
        torchrun: True starts the job by torchrun, False as one process on one node (`distributed=False` is the same);
            None leaves that to the profile's numbers.
        ray: True gives each job a Ray cluster on all of its nodes: Ray's head starts on node 0, and the handler or
            script is called on node 0 only, with RAY_ADDRESS set. `{"engine": "nemo_rl"}` does so only if the
            config's `engine` is `nemo_rl`.
        targets: the names that a user's config file may have in `_target_`, besides those in the command's configs;
            one that ends in a dot permits all names below it.
        resources: the name of a resource class ("prep"): in a profile C, the table `[C.resources.prep]` has settings
            that take precedence over C's for this command.
        objective: the metric (see `log_metrics`) whose last value a job gives the sweeper; several with commas
            between them for a sweeper with several directions. Without it, the value is what the handler returns.
        array: True if a cluster can divide the work: the config has `tasks`, `step`, `task` and `output_dir` (one
            folder for all), and a launch on several nodes, or with `tasks=N`, is a run of several jobs: `step=plan`,
            an array of `step=shards task=I`, and `step=finish`. If the module has a function `outlook(config, tasks,
            cpus)`, a dry-run prints the lines that it returns.
        interactive: True for a command that reads the terminal or standard input: it runs in this process only, and
            leaves no record.

        Raises TypeError for arguments that exclude each other, ValueError for an invalid or a duplicate name.
        """
        config_cls = config_cls if config_cls is not None else config
        where = " ".join((*self.path, name))
        if module is not None:
            module, file = self._find_module(module, where)
            script_path = file if script_path is None and handler is None else script_path
            config_dir = file.parent / config_dir if config_dir else None
            config_cls, handler = _in_module(config_cls, module), _in_module(handler or "main", module)
            preflight = _in_module(preflight, module)
        if config_cls is None or handler is None:
            example = f"app.command({name!r}, Config, {name.replace('-', '_')}), below the two"
            raise TypeError(
                f"{where}: command() needs a config class (a dataclass) and a handler, or a module. "
                f"It is no decorator; for instance {example}."
            )
        if not distributed and torchrun:
            raise TypeError(f"{where}: distributed=False is one process, torchrun=True is several.")
        if ray and (torchrun or interactive or not distributed):
            raise TypeError(f"{where}: ray starts the command's processes, so no torchrun, distributed or interactive.")
        for each_name in (name, *aliases):
            _check_name(each_name, "command")
            if each_name in self.children or each_name in self._aliases():
                raise ValueError(f"{where}: {each_name!r} is registered already.")
        _check_inputs(artifacts or {}, where)
        if resources is not None:
            _check_name(resources, "resource class")
        if not isinstance(objective, str | None):
            raise TypeError(f'{where}: objective is {objective!r}, not a metric\'s name, or several as "loss,seconds".')
        if isinstance(config_cls, type):
            _check_fields(config_cls, where)
        command = Command(
            path=(*self.path, name),
            config_cls=config_cls,
            handler=handler,
            script_path=Path(script_path) if script_path else None,
            description=description,
            artifacts=dict(artifacts or {}),
            config_dir=Path(config_dir) if config_dir else None,
            aliases=tuple(aliases),
            produces=tuple(produces),
            preflight=preflight,
            torchrun=torchrun if distributed and not interactive else False,
            ray=dict(ray) if isinstance(ray, Mapping) else ray,
            targets=tuple(targets),
            interactive=interactive,
            resources=resources,
            module=module or "",
            objective=objective,
            array=array,
        )
        self.children[name] = command
        return command

    def _find_module(self, module: str, where: str) -> tuple[str, Path]:
        """The full name of a command's module, and its file. ValueError where there is none."""
        if module.startswith(".") and self.package is None:
            raise ValueError(f"{where}: module {module!r} is relative to the app's package: App(…, package=__name__).")
        try:
            found = importlib.util.find_spec(module, self.package)
        except ModuleNotFoundError:
            found = None
        if found is None or not found.origin:
            raise ValueError(f"{where}: there is no module {module!r}.")
        return found.name, Path(found.origin)

    def _aliases(self) -> set[str]:
        """The other names of the commands of this group."""
        return {alias for child in self.children.values() if isinstance(child, Command) for alias in child.aliases}

    def commands(self) -> list[Command]:
        """Every command below, depth first, in the order of declaration. A pipeline is none."""
        return [each for each in self._below() if isinstance(each, Command)]

    def pipelines(self) -> list[Pipeline]:
        """Every pipeline below, depth first, in the order of declaration."""
        return [each for each in self._below() if isinstance(each, Pipeline)]

    def _below(self) -> list[Command | Pipeline]:
        children = self.children.values()
        return [each for child in children for each in (child._below() if isinstance(child, Group) else [child])]


class App(Group):
    """A recipe: the root of a command tree."""

    def pipeline(self, name: str, stages: Sequence[Command | str], description: str = "") -> Pipeline:
        """Register a pipeline: `nemotron RECIPE NAME` runs the stages in the order of their artifacts.

        A stage is a command of this recipe, or its names as a text ("data prep sft"). It runs after the stages whose
        `produces` name what it reads, by the default names of its `artifacts`; else the order is that of `stages`.

            prepare = app.command("prepare", PrepareConfig, prepare_main, produces=["Mine-data-{config}"])
            train = app.command("train", TrainConfig, train_main, produces=["Mine-model"],
                                artifacts={"data": ArtifactInput("Mine-data-default:latest")})
            app.pipeline("pipeline", stages=[prepare, train])

        `nemotron mine pipeline -c tiny train.steps=20` runs both, each with its config `tiny` if it has one; a key of a
        stage's config is prefixed by the stage's names (`data.prep.sft.sample=50`). A stage of which nothing has
        changed since it last succeeded is skipped. `--from`, `--to`, `--only` and `--force` take a stage.

        Raises ValueError for stages that read each other's artifacts, duplicates, and texts that name no command.
        """
        where = f"{self.name} {name}"
        _check_name(name, "pipeline")
        if name in self.children or name in self._aliases():
            raise ValueError(f"{where}: {name!r} is registered already.")
        known = {" ".join(command.path[1:]): command for command in self.commands()}
        chosen: list[Command] = []
        for stage in stages:
            command = known.get(" ".join(stage.replace("/", " ").split())) if isinstance(stage, str) else stage
            if command is None or command not in known.values():
                stage_name = stage if isinstance(stage, str) else stage.full_name
                raise ValueError(
                    f"{where}: {stage_name!r} is no command of {self.name}: {nearest(str(stage_name), known)}"
                )
            if command.interactive:
                raise ValueError(f"{where}: {command.full_name!r} is interactive, and can't be a stage.")
            if command in chosen:
                raise ValueError(f"{where}: the stage {command.full_name!r} is given twice.")
            chosen.append(command)
        if not chosen:
            raise ValueError(f"{where}: a pipeline needs at least one stage.")
        pipeline = Pipeline((self.name, name), tuple(chosen), description)
        try:
            pipeline.stages = tuple(in_order(chosen, pipeline.producers))
        except ValueError as error:
            raise ValueError(f"{where}: {error}.") from error
        self.children[name] = pipeline
        return pipeline

    def run(self, argv: Sequence[str] | None = None) -> NoReturn:
        """Run the command line (`sys.argv[1:]` when `argv` is None) against this tree and exit with its code."""
        from nemotron_kit.cli.main import leave, run_app

        leave(lambda: run_app(self, list(sys.argv[1:] if argv is None else argv)))


def load_object(name: str) -> Any:
    """Import `module:name` (`path/to/file.py:name` also works)."""
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise UserError(f"{name!r} is not of the form module:name.")
    is_file = module_name.endswith(".py")
    found: Any = _load_file(module_name) if is_file else importlib.import_module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"{module_name} has no {attribute!r}.")
        found = getattr(found, part)
    return found


def _load_file(path: str) -> ModuleType:
    """The module in a file, imported once. It is in sys.modules, where dataclasses look up annotations and pickle looks
    up classes: under the file's name, or under its path if another module has that name, which others may import."""
    file = os.path.abspath(path)  # noqa: PTH100
    stem = Path(file).stem
    name = file if _is_taken(stem, file) else stem
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not os.path.isfile(file):  # noqa: PTH113
        raise UserError(f"{path!r} can't be imported: there is no such file.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_taken(name: str, file: str) -> bool:
    """Whether `import name` gives, or would give, another module than the one in `file`."""
    if name in sys.modules:
        found = getattr(sys.modules[name], "__file__", None)
    elif "." in name:  # a file's name that can't be imported
        return True
    elif (spec := importlib.util.find_spec(name)) is None:
        return False
    else:
        found = spec.origin
    return os.path.abspath(found or "") != file  # noqa: PTH100


_Given = TypeVar("_Given")


def _in_module(given: _Given, module: str) -> _Given | str:
    """A name as "module:name"; a text with a colon, or an object, is returned unchanged."""
    return f"{module}:{given}" if isinstance(given, str) and ":" not in given else given


def _check_name(name: str, kind: str) -> None:
    if not SLUG.match(name) or ".." in name:
        raise ValueError(f"{kind} name {name!r}: use letters, digits, '.', '_' and '-', at most 64, no '..'.")


def _check_inputs(artifacts: Mapping[str, Any], where: str) -> None:
    for slot, artifact in artifacts.items():
        if slot in RESERVED_SLOTS:
            raise ValueError(f"{where}: an artifact can't be called {slot!r}: `run.{slot}` is a key of the launcher.")
        if not slot.isidentifier():
            raise ValueError(f"{where}: artifact name {slot!r} is not an identifier.")
        if not isinstance(artifact, ArtifactInput):
            raise TypeError(f"{where}: artifacts[{slot!r}] is {artifact!r}, not an ArtifactInput(default_name=…).")
        if artifact.optional and artifact.mappings:
            raise TypeError(f"{where}: {slot!r} is optional, and a mapped field would have no value without it.")


def _check_fields(config_cls: type, where: str) -> None:
    """Raise ValueError for fields with names that are keys of the launcher, unless they are blocks (a nested dataclass,
    a dict)."""
    for name, annotation in getattr(config_cls, "__annotations__", {}).items():
        if name == "run":
            raise ValueError(f"{where}: a config field can't be called 'run': that section is the launcher's.")
        plain = (int, float, str, bool, Path)
        single = annotation in (*plain, *(kind | None for kind in plain)) or (
            isinstance(annotation, str) and annotation.split("|")[0].strip() in {"int", "float", "str", "bool", "Path"}
        )
        if name in SINGLE_VALUE_CLASHES and single:
            raise ValueError(
                f"{where}: a single value can't be called {name!r} (`{name}=…` selects a {name}). Rename the field; "
                "a block may have that name."
            )


def add_import_folders(folders: Iterable[str]) -> None:
    """Add `folders` to sys.path: after the standard library, so that a `json.py` beside a recipe does not shadow the
    library's, and before installed packages. Folders of installed packages of another environment come last, and so do
    those with a `yaml.py` or the like, which would shadow what the launcher itself needs."""
    library = os.path.dirname(os.__file__)  # noqa: PTH120
    library_entries = [at for at, entry in enumerate(sys.path) if entry in (library, f"{library}/lib-dynload")]
    at = max(library_entries) + 1 if library_entries else len(sys.path)
    new = [folder for folder in dict.fromkeys(folders) if folder and folder not in sys.path]
    last = [folder for folder in new if re.search(_INSTALLED, folder) or not _modules_in(folder).isdisjoint(_LIBRARIES)]
    sys.path[at:at] = [folder for folder in new if folder not in last]
    sys.path.extend(last)


def shadows_library(folder: str) -> bool:
    """Whether a module in `folder` has the name of a standard library module, of one that every job needs, or of one
    that Python runs when it starts: then the folder must not come first on sys.path."""
    return not _modules_in(folder).isdisjoint(sys.stdlib_module_names | _LIBRARIES | _AT_START)


def _modules_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {
                entry.name.partition(".")[0]
                for entry in entries
                if entry.name.endswith((".py", ".pyc", ".so")) or os.path.isfile(f"{entry.path}/__init__.py")  # noqa: PTH113
            }
    except OSError:
        return set()
