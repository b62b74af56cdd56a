"""Supervised fine-tuning on packed rows: from a config to a model on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_kit.errors import UserError
from nemotron_kit.files import sha256_of
from nemotron_kit.training import lora, processes
from nemotron_kit.training.checkpoint import TrainingProgress
from nemotron_kit.training.content import weights_digest
from nemotron_kit.training.engine import (
    TrainingOutcome,
    begin_at,
    export_run,
    keep_freed_memory,
    load_libraries,
    make_ready,
    opening_lines,
    passive_cpu_waits,
    quiet,
)
from nemotron_kit.training.export import ChatTokens, output_folder, prepare_output, token_ids, tokenizer_folder
from nemotron_kit.training.loop import LoopSettings, use_bf16
from nemotron_kit.training.model import ExpertBalance, load_model, require_model
from nemotron_kit.training.parallel import equal_passes, head_nll, within
from nemotron_kit.training.processes import StopRequest
from nemotron_kit.training.reporter import Reporter, metrics_path
from nemotron_kit.training.sft_config import SFTConfig, settings_identity
from nemotron_kit.training.sft_data import Batch, PackedRows, Row, batches, packed_batches
from nemotron_kit.training.start import StartingPoint, find_start, given_weights, on_ranks
from nemotron_kit.training.step_loop import StepLoop

if TYPE_CHECKING:
    import torch
    from transformers import NemotronHForCausalLM


def sft(config: SFTConfig) -> TrainingOutcome:
    """Fine-tune as `config` specifies, resuming from a checkpoint if there is one, and return where the model is.

    Runs in every process that torchrun starts; only rank 0 writes. Raises UserError if config, data or model are
    invalid, Preempted if a signal stopped the run (a checkpoint is saved by then).
    """
    passive_cpu_waits()
    config.check()
    config.train.check_split(processes.world_size())
    run = _Run(config)
    return on_ranks(run.start, config.train.hang_minutes, run.go)


class _Run:
    """One run: its data and starting point, then the loop, then the export of the model."""

    def __init__(self, config: SFTConfig) -> None:
        """Find the starting point and check everything, before anything is written."""
        self.base = config.checkpoint.pretrained_checkpoint
        self.config = config.without_finetune()
        train = config.split_folder("train")
        assert train is not None  # noqa: S101 - check() has seen to it
        if not train.exists():
            raise UserError(
                f"{train}: there is no train split.",
                hint="Prepare the data first: nemotron nano3 data prep sft -c tiny",
            )
        self.rows = PackedRows(train, config.seq_length, config.data_seed)
        valid = config.split_folder("valid")
        self.valid_place = valid
        has_rows = valid is not None and (valid.is_file() or next(valid.glob("**/*.parquet"), None) is not None)
        self.held_out = PackedRows(valid, config.seq_length) if valid is not None and has_rows else None
        self.folder = output_folder(self.config.checkpoint.save, "sft")
        self.tokenizer = tokenizer_folder(train.parent, train.parent.parent, Path(self.base) if self.base else None)
        self.start = self._start()
        if processes.rank() == 0:
            prepare_output(self.folder)

    def _start(self) -> StartingPoint:
        if self.base:
            require_model(Path(self.base))
        load_libraries()
        if processes.rank() != 0:
            return find_start(self.config, {})
        self._require_tokenizer()
        same = settings_identity(self.config, "bf16" if use_bf16(self.config.train.precision) else "fp32")
        same["dataset"] = {
            "seq_length": self.config.seq_length,
            "seed": self.config.data_seed,
            "rows": self.rows.count,
            "content": self.rows.digest(),
        }
        if self.config.lora:
            same["peft"]["base"] = weights_digest(Path(str(self.base)))
        same |= given_weights(self.config.checkpoint)
        start = begin_at(self.config, same, self.folder, self.config.train.train_iters)
        held_out = self.held_out
        valid_on = sha256_of([held_out.digest(), self.config.train.eval_iters]) if held_out is not None else None
        return replace(start, valid_on=valid_on)

    def _require_tokenizer(self) -> None:
        """Raises UserError if the data was tokenized with another tokenizer than the model's."""
        model = tokenizer_folder(Path(self.base)) if self.base else None
        if model is None or self.tokenizer is None or model == self.tokenizer:
            return
        here, there = token_ids(self.tokenizer), token_ids(model)
        if here != there:
            odd = next(iter(sorted(name for name in {*here, *there} if here.get(name) != there.get(name))))
            raise UserError(
                f"{self.tokenizer}: the data's tokenizer is not that of {self.base}: {odd!r} is "
                f"{here.get(odd, 'no token')} in the data and {there.get(odd, 'no token')} in the model.",
                hint="Prepare the data with the model's own tokenizer: nemotron nano3 data prep sft "
                f"tokenizer_model={model}",
            )

    def model(self) -> NemotronHForCausalLM:
        """The model to train, with its adapters in place if these are trained."""
        settings, start = self.config.model_settings, self.start
        if self.config.lora is None:
            assert start.weights is not None  # noqa: S101 - check() has seen to it
            train = self.config.train
            return load_model(start.weights, settings, train.layout, bf16=use_bf16(train.precision))
        model = load_model(Path(str(self.base)), settings)
        lora.add_adapters(model, self.config.lora, self.config.train.seed)
        if start.optimizer is not None:
            lora.load_adapters(model, start.optimizer.parent / lora.ADAPTERS)
        return model

    def go(self, stop: StopRequest) -> TrainingOutcome:
        """Train, evaluate and export the model; what it raises is what `sft` does."""
        quiet()
        keep_freed_memory()
        config, start = self.config, self.start
        progress = start.progress or TrainingProgress()
        if self.held_out is None:
            progress.forget_held_out()
        model: Any = self.model()
        for rows in filter(None, (self.rows, self.held_out)):
            rows.vocab_size = model.config.vocab_size
        train = config.train
        optimizer = make_ready(model, train, config.optimizer, start)
        reporter = Reporter(metrics_path(config.logger, self.folder), progress.step, train.train_iters)
        # Frozen weights are frozen: with adapters, no expert's bias moves either.
        balance = ExpertBalance(model, 0.0 if config.lora else config.train.moe_router_bias_update_rate)
        settings = LoopSettings(
            config.train.train_iters,
            config.optimizer.lr,
            config.scheduler,
            config.checkpoint,
            config.optimizer.clip_grad,
            config.train.seed,
            config.logger.log_interval,
            config.train.eval_interval,
            use_bf16(config.train.precision),
            hang_minutes=config.train.hang_minutes,
        )
        loop = StepLoop(
            settings,
            model,
            optimizer,
            progress=progress,
            identity=start.identity,
            reporter=reporter,
            stop=stop,
            balance=balance,
            write_model=(lambda folder: lora.save_adapters(model, folder / lora.ADAPTERS)) if config.lora else None,
        )
        work = SFTWork(config, self.rows, self.held_out, model, loop)
        new_adapters = config.lora is not None and start.optimizer is None
        described = f"New adapters beside the weights in {self.base}." if new_adapters else None
        try:
            for line in opening_lines(start, train.layout, model, self._notes(model), described):
                reporter.print(line)
            for _ in work.held_out_rows():
                pass  # each is checked: an evaluation at the end of the training must not be the first to read them
            evaluate = work.evaluate if self.held_out is not None else None
            known = start.valid_on == progress.valid_on and progress.held_out_step == progress.step
            progress.valid_on = start.valid_on
            if progress.step < config.train.train_iters:
                loop.run(work.step, evaluate)
            elif evaluate is not None and processes.any_rank(not known and processes.rank() == 0):
                loop.evaluate(evaluate)  # the loss that is known is that of other held-out data, or of another step
        finally:
            reporter.close()
        loop.saves.finish()
        return self._finish(model, loop)

    def _notes(self, model: Any) -> Iterator[str]:
        if self.config.lora:
            trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            yield f"Adapters: {trained:,} numbers are trained; all else is frozen."
        if self.held_out is None:
            where = self.valid_place or "the config names no valid split"
            yield f"No held-out rows ({where}): there is no held-out loss."
        if self.tokenizer is None:
            yield "No tokenizer beside the data or the model: the trained model gets none, nor an end of its turn."
        elif ChatTokens.of(self.tokenizer) is None:
            yield f"{self.tokenizer}: no token ends a turn (<|im_end|>): the model stops as it did before."

    def _finish(self, model: Any, loop: StepLoop) -> TrainingOutcome:
        progress, config = loop.progress, self.config
        if config.lora:
            lora.merge_adapters(model)
        chat = ChatTokens.of(self.tokenizer) if self.tokenizer else None
        given = {"base model": self.base or config.checkpoint.load, "data": self.rows.folder}
        facts = {
            "steps": progress.step,
            "tokens": progress.tokens,
            "training loss, nats a token of answers": progress.loss,
            "held-out loss, nats a token of answers": progress.valid_loss,
            "adapters": f"LoRA of rank {config.lora.dim}, merged" if config.lora else None,
        }
        tokenizer = self.tokenizer or self.rows.folder
        title = "Nemotron-H, fine-tuned to chat"
        return export_run(loop, self.folder, title, given, facts, tokenizer, chat)


