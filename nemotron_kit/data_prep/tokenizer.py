"""A tokenizer's files: found on this machine or on the Hugging Face hub, and copied beside the shards made with it."""

from __future__ import annotations

import hashlib
import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from nemotron_kit.data_prep.shard_plan import TokenizerRecord
from nemotron_kit.errors import UserError
from nemotron_kit.files import kind_of_file, read_regular, write_changed, write_text
from nemotron_kit.home import expand_user

FOLDER = "tokenizer"
MAIN = "tokenizer.json"
SENTENCEPIECE = "tokenizer.model"
CHAT_TEMPLATE = "chat_template.jinja"  # where transformers looks for it
HUB = "hf://"
_SIDE = ("tokenizer_config.json", "special_tokens_map.json")
_USUAL = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[EOS]"),
}


def find_tokenizer(model: str) -> Path:
    """The tokenizer.json: a local file or the one in a folder, else downloaded from the hub (or taken from its cache).

    `owner/name@revision` pins a revision; a leading `hf://` means the hub, not a folder. Raises UserError if there is
    none.
    """
    local = local_tokenizer(model)
    if local is not None:
        return local
    name, _, revision = model.removeprefix(HUB).partition("@")
    return _fetch(name, revision or None)


def local_tokenizer(model: str) -> Path | None:
    """The tokenizer.json of a path, None for a name on the hub. Raises UserError for a path that is missing or has
    none."""
    if model.startswith(HUB):
        return None
    local = expand_user(model)
    if local.is_dir():
        if not (local / MAIN).is_file():
            if (local / SENTENCEPIECE).is_file():
                raise _sentencepiece(local)
            raise UserError(f"tokenizer_model: {local} holds no {MAIN}.", hint="Save the tokenizer in its fast form.")
        return (local / MAIN).absolute()
    if local.exists():
        if not local.is_file():
            kind = kind_of_file(local.stat().st_mode)
            raise UserError(f"tokenizer_model: {local} is {kind}, not a regular file.")
        if local.suffix == ".model":
            raise _sentencepiece(local.parent if local.name == SENTENCEPIECE else local)
        return local.absolute()
    name = model.partition("@")[0]
    owner = name.partition("/")[0]
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or local.suffix in (".json", ".model"):
        raise UserError(f"tokenizer_model: there is no {model}, and it is no hub name (owner/name).")
    if Path(owner).is_dir():  # more likely a mistyped path than a hub name: the hub is not asked
        hint = f"Correct the path; the hub's is {HUB}{model}."
        raise UserError(f"tokenizer_model: there is no {model} in the folder {owner}/.", hint=hint)
    return None


def _sentencepiece(path: Path) -> UserError:
    """The error for SentencePiece's own format, with the command that converts it."""
    if not path.is_dir():
        hint = (
            f"Put it into a folder as {SENTENCEPIECE}, and name that folder: the error then has the line that converts."
        )
        return UserError(f"tokenizer_model: {path} is a SentencePiece model, not a {MAIN}.", hint=hint)
    # Without a config transformers would not know the class, and guess one that cuts text in another way.
    cls = "AutoTokenizer" if (path / _SIDE[0]).is_file() else "LlamaTokenizerFast"
    code = (
        f"import sys; from transformers import {cls} as T; T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])"
    )
    fast = path.with_name(f"{path.resolve().name}-fast")
    return UserError(
        f"tokenizer_model: {path} holds SentencePiece's {SENTENCEPIECE}, and no {MAIN}.",
        hint=f"Convert it once, with transformers, sentencepiece and protobuf installed, and name {fast}. (A model "
        "that, unlike Llama's, changes spaces or letters needs its own class here; compare some texts.)\n"
        + shlex.join(["python", "-c", code, str(path), str(fast)]),
    )


def describe(
    file: Path, model: str, *, add_bos: bool, add_eos: bool, number_type: str | None = None
) -> TokenizerRecord:
    """The plan's record of a tokenizer.json. Raises UserError if it lacks a token that is to be added, or has more than
    `number_type` can number."""
    content = read_regular(file, limit=1 << 30)
    vocabulary = load(file).get_vocab(with_added_tokens=True)
    names = _special_names(file.parent)

    def token(kind: str) -> int:
        if names.get(kind, kind) not in {kind, *vocabulary}:  # another one in its place would be wrong in silence
            raise UserError(f"tokenizer {model}: its {kind.upper()} token is {names[kind]!r}, which {file} lacks.")
        known = [name for name in (names.get(kind), *_USUAL[kind]) if name in vocabulary]
        if not known:
            hint = f"Set add_{kind}=false, or name it in {_SIDE[0]}."
            raise UserError(f"tokenizer {model} names no {kind.upper()} token.", hint=hint)
        return int(vocabulary[known[0]])

    found = TokenizerRecord(
        model=model,
        file=f"{FOLDER}/{MAIN}",
        sha256=hashlib.sha256(content).hexdigest(),
        vocab_size=max(vocabulary.values()) + 1,
        bos=token("bos") if add_bos else None,
        eos=token("eos") if add_eos else None,
        number_type=number_type,
    )
    if number_type == "uint16" and found.vocab_size > 1 << 16:
        raise UserError(f"dtype=uint16 is too small for a vocabulary of {found.vocab_size:,}.", hint="Use int32.")
    return found


def copy_tokenizer(file: Path, output: Path, template: str | None = None) -> None:
    """Copy the tokenizer's files, and the chat template's text, to `<output>/tokenizer`, where the plan and its readers
    look for them. What this tokenizer does not have is removed: it would be another one's."""
    target = output / FOLDER
    for source, copy in [(file, target / MAIN), *((file.parent / name, target / name) for name in _SIDE)]:
        if source.is_file():
            write_changed(copy, source.read_bytes(), mode=0o666)
        else:
            copy.unlink(missing_ok=True)
    if template is not None:
        write_text(target / CHAT_TEMPLATE, template, mode=0o666)
    elif target.resolve() != file.parent.resolve():
        (target / CHAT_TEMPLATE).unlink(missing_ok=True)


def load(file: Path) -> Any:
    """A `tokenizers.Tokenizer` without truncation and padding."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{file}: not a tokenizer: {error}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        found = Path(hf_hub_download(name, MAIN, revision=revision))
    except EntryNotFoundError as error:
        line = f"huggingface-cli download {name} --local-dir {name.rpartition('/')[2]}"
        hint = f"With only a {SENTENCEPIECE} there, fetch and name the folder: {line}"
        raise UserError(f"tokenizer_model: {name} on the hub has no {MAIN}.", hint=hint) from error
    except Exception as error:  # each HTTP library raises its own
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"tokenizer_model: {name} can't be fetched: {reason}",
            hint="Is the name right, the network there, HF_TOKEN needed? A local folder works too.",
        ) from error
    for side in _SIDE:
        with suppress(EntryNotFoundError):  # not every tokenizer has them
            hf_hub_download(name, side, revision=revision)
    return found


def _special_names(folder: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for file in reversed(_SIDE):
        if (folder / file).is_file():
            try:
                content = json.loads((folder / file).read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{folder / file}: broken JSON: {error}.") from error
            if not isinstance(content, dict):
                raise UserError(f"{folder / file}: expected a JSON object.")
            for kind in ("bos", "eos"):
                value = content.get(f"{kind}_token")
                value = value.get("content") if isinstance(value, dict) else value
                if isinstance(value, str):
                    names[kind] = value
    return names
