"""dropout + add + layer norm: the seam between two sublayers of a pre-LN transformer, one pass each way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glm_ext import _C
from glm_ext.ops._arguments import (
    check_finite,
    check_floating,
    check_like,
    check_probability,
    check_result,
    check_shape,
    statistics_dtype,
)
from glm_ext.ops._library import (
    autocast_dtype,
    cast_for_autocast,
    draw_seed,
    first_order_only,
    register,
    seed_value,
    short_path,
    target,
    watched,
)


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""Add a sublayer's output to the residual stream and normalise the sum for the next sublayer.

    .. math:: h = residual + dropout(x), \qquad normed = \frac{h - E[h]}{\sqrt{Var[h] + eps}} \, weight + bias

    over the last dimension (Ba et al., arXiv 1607.06450, equation 4).

    Args:
        x: ``[..., E]``, float32, float64, bfloat16 or float16; what the sublayer gave.
        residual: ``[..., E]``; the stream that it is added to.
        weight, bias: ``[E]``.
        eps: added to the variance.
        dropout_p: probability that an element of ``x`` is dropped; kept ones are scaled by
            ``1 / (1 - dropout_p)``. The mask is drawn from torch's default generator and never stored. A
            recorded CUDA graph replays one mask for ever.

    Returns:
        ``(normed, h)``, both ``[..., E]`` in the dtype of ``x``. Statistics are computed in float32
        (float64 for float64).
        Under autocast the op runs in float32, as torch's layer norm does.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.

    >>> h = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    >>> normed, new_residual = dropout_add_layer_norm(h, torch.ones(1, 4), torch.ones(4), torch.zeros(4))
    >>> new_residual
    tensor([[2., 3., 4., 7.]])
    >>> normed.mean().abs() < 1e-6, normed.var(unbiased=False).round(decimals=3)
    (tensor(True), tensor(1.))
    """
    check_floating("x", x)
    if autocast_dtype(x.device.type) is not None:
        x, residual, weight, bias = cast_for_autocast(torch.float32, x, residual, weight, bias)
    _check(x, residual, weight, bias, None, eps, dropout_p)
    seed = draw_seed(dropout_p)
    if watched(x, residual, weight, bias):
        out = torch.ops.glm_ext.dropout_add_layer_norm(x, residual, weight, bias, seed, eps, dropout_p)
        return out[0], out[1]
    return short_path(_DropoutAddLayerNorm, x, residual, weight, bias, seed, eps, dropout_p)  # type: ignore[no-any-return]


