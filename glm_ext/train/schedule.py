"""The learning rate as a pure function of the step, so that a resumed run has nothing to restore."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, steps: int, warmup: float, min_ratio: float) -> float:
    """Linear warmup, then half a cosine from peak down to min_ratio * peak, then constant.

        W = floor(warmup * steps)
        lr(t) = peak (t + 1) / W                                                    t < W
        lr(t) = peak (m + (1 - m) (1 + cos(pi u)) / 2),  u = min(1, (t - W) / (steps - W))

    Args:
        step: t >= 0, the number of steps already taken; the first one already moves (lr(0) > 0).
        warmup: part of the steps spent rising, in [0, 1).
        min_ratio: m in [0, 1].

    Source: Loshchilov and Hutter, SGDR, equation 5; GLM's recipes use m = 0.05 and warmup = 0.05.

    Example:
        >>> settings = {"peak": 1.0, "steps": 10, "warmup": 0.2, "min_ratio": 0.1}
        >>> [round(learning_rate(t, **settings), 3) for t in (0, 1, 2, 6, 10, 99)]
        [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]
    """
    warmup_steps = int(warmup * steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
    return peak * (min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * progress)) / 2)
