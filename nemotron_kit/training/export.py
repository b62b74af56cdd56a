"""Exports the trained model as a folder in transformers' format, with the data's tokenizer."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_kit.artifacts.lineage import inputs
from nemotron_kit.artifacts.manifest import METADATA
from nemotron_kit.artifacts.weights import check_weights
from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.files import aside, fsync_dir, read_checksummed, render_checksummed, write_text
from nemotron_kit.training import processes, sharded
from nemotron_kit.training.checkpoint import export_model, remove, save_config, sync_and_hash
from nemotron_kit.training.model import vocabulary
from nemotron_kit.training.parallel import is_on_ranks

# In a model's folder: the run that made it.
RECORD = "training.json"
CARD = "README.md"
CHAT_TEMPLATE = "chat_template.jinja"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", CHAT_TEMPLATE)
# What ends a turn in the chat template of nano3 and its kin.
TURN_END = "<|im_end|>"


def output_folder(save: str | None, stage: str) -> Path:
    """The folder for models and metrics: checkpoint.save, else the job's folder. Raises UserError if there is
    neither."""
    if save:
        return Path(save).absolute()
    if os.environ.get("NEMO_RUN_DIR"):
        return Path(os.environ["NEMO_RUN_DIR"], stage).absolute()
    raise UserError(
        "checkpoint.save is not set: the trained model has nowhere to go.", hint="Set checkpoint.save=<folder>."
    )


def prepare_output(folder: Path) -> None:
    """Create the folder and check, before any work is done, that it is writable. Raises UserError if it is not."""
    probe = aside(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    except OSError as error:
        raise UserError(
            f"checkpoint.save: {folder} can't be written to: {error.strerror}.", hint="Set another checkpoint.save."
        ) from error
    with contextlib.suppress(OSError):  # what can be written to will do
        probe.unlink()


def model_folder(folder: Path, step: int) -> Path:
    """The folder of the model of `step`."""
    return folder / f"model-{step:08d}"


def require_place(path: Path, identity: Mapping[str, Any]) -> None:
    """Raises UserError if `path`, where this run will write its model, holds the model of another run."""
    if not path.exists():
        return
    hint = f"Remove {path} if nobody needs that model, or set another checkpoint.save for this run."
    try:
        made_by = read_checksummed(path / RECORD, "record")["identity"]
    except (OSError, KeyError, NemotronError):
        raise UserError(
            f"{path} is there already, and no {RECORD} in it says which run made it: this run would replace it.",
            hint=hint,
        ) from None
    different = [
        name
        for name in dict.fromkeys([*identity, *made_by])
        if _without_length(made_by.get(name)) != _without_length(identity.get(name))
    ]
    if different:
        raise UserError(
            f"{path} is there already, the model of another run (other {', '.join(different)}): this run would replace "
            "it.",
            hint=hint,
        )


def _without_length(block: Any) -> Any:
    return {key: value for key, value in block.items() if key != "train_iters"} if isinstance(block, Mapping) else block


def export(
    model: Any, path: Path, data: Path, record: Mapping[str, Any], *, card: str = "", chat: ChatTokens | None = None
) -> None:
    """Write the model to `path`, atomically, with a `record` of the run, its model card, and the tokenizer in `data`.
    With `chat`, generation stops at the end of a turn. An identical model at `path` is kept; anything else there is
    replaced. All ranks must call it: the first writes, and of a sharded model all do."""
    public = without_folders(record)  # it goes where the model goes
    building = aside(path)

    def begin() -> str:
        if processes.rank() == 0:
            building.mkdir(parents=True)
        return str(building)

    def finish(weights: Mapping[str, Any]) -> None:
        if processes.rank() != 0:
            return
        if weights:
            save_config(model.config, model.generation_config, building)
        else:
            export_model(model, building)
        for place in (data / "tokenizer", data):
            for name in _TOKENIZER:
                if (place / name).is_file() and not (building / name).exists():
                    shutil.copyfile(place / name, building / name)
        if chat is not None:
            chat.set_beside(building)
        if card:
            write_text(building / CARD, card, mode=0o666)
        check_weights(building)
        write_text(building / RECORD, render_checksummed(json.loads(json.dumps(public, sort_keys=True))), mode=0o666)
        _take_place(building, path, sync_and_hash(building, weights))

    if chat is not None:
        chat.set_in(model)
    try:
        place = Path(processes.on_all_ranks(begin)[0])
        weights = sharded.export_weights(model, place) if is_on_ranks(model) else {}
        processes.on_all_ranks(lambda: finish(weights))
    except OSError as error:
        raise NemotronError(f"{path}: the model can't be written: {error.strerror or error}.") from error
    finally:
        remove(building)  # another rank's has never been there


def _take_place(building: Path, path: Path, files: Mapping[str, Any]) -> None:
    """Make what is in `building` the model at `path`, in place of what is there, unless that is the very same."""
    old = building.with_suffix(".old.tmp")
    try:
        if path.exists():
            if _is_same(path, files):
                return
            path.rename(old)
        try:
            building.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        fsync_dir(path.parent)
    finally:
        if old.exists():
            remove(old)


def _is_same(path: Path, files: Mapping[str, Any]) -> bool:
    """Whether the model at `path` is complete and has these files; its record may be that of another run with an equal
    model."""
    beside = {RECORD, CARD, METADATA}  # registering adds the last
    try:
        if (path / RECORD).exists():
            read_checksummed(path / RECORD, "record")
        there = sync_and_hash(path)
    except (OSError, NemotronError):
        return False
    return {k: v for k, v in there.items() if k not in beside} == {k: v for k, v in files.items() if k not in beside}


@dataclass(frozen=True)
class ChatTokens:
    """The tokens at which a chat model stops: the end of text and the end of a turn. `stops` and `pad` are token
    ids."""

    stops: tuple[int, ...]
    pad: int
    turn_end: str
    pad_token: str

    @classmethod
    def of(cls, tokenizer: Path) -> ChatTokens | None:
        """The chat tokens of the tokenizer in a folder; None if it has no token that ends a turn."""
        ids = token_ids(tokenizer)
        settings = _json(tokenizer / "tokenizer_config.json")
        if TURN_END not in ids:
            return None
        named = [_token(settings.get("eos_token")) or "</s>", TURN_END]
        pad = next(name for name in (_token(settings.get("pad_token")), "<pad>", TURN_END) if name in ids)
        return cls(tuple(sorted({ids[name] for name in named if name in ids})), ids[pad], TURN_END, pad)

    def set_in(self, model: Any) -> None:
        """Set them in the model's config and generation config, beside the tokens at which it stops already: the
        tokenizer of a chat model names the end of a turn alone."""
        places = (model.config, model.generation_config)
        given = [config.eos_token_id for config in places]
        own = {each for ids in given for each in (ids if isinstance(ids, list | tuple) else [ids]) if each is not None}
        for config in places:
            config.eos_token_id, config.pad_token_id = sorted({*own, *self.stops}), self.pad

    def set_beside(self, folder: Path) -> None:
        """Set them in the tokenizer's files beside a model."""
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            settings = _json(folder / name)
            if settings or name == "tokenizer_config.json":
                settings = settings or {"tokenizer_class": "PreTrainedTokenizerFast"}
                settings |= {"eos_token": self.turn_end, "pad_token": self.pad_token}
                if (folder / CHAT_TEMPLATE).is_file():  # the one that the data was made with
                    settings.pop("chat_template", None)
                write_text(folder / name, json.dumps(settings, indent=2, ensure_ascii=False) + "\n", mode=0o666)


