"""The GeLU MLP of a transformer block: two matrix products, all between them fused into their ends."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glm_ext import _C
from glm_ext.ops import _gelu_mlp_library as library
from glm_ext.ops._arguments import check_floating, check_like, check_result, check_shape
from glm_ext.ops._library import (
    autocast_dtype,
    cast_for_autocast,
    first_order_only,
    register,
    short_path,
    target,
    watched,
)

# N rows of x (leading dimensions flattened), E width, F hidden width, O width of the result
INPUTS = 5  # x, w1, b1, w2, b2: the tensors that gradients are for


def gelu_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    approximate: str = "tanh",
    recompute: str = "activation",
) -> Tensor:
    r"""Two linear layers with a GELU (Hendrycks & Gimpel, arXiv 1606.08415) between them.

    .. math:: y = gelu(x \, w_1^T + b_1) \, w_2^T + b_2

    Args:
        x: ``[..., E]``, float32, float64, bfloat16 or float16.
        w1, b1: ``[F, E]`` and ``[F]``, as in ``nn.Linear``; ``b1`` may be None.
        w2, b2: ``[O, F]`` and ``[O]``; ``b2`` may be None.
        approximate: ``"tanh"`` (what GLM trains with) or ``"none"`` (erf).
        recompute: what backward computes again instead of keeping it. Beside the inputs, ``"none"`` keeps two
            ``[..., F]`` tensors, ``"activation"`` one (the GELU is evaluated while it is read: nearly free),
            and ``"all"`` nothing, for one matrix product more. No value depends on it.

    Returns:
        ``[..., O]`` in the dtype of ``x``. Sums are float32 (float64 for float64); ``[..., F]`` tensors have
        the dtype of ``x``. On a GPU some products are torch's (few rows; all from compute capability 9.0 on),
        and summed as ``torch.backends.cuda.matmul`` says. Under autocast the op runs in autocast's
        dtype, as torch's linear does.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> x, eye, zero = torch.tensor([[0.0, 1.0]]), torch.eye(2), torch.zeros(2)
    >>> gelu_mlp(x, eye, zero, eye, zero)
    tensor([[0.0000, 0.8412]])
    """
    check_floating("x", x)
    x, w1, b1, w2, b2 = _cast(x.device.type, x, w1, b1, w2, b2)
    _check(x, w1, b1, w2, b2, approximate, recompute)
    if watched(x, w1, b1, w2, b2):
        return torch.ops.glm_ext.gelu_mlp(x, w1, b1, w2, b2, approximate, recompute)[0]  # type: ignore[no-any-return]
    return short_path(_GeluMlp, x, w1, b1, w2, b2, approximate, recompute)  # type: ignore[no-any-return]


def _check(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, approximate: str, recompute: str
) -> None:
    check_floating("x", x)
    for name, tensor in (("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2)):
        if tensor is not None or name in ("w1", "w2"):
            check_like(name, tensor, "x", x)  # type: ignore[arg-type]
    if x.dim() == 0:
        raise ValueError("x: expected [..., E], got a scalar")
    check_shape("w1", w1, (-1, x.shape[-1]), "F, E")
    check_shape("w2", w2, (-1, w1.shape[0]), "O, F")
    if b1 is not None:
        check_shape("b1", b1, w1.shape[:1], "F")
    if b2 is not None:
        check_shape("b2", b2, w2.shape[:1], "O")
    check_choices(approximate, recompute)


def _check_backward(*arguments: Any) -> None:
    grad_y, x, w1, b1, w2, pre, post, approximate, recompute, _ = arguments  # of _backward
    _check(x, w1, b1, w2, None, approximate, recompute)
    check_result("grad_y", grad_y, (*x.shape[:-1], w2.shape[0]), x.dtype, x)
    for name, kept, is_there in (("pre", pre, recompute != "all"), ("post", post, recompute == "none")):
        if is_there:
            check_result(name, kept, (x.shape[:-1].numel(), w1.shape[0]), x.dtype, x)


def check_choices(approximate: str, recompute: str) -> None:
    """The two options that are words, also for the layer that is made with them."""
    if approximate not in ("tanh", "none"):
        raise ValueError(f'approximate: expected "tanh" or "none", got {approximate!r}')
    if recompute not in ("none", "activation", "all"):
        raise ValueError(f'recompute: expected "none", "activation" or "all", got {recompute!r}')


def _cast(
    device: str, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    dtype = autocast_dtype(device)
    if dtype is None:
        return x, w1, b1, w2, b2
    x, w1, w2 = cast_for_autocast(dtype, x, w1, w2)
    b1, b2 = (b if b is None else cast_for_autocast(dtype, b)[0] for b in (b1, b2))
    return x, w1, b1, w2, b2


def _rows(x: Tensor) -> Tensor:
    if x.dim() == 2:
        return x
    return x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty((x.shape[:-1].numel(), x.shape[-1]))


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _workspace(x: Tensor, size: int) -> Tensor | None:
    return x.new_empty(size, dtype=torch.float32) if size else None


def _forward(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, approximate: str, recompute: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y, and pre and post [N, F] where backward wants them."""
    rows, tanh, where = _rows(x), approximate == "tanh", target("gelu_mlp", x)
    hidden = (rows.shape[0], w1.shape[0])
    y = x.new_empty((*x.shape[:-1], w2.shape[0]))
    pre = rows.new_empty(hidden)
    post = rows.new_empty(hidden) if recompute == "none" else None
    if library.is_better(x):
        room = pre if recompute == "all" else post
        library.forward(rows, w1, _contiguous(b1), w2, b2, pre, room, _matrix(y, len(rows)), tanh, where)
    else:
        size = _C.gelu_mlp_forward_workspace(*hidden, post is not None, x.element_size(), where)
        _C.gelu_mlp_forward(
            rows, w1, _contiguous(b1), w2, _contiguous(b2), pre, post, y, _workspace(x, size), tanh, where
        )
    return y, None if recompute == "all" else pre, post


