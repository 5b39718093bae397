from __future__ import annotations

from typing import Any

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import reference

from .tolerance import DTYPES, check_op

# Widths around a vector, a dropout chunk of 128 and a model's; rows around a task of 16 and 64 partials
SHAPES = [
    (1, 1), (3, 7), (2, 5, 128), (17, 131), (5, 127), (0, 8), (2, 0, 8), (70, 768), (1025, 16), (16, 33),
    (9,),
]  # fmt: skip


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x, residual = torch.randn(2, *shape).to(dtype)
    weight, bias = torch.randn(2, shape[-1]).to(dtype)
    return [x, residual, weight, bias]


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype: torch.dtype, shape: tuple[int, ...], dropout_p: float) -> None:
    check_op(
        ops.dropout_add_layer_norm,
        reference.dropout_add_layer_norm,
        make_inputs(shape, dtype),
        dropout_p=dropout_p,
    )


@pytest.mark.parametrize("eps", [0.0, 1e-12, 0.5])
def test_eps(eps: float) -> None:
    inputs = make_inputs((7, 48))
    check_op(ops.dropout_add_layer_norm, reference.dropout_add_layer_norm, inputs, eps=eps)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_rows_of_one_value_normalise_to_the_bias(offset: float) -> None:
    """No variance, and a mean that is large beside it: nothing may overflow or cancel into a NaN."""
    x, residual, weight, bias = make_inputs((3, 40))
    normed, new_residual = ops.dropout_add_layer_norm(
        torch.full_like(x, offset), torch.zeros_like(residual), weight, bias
    )
    torch.testing.assert_close(normed, bias.expand(3, 40))
    assert (new_residual == offset).all()


def test_large_mean_keeps_the_variance() -> None:
    """Two passes over a row, not E[h^2] - E[h]^2, which has no digits left here."""
    x, residual, weight, bias = make_inputs((5, 100), torch.float32)
    normed, h = ops.dropout_add_layer_norm(x, residual + 3000.0, weight, bias)
    expected = torch.nn.functional.layer_norm(h.double(), (100,), weight.double(), bias.double())
    torch.testing.assert_close(normed, expected.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_dropped_elements_are_zero_whatever_they_held(value: float) -> None:
    x, residual, weight, bias = make_inputs((4, 300))
    _, h = ops.dropout_add_layer_norm(torch.full_like(x, value), residual, weight, bias, dropout_p=1.0)
    assert torch.equal(h, residual)


def test_a_probability_below_the_step_of_16_bits_drops_nothing() -> None:
    """Numbers of all 16 bits are kept then, the largest too, which comes 16 times here."""
    x = torch.ones(1024, 1024)
    _, h = ops.dropout_add_layer_norm(x, torch.zeros_like(x), x[0], x[0], dropout_p=1e-6)
    assert h.count_nonzero() == h.numel()


def test_dropout_keeps_the_expected_share() -> None:
    torch.manual_seed(5)
    x = torch.ones(512, 512)
    _, h = ops.dropout_add_layer_norm(x, torch.zeros_like(x), x[0], x[0], dropout_p=0.1)
    kept = h != 0.0
    assert (h[kept] == 1.0 / 0.9).all()
    assert abs(kept.double().mean().item() - 0.9) < 4 * (0.9 * 0.1 / x.numel()) ** 0.5 + 2**-17


def test_rows_are_independent() -> None:
    """A NaN in one row stays in that row, forward and backward."""
    inputs = make_inputs((6, 50))
    inputs[0][2, 3] = float("nan")
    leaves = [t.requires_grad_() for t in inputs]
    normed, h = ops.dropout_add_layer_norm(*leaves)
    grad_x, grad_residual = torch.autograd.grad((normed.square().sum(), h.square().sum()), leaves[:2])
    others = torch.arange(6) != 2
    for t in (normed, h, grad_x, grad_residual):
        assert t[2].isnan().any()
        assert t[others].isfinite().all()


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 8, dtype=torch.int64)}, TypeError, "x: expected float32, .* got int64"),
        ({"x": 1.0}, TypeError, "x: expected a tensor, got float"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x: expected \[\.\.\., E\] with E >= 1, got \[\]"),
        ({"x": torch.zeros(2, 0)}, ValueError, "E >= 1"),
        (
            {"residual": torch.zeros(2, 3, 8).bfloat16()},
            TypeError,
            "residual: expected float32 as x, got bfloat16",
        ),
        ({"residual": torch.zeros(2, 3, 8, device="meta")}, ValueError, "residual: expected device cpu as x"),
        ({"residual": torch.zeros(3, 8)}, ValueError, r"residual: expected shape \[2, 3, 8\]"),
        ({"weight": torch.zeros(7)}, ValueError, r"weight: expected shape \[8\] \(E\), got \[7\]"),
        ({"weight": None}, TypeError, "weight: expected a tensor, got NoneType"),
        ({"bias": torch.zeros(1, 8)}, ValueError, r"bias: expected shape \[8\]"),
        ({"bias": torch.zeros(8).double()}, TypeError, "bias: expected float32 as x, got float64"),
        ({"dropout_p": -0.1}, ValueError, r"dropout_p: expected a probability in \[0, 1\], got -0.1"),
        ({"dropout_p": float("nan")}, ValueError, "dropout_p"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    names = ("x", "residual", "weight", "bias")
    call = dict(zip(names, make_inputs((2, 3, 8)), strict=True)) | change
    with pytest.raises(error, match=message):
        ops.dropout_add_layer_norm(**call)
