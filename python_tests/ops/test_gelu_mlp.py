from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from glm_ext import _C, ops
from glm_ext.ops import reference

from .tolerance import DTYPES, check_op

# N, E, F, O: ones, primes, sizes around the register tile, the block and the packed depth
CASES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (13, 17, 19, 23),
    (33, 64, 96, 31),
    (193, 48, 257, 47),
    (7, 300, 521, 5),
    (12, 513, 259, 30),  # dot products, and odd lengths of them
    (36, 257, 131, 3),  # the most rows that are dot products
    (37, 258, 67, 5),
    (400, 5, 3, 2),
    (1, 256, 1024, 256),  # a decoding step
]


def make_inputs(
    N: int, E: int, hidden: int, width_out: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Values of the size that a trained layer has: activations of about 1 at every stage."""
    torch.manual_seed(0)
    x = torch.randn(N, E)
    w1, b1 = torch.randn(hidden, E) / E**0.5, torch.randn(hidden)
    w2, b2 = torch.randn(width_out, hidden) / hidden**0.5, torch.randn(width_out)
    return [t.to(dtype) for t in (x, w1, b1, w2, b2)]


@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("recompute", ["none", "activation", "all"])
@pytest.mark.parametrize("sizes", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(
    dtype: torch.dtype, sizes: tuple[int, int, int, int], recompute: str, approximate: str
) -> None:
    check_op(
        ops.gelu_mlp,
        reference.gelu_mlp,
        make_inputs(*sizes, dtype),
        approximate=approximate,
        recompute=recompute,
    )


def test_depth_that_is_packed_in_parts() -> None:
    """K beyond kMaxDepth of csrc/cpu/gemm.h: in weight gradients, in dot products, and in panels."""
    check_op(ops.gelu_mlp, reference.gelu_mlp, make_inputs(4099, 3, 5, 2))
    check_op(ops.gelu_mlp, reference.gelu_mlp, make_inputs(3, 4099, 5, 2))
    check_op(ops.gelu_mlp, reference.gelu_mlp, make_inputs(40, 4099, 5, 2))


@pytest.mark.parametrize("rows", [20, 200, 500])  # dot products, one block of rows, several
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_threads(dtype: torch.dtype, rows: int) -> None:
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            inputs = [t.requires_grad_() for t in make_inputs(rows, 259, 301, 33, dtype)]
            y = ops.gelu_mlp(*inputs)
            runs.append((y, *torch.autograd.grad(y.sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("which", range(5), ids=["x", "w1", "b1", "w2", "b2"])
def test_only_wanted_gradients(which: int) -> None:
    """Each gradient alone equals itself among all."""
    inputs = make_inputs(13, 17, 19, 23)
    together = [t.clone().requires_grad_() for t in inputs]
    alone = [t.clone().requires_grad_(i == which) for i, t in enumerate(inputs)]
    grad = torch.randn(13, 23)
    ops.gelu_mlp(*together).backward(grad)
    ops.gelu_mlp(*alone).backward(grad)
    assert torch.equal(alone[which].grad, together[which].grad)


@pytest.mark.parametrize("recompute", ["none", "activation", "all"])
def test_a_graph_that_is_kept_gives_its_gradients_again(recompute: str) -> None:
    """Only the last time may what forward saved be written over."""
    inputs = [t.requires_grad_() for t in make_inputs(40, 17, 19, 23)]
    y = ops.gelu_mlp(*inputs, recompute=recompute).sum()
    first, second, last = (torch.autograd.grad(y, inputs, retain_graph=kept) for kept in (True, True, False))
    assert all(torch.equal(a, b) for other in (second, last) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("kept", [True, False])
def test_the_last_gradient_of_pre_takes_its_place(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [t.requires_grad_() for t in make_inputs(13, 17, 19, 23)]
    in_place, backward = [], _C.gelu_mlp_backward

    def watched(*arguments: Any) -> None:
        pre, grad_pre = arguments[4], arguments[6]
        in_place.append(pre.data_ptr() == grad_pre.data_ptr())
        backward(*arguments)

    monkeypatch.setattr(_C, "gelu_mlp_backward", watched)
    torch.autograd.grad(ops.gelu_mlp(*inputs).sum(), inputs, retain_graph=kept)
    assert in_place == [not kept]


def test_a_backward_that_broke_off_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have written over what forward saved."""
    inputs = [t.requires_grad_() for t in make_inputs(13, 17, 19, 23)]
    y = ops.gelu_mlp(*inputs).sum()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_C, "gelu_mlp_backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        torch.autograd.grad(y, inputs)
    for kept in (True, False):
        with pytest.raises(RuntimeError, match="run forward again"):
            torch.autograd.grad(y, inputs, retain_graph=kept)


def test_any_strides() -> None:
    x, w1, b1, w2, b2 = make_inputs(10, 12, 14, 16)
    expected = ops.gelu_mlp(x, w1, b1, w2, b2)
    strided = [t.t().contiguous().t() for t in (x, w1, w2)]
    every_second = torch.stack((b1, b1), 1)[:, 0]
    assert torch.equal(ops.gelu_mlp(strided[0], strided[1], every_second, strided[2], b2), expected)


def test_no_bias() -> None:
    x, w1, _, w2, _ = make_inputs(5, 6, 7, 8)
    zeros = torch.zeros(7), torch.zeros(8)
    assert torch.equal(ops.gelu_mlp(x, w1, None, w2, None), ops.gelu_mlp(x, w1, zeros[0], w2, zeros[1]))


# ---------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "x: expected float32"),
        ({"x": torch.ones(())}, ValueError, r"x: expected \[..., E\]"),
        ({"w1": torch.ones(5, 4)}, ValueError, r"w1: expected shape \[any, 3\]"),
        ({"w1": torch.ones(5, 3, dtype=torch.float64)}, TypeError, "w1: expected float32"),
        ({"w1": torch.ones(5, 3, device="meta")}, ValueError, "w1: expected device cpu"),
        ({"w2": torch.ones(2, 4)}, ValueError, r"w2: expected shape \[any, 5\]"),
        ({"b1": torch.ones(4)}, ValueError, r"b1: expected shape \[5\]"),
        ({"b2": torch.ones(3)}, ValueError, r"b2: expected shape \[2\]"),
        ({"w2": None}, TypeError, "w2: expected a tensor, got NoneType"),
        ({"approximate": "relu"}, ValueError, 'approximate: expected "tanh" or "none"'),
        ({"recompute": "some"}, ValueError, 'recompute: expected "none", "activation" or "all"'),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    call: dict[str, Any] = {
        "x": torch.ones(2, 3),
        "w1": torch.ones(5, 3),
        "b1": torch.ones(5),
        "w2": torch.ones(2, 5),
        "b2": torch.ones(2),
    }
    with pytest.raises(error, match=message):
        ops.gelu_mlp(**(call | change))