def _matrix(x: Tensor, rows: int) -> Tensor:
    """A view [rows, last dimension]."""
    return x if x.dim() == 2 else x.view(rows, x.shape[-1])


def _backward(
    grad_y: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    pre: Tensor | None,
    post: Tensor | None,
    approximate: str,
    recompute: str,
    needed: Sequence[bool],
    *,
    last: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, w1, b1, w2, b2 where they are needed. recompute says whether pre and post are there.

    The `last` time that pre is needed, its gradient takes its place.
    """
    grad_x, grad_w1, grad_b1, grad_w2, grad_b2 = grads = tuple(
        x.new_empty(shape) if n else None for shape, n in zip(_shapes(x, w1, w2), needed, strict=True)
    )
    rows, tanh, where = _rows(x), approximate == "tanh", target("gelu_mlp_backward", x)
    hidden = (rows.shape[0], w1.shape[0])
    by_library = library.is_better(x)
    pre = _contiguous(pre)
    post = _contiguous(post) if recompute == "none" else None
    if not any(needed[:4]):
        pre = None
    elif recompute == "all":
        pre = rows.new_empty(hidden)
        if by_library:
            library.forward(rows, w1, _contiguous(b1), w2, None, pre, None, None, tanh, where)
        else:
            _C.gelu_mlp_forward(rows, w1, _contiguous(b1), w2, None, pre, None, None, None, tanh, where)
    if by_library:
        to_rows = None if grad_x is None else _matrix(grad_x, len(rows))
        library.backward(
            _rows(grad_y), rows, w1, w2, pre, post, (to_rows, grad_w1, grad_b1, grad_w2, grad_b2), tanh, where
        )
        return grads
    if not any(needed[:3]):
        grad_pre = None
    else:
        grad_pre = pre if last or recompute == "all" else rows.new_empty(hidden)
    has_post = post is not None or grad_w2 is None
    size = _C.gelu_mlp_backward_workspace(*hidden, w2.shape[0], has_post, x.element_size(), where)
    _C.gelu_mlp_backward(
        _rows(grad_y), rows, w1, w2, pre, post, grad_pre, _workspace(x, size),
        grad_x, grad_w1, grad_b1, grad_w2, grad_b2, tanh, where,
    )  # fmt: skip
    return grads


def _shapes(x: Tensor, w1: Tensor, w2: Tensor) -> tuple[Sequence[int], ...]:
    """Of x, w1, b1, w2, b2."""
    return x.shape, w1.shape, w1.shape[:1], w2.shape, w2.shape[:1]


class _GeluMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w1: Tensor,
        b1: Tensor | None,
        w2: Tensor,
        b2: Tensor | None,
        approximate: str,
        recompute: str,
    ) -> Tensor:
        y, pre, post = _forward(x, w1, b1, w2, b2, approximate, recompute)
        ctx.save_for_backward(x, w1, b1, w2, pre, post)
        ctx.options = approximate, recompute
        ctx.spent = False
        return y

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(functools.partial(_spending_backward, ctx), ctx, grad_y)


def _spending_backward(ctx: Any, *arguments: Any) -> tuple[Tensor | None, ...]:
    if ctx.spent:  # torch itself lets nobody ask again, except when the last time broke off
        raise RuntimeError(
            "gelu_mlp: expected what forward saved, which a backward that broke off has written over; "
            "run forward again"
        )
    ctx.spent = not torch._C._autograd._get_current_graph_task_keep_graph()
    return _backward(*arguments, last=ctx.spent)


def _gradients(backward: Any, ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:INPUTS])
    grads = backward(grad_y, *ctx.saved_tensors, *ctx.options, needed)
    return (*(g if n else None for g, n in zip(grads, needed, strict=True)), None, None)


# ------------------------------------------------------------------------------------------ torch.ops.glm_ext

# A registered op returns tensors: one of no elements stands for what is not there.


def _registered_forward(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, approximate: str, recompute: str
) -> tuple[Tensor, ...]:
    return _with_empty(x, _forward(x, w1, b1, w2, b2, approximate, recompute))


def _with_empty(x: Tensor, tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(0) if t is None else t for t in tensors)


def _forward_fake(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, approximate: str, recompute: str
) -> tuple[Tensor, ...]:
    hidden = (math.prod(x.shape[:-1]), w1.shape[0])  # Size.numel would fix a size that may vary
    pre = x.new_empty(hidden) if recompute != "all" else None
    post = x.new_empty(hidden) if recompute == "none" else None
    return _with_empty(x, (x.new_empty((*x.shape[:-1], w2.shape[0])), pre, post))


def _registered_backward_kernel(grad_y: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _with_empty(x, _backward(grad_y, x, *rest))


def _backward_fake(
    grad_y: Tensor,
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    pre: Tensor,
    post: Tensor,
    approximate: str,
    recompute: str,
    needed: Sequence[bool],
) -> tuple[Tensor, ...]:
    return _with_empty(
        x, [x.new_empty(s) if n else None for s, n in zip(_shapes(x, w1, w2), needed, strict=True)]
    )


def _autocast(device: str, *args: Any) -> tuple[Any, ...]:
    return (*_cast(device, *args[:INPUTS]), *args[INPUTS:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w1, b1, w2, _, *ctx.options = inputs
    _, pre, post = output
    ctx.save_for_backward(x, w1, b1, w2, pre, post)
    ctx.mark_non_differentiable(pre, post)


@first_order_only
def _registered_backward(ctx: Any, grad_y: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return _gradients(torch.ops.glm_ext.gelu_mlp_backward, ctx, grad_y)


register(
    "gelu_mlp(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, str approximate, str recompute) "
    "-> (Tensor y, Tensor pre, Tensor post)",
    _registered_forward,
    _forward_fake,
    check=_check,
    autocast=_autocast,
)
register(
    "gelu_mlp_backward(Tensor grad_y, Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor pre, Tensor post, "
    "str approximate, str recompute, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _registered_backward_kernel,
    _backward_fake,
    check=_check_backward,
)
torch.library.register_autograd("glm_ext::gelu_mlp", _registered_backward, setup_context=_setup_context)
