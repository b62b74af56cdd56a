"""From the words of a command line to a request. A pure function over the index; every mistake is a UserError.

Options stand before, between or after the words, so which of them take a value is known only once the command is:
each command whose words stand in the line, in order, is tried.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nemotron_kit.cli import tree
from nemotron_kit.cli.help import program
from nemotron_kit.cli.hydra_argv import NOTHING_KNOWN, asks_hydra, check_launcher, no_recipe, parse_hydra
from nemotron_kit.cli.index import Index, Node
from nemotron_kit.cli.options import NEMOTRON
from nemotron_kit.cli.reader import Elsewhere, Reader
from nemotron_kit.cli.request import Help, Job, Request, Tool, Version
from nemotron_kit.cli.suggest import near
from nemotron_kit.errors import UserError

__all__ = ["parse", "parse_hydra"]


class Speaker(NamedTuple):
    """How the program is called (`prog`), and the words that are taken as said already (`root`)."""

    prog: str
    root: tuple[str, ...]

    def help_line(self, words: Sequence[str]) -> str:
        return " ".join((self.prog, *words, "--help"))


class _Failure(NamedTuple):
    """A command that the line turned out not to be. They compare by how far the reading got."""

    meant: bool  # its words fit; what was wrong is something else
    at: int
    reached: bool
    error: UserError


def parse(argv: Sequence[str], index: Index, root: tuple[str, ...] = (), prog: str = "") -> Request:
    """What `nemotron ARGV` asks for; with `root=("myrecipe",)` what `python -m myrecipe ARGV` does, where nemotron's
    own commands don't exist. `prog` is how hints call the program. Raises UserError."""
    argv, speaker = list(argv), Speaker(prog or program(root), root)
    first = tree.first_word(argv)
    if not root and argv[:1] == ["--version"]:
        return Version()
    if not root and first in tree.TOOLS:
        return Tool(first, tuple(_without(argv, first)))
    if not root and first == "help":
        return _asked(_without(argv, first), index, speaker)
    if not argv or tree.wants_help(argv):
        return help_request(argv, index, speaker)
    return _job(argv, index, speaker)


def _asked(argv: Sequence[str], index: Index, speaker: Speaker) -> Request:
    """`nemotron help WORDS`"""
    first = tree.first_word(argv)
    return Tool(first, ("--help",)) if first in tree.TOOLS else help_request(argv, index, speaker)


def help_request(argv: Sequence[str], index: Index, speaker: Speaker) -> Help:
    """Help for the node that the words of `argv` lead to. Raises UserError for a word that leads nowhere."""
    reached = tree.walk(argv, index, speaker.root)
    if reached.unknown is not None:
        raise _lost(reached, index, speaker)
    return Help(reached.path)


def _job(argv: list[str], index: Index, speaker: Speaker) -> Request:
    reached = tree.walk(argv, index, speaker.root)
    tried = [_attempt(argv, *each, index, speaker, reached) for each in _candidates(argv, index, speaker.root)]
    jobs = [each for each in tried if isinstance(each, Job)]
    if len(jobs) == 1:
        return jobs[0]
    if jobs:
        both = " and as ".join(repr(" ".join(job.path)) for job in jobs)
        raise UserError(f"This line can be read as {both}.", hint="Put the options behind the words.")
    failures = [each for each in tried if isinstance(each, _Failure)]
    best = max(failures, key=lambda each: each[:3], default=None)
    if best is not None and (best.meant or not tree.is_group(reached.node)):
        raise best.error
    if reached.unknown is not None:
        raise _lost(reached, index, speaker)
    return _unfinished(argv, reached, speaker)


def _candidates(argv: list[str], index: Index, root: tuple[str, ...]) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """Each command that the line may name, with the words that name it; when the line begins with them, just that."""
    top = tree.find(index, root) or index.root
    every = [(leaf, words[len(root) :]) for leaf in tree.leaves(top) for words in tree.spellings(leaf)]
    exact = [(leaf, words) for leaf, words in every if tuple(argv[: len(words)]) == words]
    yield from exact or (each for each in every if tree.is_subsequence(each[1], argv))


def _attempt(
    argv: list[str], leaf: Node, words: tuple[str, ...], index: Index, speaker: Speaker, reached: tree.Walk
) -> Job | _Failure:
    """The line read as this command."""
    reader, named = None, tuple(leaf["path"]) == reached.path
    try:
        detail = _detail(index, leaf)
        reader = Reader(argv, NEMOTRON, detail, " ".join((*speaker.root, *words)), speaker.help_line(words))
        return _named(reader.read(words), leaf)
    except UserError as error:
        return _Failure(not isinstance(error, Elsewhere), reader.at if reader else 0, named, error)


def _detail(index: Index, leaf: Node) -> Node:
    if "broken" in leaf:
        raise UserError(f"{' '.join(leaf['path'])} can't be used: {leaf['broken']}")
    return index.detail(leaf)


def _named(job: Job, leaf: Node) -> Job:
    """The job with the command that its words name, which no override may name again."""
    recipe, *stage = leaf["path"]
    if job.recipe or job.stage:
        raise UserError(
            f"The words {' '.join(leaf['path'])!r} say recipe= and stage= already.", hint="Leave those out."
        )
    check_launcher(job)
    return dataclasses.replace(job, recipe=recipe, stage="/".join(stage))


def _unfinished(argv: Sequence[str], reached: tree.Walk, speaker: Speaker) -> Request:
    """A group without a command: its help. Hydra can be asked about itself without one. Raises UserError for an option
    that, if anything, only a command has."""
    words = reached.path[len(speaker.root) :]
    name, hint = " ".join((speaker.prog, *words)), speaker.help_line(words)
    job = Reader(argv, NEMOTRON, NOTHING_KNOWN, name, hint).read(words)
    return job if not words and asks_hydra(job) else Help(reached.path, asked=False)


def _lost(reached: tree.Walk, index: Index, speaker: Speaker) -> UserError:
    """The error for a word that names nothing where it stands."""
    word, words = reached.unknown or "", reached.path[len(speaker.root) :]
    for option, taken in reached.taken:
        if tree.child(reached.node, taken) is not None:
            what = "PROFILE" if option.startswith(("--run", "--batch", "-r", "-b")) else "VALUE"
            return UserError(
                f"{option} needs a {what}, and {taken!r} stands in its place.", hint=f"Write {option} {what}."
            )
    if not reached.path:
        return no_recipe(word, index, speaker.prog)
    children = reached.node["children"].values()
    known = [name for child in children for name in (child["name"], *child.get("aliases", ()))]
    hint = f"{near(word, known)} `{speaker.help_line(words)}` tells more."
    return UserError(f"{' '.join(reached.path)} has no command {word!r}.", hint=hint.strip())


def _without(argv: Sequence[str], word: str) -> list[str]:
    at = list(argv).index(word)
    return [*argv[:at], *argv[at + 1 :]]
