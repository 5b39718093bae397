"""A whole training step of GLM-base, ours beside plain torch: forward, backward, clipping, fused AdamW.

    python -m benchmarks.train_step [--dropout 0.1] [--rounds 3] [--compile] [--threads 2] [--memory]

Peers take turns, round after round, in one process; medians are printed with tokens/s and the ratio to ours.
With --memory each also takes two steps in a process of its own, whose largest resident size is printed.
The batch is the shape of GLM's pretraining: Part A of 410 tokens, Part B of 102, all of B in the loss.
`python -m benchmarks.compare --suite step` measures the same for the tables.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from glm_ext import GLM, Batch, GLMConfig

from .cases import Case, Peer, visible_pairs
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


def build_steps(preset: str, dropout: float, compiled: bool) -> dict[str, Callable[[], Callable[[], None]]]:
    """Each peer's step, to be built where it is wanted; the compiled twin too if asked for."""
    config = GLMConfig.preset(preset, hidden_dropout=dropout, attention_dropout=dropout)
    batch = make_batch(config)
    torch.manual_seed(0)
    model = GLM(config)

    def ours() -> Callable[[], None]:
        return make_step(model, model.loss, batch)

    def plain(compiled: bool = False) -> Callable[[], None]:
        twin = plain_twin(model)
        return make_step(twin, torch.compile(twin.loss) if compiled else twin.loss, batch)

    peers = {"glm_ext": ours, "plain torch": plain}
    if compiled:
        peers["plain torch, compiled"] = functools.partial(plain, compiled=True)
    return peers


def step_cases() -> Iterator[Case]:
    """The step of GLM-base with and without dropout, as a suite of benchmarks.compare."""
    for dropout, compiled in ((0.1, True), (0.0, False)):

        def peers(dropout: float = dropout, compiled: bool = compiled) -> dict[str, Peer]:
            return {name: build() for name, build in build_steps("base", dropout, compiled).items()}

        yield Case(
            op="GLM-base step",
            name=f"B={B} S={S} a={PREFIX} dropout={dropout} f32",
            peers=peers,
            flops=step_flops(GLMConfig.preset("base")),
            rounds=3,
        )


def step_flops(config: GLMConfig) -> float:
    """Of forward and backward: the blocks' matrices, attention's visible pairs, the rows with a loss."""
    width, layers = config.hidden_size, config.num_layers
    blocks = 6 * B * S * layers * width * (4 * width + 2 * config.ffn_hidden_size)
    attention = 3.5 * 4 * width * visible_pairs(S, PREFIX) * B * layers
    head = 6 * B * (S - PREFIX) * width * config.vocab_size
    return blocks + attention + head


def peak_memory(options: argparse.Namespace, peer: str) -> int:
    """Bytes at the worst moment of two steps: the second holds the optimizer's state beside what it saves."""
    torch.set_num_threads(options.threads)
    step = build_steps(options.preset, options.dropout, options.compile)[peer]()
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kilobytes


def measure_memory(options: argparse.Namespace, peers: Iterable[str]) -> dict[str, int]:
    """In a fresh process for each, which holds nothing of the others."""
    spawn = multiprocessing.get_context("spawn")
    found = {}
    for peer in peers:
        with spawn.Pool(1) as pool:
            found[peer] = pool.apply(peak_memory, (options, peer))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true", help="also the plain model under torch.compile")
    parser.add_argument("--memory", action="store_true", help="also each peer's peak memory")
    parser.add_argument("--preset", default="base")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    steps = {
        name: build() for name, build in build_steps(options.preset, options.dropout, options.compile).items()
    }
    # Before the steps are taken: Linux counts a child from the size of its parent on.
    memory = measure_memory(options, steps) if options.memory else {}

    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():  # warm-up: compilation, first touch of memory, optimizer state
        step()
    for _ in range(options.rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begin)

    ours = statistics.median(times["glm_ext"])
    print(
        f"GLM-{options.preset} step, B={B} S={S} a={PREFIX} dropout={options.dropout} f32, "
        f"{options.threads} threads"
    )
    for name, seconds in times.items():
        median = statistics.median(seconds)
        spread = f"{min(seconds):.2f}-{max(seconds):.2f}"
        print(
            f"  {name:24s} {median:7.2f} s ({spread})  {B * S / median:7.0f} tokens/s  "
            f"{median / ours:5.2f}x ours" + (f"  {memory[name] / 2**20:6.0f} MiB" if memory else "")
        )


if __name__ == "__main__":
    main()
