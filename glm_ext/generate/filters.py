"""From logits to the next token: rules that forbid tokens, filters that narrow the draw, the draw.

Everything works on logits [B, V], a row a sequence; a token that is ruled out has logit -inf. No filter rules
out all tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from .config import GenerationConfig


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k likeliest tokens, and those that tie with the last of them.

    >>> top_k(torch.tensor([[0.0, 2.0, 1.0]]), 2)
    tensor([[-inf, 2., 1.]])
    """
    if not 0 < k < logits.shape[1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k).values[:, -1:], -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest tokens, likeliest first, whose probabilities sum to p (Holtzman et al. 2020).

    >>> top_p(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.6).exp()
    tensor([[0.5000, 0.3000, 0.0000]])
    """
    if p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=1, descending=True, stable=True)
    probability = ordered.softmax(1)
    before = probability.cumsum(1) - probability  # what likelier tokens have together
    outside = before >= p
    outside[:, 0] = False
    return logits.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens at least p times as likely as the likeliest one (Nguyen et al. 2024).

    >>> min_p(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.5).exp()
    tensor([[0.5000, 0.3000, 0.0000]])
    """
    if p <= 0.0:
        return logits
    probability = logits.softmax(1)
    return logits.masked_fill(probability < p * probability.amax(1, keepdim=True), -torch.inf)


def repetition_penalty(logits: Tensor, spans: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Logits of tokens that the row's span holds: over penalty if positive, times penalty if negative.

    As in CTRL (Keskar et al. 2019).

    >>> repetition_penalty(torch.tensor([[4.0, -4.0, 4.0]]), [[0, 1, 0]], 2.0)
    tensor([[ 2., -8.,  4.]])
    """
    if penalty == 1.0:
        return logits
    logits = logits.clone()
    for row, span in zip(logits, spans, strict=True):
        held = torch.tensor(sorted(set(span)), dtype=torch.int64, device=logits.device)
        old = row[held]
        row[held] = torch.where(old > 0, old / penalty, old * penalty)
    return logits


def repeating(span: Sequence[int], n: int) -> set[int]:
    """Tokens that would end an n-gram which the span holds already.

    >>> repeating([5, 6, 7, 5, 6], 3)
    {7}
    """
    if n == 0 or len(span) < n:
        return set()
    last = tuple(span[len(span) - n + 1 :])
    return {span[i + n - 1] for i in range(len(span) - n + 1) if tuple(span[i : i + n - 1]) == last}


class Rules:
    """What may follow a span at all: the config's penalties and bans, and the tokens banned for good."""

    def __init__(
        self, config: GenerationConfig, end_ids: Collection[int], banned_ids: Collection[int] = ()
    ) -> None:
        self.config, self.end_ids, self.banned_ids = config, sorted(end_ids), sorted(banned_ids)

    def __call__(self, logits: Tensor, spans: Sequence[Sequence[int]]) -> Tensor:
        """logits [B, V] of what follows spans -> the same in float32, forbidden tokens -inf.

        Where nothing at all may follow, the end may. ValueError for a row that has no likeliest token: where
        one that is not forbidden holds NaN or infinity, or all hold -inf.
        """
        logits = repetition_penalty(logits.float(), spans, self.config.repetition_penalty)
        forbidden = torch.zeros_like(logits, dtype=torch.bool)
        forbidden[:, self.banned_ids] = True
        for row, span in zip(forbidden, spans, strict=True):
            if len(span) < self.config.min_length:
                row[self.end_ids] = True
            row[list(repeating(span, self.config.no_repeat_ngram))] = True
        forbidden[:, self.end_ids] &= ~forbidden.all(1, keepdim=True)
        logits = logits.masked_fill(forbidden, -torch.inf)
        best = logits.amax(1)  # NaN where one of them is
        if not best.isfinite().all():
            _refuse(float(best[~best.isfinite()][0]))
        return logits


def _refuse(best: float) -> NoReturn:
    if best == -math.inf:
        raise ValueError(
            "logits: expected a token that may follow, got -inf for all that are not forbidden; give "
            "end_ids, or loosen no_repeat_ngram"
        )
    raise ValueError(
        f"logits: expected finite numbers, got {best}; look for NaN in the weights, or run the model in "
        "bfloat16 or float32"
    )


class Draw:
    """Picks a token for each row, greedily or by chance. Each text has its own stream of chance."""

    def __init__(self, config: GenerationConfig, num_texts: int) -> None:
        self.config = config
        self.generators: list[torch.Generator | None] = [
            None if config.seed is None else torch.Generator().manual_seed(config.seed + text)
            for text in range(num_texts)
        ]

    def __call__(self, logits: Tensor, texts: Sequence[int]) -> list[int]:
        """logits [B, V] as Rules gives them, and which text each row belongs to -> B tokens."""
        config = self.config
        if config.temperature == 0.0:
            picked: list[int] = logits.argmax(1).tolist()
            return picked
        logits = top_k(logits / config.temperature, config.top_k)
        logits = min_p(top_p(logits, config.top_p), config.min_p)
        # The token in whose share of [0, total) a uniform number falls; a share of nothing is never hit.
        cumulative = logits.double().softmax(1).cumsum(1)
        uniform = torch.cat([torch.rand(1, generator=self.generators[text]) for text in texts])
        points = uniform.to(cumulative.device, torch.float64)[:, None] * cumulative[:, -1:]
        drawn: list[int] = torch.searchsorted(cumulative, points, right=True)[:, 0].tolist()
        return drawn
