"""The GeLU MLP of a transformer block: two matrix products, all between them fused into their ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glm_ext import _C
from glm_ext.ops import _gelu_mlp_library as library
from glm_ext.ops._arguments import check_floating, check_like, check_shape
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
        the dtype of ``x``. On a GPU some products are torch's (few rows; 16 bits from compute capability 9.0
        on), and summed as ``torch.backends.cuda.matmul`` says. Under autocast the op runs in autocast's
        dtype, as torch's linear does.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> x, eye, zero = torch.tensor([[0.0, 1.0]]), torch.eye(2), torch.zeros(2)
    >>> gelu_mlp(x, eye, zero, eye, zero)
    tensor([[0.0000, 0.8412]])
    """
    check_floating("x", x)
    x, w1, b1, w2, b2 = _cast(x.device.type, x, w1, b1, w2, b2)
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
    if approximate not in ("tanh", "none"):
        raise ValueError(f'approximate: expected "tanh" or "none", got {approximate!r}')
    if recompute not in ("none", "activation", "all"):
        raise ValueError(f'recompute: expected "none", "activation" or "all", got {recompute!r}')

    if watched(x, w1, b1, w2, b2):
        return torch.ops.glm_ext.gelu_mlp(x, w1, b1, w2, b2, approximate, recompute)[0]  # type: ignore[no-any-return]
    return short_path(_GeluMlp, x, w1, b1, w2, b2, approximate, recompute)  # type: ignore[no-any-return]


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
    return x.reshape(-1, x.shape[-1]) if x.numel() else x.new_empty((x.shape[:-1].numel(), x.shape[-1]))


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _workspace(x: Tensor, size: int) -> Tensor | None:
    return x.new_empty(size, dtype=torch.float32) if size else None


def _forward(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, approximate: str, recompute: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, pre, post); pre and post are empty where backward does not want them."""
    y, pre, post = _forward_fake(x, w1, b1, w2, b2, approximate, recompute)
    rows, where = _rows(x), target("gelu_mlp", x)
    hidden = (rows.shape[0], w1.shape[0])
    scratch = rows.new_empty(hidden) if recompute == "all" else pre
    if library.is_better(x):
        kept = post.view(hidden) if recompute == "none" else None
        library.forward(
            rows, w1, _contiguous(b1), w2, b2, scratch.view(hidden), kept, y.view(len(rows), w2.shape[0]),
            approximate == "tanh", where,
        )  # fmt: skip
        return y, pre, post
    size = _C.gelu_mlp_forward_workspace(*hidden, recompute == "none", x.element_size(), where)
    _C.gelu_mlp_forward(
        rows, w1, _contiguous(b1), w2, _contiguous(b2), scratch, post if recompute == "none" else None, y,
        _workspace(x, size), approximate == "tanh", where,
    )  # fmt: skip
    return y, pre, post


def _forward_fake(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, approximate: str, recompute: str
) -> tuple[Tensor, Tensor, Tensor]:
    hidden = (*x.shape[:-1], w1.shape[0])
    pre = x.new_empty(hidden if recompute != "all" else (0,))
    post = x.new_empty(hidden if recompute == "none" else (0,))
    return x.new_empty((*x.shape[:-1], w2.shape[0])), pre, post


def _backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w1, b1, w2, b2; empty where they are not needed."""
    grads = _backward_fake(grad_y, x, w1, b1, w2, pre, post, approximate, recompute, needed)
    rows, tanh, where = _rows(x), approximate == "tanh", target("gelu_mlp_backward", x)
    hidden = (rows.shape[0], w1.shape[0])
    if recompute == "all" and any(needed[:4]):
        pre = rows.new_empty(hidden)
        if library.is_better(x):
            library.forward(rows, w1, _contiguous(b1), w2, None, pre, None, None, tanh, where)
        else:
            _C.gelu_mlp_forward(rows, w1, _contiguous(b1), w2, None, pre, None, None, None, tanh, where)
    grad_x, grad_w1, grad_b1, grad_w2, grad_b2 = (
        g if n else None for g, n in zip(grads, needed, strict=True)
    )
    if library.is_better(x):
        library.backward(
            _rows(grad_y), rows, w1, w2, pre.view(hidden) if any(needed[:4]) else pre,
            post.view(hidden) if recompute == "none" else None,
            (None if grad_x is None else grad_x.view(rows.shape), grad_w1, grad_b1, grad_w2, grad_b2),
            tanh, where,
        )  # fmt: skip
        return grads
    grad_pre = rows.new_empty(hidden) if any(needed[:3]) else None
    has_post = recompute == "none" or grad_w2 is None
    size = _C.gelu_mlp_backward_workspace(*hidden, w2.shape[0], has_post, x.element_size(), where)
    _C.gelu_mlp_backward(
        _rows(grad_y), rows, w1, w2, pre, post if recompute == "none" else None, grad_pre,
        _workspace(x, size), grad_x, grad_w1, grad_b1, grad_w2, grad_b2, tanh, where,
    )  # fmt: skip
    return grads


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shapes = (x.shape, w1.shape, w1.shape[:1], w2.shape, w2.shape[:1])
    grad_x, grad_w1, grad_b1, grad_w2, grad_b2 = (
        x.new_empty(shape if n else (0,)) for shape, n in zip(shapes, needed, strict=True)
    )
    return grad_x, grad_w1, grad_b1, grad_w2, grad_b2


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
        return y

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(_backward, ctx, grad_y)


def _gradients(backward: Any, ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad[:INPUTS])
    grads = backward(grad_y, *ctx.saved_tensors, *ctx.options, needed)
    return (*(g if n else None for g, n in zip(grads, needed, strict=True)), None, None)


# ------------------------------------------------------------------------------------------ torch.ops.glm_ext


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
    _forward,
    _forward_fake,
    autocast=_autocast,
)
register(
    "gelu_mlp_backward(Tensor grad_y, Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor pre, Tensor post, "
    "str approximate, str recompute, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
torch.library.register_autograd("glm_ext::gelu_mlp", _registered_backward, setup_context=_setup_context)
