"""A whole training step of GLM-base, ours beside plain torch: forward, backward, clipping, fused AdamW.

    python -m benchmarks.compare --suite step      its time
    python -m benchmarks.train_step                its memory: the largest resident size of two steps
    python -m benchmarks.train_step --profile      which part of its time each op takes

Both with --bf16 for a step under autocast.

The batch is the shape of GLM's pretraining: Part A of 410 tokens, Part B of 102, all of B in the loss.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import resource
from collections.abc import Callable, Iterator

import torch
from torch import nn

from glm_ext import GLM, Batch, GLMConfig
from glm_ext.train.throughput import useful_flops

from .cases import OURS, Case, Peer, visible_pairs
from .plain_glm import plain_twin

B, S, PREFIX = 4, 512, 410


def make_batch(config: GLMConfig) -> Batch:
    torch.manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (B, S))
    place = torch.arange(S).clamp(max=PREFIX - 1)
    block = torch.cat([torch.zeros(PREFIX, dtype=torch.long), torch.arange(S - PREFIX) % 4 + 1])
    loss_mask = (torch.arange(S) >= PREFIX).float().expand(B, S).contiguous()
    positions = torch.stack([place, block]).expand(B, 2, S).contiguous()
    full = torch.full((B,), S)
    return Batch(
        tokens=tokens,
        positions=positions,
        targets=tokens.roll(-1, 1),
        loss_mask=loss_mask,
        prefix_len=torch.full((B,), PREFIX),
        seq_len=full,
    )


def make_step(model: nn.Module, loss: Callable[[Batch], torch.Tensor], batch: Batch) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )

    def step() -> None:
        loss(batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def build_steps(config: GLMConfig, bf16: bool = False) -> dict[str, Callable[[], Callable[[], None]]]:
    """Each peer's step, to be built where it is wanted; bf16: under autocast, as `precision: bf16` trains."""
    batch = make_batch(config)
    torch.manual_seed(0)
    model = GLM(config)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)

    def ours() -> Callable[[], None]:
        return make_step(model, autocast(model.loss), batch)

    def plain(compiled: bool = False, as_published: bool = False) -> Callable[[], None]:
        twin = plain_twin(model, as_published)
        return make_step(twin, autocast(torch.compile(twin.loss) if compiled else twin.loss), batch)

    return {
        OURS: ours,
        "plain torch": plain,
        "plain torch, compiled": functools.partial(plain, compiled=True),
        "as GLM published it": functools.partial(plain, as_published=True),
    }


def base(dropout: float) -> GLMConfig:
    return GLMConfig.preset("base", hidden_dropout=dropout, attention_dropout=dropout)


def step_cases() -> Iterator[Case]:
    """With and without dropout, in both precisions, as a suite of benchmarks.compare."""

    def peers(config: GLMConfig, bf16: bool) -> dict[str, Peer]:
        return {name: build() for name, build in build_steps(config, bf16).items()}

    for precision, dropout in itertools.product(("f32", "bf16"), (0.1, 0.0)):
        yield Case(
            op="GLM-base step",
            name=f"B={B} S={S} a={PREFIX} dropout={dropout} {precision}",
            peers=functools.partial(peers, base(dropout), precision == "bf16"),
            flops=useful_flops(
                base(dropout),
                tokens=B * S,
                targets=B * (S - PREFIX),
                pairs=B * visible_pairs(S, PREFIX),
            ),
            tokens=B * S,
        )


def peak_memory(dropout: float, bf16: bool, peer: str) -> int:
    """Bytes at the worst moment of two steps: the second holds the optimizer's state beside what it saves."""
    step = build_steps(base(dropout), bf16)[peer]()
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kilobytes


def shares(dropout: float, bf16: bool, at_least: float = 0.01) -> dict[str, float]:
    """The part of our step's time that each op takes by itself, the largest first."""
    step = build_steps(base(dropout), bf16)[OURS]()
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
        step()
    took = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    whole = sum(took.values())
    parts = sorted(((time / whole, name) for name, time in took.items()), reverse=True)
    return {name: part for part, name in parts if part >= at_least}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--bf16", action="store_true", help="under autocast instead of in float32")
    parser.add_argument("--profile", action="store_true", help="time by op instead of memory")
    options = parser.parse_args()
    if options.profile:
        for name, part in shares(options.dropout, options.bf16).items():
            print(f"{part:6.1%}  {name}")
        return
    for peer in (OURS, "plain torch", "as GLM published it"):
        # In a fresh process each, which holds nothing of the other; Linux counts it from this one's size on.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_memory, (options.dropout, options.bf16, peer))
        print(f"{peer:12s} {peak / 2**20:6.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
