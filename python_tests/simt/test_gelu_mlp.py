"""gelu_mlp on its CUDA kernels."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from unittest import mock

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import _gelu_mlp_library, reference

from ..ops.test_gelu_mlp import make_inputs
from ..ops.tolerance import check_op
from .backend import SCHEDULES, Simt, assert_same_bits
from .checks import GPU_DTYPES, NO_COPIES, access_costs, forward_and_backward, same_under

gelu_mlp = importlib.import_module("glm_ext.ops.gelu_mlp")

# N, E, F, O: element by element and by 16 bytes; one tile and several, cut at the ends; K of no step, of one,
# and of more than there are stages
CASES = [
    (1, 1, 1, 1),
    (13, 17, 19, 23),
    (16, 8, 8, 8),
    (131, 48, 136, 24),
    (40, 144, 264, 72),
    (5, 33, 130, 129),
    (0, 8, 8, 8),
    (2, 1024, 2048, 8),  # long sums
]


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("recompute", ["none", "activation", "all"])
@pytest.mark.parametrize("sizes", CASES, ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_matches_reference(
    simt: Simt, dtype: torch.dtype, sizes: tuple[int, int, int, int], recompute: str, approximate: str
) -> None:
    inputs = make_inputs(*sizes, dtype)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_op(ops.gelu_mlp, reference.gelu_mlp, inputs, approximate=approximate, recompute=recompute)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("recompute", ["none", "activation", "all"])
@pytest.mark.parametrize("sizes", [(13, 17, 19, 23), (131, 48, 136, 24), (2, 8, 8, 3), (0, 8, 8, 8)], ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_products_by_a_library(
    simt: Simt,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    recompute: str,
    approximate: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other route: torch's matrix products, and the kernels of what lies between them."""
    monkeypatch.setattr(_gelu_mlp_library, "is_better", lambda x: True)
    inputs = make_inputs(*sizes, dtype)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_op(ops.gelu_mlp, reference.gelu_mlp, inputs, approximate=approximate, recompute=recompute)
        for which in range(5):

            def alone(op: Callable[..., torch.Tensor], which: int = which) -> Callable[..., torch.Tensor]:
                others = [t.detach() for t in inputs]

                def run(leaf: torch.Tensor) -> torch.Tensor:
                    arguments = [leaf if i == which else t.to(leaf.dtype) for i, t in enumerate(others)]
                    return op(*arguments, approximate=approximate)

                return run

            check_op(
                alone(functools.partial(ops.gelu_mlp, recompute=recompute)),
                alone(reference.gelu_mlp),
                [inputs[which]],
            )


@pytest.mark.parametrize("recompute", ["none", "activation", "all"])
def test_a_backward_inside_of_autocast_keeps_its_dtype(
    simt: Simt, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's products there would be 16-bit, where the kernels behind them write floats."""
    monkeypatch.setattr(_gelu_mlp_library, "is_better", lambda x: True)
    simt.configure(SCHEDULES[0])

    def gradients(autocast: bool) -> list[torch.Tensor | None]:
        leaves = [t.requires_grad_() for t in make_inputs(13, 16, 24, 8)]
        out = ops.gelu_mlp(*leaves, recompute=recompute)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return list(torch.autograd.grad(out, leaves, torch.ones_like(out)))

    with simt.in_place_of_C():
        assert_same_bits("inside of autocast", gradients(False), gradients(True))


def test_scratch_for_the_activation_only_where_w2_has_a_gradient(simt: Simt) -> None:
    sizes = []
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        for which in (0, 3):
            leaves = [t.requires_grad_(i == which) for i, t in enumerate(make_inputs(200, 8, 64, 8))]
            with mock.patch.object(gelu_mlp, "_workspace", wraps=gelu_mlp._workspace) as workspace:
                torch.autograd.grad(ops.gelu_mlp(*leaves).sum(), leaves[which])
            sizes.append(workspace.call_args.args[1])
    assert sizes[1] - sizes[0] == 200 * 64


@pytest.mark.parametrize("sizes", [(131, 40, 72, 24), (9, 13, 19, 23)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_under_every_schedule(
    simt: Simt, dtype: torch.dtype, sizes: tuple[int, int, int, int]
) -> None:
    inputs = make_inputs(*sizes, dtype)
    with simt.in_place_of_C():
        same_under(simt, SCHEDULES, lambda: forward_and_backward(ops.gelu_mlp, inputs))


@pytest.mark.parametrize("which", range(5), ids=["x", "w1", "b1", "w2", "b2"])
@pytest.mark.parametrize("recompute", ["none", "activation"])
def test_only_wanted_gradients(simt: Simt, which: int, recompute: str) -> None:
    """Each gradient alone equals itself among all."""
    inputs = make_inputs(13, 16, 24, 8)
    simt.configure(SCHEDULES[0])

    def gradients(wanted: list[int]) -> list[torch.Tensor]:
        leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(inputs)]
        out = ops.gelu_mlp(*leaves, recompute=recompute)
        return list(torch.autograd.grad(out.sum(), [leaves[i] for i in wanted]))

    with simt.in_place_of_C():
        assert torch.equal(gradients([which])[0], gradients(list(range(5)))[which])


def test_strides(simt: Simt) -> None:
    """Transposed weights, and the gradient of a sum, whose elements are all one number in memory."""
    x, w1, b1, w2, b2 = make_inputs(20, 16, 24, 8)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_op(
            lambda *args: ops.gelu_mlp(*args).sum(),
            lambda *args: reference.gelu_mlp(*args).sum(),
            [x.T.contiguous().T, w1.T.contiguous().T, b1, w2.T.contiguous().T, b2],
        )


def assert_accesses_cost_what_they_must(simt: Simt, inputs: list[torch.Tensor | None]) -> None:
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    with simt.in_place_of_C():
        forward_and_backward(ops.gelu_mlp, inputs)
    cost, ideal = access_costs(simt)
    assert cost["shared"] == ideal["shared"] > 0
    assert ideal["global"] <= cost["global"] <= 1.05 * ideal["global"]


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_memory_accesses(simt: Simt, dtype: torch.dtype) -> None:
    """No bank conflicts, and whole sectors: but for the sums of 16-bit columns."""
    inputs = make_inputs(128, 64, 128, 128, dtype)
    assert_accesses_cost_what_they_must(simt, inputs)


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_memory_accesses_between_a_librarys_products(
    simt: Simt, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above: half sectors for the sums of 16-bit columns alone."""
    monkeypatch.setattr(_gelu_mlp_library, "is_better", lambda x: True)
    inputs = make_inputs(256, 8, 512, 256, dtype)
    assert_accesses_cost_what_they_must(simt, inputs)


@pytest.mark.parametrize("sizes", [(131, 8, 264, 24), (9, 13, 19, 23)], ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_same_bits_between_a_librarys_products_under_every_schedule(
    simt: Simt, dtype: torch.dtype, sizes: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gelu_mlp_library, "is_better", lambda x: True)
    inputs = make_inputs(*sizes, dtype)
    with simt.in_place_of_C():
        same_under(simt, NO_COPIES, lambda: forward_and_backward(ops.gelu_mlp, inputs))
