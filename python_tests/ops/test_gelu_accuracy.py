"""The vector GELU of csrc/cpu/gelu_simd.h against float64, in units in the last place."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

from glm_ext import ops

ULP = 2.0
# Every how many floats of the range one is tried. A prime: no pattern of the mantissa is left out.
STRIDE = int(os.environ.get("GLM_GELU_STRIDE", "499"))
LARGEST = 20.0  # from here on, gelu(x) is x or 0
CHUNK = 1 << 20


def floats(negative: bool) -> Tensor:
    """Floats from 2^-14 to LARGEST, STRIDE apart, and some of all smaller ones, subnormals among them."""
    first, last = (torch.tensor([x]).view(torch.int32).item() for x in (2.0**-14, LARGEST))
    bits = torch.cat((torch.arange(1, first, 1000003), torch.arange(first, last, STRIDE)))
    x = bits.to(torch.int32).view(torch.float32)
    return -x if negative else x


def truth(x: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    """gelu and its derivative in float64, in forms that lose nothing in the tails."""
    if approximate == "tanh":
        scale, cubic = math.sqrt(2 / math.pi), 0.044715
        power = torch.exp(-2 * scale * (x + cubic * x**3))
        share, rest = 1 / (1 + power), 1 / (1 + 1 / power)
        return x * share, share + 2 * x * share * rest * scale * (1 + 3 * cubic * x**2)
    share = torch.special.erfc(-x / math.sqrt(2)) / 2
    return x * share, share + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def ours(x: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    """A GELU with identities for weights: its values and slopes leave the op unrounded."""
    one, x = torch.ones(1, 1), x[:, None].requires_grad_()
    y = ops.gelu_mlp(x, one, None, one, None, approximate=approximate)
    (grad,) = torch.autograd.grad(y.sum(), x)
    return y.detach()[:, 0], grad[:, 0]


def error_in_ulp(found: Tensor, true: Tensor, smallest: float) -> Tensor:
    """|found - true| over the spacing of floats at |true|, or at `smallest` where |true| is below it."""
    _, exponent = torch.frexp(true.abs().clamp(min=smallest))
    return (found.double() - true).abs() / torch.exp2((exponent - 24).clamp(min=-149).double())


@pytest.mark.parametrize("negative", [False, True], ids=["positive", "negative"])
@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_within_two_ulp(approximate: str, negative: bool) -> None:
    for x in floats(negative).split(CHUNK):
        (value, slope), (true_value, true_slope) = ours(x, approximate), truth(x.double(), approximate)
        for name, error in (
            ("gelu", error_in_ulp(value, true_value, 0.0)),
            ("derivative", error_in_ulp(slope, true_slope, 1 / 8)),
        ):
            at = error.argmax()
            assert error[at] < ULP, f"{name}: {error[at]:.3f} ulp at {x[at]:.9g}"


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_what_is_not_finite_or_far_out(approximate: str) -> None:
    x = torch.tensor([-math.inf, math.nan, math.inf, 3e38, -3e38, 0.0, -0.0, 20.0, 1000.0, -40.0, -1000.0])
    value, slope = ours(x, approximate)
    assert value[:2].isnan().all()  # as torch: -infinity times 0
    assert value[2:].tolist() == [math.inf, x[3].item(), 0.0, 0.0, 0.0, 20.0, 1000.0, 0.0, 0.0]
    assert slope[1].isnan()
    assert slope[[0, *range(2, 11)]].tolist() == [0.0, 1.0, 1.0, 0.0, 0.5, 0.5, 1.0, 1.0, 0.0, 0.0]
