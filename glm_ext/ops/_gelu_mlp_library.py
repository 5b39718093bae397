"""gelu_mlp on a GPU with torch's matrix products, and one kernel for all that lies between two of them.

mma.sync, which the kernels of csrc/cuda are made of, reaches the peak of sm_80 to sm_89. From sm_90 on the
tensor cores have faster instructions (wgmma, tcgen05), which the library uses. There another pass over [N, F]
costs less than the slower product. And with few rows, as in decoding, the tiles of 128 rows are mostly empty;
the library has products for that.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from glm_ext import _C

Target = int | tuple[int, int]


def is_better(x: Tensor) -> bool:
    return x.is_cuda and prefers(x.shape[:-1].numel(), _capability(x.device.index))


def prefers(rows: int, capability: int) -> bool:
    """The choice for a card of this major compute capability.

    From 9 on as measured on an H200 in bfloat16 and float32 (docs/performance.md), which is taken to hold
    for float16 and later cards; below 9 by the arithmetic above. Neither is measured.
    """
    return capability >= 9 or rows < _C.GELU_MLP_TILE_ROWS


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
    """Fills pre [N, F] and, where given, y [N, O] and post [N, F], which may be pre itself."""
    # out=, here and below: else autocast would choose the dtype
    linear(rows, w1, b1, out=pre)  # type: ignore[call-arg]
    if y is None:
        return
    if post is None:
        post = pre.new_empty(pre.shape)
    _C.gelu_mlp_gelu(pre, post, tanh, where)
    linear(post, w2, b2, out=y)  # type: ignore[call-arg]


def backward(
    grad_y: Tensor,
    rows: Tensor,
    w1: Tensor,
    w2: Tensor,
    pre: Tensor | None,
    post: Tensor | None,
    grads: Sequence[Tensor | None],
    tanh: bool,
    where: Target,
) -> None:
    """Fills the gradients of x, w1, b1, w2, b2 that are given. pre only b2 can do without."""
    grad_x, grad_w1, grad_b1, grad_w2, grad_b2 = grads
    sums = None
    if grad_b1 is not None or grad_b2 is not None:
        tiles = _C.gelu_mlp_row_tiles(rows.shape[0])
        sums = rows.new_empty((tiles, max(w2.shape)), dtype=torch.float32)  # one after the other
    scratch = None
    if pre is not None:
        if post is None and grad_w2 is not None:
            post = scratch = pre.new_empty(pre.shape)
        if grad_x is not None or grad_w1 is not None or grad_b1 is not None:
            grad_pre = torch.mm(grad_y, w2, out=pre.new_empty(pre.shape))
            _C.gelu_mlp_gelu_grad(grad_pre, pre, grad_pre, scratch, sums, grad_b1, tanh, where)
            if grad_x is not None:
                torch.mm(grad_pre, w1, out=grad_x)
            if grad_w1 is not None:
                torch.mm(grad_pre.t(), rows, out=grad_w1)
        elif scratch is not None:
            _C.gelu_mlp_gelu(pre, scratch, tanh, where)
    if grad_w2 is not None:
        torch.mm(grad_y.t(), post, out=grad_w2)  # type: ignore[arg-type]
    if grad_b2 is not None:
        _C.gelu_mlp_sum_rows(grad_y, sums, grad_b2, where)
