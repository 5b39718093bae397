"""Batch: what the data hands to the model, the only type that the two share; padded, or packed end to end.

B sequences, S padded length; G sequences of N tokens together. A sequence is Part A (the text with blanks),
then Part B (the blanks' contents), then padding, if any. No attention mask is ever stored: `prefix_len` and
`seq_len` or `cu_seqlens` say everything about who sees whom.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A right-padded batch of blank-infilling examples (Du et al. 2022, "GLM", section 2.1 and figure 2).

    Shapes and dtypes:
        tokens     [B, S]    int64    inputs: Part A, then `<|startofpiece|> span` for every blank
        positions  [B, 2, S] int64    row 0: place in Part A; row 1: place in the span, 0 in Part A
        targets    [B, S]    int64    aligned with the inputs: tokens[b, i] predicts targets[b, i], no shift
        loss_mask  [B, S]    float32  weight of each target; 0 on Part A and on padding (any floating dtype
                                      will do: FSDP casts what it hands to a model)
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
    >>> one_blank.num_tokens, one_blank.num_targets, one_blank.visible_pairs
    (5, 2, 18)
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    loss_mask: Tensor
    prefix_len: Tensor
    seq_len: Tensor | None = None

    def __post_init__(self) -> None:
        self._check_tensors()
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

    def _check_tensors(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Tensor) and not (value is None and field.name == "seq_len"):
                raise TypeError(f"{field.name}: expected a tensor, got {type(value).__name__}")

    def _check(self, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        device = self.tokens.device
        if tensor.device != device:
            raise ValueError(
                f"{name}: expected device {device} like tokens, got {tensor.device}; use Batch.to(device)"
            )
        if tensor.dtype != dtype and not (dtype == torch.float32 and tensor.is_floating_point()):
            raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}; convert it with .to({dtype})")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected {list(shape)} to go with tokens, got {list(tensor.shape)}")

    def to(self, device: torch.device | str | int) -> Batch:
        """The same batch on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: t if t is None else t.to(device) for name, t in tensors.items()}
        return replace(self, **moved)

    @property
    def lengths(self) -> Tensor:
        """[B] tokens of each sequence that are not padding."""
        if self.seq_len is None:
            return torch.full_like(self.prefix_len, self.tokens.shape[1])
        return self.seq_len

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.lengths.sum())

    @property
    def num_targets(self) -> int:
        """Targets that the loss counts: those of non-zero weight."""
        return int(torch.count_nonzero(self.loss_mask))

    @property
    def visible_pairs(self) -> int:
        """Pairs of a token and one that it sees under GLM's mask, in all sequences; padding counts in none.

            sum of (n (n + 1) + a (a - 1)) / 2    over sequences of n tokens, a of them Part A

        A token of Part A sees all a of it; token i of the sequence, from 0, sees i + 1 where it is in Part B.
        """
        n = self.lengths
        a = torch.minimum(self.prefix_len, n)
        return int((n * (n + 1) + a * (a - 1)).sum()) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch(Batch):
    """G blank-infilling examples of any lengths end to end: no padding, and no example sees another.

    Shapes and dtypes:
        tokens     [N]      int64    example g is rows cu_seqlens[g] to cu_seqlens[g + 1]
        positions  [2, N]   int64
        targets    [N]      int64
        loss_mask  [N]      float32
        prefix_len [G]      int64    length of Part A of each example
        cu_seqlens [G + 1]  int64    from 0 to N, never falling

    The fields mean what they mean in Batch; seq_len is None. The same errors.

    >>> packed = PackedBatch(
    ...     tokens=torch.tensor([11, 2, 13, 3, 12, 21, 2, 3, 22]),  # 11 [M] 13 | <sop> 12, 21 [M] | <sop> 22
    ...     positions=torch.tensor([[0, 1, 2, 1, 1, 0, 1, 1, 1], [0, 0, 0, 1, 2, 0, 0, 1, 2]]),
    ...     targets=torch.tensor([11, 2, 13, 12, 4, 21, 2, 22, 4]),
    ...     loss_mask=torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]),
    ...     prefix_len=torch.tensor([3, 2]),
    ...     cu_seqlens=torch.tensor([0, 5, 9]),
    ... )
    >>> packed.num_tokens, packed.num_targets, packed.visible_pairs  # 18 of the first and 11 of the second
    (9, 4, 29)
    """

    cu_seqlens: Tensor

    @property
    def lengths(self) -> Tensor:
        """[G] tokens of each example."""
        return self.cu_seqlens.diff()

    def __post_init__(self) -> None:
        self._check_tensors()
        if self.tokens.dim() != 1:
            raise ValueError(f"tokens: expected [N], got {list(self.tokens.shape)}")
        if self.seq_len is not None:
            raise ValueError("seq_len: expected None in a packed batch, whose cu_seqlens say the lengths")
        if self.prefix_len.dim() != 1:
            raise ValueError(f"prefix_len: expected [G], got {list(self.prefix_len.shape)}")
        n, g = len(self.tokens), len(self.prefix_len)
        self._check("tokens", self.tokens, (n,), torch.int64)
        self._check("positions", self.positions, (2, n), torch.int64)
        self._check("targets", self.targets, (n,), torch.int64)
        self._check("loss_mask", self.loss_mask, (n,), torch.float32)
        self._check("prefix_len", self.prefix_len, (g,), torch.int64)
        self._check("cu_seqlens", self.cu_seqlens, (g + 1,), torch.int64)
