"""Evaluates a model: its held-out loss, its answers to questions with a known answer, and tasks of lm-eval-harness."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import NemotronError, UserError, near
from nemotron_kit.files import read_regular
from nemotron_kit.training.data import HeldOutSamples, collate, evenly, read_blend
from nemotron_kit.training.generate import TextGenerator
from nemotron_kit.training.parallel import token_nll
from nemotron_kit.training.prompts import agent_of, opens_reasoning, read_rows
from nemotron_kit.training.rewards import check_rows, find_verifiers, reward
from nemotron_kit.training.sft import batch_nll
from nemotron_kit.training.sft_data import PackedRows, batches

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Result = dict[str, float | None]
SPLITS = ("valid", "test")
# Tokens of padded sequences in one forward pass over packed rows.
_BATCH_TOKENS = 8192
# Packed rows may be as long as they are: what is loaded is a row's sequences.
_ANY_LENGTH = 1 << 40


def held_out(
    generator: TextGenerator, data: Path, *, split: str, limit: int | None, seq_length: int | None, batch_size: int
) -> Result:
    """{"loss", "bits_per_byte", "tokens"} of a split of prepared data: pretraining shards with a blend.json, or packed
    chat rows, of which only the assistant's tokens count. The loss is in nats per token.

    `limit` is a number of windows (shards) or rows (packed). Raises UserError for data without the split.
    """
    packed = split_folder(data, split)
    if packed is not None:
        nll, tokens, size = _packed(generator, packed, limit)
    else:
        nll, tokens, size = _shards(generator, data, split, limit, seq_length, batch_size)
    if not math.isfinite(nll):
        raise NemotronError(f"The held-out loss is {nll}: the model's weights hold values that are no numbers.")
    return {
        "loss": nll / tokens,
        "bits_per_byte": nll / math.log(2) / size if size else None,
        "tokens": float(tokens),
    }


def _shards(
    generator: TextGenerator, data: Path, split: str, limit: int | None, seq_length: int | None, batch_size: int
) -> tuple[float, int, int]:
    import torch

    path = data / "blend.json" if data.is_dir() else data
    if not path.is_file():
        raise UserError(
            f"{data}: neither blend.json nor Parquet rows of the {split} split: this is no prepared data.",
            hint="Give what `nemotron nano3 data prep pretrain` or `data prep sft` has made.",
        )
    blend = read_blend(path, only=split)
    if split not in blend:
        raise UserError(
            f"{path}: there is no {split} split.", hint=f"It has: {', '.join(blend)}. Set split to one of them."
        )
    length = seq_length or trained_length(generator.folder) or min(4096, generator.model.config.max_position_embeddings)
    samples = HeldOutSamples(blend[split], length, limit)
    if len(samples) == 0:
        raise UserError(
            f"{path}: no shard of the {split} split holds {length + 1} tokens.", hint="Set a smaller seq_length."
        )
    sizes = byte_lengths(generator.tokenizer, generator.model.config.vocab_size)
    total, size, model = 0.0, 0, generator.model
    # An evaluation is one process, whatever ranks the environment names: training's loop over windows divides them.
    with torch.no_grad():
        for start in range(0, len(samples), batch_size):
            positions = range(start, min(start + batch_size, len(samples)))
            batch = collate(samples, positions, model.config.vocab_size)
            nll = token_nll(model, batch["input_ids"].to(model.device), batch["labels"].to(model.device), None)
            total += float(nll.item())
            size += int(sizes[batch["labels"].numpy()].sum())
    return total, len(samples) * length, size


def split_folder(data: Path, split: str) -> Path | None:
    """The folder of a split of packed rows: in the folder of splits, or in the one that holds it; None without one."""
    names = ("valid", "validation") if split == "valid" else (split,)
    folders = [root / name for root in (data, data / "splits") for name in names]
    return next((folder for folder in folders if next(folder.glob("**/*.parquet"), None) is not None), None)


def _packed(generator: TextGenerator, folder: Path, limit: int | None) -> tuple[float, int, int]:
    """(summed loss in nats, number of counted tokens, their bytes) of packed rows, with each sequence run
    separately."""
    import torch

    model = generator.model
    sizes = byte_lengths(generator.tokenizer, model.config.vocab_size)
    packed = PackedRows(folder, seq_length=_ANY_LENGTH)
    packed.vocab_size = model.config.vocab_size
    total, tokens, size = 0.0, 0, 0
    rows = packed.in_order(limit)
    while some := list(islice(rows, 64)):
        for batch in batches(some, _BATCH_TOKENS):
            with torch.no_grad():
                total += float(batch_nll(model, batch.to(model.device)).item())
            labels = batch.labels[batch.counts].numpy()
            tokens += len(labels)
            size += int(sizes[labels].sum())
    if not tokens:
        raise UserError(f"{folder}: no token of these rows counts (loss_mask is 0 everywhere).")
    return total, tokens, size


def trained_length(folder: Path) -> int | None:
    """The sequence length that a model trained here was trained on, from its artifact's metadata; None if unknown."""
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8")).get("metadata", {})
        return int(metadata["seq_length"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not trained here, or without this metadata


def byte_lengths(tokenizer: Any, vocab_size: int) -> NDArray[np.int64]:
    """[vocab_size]: how many bytes of text each token stands for; 0 for special tokens.

    In a byte-level vocabulary a token's characters are bytes. In any other a token's own text is measured, which is not
    exact for tokens that stand for parts of a character.
    """
    import numpy as np

    sizes = np.zeros(vocab_size, dtype=np.int64)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    for token, number in tokenizer.get_vocab().items():
        if number < vocab_size and number not in special:
            sizes[number] = len(token) if byte_level else len(tokenizer.decode([number]).encode())
    return sizes


def answers(
    generator: TextGenerator,
    data: Path,
    *,
    split: str,
    limit: int | None,
    batch_size: int,
    max_new_tokens: int,
    enable_thinking: bool,
    verifiers: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Result]:
    """The scores of greedy answers to the questions of RL data, by verifier name (`exact_match`): {"accuracy",
    "stderr", "ended", "count"}. `accuracy` is the mean reward (pass@1 with greedy decoding), `stderr` its standard
    error (None for a single question), `ended` the share of answers that end their turn.

    `verifiers` are the config's own, in the form that rl takes. Raises UserError for data without the split, and for
    rows whose verifier is missing.
    """
    if not generator.chats:
        raise UserError(
            f"{generator.folder}: the model has no chat template, so it can't be asked questions.",
            hint="Give a model that sft or rl has made, or leave run.tasks out.",
        )
    file = jsonl_of(data, split)
    every = read_rows(file, "run.tasks")
    rows = [every[number] for number in evenly(len(every), limit)]
    judges = find_verifiers(dict.fromkeys(map(agent_of, rows)), verifiers or {})
    check_rows(rows, judges, str(file))
    asked = [row["responses_create_params"] for row in rows]
    prompts = [generator.prompt(given["input"], given.get("tools"), enable_thinking=enable_thinking) for given in asked]
    # Prompts of like length together: the less is padding.
    order = sorted(range(len(rows)), key=lambda number: len(prompts[number]))
    scores: dict[str, list[float]] = {agent: [] for agent in judges}
    ended = dict.fromkeys(judges, 0)
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        generated = generator.answers([prompts[number] for number in numbers], max_new_tokens)
        for answer, number in zip(generated, numbers, strict=True):
            agent = agent_of(rows[number])
            reasons = opens_reasoning(generator.tokenizer, prompts[number])
            scores[agent].append(reward(judges[agent], answer.text, rows[number], agent, reasons=reasons))
            ended[agent] += answer.ended
    return {agent: _summary(given, ended[agent]) for agent, given in scores.items()}


def _summary(scores: Sequence[float], ended: int) -> Result:
    accuracy = sum(scores) / len(scores)
    squares, count = sum((each - accuracy) ** 2 for each in scores), len(scores)
    return {
        "accuracy": accuracy,
        "stderr": math.sqrt(squares / (count - 1) / count) if count > 1 else None,
        "ended": ended / len(scores),
        "count": float(len(scores)),
    }


def jsonl_of(data: Path, split: str) -> Path:
    """The JSONL file of a split of RL data, given its manifest.json or the folder that holds it. Raises UserError if
    there is none."""
    manifest = data / "manifest.json" if data.is_dir() else data
    try:
        named = json.loads(read_regular(manifest))
    except OSError as error:
        hint = "Give what `nemotron nano3 data prep rl` has made."
        raise UserError(f"{manifest}: {error.strerror}.", hint=hint) from error
    except ValueError as error:
        raise UserError(f"{manifest}: not valid JSON: {error}.") from error
    keys = ("val", "valid", "validation") if split == "valid" else (split,)
    found = next((named[key] for key in keys if isinstance(named, dict) and named.get(key)), None)
    if found is None:
        have = ", ".join(sorted(named)) if isinstance(named, dict) else "no object"
        raise UserError(f"{manifest}: there is no {split} split.", hint=f"It has: {have}.")
    return manifest.parent / str(found)


def run_tasks(
    generator: TextGenerator,
    tasks: Sequence[str],
    *,
    task_path: Path | None,
    limit: int | None,
    batch_size: int,
    num_fewshot: int | None,
    enable_thinking: bool,
) -> dict[str, Result]:
    """Task → {metric: value}, by lm-eval-harness. `task_path` is a folder of the user's own tasks (YAML), which take
    precedence. Raises UserError for an unknown task, or one whose data can't be loaded."""
    import logging

    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # It would ask git about the working folder, and git complains where there is no work tree.
    evaluator.get_git_commit_hash = lambda: None
    manager = _task_manager(tasks, task_path)
    model = HFLM(
        pretrained=generator.model,
        tokenizer=generator.tokenizer,
        batch_size=batch_size,
        enable_thinking=enable_thinking,
    )
    try:
        found = evaluator.simple_evaluate(
            model,
            tasks=list(tasks),
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=generator.chats,
            log_samples=False,
        )
    except (OSError, ConnectionError, FileNotFoundError) as error:
        raise UserError(
            f"The data of {', '.join(tasks)} can't be read: {' '.join(str(error).split())[:400]}",
            hint="A task of lm-eval fetches its data from the Hugging Face hub; task_path=FOLDER names tasks whose "
            "data_files are on this machine.",
        ) from error
    results: dict[str, Result] = {}
    for task, values in (found or {}).get("results", {}).items():
        # As in {"acc,none": …, "acc_stderr,none": …, "alias": …}: the filter's name is kept unless it is `none`.
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        numbers = {name: value for name, value in numbers.items() if not isinstance(value, bool)}
        results[task] = {name.removesuffix(",none"): float(value) for name, value in numbers.items()}
    return results


def _task_manager(tasks: Sequence[str], task_path: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    # Listing the harness's thousands of tasks takes seconds: only if needed.
    manager = TaskManager(include_path=str(task_path), include_defaults=False) if task_path else None
    if manager is None or any(task not in manager.all_tasks for task in tasks):
        manager = TaskManager(include_path=str(task_path) if task_path else None)
    for task in tasks:
        if task not in manager.all_tasks:
            raise UserError(f"lm-eval has no task {task!r}.", hint=near(task, manager.all_tasks))
    return manager
