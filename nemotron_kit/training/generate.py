"""Text generation: answers to prompts in batches, and one answer streamed token by token.

Models are loaded by training.model, so that token-by-token generation agrees with the forward pass over the whole text.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import NemotronError, UserError
from nemotron_kit.training import sampling
from nemotron_kit.training.engine import load_libraries, quiet
from nemotron_kit.training.model import load_model, require_model
from nemotron_kit.training.prompts import chat_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the most likely one; `seed` makes sampling reproducible."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def check(self) -> None:
        """Raises UserError for an invalid value."""
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(
                f"temperature is {self.temperature}; it must be 0 (always the likeliest token) or more, and finite."
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be more than 0, and 1 at most.")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise UserError(f"seed is {self.seed}; it must be a whole number from 0.")


@dataclass(frozen=True)
class Answer:
    """`text` without the token that ended it; `ended`: the model ended its turn (otherwise the token limit did)."""

    text: str
    ended: bool
    tokens: int


class TextGenerator:
    """A model and its tokenizer, from a folder in transformers' format."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if there is no model, or no tokenizer beside it."""
        load_libraries()
        import torch

        quiet()
        self.folder = folder
        self.tokenizer = load_tokenizer(folder)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = load_model(folder).to(device).eval()
        self.stops = sampling.end_ids(self.model, self.tokenizer, required=False)

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self.tokenizer.chat_template)

    def prompt(
        self, asked: str | Sequence[Mapping[str, Any]], tools: Any = None, *, enable_thinking: bool = False
    ) -> list[int]:
        """The token ids of a question or a conversation, from `chat_ids`."""
        return chat_ids(self.tokenizer, asked, tools, {"enable_thinking": enable_thinking})

    def raw(self, text: str) -> list[int]:
        """The token ids of a text without a chat template. An empty text gives the token that begins a document."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if ids:
            return ids
        begin = self.tokenizer.bos_token_id
        begin = begin if begin is not None else self.tokenizer.eos_token_id
        if begin is None:
            raise UserError("The prompt is empty, and the tokenizer has no token that a text begins with.")
        return [int(begin)]

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[Answer]:
        """The greedy answer to each prompt (token ids), all in one batch, generated as in rl."""
        self._check(prompts)
        with sampling.answering(self.model):
            generated = sampling.generate(self.model, prompts, self.stops, max_new_tokens, pad=self._pad())
        return [Answer(each.text(self.tokenizer), each.ended, len(each.ids) - each.ended) for each in generated]

    def stream(self, prompt: Sequence[int], how: Sampling) -> Generator[str, None, bool]:
        """Yield one answer piece by piece; returns whether the model ended its turn. Closing the generator stops the
        model after its current token."""
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

        self._check([prompt])
        stop, ended, stops = threading.Event(), threading.Event(), self.stops
        failed: list[BaseException] = []

        class CancelCriteria(StoppingCriteria):  # type: ignore[misc,unused-ignore]
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                return torch.full((input_ids.shape[0],), stop.is_set(), device=input_ids.device, dtype=torch.bool)

        class Pieces(TextIteratorStreamer):  # type: ignore[misc,unused-ignore]
            def put(self, value: Any) -> None:
                # The token that ends the turn is not part of the answer's text.
                if self.next_tokens_are_prompt or int(value.flatten()[-1]) not in stops:
                    super().put(value)
                else:
                    ended.set()

        pieces = Pieces(self.tokenizer, skip_prompt=True, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        ids = torch.tensor([list(prompt)], device=self.model.device)
        settings = self._generation_config(how)

        def run_generate() -> None:
            try:
                with torch.no_grad():
                    self.model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        streamer=pieces,
                        stopping_criteria=StoppingCriteriaList([CancelCriteria()]),
                        generation_config=settings,
                    )
            except BaseException as error:  # noqa: BLE001 — raised where the answer is read
                failed.append(error)
                pieces.on_finalized_text("", stream_end=True)

        thread = threading.Thread(target=run_generate, name="generate", daemon=True)
        thread.start()
        try:
            yield from filter(None, pieces)
        finally:
            stop.set()
            thread.join()
        if failed:
            raise NemotronError(f"The model failed while it answered: {failed[0]}") from failed[0]
        return ended.is_set()

    def _generation_config(self, how: Sampling) -> Any:
        """transformers' settings for sampling and for the end of an answer; also seeds torch."""
        import torch
        from transformers import GenerationConfig

        if how.seed is not None:
            torch.manual_seed(how.seed)
        elif how.temperature > 0:
            torch.seed()  # torch begins every process with the same one
        chosen: dict[str, Any] = {"do_sample": False}
        if how.temperature > 0:
            # top_k 0: the whole vocabulary; transformers would take 50.
            chosen = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=how.max_new_tokens,
            eos_token_id=sorted(self.stops) or None,
            pad_token_id=self._pad(),
            use_cache=True,
            **chosen,
        )

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        size = int(self.model.config.vocab_size)
        largest = max(max(prompt) for prompt in prompts)
        if largest >= size:
            raise UserError(
                f"{self.folder}: its tokenizer gives token {largest}, but the model has {size}.",
                hint="Put the tokenizer that the model was trained with beside it.",
            )

    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else min(self.stops, default=0)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer beside a model. Raises UserError if there is none that can be read."""
    from transformers import AutoTokenizer

    require_model(folder)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{folder}: no tokenizer beside the model (no tokenizer.json), so its output can't be decoded.",
            hint="Copy the tokenizer's files there: tokenizer.json, tokenizer_config.json.",
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[no-any-return,unused-ignore]
    except Exception as error:  # the library raises bare Exception
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: the tokenizer can't be read: {reason}") from error
