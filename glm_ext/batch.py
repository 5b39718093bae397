"""Batch: what the data hands to the model, the only type that the two share.

B sequences, S padded length. A sequence is Part A (the text with blanks), then Part B (the blanks' contents),
then padding. No attention mask is ever stored: `prefix_len` and `seq_len` say everything about who sees whom.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A right-padded batch of blank-infilling examples (Du et al. 2022, "GLM", section 2.1 and figure 2).

    Shapes and dtypes:
        tokens     [B, S]    int64    inputs: Part A, then `<|startofpiece|> span` for every blank
        positions  [B, 2, S] int64    row 0: place in Part A; row 1: place in the span, 0 in Part A
        targets    [B, S]    int64    aligned with the inputs: tokens[b, i] predicts targets[b, i], no shift
        loss_mask  [B, S]    float32  weight of each target; 0 on Part A and on padding
        prefix_len [B]       int64    length of Part A
        seq_len    [B]       int64    length of Part A and Part B together; None if nothing is padded

    Errors: TypeError for a wrong dtype, ValueError for a wrong shape or for tensors on several devices.
    Values are not read (that would wait for the device): the ops check them.

    >>> one_blank = Batch(
    ...     tokens=torch.tensor([[11, 2, 13, 3, 12]]),  # 11 [MASK] 13 | <sop> 12
    ...     positions=torch.tensor([[[0, 1, 2, 1, 1], [0, 0, 0, 1, 2]]]),
    ...     targets=torch.tensor([[11, 2, 13, 12, 4]]),
    ...     loss_mask=torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]]),
    ...     prefix_len=torch.tensor([3]),
    ... )
    >>> one_blank.num_tokens, one_blank.num_targets
    (5, 2)
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    loss_mask: Tensor
    prefix_len: Tensor
    seq_len: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tokens.dim() != 2:
            raise ValueError(f"tokens: expected [B, S], got {list(self.tokens.shape)}")
        b, s = self.tokens.shape
        self._check("tokens", self.tokens, (b, s), torch.int64)
        self._check("positions", self.positions, (b, 2, s), torch.int64)
        self._check("targets", self.targets, (b, s), torch.int64)
        self._check("loss_mask", self.loss_mask, (b, s), torch.float32)
        self._check("prefix_len", self.prefix_len, (b,), torch.int64)
        if self.seq_len is not None:
            self._check("seq_len", self.seq_len, (b,), torch.int64)

    def _check(self, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        device = self.tokens.device
        if tensor.device != device:
            raise ValueError(
                f"{name}: expected device {device} like tokens, got {tensor.device}; use Batch.to(device)"
            )
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}; convert it with .to({dtype})")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected {list(shape)} to go with tokens, got {list(tensor.shape)}")

    def to(self, device: torch.device | str | int) -> Batch:
        """The same batch on `device`."""
        return Batch(
            tokens=self.tokens.to(device),
            positions=self.positions.to(device),
            targets=self.targets.to(device),
            loss_mask=self.loss_mask.to(device),
            prefix_len=self.prefix_len.to(device),
            seq_len=None if self.seq_len is None else self.seq_len.to(device),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return self.tokens.numel() if self.seq_len is None else int(self.seq_len.sum())

    @property
    def num_targets(self) -> int:
        """Targets that the loss counts: those of non-zero weight."""
        return int(torch.count_nonzero(self.loss_mask))
