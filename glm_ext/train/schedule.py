"""The learning rate as a pure function of the step, so that a resumed run has nothing to restore."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "linear", "wsd")


def learning_rate(
    step: int,
    *,
    peak: float,
    steps: int,
    warmup: float,
    min_ratio: float,
    schedule: str = "cosine",
    decay: float = 0.1,
) -> float:
    """Linear warmup to the peak, a fall from there to m = min_ratio of it, then constant.

        lr(t) = peak (t + 1) / W                                   t < W = floor(warmup * steps)
        lr(t) = peak (m + (1 - m) f(u)),  u = min(1, (t - W) / (steps - W))

        cosine  f(u) = (1 + cos(pi u)) / 2
        linear  f(u) = 1 - u
        wsd     stays at the peak, and falls on a line in the last D = max(1, floor(decay * steps)) steps:
                f = min(1, (steps - t) / D), not below 0

    Args:
        step: t >= 0, the number of steps already taken; the first one already moves (lr(0) > 0).
        warmup, decay: parts of the steps, together at most 1.
        min_ratio: m in [0, 1].

    Source: Loshchilov and Hutter, SGDR, equation 5 (cosine); Hu et al., MiniCPM, section 4 (wsd); GLM's
    recipes use the cosine with m = 0.05 and warmup = 0.05.

    Example:
        >>> settings = {"peak": 1.0, "steps": 10, "warmup": 0.2, "min_ratio": 0.1}
        >>> [round(learning_rate(t, **settings), 3) for t in (0, 1, 2, 6, 10, 99)]
        [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]
        >>> [learning_rate(t, **settings, schedule="wsd", decay=0.4) for t in (0, 1, 6, 8, 10, 99)]
        [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]
    """
    warmup_steps = int(warmup * steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    u = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
    if schedule == "cosine":
        height = (1 + math.cos(math.pi * u)) / 2
    elif schedule == "linear":
        height = 1 - u
    elif schedule == "wsd":
        height = min(1.0, max(0, steps - step) / max(1, int(decay * steps)))
    else:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
    return peak * (min_ratio + (1 - min_ratio) * height)
