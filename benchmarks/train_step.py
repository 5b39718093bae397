"""A whole training step of GLM-base, ours beside plain torch: forward, backward, clipping, fused AdamW.

    python -m benchmarks.compare --suite step      its time
    python -m benchmarks.train_step                its memory: the largest resident size of two steps

The batch is the shape of GLM's pretraining: Part A of 410 tokens, Part B of 102, all of B in the loss.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
from collections.abc import Callable, Iterator

import torch
from torch import nn

from glm_ext import GLM, Batch, GLMConfig

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


def build_steps(config: GLMConfig) -> dict[str, Callable[[], Callable[[], None]]]:
    """Each peer's step, to be built where it is wanted."""
    batch = make_batch(config)
    torch.manual_seed(0)
    model = GLM(config)

    def ours() -> Callable[[], None]:
        return make_step(model, model.loss, batch)

    def plain(compiled: bool = False) -> Callable[[], None]:
        twin = plain_twin(model)
        return make_step(twin, torch.compile(twin.loss) if compiled else twin.loss, batch)

    return {
        OURS: ours,
        "plain torch": plain,
        "plain torch, compiled": functools.partial(plain, compiled=True),
    }


def base(dropout: float) -> GLMConfig:
    return GLMConfig.preset("base", hidden_dropout=dropout, attention_dropout=dropout)


def step_cases() -> Iterator[Case]:
    """With and without dropout, as a suite of benchmarks.compare."""

    def peers(config: GLMConfig) -> dict[str, Peer]:
        return {name: build() for name, build in build_steps(config).items()}

    for dropout in (0.1, 0.0):
        yield Case(
            op="GLM-base step",
            name=f"B={B} S={S} a={PREFIX} dropout={dropout} f32",
            peers=functools.partial(peers, base(dropout)),
            flops=step_flops(base(dropout)),
        )


def step_flops(config: GLMConfig) -> float:
    """Of forward and backward: the blocks' matrices, attention's visible pairs, the rows with a loss."""
    width, layers = config.hidden_size, config.num_layers
    blocks = 6 * B * S * layers * width * (4 * width + 2 * config.ffn_hidden_size)
    attention = 3.5 * 4 * width * visible_pairs(S, PREFIX) * B * layers
    head = 6 * B * (S - PREFIX) * width * config.vocab_size
    return blocks + attention + head


def peak_memory(dropout: float, peer: str) -> int:
    """Bytes at the worst moment of two steps: the second holds the optimizer's state beside what it saves."""
    step = build_steps(base(dropout))[peer]()
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kilobytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dropout", type=float, default=0.1)
    options = parser.parse_args()
    for peer in (OURS, "plain torch"):
        # In a fresh process each, which holds nothing of the other; Linux counts it from this one's size on.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_memory, (options.dropout, peer))
        print(f"{peer:12s} {peak / 2**20:6.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
