"""The output layer and its loss in one: cross-entropy of logits of which no [T, V] matrix ever exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from glm_ext import _C
from glm_ext.ops import _kept_memory
from glm_ext.ops._arguments import (
    check_floating,
    check_integer,
    check_like,
    check_probability,
    check_result,
    check_shape,
    dtype_name,
    statistics_dtype,
)
from glm_ext.ops._library import (
    autocast_dtype,
    cast_for_autocast,
    first_order_only,
    register,
    short_path,
    target,
    watched,
)

REDUCTIONS = ("none", "sum", "mean")  # in the order of csrc/ops/linear_cross_entropy.h


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss_mask: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross-entropy of the logits ``hidden @ weight.T``, each row weighted by ``loss_mask``.

    .. math:: ce_n = \mathrm{lse}_v(z_{nv}) - (1 - e) \, z_{n,target_n} - e \, \mathrm{mean}_v(z_{nv}),
              \qquad z = hidden \, weight^T

    with ``e`` the label smoothing (Szegedy et al., arXiv 1512.00567, section 7). Rows of weight 0 are never
    read: they cost nothing, and their targets may hold anything. The others are taken in chunks. A chunk's
    scratch is at most an eighth of all logits and their gradient, and at most 32 MB (though never cut below
    96 rows). On a GPU a chunk is a quarter of the rows, from 128 to 1024, of 6 bytes a logit (4 in float32),
    and the rows of ``hidden`` that count are copied. With ``"mean"`` and ``"sum"`` the forward pass also
    computes the gradients that will be asked for, so that logits are computed once; ``"none"`` computes them
    again in the backward pass.

    Args:
        hidden: ``[..., E]``, float32, float64, bfloat16 or float16.
        weight: ``[V, E]``, as in ``nn.Linear`` and in an embedding that it may be tied to.
        targets: ``[...]``, int64 or int32, in ``[0, V)`` where the weight of the loss is not 0.
        loss_mask: ``[...]``, floating weights or bool; None is all ones. It has no gradient.
        label_smoothing: probability that is spread evenly over the vocabulary.
        reduction: ``"mean"`` is ``sum(loss_mask * ce) / sum(loss_mask)``, and 0 for a mask of zeros;
            ``"sum"`` is ``sum(loss_mask * ce)``; ``"none"`` is ``loss_mask * ce``, ``[...]``.

    Returns:
        float32, or float64 for float64 inputs. Logits and gradients are accumulated in that dtype; gradients
        are rounded once, at the end. Where the processor multiplies bfloat16, the gradient of the logits is
        rounded to it first, as in torch. Under autocast ``hidden`` and ``weight`` are cast as for
        ``nn.Linear``.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        IndexError: for a counted target out of range, on a CPU. On a GPU, where to look would be to wait for
            the device, it makes the loss NaN.

    >>> hidden, weight = torch.zeros(2, 3), torch.randn(5, 3)
    >>> linear_cross_entropy(hidden, weight, torch.tensor([4, -100]), torch.tensor([1.0, 0.0]))  # log 5
    tensor(1.6094)
    """
    check_floating("hidden", hidden)
    dtype = autocast_dtype(hidden.device.type)
    if dtype is not None:
        hidden, weight = cast_for_autocast(dtype, hidden, weight)
    _check(hidden, weight, targets, loss_mask, label_smoothing, reduction)
    if loss_mask is not None and loss_mask.requires_grad:
        raise ValueError("loss_mask: expected a constant, got one that requires grad; detach it")
    wanted = torch.is_grad_enabled()
    args = (
        hidden, weight, targets, loss_mask, label_smoothing, reduction,
        wanted and hidden.requires_grad, wanted and weight.requires_grad,
    )  # fmt: skip
    if watched(hidden, weight, targets, loss_mask):
        return torch.ops.glm_ext.linear_cross_entropy(*args)[0]  # type: ignore[no-any-return]
    return short_path(_LinearCrossEntropy, *args)  # type: ignore[no-any-return]


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss_mask: Tensor | None,
    label_smoothing: float,
    reduction: str,
    *_: Any,
) -> None:
    check_floating("hidden", hidden)
    check_like("weight", weight, "hidden", hidden)
    check_integer("targets", targets, hidden.device)
    if loss_mask is not None:
        _check_loss_mask(loss_mask, hidden)
    if hidden.dim() == 0 or hidden.shape[-1] == 0:
        raise ValueError(f"hidden: expected [..., E] with E >= 1, got {list(hidden.shape)}")
    check_shape("weight", weight, (-1, hidden.shape[-1]), "V, E")
    if weight.shape[0] == 0:
        raise ValueError(f"weight: expected [V, E] with V >= 1, got {list(weight.shape)}")
    check_shape("targets", targets, hidden.shape[:-1], "as hidden without E")
    if loss_mask is not None:
        check_shape("loss_mask", loss_mask, hidden.shape[:-1], "as targets")
    check_probability("label_smoothing", label_smoothing)
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')


