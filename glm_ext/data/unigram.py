"""The loss of a model that knows word frequencies and nothing else: what a trained model must beat."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..batch import Batch


def target_counts(batches: Iterable[Batch], vocab_size: int) -> NDArray[np.float64]:
    """How often (by loss weight) each token is a target: [vocab_size] float64."""
    counts = np.zeros(vocab_size)
    for batch in batches:
        counts += np.bincount(
            batch.targets.numpy().ravel(), weights=batch.loss_mask.numpy().ravel(), minlength=vocab_size
        )
    return counts


def unigram_loss(counts: NDArray[np.float64], batches: Iterable[Batch], *, smoothing: float = 0.5) -> float:
    """Mean cross-entropy, in nats, of p(v) = (counts[v] + smoothing) / sum on the targets of `batches`.

    Same targets and weights as the model's loss, so the two numbers compare. ValueError if no target has
    weight.

    >>> import torch
    >>> row = torch.tensor([[0, 1]])
    >>> batch = Batch(
    ...     tokens=row,
    ...     targets=row,
    ...     positions=row.expand(1, 2, 2),
    ...     loss_mask=torch.ones(1, 2),
    ...     prefix_len=row[:, 0],
    ... )
    >>> round(unigram_loss(np.array([1.0, 1.0]), [batch]), 4)  # ln 2
    0.6931
    """
    smoothed = counts + smoothing
    log_p = np.log(smoothed / smoothed.sum())
    seen = target_counts(batches, len(counts))
    if not seen.sum() > 0:
        raise ValueError("unigram_loss: expected at least one target of non-zero weight, got none")
    return float(-(seen @ log_p) / seen.sum())
