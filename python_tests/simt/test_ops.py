"""The ops on their CUDA kernels: within the tolerance rule, and the same bits under every schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import reference

from ..ops.test_dropout_add_layer_norm import make_inputs
from ..ops.tolerance import check_op
from .backend import SCHEDULES, Schedule, Simt, assert_same_bits

GPU_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NO_COPIES = [s for s in SCHEDULES if not s.deferred]  # where no kernel uses cp.async, the two models are one

Run = Callable[[], list[torch.Tensor | None]]


def same_under(simt: Simt, schedules: list[Schedule], run: Run) -> None:
    """`run` gives the same bits under all of them, the first of which has been compared with the truth."""
    simt.configure(schedules[0])
    expected = run()
    for schedule in schedules[1:]:
        simt.configure(schedule)
        assert_same_bits(str(schedule), expected, run())


def forward_and_backward(
    op: Callable[..., Any], inputs: list[torch.Tensor], **kwargs: Any
) -> list[torch.Tensor | None]:
    torch.manual_seed(3)
    leaves = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    out = op(*leaves, **kwargs)
    outputs = [out] if isinstance(out, torch.Tensor) else list(out)
    differentiable = [t for t in outputs if t.requires_grad]
    grads = torch.autograd.grad(
        differentiable,
        [t for t in leaves if t.requires_grad],
        [torch.randn(t.shape).to(t.dtype) for t in differentiable],
    )
    return [*(t.detach() for t in outputs), *grads]


def access_costs(simt: Simt) -> tuple[Counter[str], Counter[str]]:
    """Cost and ideal of all accesses since the last call, by memory space."""
    cost: Counter[str] = Counter()
    ideal: Counter[str] = Counter()
    for count in simt.module.take_counts():
        cost[count.space] += count.cost
        ideal[count.space] += count.ideal
    return cost, ideal


# ------------------------------------------------------------------------------------- dropout_add_layer_norm

# One warp a row and several; rows that are aligned and not; a row wider than the registers of a team.
LAYER_NORM_SHAPES = [
    (1, 1),
    (3, 7),
    (17, 131),
    (0, 8),
    (37, 256),
    (9, 768),
    (5, 1032),
    (2, 4104),
    (1, 8200),
    (1, 16400),
]


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", LAYER_NORM_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_dropout_add_layer_norm(
    simt: Simt, dtype: torch.dtype, shape: tuple[int, ...], dropout_p: float
) -> None:
    inputs = make_inputs(shape, dtype)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C(ops.dropout_add_layer_norm):
        check_op(ops.dropout_add_layer_norm, reference.dropout_add_layer_norm, inputs, dropout_p=dropout_p)
        if shape[-1] < 2000:
            same_under(
                simt,
                NO_COPIES,
                lambda: forward_and_backward(ops.dropout_add_layer_norm, inputs, dropout_p=dropout_p),
            )


def test_layer_norm_dropout_is_the_cpus(simt: Simt) -> None:
    """Bit for bit: the stream minus the residual is 0 exactly where dropped."""
    for dtype, width in ((torch.float32, 520), (torch.bfloat16, 520), (torch.float32, 131)):
        x, weight = torch.ones(5, width, dtype=dtype), torch.ones(width, dtype=dtype)
        torch.manual_seed(7)
        _, on_cpu = ops.dropout_add_layer_norm(x, 0 * x, weight, 0 * weight, dropout_p=0.3)
        simt.configure(SCHEDULES[0])
        with simt.in_place_of_C(ops.dropout_add_layer_norm):
            torch.manual_seed(7)
            _, on_gpu = ops.dropout_add_layer_norm(x, 0 * x, weight, 0 * weight, dropout_p=0.3)
        assert torch.equal(on_cpu, on_gpu) and (on_gpu == 0).any()


def test_layer_norm_has_no_double_precision_on_a_gpu(simt: Simt) -> None:
    with (
        simt.in_place_of_C(ops.dropout_add_layer_norm),
        pytest.raises(ValueError, match="float32, bfloat16 or float16"),
    ):
        ops.dropout_add_layer_norm(*make_inputs((3, 7), torch.float64))


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_layer_norm_memory_accesses(simt: Simt, dtype: torch.dtype) -> None:
    """No bank conflicts, and whole sectors: but the sums of 16-bit rows, floats, take twice two halves."""
    x, residual, weight, bias = make_inputs((40, 1024), dtype)
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    with simt.in_place_of_C(ops.dropout_add_layer_norm):
        forward_and_backward(ops.dropout_add_layer_norm, [x, residual, weight, bias], dropout_p=0.1)
    cost, ideal = access_costs(simt)
    assert cost["shared"] == ideal["shared"] > 0
    assert ideal["global"] <= cost["global"] <= 1.05 * ideal["global"]