def _check_loss_mask(loss_mask: Tensor, hidden: Tensor) -> None:
    if not isinstance(loss_mask, Tensor):
        raise TypeError(f"loss_mask: expected a tensor or None, got {type(loss_mask).__name__}")
    if loss_mask.device != hidden.device:
        raise ValueError(f"loss_mask: expected device {hidden.device} as hidden, got {loss_mask.device}")
    if not (loss_mask.is_floating_point() or loss_mask.dtype == torch.bool):
        raise TypeError(f"loss_mask: expected a floating dtype or bool, got {dtype_name(loss_mask)}")


def _check_backward(*arguments: Any) -> None:
    grad, hidden, weight, targets, loss_mask, label_smoothing, *_ = arguments  # of _backward
    _check(hidden, weight, targets, loss_mask, label_smoothing, "none")
    check_result("grad", grad, targets.shape, statistics_dtype(hidden.dtype), hidden)


def _row_weight(hidden: Tensor, targets: Tensor, loss_mask: Tensor | None) -> Tensor:
    dtype = statistics_dtype(hidden.dtype)
    if loss_mask is None:
        return torch.ones(targets.shape, dtype=dtype, device=targets.device)
    return loss_mask.to(dtype).contiguous()


def _run(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weight: Tensor,
    loss: Tensor,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    label_smoothing: float,
    reduction: str,
) -> None:
    hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.to(torch.int64).contiguous()
    V, E = weight.shape
    if targets.device.type == "cpu":  # elsewhere this would wait for the device
        wrong = ((targets < 0) | (targets >= V)) & (row_weight != 0)
        if wrong.any():
            place = tuple(wrong.nonzero()[0].tolist())
            raise IndexError(
                f"targets: expected values in [0, {V}) where the loss has weight, "
                f"got {int(targets[place])} at {list(place)}"
            )
    where = target("linear_cross_entropy", hidden)
    workspace = loss.new_empty(
        _C.linear_cross_entropy_workspace(targets.numel(), E, V, hidden.element_size(), where)
    )
    _C.linear_cross_entropy(
        hidden, weight, targets, row_weight, loss, grad_hidden, grad_weight, workspace,
        label_smoothing, REDUCTIONS.index(reduction), where,
    )  # fmt: skip


def _forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss_mask: Tensor | None,
    label_smoothing: float,
    reduction: str,
    hidden_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss, grad_hidden, grad_weight = _results(
        hidden, weight, targets, reduction, hidden_grad, weight_grad, _kept_memory.new_empty
    )
    now = reduction != "none"
    _run(
        hidden, weight, targets, _row_weight(hidden, targets, loss_mask), loss,
        grad_hidden if hidden_grad and now else None, grad_weight if weight_grad and now else None,
        label_smoothing, reduction,
    )  # fmt: skip
    return loss, grad_hidden, grad_weight


