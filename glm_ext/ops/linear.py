"""A linear layer on the packed matrix product that the other ops are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from glm_ext import _C
from glm_ext.ops._arguments import check_floating, check_like, check_result, check_shape, statistics_dtype
from glm_ext.ops._library import (
    autocast_dtype,
    cast_for_autocast,
    first_order_only,
    register,
    short_path,
    target,
    watched,
)

# N rows of x (leading dimensions flattened), E width, O width of the result


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""A linear layer, forward and backward the same bits for every thread count.

    .. math:: y = x \, weight^T + bias

    Args:
        x: ``[..., E]``, float32, float64, bfloat16 or float16.
        weight: ``[O, E]``, as in ``nn.Linear``.
        bias: ``[O]`` or None.

    Returns:
        ``[..., O]`` in the dtype of ``x``. Sums are float32 (float64 for float64). Under autocast the op runs
        in autocast's dtype, as torch's linear does.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([0.0, 1.0]))
    tensor([[11., 18.]])
    """
    check_floating("x", x)
    x, weight, bias = _cast(x.device.type, x, weight, bias)
    _check(x, weight, bias)
    if watched(x, weight, bias):
        return torch.ops.glm_ext.linear(x, weight, bias)  # type: ignore[no-any-return]
    return short_path(_Linear, x, weight, bias)  # type: ignore[no-any-return]


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floating("x", x)
    check_like("weight", weight, "x", x)
    if bias is not None:
        check_like("bias", bias, "x", x)
    if x.dim() == 0:
        raise ValueError("x: expected [..., E], got a scalar")
    check_shape("weight", weight, (-1, x.shape[-1]), "O, E")
    if bias is not None:
        check_shape("bias", bias, weight.shape[:1], "O")


def _cast(
    device: str, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = autocast_dtype(device)
    if dtype is None:
        return x, weight, bias
    x, weight = cast_for_autocast(dtype, x, weight)
    return x, weight, None if bias is None else cast_for_autocast(dtype, bias)[0]


def _check_backward(grad_y: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool]) -> None:
    _check(x, weight, None)
    check_result("grad_y", grad_y, (*x.shape[:-1], weight.shape[0]), x.dtype, x)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = _forward_fake(x, weight, bias)
    bias = None if bias is None else bias.contiguous()
    _C.linear_forward(_rows(x), weight, bias, y, target("linear", x))
    return y


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _backward(grad_y: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool]) -> list[Tensor]:
    """The gradients of x, weight and bias that are needed, in order."""
    grads = _backward_fake(grad_y, x, weight, needed)
    given = iter(grads)
    grad_x, grad_weight, grad_bias = (next(given) if n else None for n in needed)
    rows, sums = _rows(x), None
    if grad_bias is not None:
        groups = _C.sum_groups(rows.shape[0])
        sums = x.new_empty((groups, weight.shape[0]), dtype=statistics_dtype(x.dtype))
    _C.linear_backward(
        _rows(grad_y), rows, weight, sums, grad_x, grad_weight, grad_bias, target("linear_backward", x)
    )
    return grads


def _backward_fake(grad_y: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool]) -> list[Tensor]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    return [x.new_empty(shape) for shape, n in zip(shapes, needed, strict=True) if n]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _forward(x, weight, bias)

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(_backward, ctx, grad_y)


def _gradients(backward: Any, ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    needed = list(ctx.needs_input_grad)
    grads = iter(backward(grad_y, *ctx.saved_tensors, needed))
    return tuple(next(grads) if n else None for n in needed)


# ------------------------------------------------------------------------------------------ torch.ops.glm_ext


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


@first_order_only
def _registered_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(torch.ops.glm_ext.linear_backward, ctx, grad_y)


register(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    _forward,
    _forward_fake,
    check=_check,
    autocast=_cast,
)
register(
    "linear_backward(Tensor grad_y, Tensor x, Tensor weight, bool[3] needed) -> Tensor[]",
    _backward,
    _backward_fake,
    check=_check_backward,
)
torch.library.register_autograd("glm_ext::linear", _registered_backward, setup_context=_setup_context)
