"""`nemotron nano3 generate "…"` and `nemotron nano3 chat`: what a model says, on this terminal.

Standard output has what the model says and nothing else. Neither leaves a record.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError, nearest, printable

if TYPE_CHECKING:
    from nemotron_kit.artifacts import Pin
    from nemotron_kit.training.generate import Sampling, Speaker

# The stages that make a model, the last one first.
STAGES = ("rl", "sft", "pretrain")
_COMMANDS = {
    "/reset": "forget what was said",
    "/save FILE": "write the conversation, as a record that data prep sft takes",
    "/help": "show this",
}


@dataclass
class ChatConfig:
    """How a model answers."""

    system: str | None = field(default=None, metadata={"verbatim": True, "help": "The system message"})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer, in tokens"})
    temperature: float = field(
        default=0.0, metadata={"help": "0 takes the likeliest token each time; 1 draws from the model's distribution"}
    )
    top_p: float = field(default=1.0, metadata={"help": "Draw from the likeliest tokens that have this share together"})
    seed: int | None = field(default=None, metadata={"help": "Makes a random answer repeatable"})
    enable_thinking: bool = field(default=False, metadata={"help": "Let the model reason before it answers"})


@dataclass
class GenerateConfig(ChatConfig):
    """What a model is to go on from, and how."""

    prompt: str = field(
        default="",
        metadata={"positional": True, "verbatim": True, "help": "The text; - or none: what is piped in"},
    )
    raw: bool = field(default=False, metadata={"help": "Give the model the text as it is, without its chat template"})


def generate(cfg: GenerateConfig) -> int:
    """Print the model's answer to the prompt; where that is a terminal, as it comes."""
    sampling = _sampling(cfg)
    prompt = _prompt(cfg)
    if cfg.raw and cfg.system is not None:
        raise UserError("--raw gives the model the prompt as it is: --system has no place in it.")
    speaker = _speaker()
    if speaker.chats and not cfg.raw:
        ids = speaker.prompt(_opening(cfg.system, prompt), enable_thinking=cfg.enable_thinking)
    elif cfg.system is not None:
        raise UserError(f"{speaker.folder}: the model has no chat template, so a system message has no place.")
    else:
        ids = speaker.raw(prompt)
    _, ended = _spoken(speaker.stream(ids, sampling))
    if not ended:
        _tell(f"The answer was cut off after {cfg.max_new_tokens} tokens: --max-new-tokens N allows more.")
    return 0


def chat(cfg: ChatConfig) -> int:
    """Talk with the model until standard input ends. Ctrl-C stops an answer; what it said by then is kept."""
    sampling = _sampling(cfg)
    speaker = _speaker()
    if not speaker.chats:
        raise UserError(
            f"{speaker.folder}: the model has no chat template: it was not taught to chat.",
            hint="Give a model that sft or rl has made (--art.model), or use nemotron nano3 generate.",
        )
    if sys.stdin.isatty():
        _tell("Ctrl-C stops an answer, Ctrl-D ends; /help lists the commands.")
    talk = Conversation(speaker, cfg, sampling)
    for line in _lines():
        if line.startswith("/"):
            talk.command(line)
        elif line.strip():
            talk.turn(line)
    return 0


