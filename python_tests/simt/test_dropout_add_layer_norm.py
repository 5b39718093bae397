"""dropout_add_layer_norm on its CUDA kernels."""

from __future__ import annotations

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import reference

from ..ops.test_dropout_add_layer_norm import make_inputs
from ..ops.tolerance import check_op
from .backend import SCHEDULES, Simt
from .checks import GPU_DTYPES, NO_COPIES, access_costs, forward_and_backward, same_under

# One warp a row and several; rows that are aligned and not; a row wider than the registers of a team.
SHAPES = [
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
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_matches_reference(simt: Simt, dtype: torch.dtype, shape: tuple[int, ...], dropout_p: float) -> None:
    inputs = make_inputs(shape, dtype)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_op(ops.dropout_add_layer_norm, reference.dropout_add_layer_norm, inputs, dropout_p=dropout_p)
        if shape[-1] < 2000:
            same_under(
                simt,
                NO_COPIES,
                lambda: forward_and_backward(ops.dropout_add_layer_norm, inputs, dropout_p=dropout_p),
            )


def test_dropout_is_the_cpus(simt: Simt) -> None:
    """Bit for bit: the stream minus the residual is 0 exactly where dropped."""
    for dtype, width in ((torch.float32, 520), (torch.bfloat16, 520), (torch.float32, 131)):
        x, weight = torch.ones(5, width, dtype=dtype), torch.ones(width, dtype=dtype)
        torch.manual_seed(7)
        _, on_cpu = ops.dropout_add_layer_norm(x, 0 * x, weight, 0 * weight, dropout_p=0.3)
        simt.configure(SCHEDULES[0])
        with simt.in_place_of_C():
            torch.manual_seed(7)
            _, on_gpu = ops.dropout_add_layer_norm(x, 0 * x, weight, 0 * weight, dropout_p=0.3)
        assert torch.equal(on_cpu, on_gpu)
        assert (on_gpu == 0).any()


def test_has_no_double_precision_on_a_gpu(simt: Simt) -> None:
    with (
        simt.in_place_of_C(),
        pytest.raises(ValueError, match="float32, bfloat16 or float16"),
    ):
        ops.dropout_add_layer_norm(*make_inputs((3, 7), torch.float64))


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_memory_accesses(simt: Simt, dtype: torch.dtype) -> None:
    """No bank conflicts, and whole sectors: but the sums of 16-bit rows, floats, take twice two halves."""
    x, residual, weight, bias = make_inputs((40, 1024), dtype)
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    with simt.in_place_of_C():
        forward_and_backward(ops.dropout_add_layer_norm, [x, residual, weight, bias], dropout_p=0.1)
    cost, ideal = access_costs(simt)
    assert cost["shared"] == ideal["shared"] > 0
    assert ideal["global"] <= cost["global"] <= 1.05 * ideal["global"]
