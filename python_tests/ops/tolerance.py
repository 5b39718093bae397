"""The one tolerance rule of the project, and the run of an op that it is applied to.

Truth is reference.py in float64 from the same rounded inputs. An error is the largest absolute difference
from it. Ours may be FORWARD or BACKWARD times what torch's own composite (reference.py in the tested dtype)
makes, plus a few eps of the largest true value, and never more than torch.testing's defaults for the dtype
(than the composite's own error, where that is above them already: two roundings of one float16 value can be).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

FORWARD = 2.0
BACKWARD = 3.0
FEW_EPS = 4.0
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

# torch.testing.assert_close's (rtol, atol)
DEFAULTS = {
    torch.float64: (1e-7, 1e-7),
    torch.float32: (1.3e-6, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float16: (1e-3, 1e-5),
}


def assert_within_rule(name: str, ours: Tensor, composite: Tensor, truth: Tensor, factor: float) -> None:
    assert ours.shape == truth.shape, f"{name}: shape {list(ours.shape)}, expected {list(truth.shape)}"
    assert ours.dtype == composite.dtype, f"{name}: dtype {ours.dtype}, expected {composite.dtype}"
    if truth.numel() == 0:
        return
    infinite = torch.isinf(truth)
    assert torch.equal(ours[infinite].double(), truth[infinite]), f"{name}: infinities differ"
    finite = ~infinite
    if not finite.any():
        return
    error = (ours.double() - truth)[finite].abs().max().item()
    theirs = (composite.double() - truth)[finite].abs().max().item()
    largest = truth[finite].abs().max().item()
    eps = torch.finfo(ours.dtype).eps
    rtol, atol = DEFAULTS[ours.dtype]
    if ours.dtype == torch.float64:  # there is no better truth to measure torch's own error by
        assert error <= 1e-11 * (1.0 + largest), (
            f"{name} (float64): error {error:.3g}, largest value {largest:.3g}"
        )
        return
    bound = min(factor * theirs + FEW_EPS * eps * max(largest, eps), max(rtol * largest + atol, theirs))
    assert error <= bound, (
        f"{name} ({ours.dtype}): error {error:.3g}, composite {theirs:.3g}, allowed {bound:.3g}"
    )


def check_op(
    fused: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Tensor],
    *args: Any,
    seed: int = 20260101,
    **kwargs: Any,
) -> None:
    """Outputs and gradients of `fused(*inputs, *args, **kwargs)` against those of `reference`.

    Floating inputs get gradients. `seed` is set before each call, so dropout masks agree bit for bit.
    """
    tested = next(t.dtype for t in inputs if t.is_floating_point())
    ours = _run(fused, [_leaf(t, tested) for t in inputs], args, kwargs, seed, tested)
    composite = _run(reference, [_leaf(t, tested) for t in inputs], args, kwargs, seed, tested)
    truth = _run(reference, [_leaf(t, torch.float64) for t in inputs], args, kwargs, seed, tested)
    for kind, factor in (("output", FORWARD), ("gradient", BACKWARD)):
        for i, (a, b, c) in enumerate(zip(ours[kind], composite[kind], truth[kind], strict=True)):
            assert_within_rule(f"{kind} {i}", a, b, c.double(), factor)


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A leaf of `dtype` with the strides of `tensor`; integers as they are."""
    return tensor.detach().to(dtype).requires_grad_() if tensor.is_floating_point() else tensor


def _run(
    op: Callable[..., Any], inputs: list[Tensor], args: Any, kwargs: Any, seed: int, tested: torch.dtype
) -> dict[str, list[Tensor]]:
    torch.manual_seed(seed)
    out = op(*inputs, *args, **kwargs)
    outputs = [out] if isinstance(out, Tensor) else list(out)
    differentiable = [t for t in outputs if t.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    # The incoming gradients are rounded to the tested dtype, so that every run gets the same ones.
    grads = [torch.randn(t.shape, generator=generator).to(tested).to(t) for t in differentiable]
    leaves = [t for t in inputs if t.is_floating_point()]
    gradients = torch.autograd.grad(differentiable, leaves, grads, allow_unused=True)
    return {
        "output": [t.detach() for t in outputs],
        "gradient": [torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)],
    }