def _forward_fake(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss_mask: Tensor | None,
    label_smoothing: float,
    reduction: str,
    hidden_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _results(hidden, weight, targets, reduction, hidden_grad, weight_grad, Tensor.new_empty)


def _results(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    reduction: str,
    hidden_grad: bool,
    weight_grad: bool,
    new_empty: Callable[..., Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the loss, and for the gradients as far as they are computed with it (else empty)."""
    dtype = statistics_dtype(hidden.dtype)
    now = reduction != "none"
    return (
        hidden.new_empty(() if now else targets.shape, dtype=dtype),
        hidden.new_empty(hidden.shape if hidden_grad and now else (0,), dtype=dtype),
        new_empty(hidden, weight.shape if weight_grad and now else (0,), dtype=dtype),
    )


def _backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss_mask: Tensor | None,
    label_smoothing: float,
    hidden_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients for reduction "none": those of the sum, rows weighted by the incoming gradient as well."""
    row_weight = _row_weight(hidden, targets, loss_mask)
    row_weight = torch.where(row_weight == 0, row_weight, row_weight * grad).contiguous()
    loss, grad_hidden, grad_weight = _results(
        hidden, weight, targets, "sum", hidden_grad, weight_grad, _kept_memory.new_empty
    )
    _run(
        hidden, weight, targets, row_weight, loss,
        grad_hidden if hidden_grad else None, grad_weight if weight_grad else None,
        label_smoothing, "sum",
    )  # fmt: skip
    return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype)


def _backward_fake(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss_mask: Tensor | None,
    label_smoothing: float,
    hidden_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if hidden_grad else (0,)),
        weight.new_empty(weight.shape if weight_grad else (0,)),
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        loss_mask: Tensor | None,
        label_smoothing: float,
        reduction: str,
        hidden_grad: bool,
        weight_grad: bool,
    ) -> Tensor:
        inputs = (hidden, weight, targets, loss_mask, label_smoothing, reduction, hidden_grad, weight_grad)
        output = _forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output[0]

    @staticmethod
    @first_order_only
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        # Nobody will ask again, so the saved gradients may become the result: no second [V, E].
        last = not torch._C._autograd._get_current_graph_task_keep_graph()
        return _gradients(ctx, grad, _backward, _scale_in_place if last else torch.mul)


def _scale_in_place(saved: Tensor, grad: Tensor) -> Tensor:
    if saved.device.type == "cpu" and grad.item() == 1.0:
        return saved
    return saved.mul_(grad)


# ------------------------------------------------------------------------------------------ torch.ops.glm_ext


def _autocast(device: str, hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Any, ...]:
    return (*cast_for_autocast(autocast_dtype(device), hidden, weight), *rest)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, targets, loss_mask, ctx.label_smoothing, ctx.reduction, _, _ = inputs
    _, grad_hidden, grad_weight = output
    # Unless the reduction is "none", hidden and weight are not needed again; but they are what a second
    # derivative would be taken by, and that must raise.
    ctx.save_for_backward(hidden, weight, targets, loss_mask, grad_hidden, grad_weight)
    ctx.set_materialize_grads(False)  # zeros for the gradients' own gradients would be another [V, E]


@first_order_only
def _registered_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, grad, torch.ops.glm_ext.linear_cross_entropy_backward, torch.mul)


def _gradients(ctx: Any, grad: Tensor | None, backward: Any, scale: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 8
    hidden, weight, targets, loss_mask, *grads = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    if ctx.reduction == "none":
        grads = backward(grad, hidden, weight, targets, loss_mask, ctx.label_smoothing, *wanted)
    else:
        grads = [
            scale(g, grad).to(hidden.dtype) if want else g for g, want in zip(grads, wanted, strict=True)
        ]
    return (*(g if want else None for g, want in zip(grads, wanted, strict=True)), *(None,) * 6)


register(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets, Tensor? loss_mask, "
    "float label_smoothing, str reduction, bool hidden_grad, bool weight_grad) "
    "-> (Tensor loss, Tensor grad_hidden, Tensor grad_weight)",
    _forward,
    _forward_fake,
    check=_check,
    autocast=_autocast,
)
register(
    "linear_cross_entropy_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor targets, "
    "Tensor? loss_mask, float label_smoothing, bool hidden_grad, bool weight_grad) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
    check=_check_backward,
)
torch.library.register_autograd(
    "glm_ext::linear_cross_entropy", _registered_backward, setup_context=_setup_context
)