class Conversation:
    """What was said so far, as messages."""

    def __init__(self, speaker: Speaker, cfg: ChatConfig, sampling: Sampling) -> None:
        self.speaker, self.cfg, self.sampling = speaker, cfg, sampling
        self.saved: set[Path] = set()
        self.messages: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.cfg.system}] if self.cfg.system is not None else []

    def turn(self, text: str) -> None:
        """Say `text`, and print the answer."""
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        try:
            _, ended = _spoken(self.speaker.stream(self._ids(), self.sampling), said)
            if not ended:
                _tell(f"(cut off after {self.cfg.max_new_tokens} tokens)")
        except KeyboardInterrupt:
            _write("\n")
            _tell("(stopped)")
        self.messages.append({"role": "assistant", "content": "".join(said)})

    def _ids(self) -> list[int]:
        """The conversation's tokens; the oldest turns are dropped where the model can't take them all."""
        room = int(self.speaker.model.config.max_position_embeddings) - self.cfg.max_new_tokens
        dropped = 0
        while True:
            ids = self.speaker.prompt(self.messages, enable_thinking=self.cfg.enable_thinking)
            first = int(self.messages[0]["role"] == "system")
            if len(ids) <= room or len(self.messages) - first <= 1:
                break
            del self.messages[first : first + 2]
            dropped += 1
        if dropped:
            _tell(f"(forgot the {dropped} oldest turns: the conversation is longer than the model takes)")
        return ids

    def command(self, line: str) -> None:
        """Obey a line that begins with a slash; one that can't be is said, and the conversation goes on."""
        word, _, rest = line.strip().partition(" ")
        if word == "/reset":
            self.reset()
            _tell("(forgotten)")
        elif word == "/save":
            self._save(rest.strip())
        elif word == "/help":
            for usage, what in _COMMANDS.items():
                _tell(f"{usage:12} {what}")
        else:
            known = [usage.partition(" ")[0] for usage in _COMMANDS]
            _tell(f"There is no command {word}; {nearest(word, known)} A space in front makes it a text.")

    def _save(self, name: str) -> None:
        from nemotron_kit.files import write_text

        path = Path(name).expanduser().absolute()
        if not name:
            _tell("/save needs a file: /save talk.jsonl")
        elif path.exists() and path not in self.saved:
            _tell(f"{path} is there already: nothing was written.")
        else:
            try:
                write_text(path, json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n", mode=0o666)
            except OSError as error:
                _tell(f"{path} can't be written: {error.strerror}.")
            else:
                self.saved.add(path)
                _tell(f"(saved in {path})")


def _lines() -> Iterator[str]:
    """The lines of standard input, on a terminal with a prompt and editing. Ctrl-C drops the line that is typed."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    import contextlib

    with contextlib.suppress(ImportError):  # it gives input() history and editing
        import readline  # noqa: F401
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            _tell("\n(Ctrl-D ends)")
        except EOFError:
            _tell("")
            return


def _prompt(cfg: GenerateConfig) -> str:
    """The prompt as given, or what is piped in, without the line end that programs put there."""
    if cfg.prompt not in ("", "-"):
        return cfg.prompt
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(
            "There is no prompt." if not cfg.prompt else "The prompt is -, and standard input is a terminal.",
            hint='Write it: nemotron nano3 generate "What is a list?"; or pipe it in.',
        )
    try:
        text = sys.stdin.read().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"Standard input is not UTF-8 text (byte {error.start}).") from error
    if not text and not cfg.raw:
        raise UserError("Standard input is empty: there is no prompt.")
    return text


def _opening(system: str | None, prompt: str) -> list[dict[str, Any]]:
    first = [{"role": "system", "content": system}] if system is not None else []
    return [*first, {"role": "user", "content": prompt}]


def _sampling(cfg: ChatConfig) -> Sampling:
    from importlib.util import find_spec

    if find_spec("torch") is None or find_spec("transformers") is None:
        raise UserError("A model needs torch and transformers: pip install 'nemotron-kit[train]'.")
    from nemotron_kit.training.generate import Sampling

    sampling = Sampling(cfg.max_new_tokens, cfg.temperature, cfg.top_p, cfg.seed)
    sampling.check()
    return sampling


def _speaker() -> Speaker:
    """The model that was given, else that of the last stage that has made one."""
    from nemotron_kit.artifacts.lineage import job_inputs

    pin = job_inputs().get("model") or _newest()
    folder = Path(pin.path)
    for name, what in (("config.json", "model"), ("tokenizer.json", "tokenizer")):
        if not (folder / name).is_file():  # before the seconds that loading torch takes
            raise UserError(f"{pin.label}: {folder} holds no {what} in transformers' format (no {name}).")
    from nemotron_kit.training.generate import Speaker

    return Speaker(folder)


def _newest() -> Pin:
    from nemotron_kit.artifacts import ArtifactNotFoundError, Reference, open_registry

    registry = open_registry()
    for stage in STAGES:
        try:
            pin = registry.resolve(Reference.parse(f"ModelArtifact-{stage}:latest"))
        except ArtifactNotFoundError:
            continue
        registry.verify(pin)
        _tell(f"{pin.label} answers.")
        return pin
    names = ", ".join(f"ModelArtifact-{stage}" for stage in STAGES)
    raise UserError(
        f"There is no model: none of {names} is registered.",
        hint="Make one with: nemotron nano3 pretrain -c tiny; or name a folder: --art.model ./model",
    )


def _spoken(pieces: Iterator[str], said: list[str] | None = None) -> tuple[str, bool]:
    """Print an answer as it comes; (its text, whether the model ended it). `said` has what came, even where it is
    stopped."""
    said = [] if said is None else said
    ended: Any = False
    while True:
        try:
            piece = next(pieces)
        except StopIteration as end:
            ended = end.value
            break
        said.append(piece)
        _write(piece)
    text = "".join(said)
    if not text.endswith("\n"):
        _write("\n")
    return text, bool(ended)


def _write(text: str) -> None:
    """What the model says: to a terminal without what would control it."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _tell(text: str) -> None:
    print(text, file=sys.stderr)
