"""The words of `python -m nemotron_kit`: Hydra's own, and a few of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemotron_kit.cli import tree
from nemotron_kit.cli.index import Index, Node
from nemotron_kit.cli.options import HYDRA
from nemotron_kit.cli.quoting import single
from nemotron_kit.cli.reader import Reader
from nemotron_kit.cli.request import Help, Job, Request, Version
from nemotron_kit.cli.suggest import near
from nemotron_kit.errors import UserError

PROG = "python -m nemotron_kit"
NOTHING_KNOWN: Node = {"fields": [], "artifacts": [], "configs": []}


def parse_hydra(argv: Sequence[str], index: Index) -> Request:
    """What `python -m nemotron_kit ARGV` asks for: Hydra's words and flags (-c and -r are Hydra's here), --run NAME,
    --batch NAME, --dry-run, --json, --art.X, --run.KEY and --wandb.KEY. Raises UserError."""
    if "--version" in argv:
        return Version()
    node = _node(_last(argv, "recipe"), _last(argv, "stage"), index)
    leaf = node if not tree.is_group(node) else None
    if tree.wants_help(argv):
        return Help(tuple(node["path"]))
    detail = index.detail(leaf) if leaf else NOTHING_KNOWN
    job = Reader(argv, HYDRA, detail, " ".join((PROG, *_choices(node))), f"{PROG} --help").read()
    _check_complete(job, node)
    check_launcher(job)
    return job


def _node(recipe: str, stage: str, index: Index) -> Node:
    """The node that recipe= and stage= name, as far as they do. Raises UserError with the nearest names."""
    if not recipe:
        return index.root
    node = index.root["children"].get(recipe)
    if node is None:
        raise no_recipe(recipe, index, PROG)
    found = tree.find(index, (recipe, *stage.split("/"))) if stage else node
    if found is None or (stage and tree.is_group(found)):
        raise UserError(f"{recipe} has no stage {stage!r}.", hint=near(stage, _stages(node)))
    return found


def _stages(recipe: Node) -> list[str]:
    return ["/".join(words[1:]) for leaf in tree.leaves(recipe) for words in tree.spellings(leaf)]


def _choices(node: Node) -> list[str]:
    """A node's path in Hydra's words."""
    recipe, stage = node["path"][:1], node["path"][1:]
    return [*(f"recipe={each}" for each in recipe), *([f"stage={'/'.join(stage)}"] if stage else [])]


def _check_complete(job: Job, node: Node) -> None:
    """A job has a recipe and a stage, unless a sweep is over them or Hydra is asked about itself."""
    swept = {override.partition("=")[0] for override in job.overrides}
    if asks_hydra(job):
        return
    if not job.recipe and "recipe" not in swept and node["path"]:
        raise UserError("recipe= was taken for the value of the option before it.", hint="Give that option its value.")
    if not job.recipe and "recipe" not in swept:
        raise UserError("No recipe was given.", hint=f"Give recipe=NAME. {near('', node['children'])}")
    if job.recipe and not job.stage and "stage" not in swept and not tree.is_group(node):
        raise UserError("stage= was taken for the value of the option before it.", hint="Give that option its value.")
    if job.recipe and not job.stage and "stage" not in swept:
        raise UserError(f"No stage of {job.recipe} was given.", hint=f"Give stage=NAME. {near('', _stages(node))}")


def asks_hydra(job: Job) -> bool:
    """Whether Hydra is asked about itself, which takes no recipe."""
    return job.flag("--info") is not None or job.flag("--hydra-help") is not None


def _last(argv: Sequence[str], choice: str) -> str:
    """The value that a plain `choice=value` gives, "" where there is none or a sweep."""
    found = [single(word.partition("=")[2]) for word in argv if word.startswith(f"{choice}=")]
    return (found[-1] or "") if found else ""


def check_launcher(job: Job) -> None:
    """Refuse a launcher that would send the job elsewhere than its profile says."""
    launcher = _last(job.overrides, "hydra.launcher.profile")
    if launcher and job.profile and launcher != job.profile:
        raise UserError(
            f"run.profile is {job.profile}, and hydra.launcher.profile is {launcher}.", hint="Give one of the two."
        )


def no_recipe(word: str, index: Index, prog: str) -> UserError:
    """The error for a name that no recipe has, or a broken one."""
    if word in index.broken:
        return UserError(
            f"The recipe {word!r} is broken: {index.broken[word]}.", hint="The others are not touched by it."
        )
    known = [*index.root["children"], *(tree.TOOLS if prog == "nemotron" else ())]
    hint = _folder_of_that_name(word) or f"{near(word, known)} `{prog} --help` shows them all."
    return UserError(f"There is no recipe {word!r}.", hint=hint.strip())


def _folder_of_that_name(word: str) -> str:
    """What to do with a recipe in the working folder that nobody has named yet."""
    folder = Path(word)
    if not word.isidentifier() or (not (folder / "__init__.py").is_file() and not (folder / "__main__.py").is_file()):
        return ""
    started = f"run it as `python -m {word} …`, or " if (folder / "__main__.py").is_file() else ""
    return f'The folder {word}/ here is not named in env.toml: {started}add [cli] recipes = ["{word}"] to it.'
