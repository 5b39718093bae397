"""The argument checks of the ops: device, dtype, layout, shape, values, in this order, before any allocation.

Every message says what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, np.number)


def check_floating(name: str, tensor: Tensor) -> None:
    """The tensor that sets the op's dtype and device."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {dtype_name(tensor)}")
    _check_strided(name, tensor)


def check_like(name: str, tensor: Tensor, anchor_name: str, anchor: Tensor) -> None:
    """`tensor` must have the device and dtype of `anchor`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.device != anchor.device:
        raise ValueError(f"{name}: expected device {anchor.device} as {anchor_name}, got {tensor.device}")
    if tensor.dtype != anchor.dtype:
        raise TypeError(f"{name}: expected {dtype_name(anchor)} as {anchor_name}, got {dtype_name(tensor)}")
    _check_strided(name, tensor)


def check_result(name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype, anchor: Tensor) -> None:
    """What a forward op gave, or the gradient of it, as its backward takes it; where the anchor is."""
    if tensor.device != anchor.device:
        raise ValueError(f"{name}: expected device {anchor.device}, got {tensor.device}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected {str(dtype).removeprefix('torch.')}, got {dtype_name(tensor)}")
    _check_strided(name, tensor)
    check_shape(name, tensor, shape, "as the op gave it")


def check_integer(name: str, tensor: Tensor, device: torch.device) -> None:
    """Index tensors are int64 or int32, on the op's device."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected an integer tensor, got {type(tensor).__name__}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, got {tensor.device}")
    if tensor.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected int64 or int32, got {dtype_name(tensor)}")


def check_shape(name: str, tensor: Tensor, expected: Sequence[int], axes: str) -> None:
    """`axes` names the dimensions, as in "B, S, E"; -1 in `expected` fits any size."""
    shape = tensor.shape
    if shape == expected:
        return
    if len(shape) != len(expected) or any(e not in (-1, s) for s, e in zip(shape, expected, strict=True)):
        wanted = ", ".join("any" if e == -1 else str(e) for e in expected)
        raise ValueError(f"{name}: expected shape [{wanted}] ({axes}), got {list(shape)}")


def check_lengths(name: str, value: int | Tensor, batch: int, most: int, device: torch.device) -> Tensor:
    """One int for the whole batch or an int tensor [B], as int64 [B]. The kernel checks a tensor's values."""
    if isinstance(value, Tensor):
        check_integer(name, value, device)
        check_shape(name, value, (batch,), "B")
        return value.long().contiguous()
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int or an int tensor [B], got {type(value).__name__}")
    if not 0 <= value <= most:
        raise ValueError(f"{name}: expected an int in [0, {most}], got {value}")
    return torch.full((batch,), value, dtype=torch.int64, device=device)


def check_bounds(cu_seqlens: Tensor, device: torch.device) -> int:
    """Int tensor [B + 1] -> B. The kernel checks its values."""
    check_integer("cu_seqlens", cu_seqlens, device)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens: expected shape [B + 1], got {list(cu_seqlens.shape)}")
    return cu_seqlens.shape[0] - 1


def check_probability(name: str, value: float) -> None:
    _check_number(name, value, "a probability in [0, 1]")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {value}")


def check_finite(name: str, value: float, *, at_least: float = -math.inf) -> None:
    expected = "a finite number" if at_least == -math.inf else f"a finite number, {at_least} or more"
    _check_number(name, value, expected)
    if not (at_least <= value and -math.inf < value < math.inf):
        raise ValueError(f"{name}: expected {expected}, got {value}")


def _check_number(name: str, value: object, expected: str) -> None:
    if not isinstance(value, _NUMBERS):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")


def _check_strided(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got one of layout {tensor.layout}")


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums and statistics of tensors of `dtype` are taken in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