def _check(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    eps: float,
    dropout_p: float,
) -> None:
    check_floating("x", x)
    check_probability("dropout_p", dropout_p)
    check_finite("eps", eps, at_least=0.0)
    check_like("residual", residual, "x", x)
    check_like("weight", weight, "x", x)
    check_like("bias", bias, "x", x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x: expected [..., E] with E >= 1, got {list(x.shape)}")
    check_shape("residual", residual, x.shape, "as x")
    check_shape("weight", weight, x.shape[-1:], "E")
    check_shape("bias", bias, x.shape[-1:], "E")


def _check_backward(*arguments: Any) -> None:
    grad_normed, grad_new_residual, new_residual, weight, mean, rstd, seed, dropout_p, _ = arguments
    _check(new_residual, new_residual, weight, weight, seed, 0.0, dropout_p)
    for name, grad in (("grad_normed", grad_normed), ("grad_new_residual", grad_new_residual)):
        if grad is not None:
            check_result(name, grad, new_residual.shape, new_residual.dtype, new_residual)
    for name, of_rows in (("mean", mean), ("rstd", rstd)):
        dtype = statistics_dtype(new_residual.dtype)
        check_result(name, of_rows, new_residual.shape[:-1], dtype, new_residual)


def _forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    eps: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, residual = x.contiguous(), residual.contiguous()
    normed, new_residual, mean, rstd = _forward_fake(x, residual, weight, bias, seed, eps, dropout_p)
    _C.dropout_add_layer_norm_forward(
        x, residual, weight.contiguous(), bias.contiguous(), normed, new_residual, mean, rstd,
        eps, dropout_p, seed_value(seed), target("dropout_add_layer_norm", x),
    )  # fmt: skip
    return normed, new_residual, mean, rstd


def _forward_fake(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    eps: float,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = x.new_empty(x.shape[:-1], dtype=statistics_dtype(x.dtype))
    normed = torch.empty_like(x, memory_format=torch.contiguous_format)
    return normed, torch.empty_like(normed), mean, torch.empty_like(mean)


def _backward(
    grad_normed: Tensor,
    grad_new_residual: Tensor | None,
    new_residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    wanted: list[bool],
) -> list[Tensor]:
    """The wanted ones of: the gradient of x, that of residual, those of weight and bias."""
    grads = _backward_fake(
        grad_normed, grad_new_residual, new_residual, weight, mean, rstd, seed, dropout_p, wanted
    )
    given = iter(grads)
    grad_x, grad_residual = (next(given) if want else None for want in wanted[:2])
    grad_weight, grad_bias, workspace = None, None, None
    if wanted[2]:
        grad_weight, grad_bias = given
        partials = _C.dropout_add_layer_norm_partials(mean.numel())
        workspace = mean.new_empty((partials, 2, weight.numel()))
    _C.dropout_add_layer_norm_backward(
        grad_normed.contiguous(), None if grad_new_residual is None else grad_new_residual.contiguous(),
        new_residual.contiguous(), weight.contiguous(), mean.contiguous(), rstd.contiguous(),
        grad_x, grad_residual, grad_weight, grad_bias, workspace,
        dropout_p, seed_value(seed), target("dropout_add_layer_norm_backward", grad_normed),
    )  # fmt: skip
    return grads


def _backward_fake(
    grad_normed: Tensor,
    grad_new_residual: Tensor | None,
    new_residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor | None,
    dropout_p: float,
    wanted: list[bool],
) -> list[Tensor]:
    grads = [new_residual.new_empty(new_residual.shape) for want in wanted[:2] if want]
    if wanted[2]:
        grads += [weight.new_empty(weight.shape), weight.new_empty(weight.shape)]
    return grads


class _DropoutAddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor,
        seed: Tensor | None,
        eps: float,
        dropout_p: float,
    ) -> tuple[Tensor, Tensor]:
        normed, new_residual, mean, rstd = _forward(x, residual, weight, bias, seed, eps, dropout_p)
        ctx.save_for_backward(new_residual, weight, mean, rstd, seed)
        ctx.dropout_p = dropout_p
        ctx.set_materialize_grads(False)
        return normed, new_residual

    @staticmethod
    @first_order_only
    def backward(
        ctx: Any, grad_normed: Tensor | None, grad_new_residual: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return (*_gradients(_backward, ctx, grad_normed, grad_new_residual), None, None, None)


def _gradients(
    backward: Any, ctx: Any, grad_normed: Tensor | None, grad_new_residual: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_normed is None and grad_new_residual is None:
        return None, None, None, None
    new_residual, weight, mean, rstd, seed = ctx.saved_tensors
    if grad_normed is None:
        grad_normed = torch.zeros_like(new_residual)
    needs_x, needs_residual, needs_weight, needs_bias = ctx.needs_input_grad[:4]
    one_for_both = ctx.dropout_p == 0.0  # x and residual then have the same gradient, and share the tensor
    wanted = [
        needs_x and not one_for_both,
        needs_residual or (needs_x and one_for_both),
        needs_weight or needs_bias,
    ]
    grads = iter(
        backward(
            grad_normed, grad_new_residual, new_residual, weight, mean, rstd, seed, ctx.dropout_p, wanted
        )
    )
    grad_x, grad_residual = (next(grads) if want else None for want in wanted[:2])
    grad_weight, grad_bias = grads if wanted[2] else (None, None)
    return grad_residual if one_for_both else grad_x, grad_residual, grad_weight, grad_bias


# ------------------------------------------------------------------------------------------ torch.ops.glm_ext


def _autocast(
    device: str, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *rest: Any
) -> tuple[Any, ...]:
    return (*cast_for_autocast(torch.float32, x, residual, weight, bias), *rest)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, _, seed, _, ctx.dropout_p = inputs
    _, new_residual, mean, rstd = output
    ctx.save_for_backward(new_residual, weight, mean, rstd, seed)
    ctx.set_materialize_grads(False)


@first_order_only
def _registered_backward(
    ctx: Any, grad_normed: Tensor | None, grad_new_residual: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    op = torch.ops.glm_ext.dropout_add_layer_norm_backward
    return (*_gradients(op, ctx, grad_normed, grad_new_residual), None, None, None)


register(
    "dropout_add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor? seed, float eps, "
    "float dropout_p) -> (Tensor normed, Tensor new_residual, Tensor mean, Tensor rstd)",
    _forward,
    _forward_fake,
    check=_check,
    autocast=_autocast,
)
register(
    "dropout_add_layer_norm_backward(Tensor grad_normed, Tensor? grad_new_residual, Tensor new_residual, "
    "Tensor weight, Tensor mean, Tensor rstd, Tensor? seed, float dropout_p, bool[3] wanted) -> Tensor[]",
    _backward,
    _backward_fake,
    check=_check_backward,
)
torch.library.register_autograd(
    "glm_ext::dropout_add_layer_norm", _registered_backward, setup_context=_setup_context
)
