"""Examples of different lengths -> one right-padded Batch with their lengths, or one PackedBatch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..batch import Batch, PackedBatch
from .blocks import Example


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pads to the longest example, S: tokens and targets with pad_id, positions and loss weights with 0.

    No mask tensor is made: seq_len tells the kernels where each sequence ends. ValueError if there are no
    examples.
    """
    if not examples:
        raise ValueError("collate: expected at least one example, got none")
    lengths = [len(example) for example in examples]
    shape = len(examples), max(lengths)
    tokens = np.full(shape, pad_id, dtype=np.int64)
    targets = np.full(shape, pad_id, dtype=np.int64)
    positions = np.zeros((shape[0], 2, shape[1]), dtype=np.int64)
    loss_mask = np.zeros(shape, dtype=np.float32)
    for row, (example, length) in enumerate(zip(examples, lengths, strict=True)):
        tokens[row, :length] = example.tokens
        targets[row, :length] = example.targets
        positions[row, :, :length] = example.positions
        loss_mask[row, :length] = example.loss_mask
    return Batch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        targets=torch.from_numpy(targets),
        loss_mask=torch.from_numpy(loss_mask),
        prefix_len=torch.tensor([example.prefix_len for example in examples]),
        seq_len=torch.tensor(lengths),
    )


def collate_packed(examples: Sequence[Example]) -> PackedBatch:
    """Lays the examples end to end. ValueError if there are none."""
    if not examples:
        raise ValueError("collate_packed: expected at least one example, got none")
    lengths = [len(example) for example in examples]
    return PackedBatch(
        tokens=torch.from_numpy(np.concatenate([example.tokens for example in examples])),
        positions=torch.from_numpy(np.concatenate([example.positions for example in examples], axis=1)),
        targets=torch.from_numpy(np.concatenate([example.targets for example in examples])),
        loss_mask=torch.from_numpy(np.concatenate([example.loss_mask for example in examples])),
        prefix_len=torch.tensor([example.prefix_len for example in examples]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0),
    )