class SFTWork:
    """Computes a training step and an evaluation."""

    def __init__(
        self,
        config: SFTConfig,
        rows: PackedRows,
        held_out: PackedRows | None,
        model: NemotronHForCausalLM,
        loop: StepLoop,
    ) -> None:
        self.rows, self.held_out, self.model, self.loop = rows, held_out, model, loop
        self.per_step, self.eval_iters = config.train.global_batch_size, config.train.eval_iters
        self.most = config.train.micro_batch_size * config.seq_length
        self.chunk = config.train.tokens_per_chunk
        self.packed = runs_packed(model.device)

    def step(self, number: int) -> dict[str, Any]:
        """Compute the gradients of a step: of the summed loss of this rank's rows, divided by the number of loss tokens
        of all ranks' rows."""
        taken = self.loop.samples(number, self.per_step)
        rows = self.rows.rows_at(taken.start, taken.stop)
        total = max(1, sum(row.loss_tokens for row in rows))
        nll: Any = 0.0
        tokens = counted = 0
        for part in self.loop.parts(self.per_step):
            own = [rows[place] for place in part]
            for summed in self._losses(own, spare=own[0]):
                (summed / total).backward()
                nll = nll + summed.detach().double()
            tokens += sum(len(row.ids) for row in own)
            counted += sum(row.loss_tokens for row in own)
        return {"loss": nll / total, "loss_tokens": counted, "tokens": tokens}

    def held_out_rows(self) -> Iterator[Row]:
        """The rows that an evaluation reads. Raises UserError for an invalid one."""
        limit = self.eval_iters
        return iter(()) if self.held_out is None else self.held_out.in_order(limit * self.per_step if limit else None)

    def evaluate(self, _step: int) -> dict[str, float]:
        """The mean held-out loss in nats per token; the rows are divided among the ranks."""
        import torch

        assert self.held_out is not None  # noqa: S101 - the caller has seen to it
        sums = torch.zeros(2, dtype=torch.float64, device=self.model.device)
        rows = list(self.held_out_rows())
        # The ranks take turns; in the last round some may have no rows.
        for turn in range(0, len(rows), self.per_step * processes.world_size()):
            start = turn + processes.rank() * self.per_step
            own = rows[start : start + self.per_step]
            for summed in self._losses(own, spare=rows[0]):
                sums[0] += summed
            sums[1] += sum(row.loss_tokens for row in own)
        nll, tokens = processes.sum_over_ranks(sums).tolist()
        if not tokens:
            place = self.held_out.folder
            self.loop.reporter.print(
                f"No token of {place} counts (loss_mask is 0 everywhere): there is no held-out loss."
            )
            return {}
        return {"valid_loss": nll / tokens}

    def _losses(self, rows: Sequence[Row], spare: Row) -> Iterator[Any]:
        """The summed loss, in nats, of each batch of the rows. Where ranks share the model and this one has no batch
        (no rows, or none with loss tokens), two tokens of `spare` take part in the others' passes."""
        divided = packed_batches if self.packed else batches
        instead = next(iter(divided([spare.dummy()], self.most)))
        for given, counts in equal_passes(list(divided(rows, self.most)), instead, self.model):
            batch = given.to(self.model.device)
            with self.loop.autocast(), self.loop.balance.counting(batch.real if counts else batch.real & False):
                summed = batch_nll(self.model, batch, self.chunk)
            yield summed if counts else summed * 0


def batch_nll(model: NemotronHForCausalLM, batch: Batch, chunk: int | None = None) -> torch.Tensor:
    """The summed negative log likelihood (nats) of the counted labels. The head is applied to these positions only."""
    packed: dict[str, Any] = {}
    if batch.seq_idx is not None:
        packed = {"position_ids": batch.position_ids, "seq_idx": batch.seq_idx}

    def both() -> torch.Tensor:
        hidden = model.model(input_ids=batch.input_ids, use_cache=False, **packed).last_hidden_state
        return head_nll(model.lm_head, hidden[batch.counts], batch.labels[batch.counts], chunk)

    return within(model, both)


def runs_packed(device: torch.device) -> bool:
    """Whether rows are trained on as they are packed: on a GPU with Mamba's kernels, which separate the sequences of a
    row by seq_idx (transformers passes it on from 5.21). Derived from the source; not tested by us."""
    if device.type != "cuda" or find_spec("mamba_ssm") is None or find_spec("causal_conv1d") is None:
        return False
    import transformers
    from packaging.version import Version

    return Version(transformers.__version__) >= Version("5.21")