def tokenizer_folder(*places: Path | None) -> Path | None:
    """The folder of the first tokenizer.json found in one of the folders or its `tokenizer/`; None if there is none."""
    for place in places:
        for folder in (place / "tokenizer", place) if place is not None else ():
            if (folder / "tokenizer.json").is_file():
                return folder
    return None


def token_ids(tokenizer: Path) -> dict[str, int]:
    """The token → id mapping of the tokenizer.json in a folder."""
    return vocabulary(_json(tokenizer / "tokenizer.json"))


def _token(value: Any) -> str | None:
    """A special token's text. In a tokenizer's settings it is a string, or an object that holds it."""
    return value.get("content") if isinstance(value, Mapping) else value


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: it can't be read: {error}") from error
    return found if isinstance(found, dict) else {}


def model_card(
    title: str, given: Mapping[str, str | Path | None], facts: Mapping[str, Any], settings: Mapping[str, Any]
) -> str:
    """The README.md of a model: its inputs (`given`: paths), settings and losses. It is published with the model, so it
    contains no absolute path of this machine."""
    pins = [f"`{pin.label if pin.version is not None else Path(pin.path).name}`" for pin in inputs()]
    shown = {**{name: _input_name(Path(path)) for name, path in given.items() if path}, **facts}
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {title}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in shown.items() if value is not None),
        *([f"| made from | {', '.join(dict.fromkeys(pins))} |"] if pins else []),
        "",
        "Settings:",
        "",
        "```json",
        json.dumps(without_folders(settings), indent=1, sort_keys=True, ensure_ascii=False),
        "```",
        "",
        "`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` (transformers) load this folder.",
        "",
    ]
    return "\n".join(lines)


def _input_name(path: Path) -> str:
    """The public name of an input path: the label of the registered input that it belongs to; else its last
    component."""
    path = path.expanduser().absolute()
    for pin in inputs():
        folder = Path(pin.path).absolute()
        if pin.version is not None and path.is_relative_to(folder):
            return pin.label if path == folder else f"{pin.label}, {path.relative_to(folder)}"
        if pin.version is not None and folder.suffix == ".json" and path.parent == folder.parent:  # a manifest's file
            return f"{pin.label}, {path.name}"
    return path.name


def local_name(text: str) -> str | None:
    """The last component of a path of this machine; None for any other text."""
    return Path(text.rstrip("/")).name if text.startswith(("file://", "/", "~", "art:///")) else None


def without_folders(value: Any) -> Any:
    """Settings with each path of this machine reduced to its last component."""
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if isinstance(value, Path):
        return value.name
    # A single component after a slash reveals nothing about a machine, and may be something else: /think.
    return local_name(value) or value if isinstance(value, str) and value.rstrip("/").count("/") > 1 else value


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
