"""gelu_mlp on a GPU with torch's matrix products, and one kernel for all that lies between two of them.

mma.sync, which the kernels of csrc/cuda are made of, reaches the peak of sm_80 to sm_89. From sm_90 on the
tensor cores have faster instructions (wgmma, tcgen05), which the library uses. There two more passes over
[N, F] cost less than the slower product. And with few rows, as in decoding, the tiles of 128 rows are
mostly empty; the library has products for that.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from glm_ext import _C

Target = int | tuple[int, int]


def is_better(x: Tensor) -> bool:
    """By the arithmetic above; no measurement decides yet."""
    return x.is_cuda and prefers(x.shape[:-1].numel(), x.dtype, _capability(x.device.index))


def prefers(rows: int, dtype: torch.dtype, capability: int) -> bool:
    """The choice for a card of this major compute capability."""
    return rows < _C.GELU_MLP_TILE_ROWS or (dtype != torch.float32 and capability >= 9)


@functools.cache
def _capability(device: int) -> int:
    return torch.cuda.get_device_capability(device)[0]


def forward(
    rows: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    pre: Tensor,
    post: Tensor | None,
    y: Tensor | None,
    tanh: bool,
    where: Target,
) -> None:
    """Fills pre [N, F], post [N, F] where given, and y [N, O] where given."""
    torch.mm(rows, w1.t(), out=pre)
    if y is None and b1 is None:
        return
    if y is not None and post is None:
        post = torch.empty_like(pre)
    _C.gelu_mlp_bias_gelu(pre, b1, pre, post if y is not None else None, tanh, where)
    if y is not None and post is not None:
        if b2 is None:
            torch.mm(post, w2.t(), out=y)
        else:
            torch.addmm(b2, post, w2.t(), out=y)


def backward(
    grad_y: Tensor,
    rows: Tensor,
    w1: Tensor,
    w2: Tensor,
    pre: Tensor,
    post: Tensor | None,
    grads: Sequence[Tensor | None],
    tanh: bool,
    where: Target,
) -> None:
    """Fills the gradients of x, w1, b1, w2, b2 that are given."""
    grad_x, grad_w1, grad_b1, grad_w2, grad_b2 = grads
    scratch = torch.empty_like(pre) if post is None and grad_w2 is not None else None
    if grad_x is not None or grad_w1 is not None or grad_b1 is not None:
        grad_pre = torch.mm(grad_y, w2, out=torch.empty_like(pre))  # else autocast would choose its dtype
        sums = None
        if grad_b1 is not None:
            sums = pre.new_empty((_C.gelu_mlp_row_tiles(pre.shape[0]), pre.shape[1]), dtype=torch.float32)
        _C.gelu_mlp_gelu_grad(grad_pre, pre, grad_pre, scratch, sums, grad_b1, tanh, where)
        if grad_x is not None:
            torch.mm(grad_pre, w1, out=grad_x)
        if grad_w1 is not None:
            torch.mm(grad_pre.t(), rows, out=grad_w1)
    elif scratch is not None:
        _C.gelu_mlp_bias_gelu(pre, None, None, scratch, tanh, where)
    if grad_w2 is not None:
        torch.mm(grad_y.t(), post if post is not None else scratch, out=grad_w2)  # type: ignore[arg-type]
    if grad_b2 is not None:
        torch.sum(grad_y, 0, out=grad_b2)
