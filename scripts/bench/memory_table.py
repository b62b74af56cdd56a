"""What a GPU needs for the published model in a layout, counted by torch's FSDPMemTracker: every tensor of a step, on
fake tensors that have sizes and no memory.

    OMP_NUM_THREADS=1 python scripts/bench/memory_table.py [8 16 32 64 64-kept 24 96 256]

Compute is bf16 over float32 weights, sequences have 8,192 tokens, micro-batches one, activations are computed again
(`-kept`: they are kept). The experts and Mamba's scan are replaced by what saves as much as the fused kernels do. The
table in docs/how-to/scale.md is of logits that are whole and held by who computes the loss, and of a kernel for the
scan alone, between a convolution and a gated norm of PyTorch's. Beside it stands what the engine needs on a GPU with
mamba_ssm: logits by 1,024 tokens, and one kernel for all that follows a mixer's first projection, which keeps less
where activations are kept. Exits with 1 where a figure is more than 5 % off the table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers.utils import logging

# GiB by row.
EXPECTED = {"8": 71.2, "16": 42.2, "32": 30.1, "64": 24.6, "64-kept": 81.4, "24": 35.7, "96": 24.4, "256": 25.1}
LENGTH = 8192
ROOT = Path(__file__).parents[2]


class _Scan(torch.autograd.Function):
    """mamba_ssm's kernel of the scan alone (mamba_chunk_scan_combined): saves what it is given, its result, and the
    cumulated decay in float32."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, dt: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        scanned = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        decay = torch.empty(dt.shape, dtype=torch.float32, device=dt.device)
        ctx.save_for_backward(scanned, decay, hidden, dt, *others)
        return scanned

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        given = ctx.saved_tensors[2:]
        return tuple(torch.empty_like(each, memory_format=torch.contiguous_format) for each in given)


def _scan(hidden: torch.Tensor, *given: torch.Tensor, D: torch.Tensor, dt_bias: torch.Tensor, **_: Any) -> torch.Tensor:
    return _Scan.apply(hidden, *given, D, dt_bias)  # type: ignore[no-any-return]


class _Mixer(torch.autograd.Function):
    """A Mamba-2 mixer behind its first projection, as mamba_ssm's one kernel (mamba_split_conv1d_scan_combined): saves
    its input and what comes before the gated norm."""

    @staticmethod
    def forward(ctx: Any, projected: torch.Tensor, inner: int, weight: torch.Tensor) -> torch.Tensor:
        scanned = projected[..., :inner].contiguous()
        ctx.save_for_backward(projected, scanned, weight)
        return torch.nn.functional.linear(scanned, weight)

    @staticmethod
    def backward(ctx: Any, *given: torch.Tensor) -> Any:
        (gradient,) = given
        projected, scanned, weight = ctx.saved_tensors
        of_weight = gradient.flatten(0, -2).t() @ scanned.flatten(0, -2)
        back = torch.empty_like(projected)
        back[..., : scanned.shape[-1]] = gradient @ weight
        return back, None, of_weight


def _mixer(projected: torch.Tensor, *_: Any, outproj_weight: torch.Tensor, **__: Any) -> torch.Tensor:
    return _Mixer.apply(projected, outproj_weight.shape[1], outproj_weight)  # type: ignore[no-any-return]


def _experts(self: Any, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Evenly used experts, each a pair of matrix products."""
    tokens, each = chosen.shape
    given = hidden.repeat_interleave(each, dim=0).view(self.up_proj.shape[0], -1, hidden.shape[-1])
    up = self.act_fn(torch.bmm(given, self.up_proj.transpose(1, 2)))
    out = torch.bmm(up, self.down_proj.transpose(1, 2)).view(tokens, each, -1)
    return (out * weights.unsqueeze(-1).to(out.dtype)).sum(dim=1)


def peak(row: str, chunk: int | None) -> float:
    """GiB that one of the processes needs at most, from the second step on: with whole logits as in the table, or by
    `chunk` tokens as the engine."""
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from transformers.models.nemotron_h import modeling_nemotron_h as modeling

    from nemotron_kit.training import parallel
    from nemotron_kit.training.model import model_config

    ranks = int(row.partition("-")[0])
    modeling.NemotronHExperts.forward = _experts
    modeling.mamba2_split_conv1d_scan_combined = (lambda *_, **__: None) if chunk is None else _mixer
    modeling.mamba2_chunk_scan = _scan
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    block = yaml.safe_load((ROOT / "recipes/nano3/stage0_pretrain/config/default.yaml").read_text())["model"]
    layout, kind = parallel.Layout(ranks, sharded=True), modeling.NemotronHForCausalLM
    given, _, mesh = kind.prepare_distribute_model(parallel.distributed_config(layout, bf16=True))
    with FakeTensorMode():
        model: Any = kind.maybe_distribute_model(kind(model_config(block)), given, mesh)
        parallel.require_layout(model, layout)
        parallel.prepare(model.train(), activation_checkpointing=not row.endswith("-kept"))
        ids = torch.randint(0, block["vocab_size"], (1, LENGTH))
        tracker = FSDPMemTracker(model)
        tracker.track_inputs((ids,))
        with tracker:
            if chunk is None:
                logits = model(input_ids=ids, use_cache=False).logits
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
            else:
                parallel.token_nll(model, ids, ids, chunk).backward()
        snapshot = tracker.get_tracker_snapshot("peak")
        moments = 2 * parallel.held_bytes(model)
    dist.destroy_process_group()
    # AdamW's two moments, which the tracker would count whole, are there from the second step on.
    return (moments + max(found["Total"] for found in snapshot.values())) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(EXPECTED), metavar="ROW", help=", ".join(EXPECTED))
    logging.set_verbosity_error()
    off = False
    for row in parser.parse_args().rows:
        found, ours = peak(row, None), peak(row, 1024)
        error = found / EXPECTED[row] - 1
        off = off or abs(error) > 0.05
        line = f"{found:5.1f} GiB, {EXPECTED[row]} in the table: {100 * error:+.1f} %"
        print(f"{row:>8} GPUs: {line}; the engine {ours:.1f} GiB", flush=True)
    sys.exit(1 if off else 0)


if __name__ == "__main__":
    main()
