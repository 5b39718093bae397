"""What the tests of every op share: the same bits under every schedule, access costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .backend import SCHEDULES, Schedule, Simt, assert_same_bits

GPU_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NO_COPIES = [s for s in SCHEDULES if not s.deferred]  # where no kernel uses cp.async, the two models are one

Run = Callable[[], list[torch.Tensor | None]]


def same_under(simt: Simt, schedules: list[Schedule], run: Run, **options: bool) -> None:
    """`run` gives the same bits under all of them, the first of which has been compared with the truth."""
    simt.configure(schedules[0], **options)
    expected = run()
    for schedule in schedules[1:]:
        simt.configure(schedule, **options)
        assert_same_bits(str(schedule), expected, run())


def forward_and_backward(
    op: Callable[..., Any], inputs: list[torch.Tensor], **kwargs: Any
) -> list[torch.Tensor | None]:
    torch.manual_seed(3)
    leaves = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    out = op(*leaves, **kwargs)
    outputs = [out] if isinstance(out, torch.Tensor) else list(out)
    differentiable = [t for t in outputs if t.requires_grad]
    grads = torch.autograd.grad(
        differentiable,
        [t for t in leaves if t.requires_grad],
        [torch.randn(t.shape).to(t) for t in differentiable],
    )
    return [*(t.detach() for t in outputs), *grads]


def access_costs(simt: Simt) -> tuple[Counter[str], Counter[str]]:
    """Cost and ideal of all accesses since the last call, by memory space."""
    cost: Counter[str] = Counter()
    ideal: Counter[str] = Counter()
    for count in simt.module.take_counts():
        cost[count.space] += count.cost
        ideal[count.space] += count.ideal
    return cost, ideal


def excesses(simt: Simt) -> tuple[set[str], set[tuple[str, str, float]]]:
    """Files with accesses since the last call; (space, file, cost over ideal) of those that cost too much."""
    counts = [(c.space, Path(c.file).name, c.cost / c.ideal) for c in simt.module.take_counts()]
    return {file for _, file, _ in counts}, {count for count in counts if count[2] != 1.0}
