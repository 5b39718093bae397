from __future__ import annotations

import pytest
import torch
from torch import Tensor

from glm_ext import ops
from glm_ext.ops import reference

from .tolerance import DTYPES, check_op

# N, E, O: ones, primes, sizes around the register tile, the block and the groups of rows; dot products
CASES = [
    (1, 1, 1),
    (2, 3, 5),
    (13, 17, 23),
    (33, 64, 96),
    (193, 48, 257),
    (1, 300, 37),
    (2, 277, 45),
    (3, 256, 19),
    (7, 300, 521),
    (36, 259, 35),
    (385, 5, 2),
    (771, 3, 33),
]


def make_inputs(N: int, E: int, width_out: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(width_out, E) / E**0.5
    return [t.to(dtype) for t in (torch.randn(N, E), weight, torch.randn(width_out))]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("sizes", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype: torch.dtype, sizes: tuple[int, int, int], bias: bool) -> None:
    check_op(ops.linear, reference.linear, make_inputs(*sizes, dtype)[: 3 if bias else 2])


@pytest.mark.parametrize("sizes", [(1500, 2900, 5), (400, 2900, 1500)], ids=["rows", "columns"])
def test_what_does_not_fit_is_packed_in_parts(sizes: tuple[int, int, int]) -> None:
    """More than 4 Mi packed numbers: x goes in two parts of rows, or weight in two of columns."""
    check_op(ops.linear, reference.linear, make_inputs(*sizes))


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 0, 5), (2, 3, 4, 5)], ids=str)
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    check_op(ops.linear, reference.linear, [torch.randn(shape), torch.randn(3, 5), torch.randn(3)])


@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 5, 0)], ids=["E=0", "O=0"])
def test_empty_widths(shape: tuple[int, int, int]) -> None:
    N, E, width_out = shape
    inputs = [torch.randn(N, E), torch.randn(width_out, E), torch.randn(width_out)]
    check_op(ops.linear, reference.linear, inputs)


@pytest.mark.parametrize("which", range(3), ids=["x", "weight", "bias"])
def test_only_wanted_gradients(which: int) -> None:
    """Each gradient alone equals itself among all."""
    inputs = make_inputs(13, 17, 23)
    together = [t.clone().requires_grad_() for t in inputs]
    alone = [t.clone().requires_grad_(i == which) for i, t in enumerate(inputs)]
    grad = torch.randn(13, 23)
    ops.linear(*together).backward(grad)
    ops.linear(*alone).backward(grad)
    assert torch.equal(alone[which].grad, together[which].grad)


def test_any_strides() -> None:
    x, weight, bias = make_inputs(10, 12, 14)
    strided = [t.t().contiguous().t() for t in (x, weight)]
    every_second = torch.stack((bias, bias), 1)[:, 0]
    assert torch.equal(ops.linear(*strided, every_second), ops.linear(x, weight, bias))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x: expected a tensor, got list"),
        ({"x": torch.ones(2, 5, dtype=torch.int64)}, TypeError, "x: expected float32"),
        ({"x": torch.tensor(1.0)}, ValueError, "x: expected .*, got a scalar"),
        ({"weight": torch.ones(3, 5, dtype=torch.float64)}, TypeError, "weight: expected float32 as x"),
        (
            {"weight": torch.ones(3, 4)},
            ValueError,
            r"weight: expected shape \[any, 5\] \(O, E\), got \[3, 4\]",
        ),
        ({"weight": torch.ones(5)}, ValueError, r"weight: expected shape \[any, 5\]"),
        ({"bias": torch.ones(4)}, ValueError, r"bias: expected shape \[3\] \(O\), got \[4\]"),
        ({"bias": torch.ones(3, device="meta")}, ValueError, "bias: expected device cpu as x, got meta"),
    ],
)
def test_errors(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.ones(2, 5), "weight": torch.ones(3, 5), "bias": torch.ones(3), **change}
    with pytest.raises(error, match=message):
        ops.linear(**arguments)
