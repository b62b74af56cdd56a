"""Packed rows: their order, what is taken from them, and that a row's loss is that of its parts."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nemotron_kit.errors import UserError
from nemotron_kit.training import processes
from nemotron_kit.training.model import ExpertBalance, load_model
from nemotron_kit.training.parallel import prepare
from nemotron_kit.training.pretrain_config import TrainConfig
from nemotron_kit.training.sft import SFTWork, batch_nll
from nemotron_kit.training.sft_data import PackedRows, batches, packed_batches

from ...packed import VOCABULARY, random_rows, write_rows


def rows_of(folder: Path, **kwargs: int) -> PackedRows:
    return PackedRows(folder, kwargs.pop("seq_length", 80), **kwargs)


def test_each_epoch_is_a_new_order_of_the_same_rows(packed_data: Path) -> None:
    rows = rows_of(packed_data / "train", seed=3)
    texts = [row.ids.tobytes() for row in rows.in_order()]
    epochs = [[row.ids.tobytes() for row in rows.rows_at(start, start + 16)] for start in (0, 16, 32)]
    assert len(texts) == rows.count == 16
    assert all(sorted(epoch) == sorted(texts) for epoch in epochs) and len({*map(tuple, epochs), tuple(texts)}) == 4
    again = rows_of(packed_data / "train", seed=3)
    assert [row.ids.tobytes() for row in again.rows_at(14, 19)] == epochs[0][14:] + epochs[1][:3]


def test_a_window_is_all_that_is_held(packed_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemotron_kit.training.sft_data.WINDOW_TOKENS", 1)
    rows = rows_of(packed_data / "train", seed=3)
    seen = sorted(row.ids.tobytes() for row in rows.rows_at(0, 16))
    assert seen == sorted(row.ids.tobytes() for row in rows.in_order()) and len(rows._held[2]) <= 4


def test_held_out_rows_are_spread(packed_data: Path) -> None:
    rows = rows_of(packed_data / "train")
    every = [row.ids.tobytes() for row in rows.in_order()]
    assert [row.ids.tobytes() for row in rows.in_order(4)] == [every[0], every[4], every[8], every[12]]
    assert len(list(rows.in_order(99))) == 16


def test_a_sequence_ends_with_its_last_answer(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.parquet", [[([7, 8, 9, 10, 11], [0, 1, 0, 0, 0]), ([6, 6], [0, 0])]])
    (row,) = PackedRows(file, 16).in_order()
    assert [(ids.tolist(), mask.tolist()) for ids, mask in row.sequences()] == [([7, 8, 9], [0, 1])]
    assert row.loss_tokens == 1


@pytest.mark.parametrize("way", [batches, packed_batches])
def test_a_row_of_one_token_can_stand_in_for_a_pass(tmp_path: Path, way) -> None:
    (row,) = PackedRows(write_rows(tmp_path / "a.parquet", [[([7], [0])]]), 16).in_order()
    (batch,) = way([row.dummy()], 80)
    assert batch.input_ids.tolist() == batch.labels.tolist() == [[7]] and batch.counts.all()


@pytest.mark.parametrize("way", [batches, packed_batches])
def test_batches_hold_every_sequence_once(packed_data: Path, way) -> None:
    rows = list(rows_of(packed_data / "train").in_order())
    found = []
    for batch in way(rows, 96):
        assert batch.input_ids.numel() <= 96
        for label, counts in zip(batch.labels, batch.counts, strict=True):
            found += label[counts].tolist()
    wanted = [token for row in rows for ids, mask in row.sequences() for token in ids[1:][mask.astype(bool)].tolist()]
    assert sorted(found) == sorted(wanted) and len(found) == sum(row.loss_tokens for row in rows)


def test_padding_is_little(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.4, 0.7, 400), 8, 500).astype(int)
    rows = [[([6] * n, [1] * (n - 1) + [0])] for n in lengths.tolist()]
    file = write_rows(tmp_path / "a.parquet", rows, row_group_size=400)
    tokens = padded = 0
    for batch in batches(list(PackedRows(file, 512).in_order()), 4096):
        tokens, padded = tokens + int(batch.real.sum()), padded + batch.real.numel()
    assert padded / tokens < 1.08


def test_a_packed_row_is_its_parts(packed_data: Path, base_model: Path) -> None:
    model = load_model(base_model).train()
    rows = list(rows_of(packed_data / "valid").in_order())

    def gradient(losses: list[torch.Tensor]) -> torch.Tensor:
        model.zero_grad()
        sum(losses).backward()
        return torch.cat([p.grad.flatten() if p.grad is not None else p.flatten() * 0 for p in model.parameters()])

    packed = [batch_nll(model, batch) for batch in batches(rows, 4096)]
    parts = []
    for row in rows:
        for ids, mask in row.sequences():
            tokens = torch.from_numpy(ids.astype(np.int64))[None]
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[0]
            nll = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
            parts.append((nll * torch.from_numpy(mask)).sum())
    count = sum(row.loss_tokens for row in rows)
    assert float(sum(packed)) / count == pytest.approx(float(sum(parts)) / count, abs=1e-5)
    one, other = gradient(packed), gradient(parts)
    assert (one - other).norm() / other.norm() < 1e-5 and other.norm() > 1
    naive = torch.from_numpy(rows[0].ids.astype(np.int64))[None]  # what it would be if sequences saw each other
    leaking = model(input_ids=naive[:, :-1], use_cache=False).logits[0]
    nll = torch.nn.functional.cross_entropy(leaking, naive[0, 1:], reduction="none")
    leaked = (nll * torch.from_numpy(rows[0].mask[:-1])).sum()
    own = sum(batch_nll(model, batch) for batch in batches(rows[:1], 4096))
    assert abs(float(leaked) - float(own)) / rows[0].loss_tokens > 1e-4


def test_padding_is_no_load_of_experts(packed_data: Path, base_model: Path) -> None:
    model = load_model(base_model).train()
    balance = ExpertBalance(model, 0.1)
    real = 0
    for batch in batches(list(rows_of(packed_data / "valid").in_order()), 4096):
        with balance.counting(batch.real):
            batch_nll(model, batch)
        real += int(batch.real.sum())
    assert [int(load.sum()) for _, load in balance.loads] == [real * model.config.num_experts_per_tok]


GOOD = ([7, 8, 9], [0, 1, 0])


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ([([7, 8, 99], [0, 1, 0])], r"token 99, but the model's vocabulary has 64"),
        ([([7, 8, 9], [0, 1, 1])], r"shifted left within each sequence"),
        ([([7, 8, 9], [0, 2, 0])], r"loss_mask is not of 0 and 1"),
        ([([7, 8, 9], [0, 1])], r"loss_mask is not as long"),
        ([([], []), GOOD], r"seq_start_id is not where sequences begin"),
        ([([7] * 81, [0] * 81)], r"a row has 81 tokens, but dataset\.seq_length is 80[\s\S]*art:data,pack_size"),
        ([], "a row is empty"),
        ([([7, None, 9], [0, 1, 0])], r"input_ids holds null"),
    ],
)
def test_what_is_no_packed_row_is_refused(tmp_path: Path, row: list, error: str) -> None:
    rows = rows_of(write_rows(tmp_path / "a.parquet", [[GOOD, GOOD], row, [GOOD]]))
    rows.vocab_size = VOCABULARY
    with pytest.raises(UserError, match=error):
        list(rows.in_order())


def test_what_are_no_packed_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "training_512.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"training_512\.npy, an older form"):
        rows_of(tmp_path)
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="not a Parquet file"):
        rows_of(tmp_path)
    write_rows(file, random_rows(0))
    with pytest.raises(UserError, match="hold no rows"):
        rows_of(tmp_path)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"input_ids": [[1]], "loss_mask": [[1]]}), file)
    with pytest.raises(UserError, match="no column seq_start_id"):
        rows_of(tmp_path)
    pq.write_table(pa.table({"input_ids": [[1]], "loss_mask": [[1]], "seq_start_id": [[0]]}), file)
    with pytest.raises(UserError, match=r"its columns are input_ids list<"):
        rows_of(tmp_path)


def test_a_process_whose_rows_have_no_loss_token_takes_part_in_the_others_passes(
    tmp_path: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_rows(tmp_path / "a.parquet", [[([7, 8, 9], [0, 0, 0])], [([6, 7], [0, 0])]])
    rows = PackedRows(file, 16)
    # Of a model that ranks share, where another one has two batches.
    monkeypatch.setattr("nemotron_kit.training.parallel.is_on_ranks", lambda _: True)
    monkeypatch.setattr(processes, "max_over_ranks", lambda own: max(own, 2))
    model = load_model(base_model)
    prepare(model)
    loop = SimpleNamespace(
        samples=lambda _, count: range(count),
        parts=lambda count: [range(count)],
        autocast=nullcontext,
        balance=ExpertBalance(model, 0.1),
    )
    train = TrainConfig(global_batch_size=2)
    config = SimpleNamespace(train=train, seq_length=16)
    work = SFTWork(config, rows, None, model, loop)  # type: ignore[arg-type]
    passes: list[int] = []
    model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert work.step(1) == {"loss": 0.0, "loss_tokens": 0, "tokens": 5}
    assert len(passes) == 2 and all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    assert not any(load.any() for _, load in loop.balance.loads)
    said: list[str] = []
    loop.reporter = SimpleNamespace(print=said.append)
    work.held_out = rows
    assert work.evaluate(1) == {} and said == [
        f"No token of {file} counts (loss_mask is 0 everywhere): there is no held-out loss."
    ]
