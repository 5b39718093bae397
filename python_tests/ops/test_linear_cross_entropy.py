"""What test_contract.py, which runs its whole battery on this op too, does not say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from glm_ext import _C, ops
from glm_ext.ops import reference

from .tolerance import DTYPES, check_op

# N, E, V: single elements, primes, sizes around a vector and a tile; the last two make several chunks of rows
SHAPES = [(1, 1, 1), (7, 3, 5), (53, 17, 31), (96, 96, 129), (11, 131, 1021), (201, 5, 30011), (701, 3, 7)]


class Inputs:
    """Random arguments; the mask holds zeros and fractions, and the targets rubbish where it is zero."""

    def __init__(self, N: int, E: int, V: int, dtype: torch.dtype = torch.float32, rows: float = 0.6) -> None:
        torch.manual_seed(N + E + V)
        self.hidden = torch.randn(N, E).to(dtype)
        self.weight = (2.0 * torch.randn(V, E) / math.sqrt(E)).to(dtype)
        self.mask = torch.where(torch.rand(N) < rows, torch.rand(N) + 0.25, 0.0)
        self.targets = torch.randint(0, V, (N,)).masked_fill(self.mask == 0, -100)

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden.clone().requires_grad_(), self.weight.clone().requires_grad_()

    def loss(self, hidden: Tensor, weight: Tensor, **kwargs: Any) -> Tensor:
        return ops.linear_cross_entropy(hidden, weight, self.targets, self.mask, **kwargs)

    def gradients(self, **kwargs: Any) -> tuple[Tensor, ...]:
        hidden, weight = self.leaves()
        loss = self.loss(hidden, weight, **kwargs)
        return loss, *torch.autograd.grad(loss.sum(), (hidden, weight))


def with_targets(
    op: Callable[..., Tensor], x: Inputs, mask: Tensor | None, **kwargs: Any
) -> Callable[..., Tensor]:
    return lambda hidden, weight: op(hidden, weight, x.targets, mask, **kwargs)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(
    dtype: torch.dtype, shape: tuple[int, int, int], label_smoothing: float, reduction: str
) -> None:
    x = Inputs(*shape, dtype)
    kwargs = {"label_smoothing": label_smoothing, "reduction": reduction}
    check_op(
        with_targets(ops.linear_cross_entropy, x, x.mask, **kwargs),
        with_targets(reference.linear_cross_entropy, x, x.mask, **kwargs),
        [x.hidden, x.weight],
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_rows_by_default(dtype: torch.dtype) -> None:
    x = Inputs(33, 20, 50, dtype, rows=1.0)
    check_op(
        with_targets(ops.linear_cross_entropy, x, None),
        with_targets(reference.linear_cross_entropy, x, None),
        [x.hidden, x.weight],
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_matches_torch(label_smoothing: float) -> None:
    x = Inputs(60, 24, 70)
    hidden, weight = x.leaves()
    theirs = F.cross_entropy(
        F.linear(hidden, weight), x.targets, ignore_index=-100, label_smoothing=label_smoothing
    )
    ours = ops.linear_cross_entropy(hidden, weight, x.targets, x.mask != 0, label_smoothing=label_smoothing)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, weight)),
        torch.autograd.grad(theirs, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_large_logits_neither_overflow_nor_lose_the_loss() -> None:
    hidden, weight = torch.tensor([[1000.0], [-1000.0]]), torch.tensor([[1.0], [-1.0], [0.9]])
    loss = ops.linear_cross_entropy(hidden, weight, torch.tensor([0, 2]), reduction="none")
    assert loss.tolist() == [0.0, 1900.0]


# ------------------------------------------------------------------------------------- rows that do not count


def test_rows_without_weight_are_never_read() -> None:
    x = Inputs(96, 16, 37)
    clean = x.gradients()
    x.hidden[x.mask == 0] = torch.nan
    x.targets[x.mask == 0] = 2**40
    for a, b in zip(x.gradients(), clean, strict=True):
        assert torch.equal(a, b)
    assert (clean[1][x.mask == 0] == 0).all()


def test_the_bits_are_those_of_the_compacted_rows() -> None:
    x = Inputs(300, 16, 37)
    loss, grad_hidden, grad_weight = x.gradients()
    counted = x.mask != 0
    alone = Inputs(300, 16, 37)
    alone.hidden, alone.targets, alone.mask = x.hidden[counted], x.targets[counted], x.mask[counted]
    for a, b in zip((loss, grad_hidden[counted], grad_weight), alone.gradients(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("N", [0, 5])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_counts(N: int, reduction: str) -> None:
    x = Inputs(N, 4, 9, rows=0.0)
    loss, grad_hidden, grad_weight = x.gradients(reduction=reduction)
    assert torch.equal(loss, torch.zeros(N) if reduction == "none" else torch.zeros(()))
    assert torch.equal(grad_hidden, torch.zeros(N, 4))
    assert torch.equal(grad_weight, torch.zeros(9, 4))


def test_nan_comes_through() -> None:
    x = Inputs(9, 4, 30, rows=1.0)
    x.hidden[3, 1] = torch.nan
    loss, grad_hidden, grad_weight = x.gradients(reduction="none")
    assert loss.isnan().nonzero().tolist() == [[3]]
    assert grad_hidden.isnan().any(dim=1).nonzero().tolist() == [[3]]
    assert grad_weight.isnan().all()
    x = Inputs(9, 4, 30, rows=1.0)
    x.weight[29, 0] = torch.nan
    assert x.gradients()[0].isnan()


# --------------------------------------------------------------------------------------------------- autograd


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_second_backward_over_a_kept_graph(reduction: str) -> None:
    x = Inputs(60, 8, 13)
    hidden, weight = x.leaves()
    loss = x.loss(hidden, weight, reduction=reduction).sum()
    first = torch.autograd.grad(3.0 * loss, (hidden, weight), retain_graph=True)
    for g in first:
        g.zero_()  # the caller's own; what is saved must not change with it
    twice = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    last = torch.autograd.grad(-2.0 * loss, (hidden, weight))
    for a, b in zip(twice, last, strict=True):
        torch.testing.assert_close(-2.0 * a, b)
        assert b.abs().max() > 0
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_add_to_those_of_a_tied_embedding() -> None:
    x = Inputs(20, 8, 13, rows=1.0)
    weight = x.leaves()[1]
    for op in (ops.linear_cross_entropy, reference.linear_cross_entropy):
        op(F.embedding(x.targets, weight), weight, x.targets.roll(1)).backward()
        op(F.embedding(x.targets, weight), weight, x.targets.roll(1)).backward()
        grad, weight.grad = weight.grad, None
        if op is ops.linear_cross_entropy:
            ours = grad
    torch.testing.assert_close(ours, grad)


# ----------------------------------------------------------------------------------- memory, threads, strides


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_threads(dtype: torch.dtype) -> None:
    x = Inputs(301, 67, 5003, dtype, rows=0.9)
    runs = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(x.gradients() + x.gradients(reduction="none"))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize(("rows", "vocab"), [(512, 30592), (4096, 30592), (4096, 50257), (32768, 131072)])
def test_scratch_is_an_eighth_of_the_logits_and_their_gradient(rows: int, vocab: int) -> None:
    assert _C.linear_cross_entropy_workspace(rows, 768, vocab, 4, 1) <= 2 * rows * vocab / 8


def test_leading_dimensions_and_strides() -> None:
    x = Inputs(60, 8, 13)
    expected = x.gradients(reduction="none")
    hidden = x.hidden.reshape(4, 15, 8).transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    weight = x.weight.t().contiguous().t().requires_grad_()
    loss = ops.linear_cross_entropy(
        hidden, weight, x.targets.view(4, 15).to(torch.int32), x.mask.view(4, 15).double(), reduction="none"
    )
    loss.sum().backward()
    for a, b in zip((loss, hidden.grad, weight.grad), expected, strict=True):
        assert torch.equal(a.reshape(b.shape), b)
    one = ops.linear_cross_entropy(x.hidden[0], x.weight, torch.tensor(2))
    torch.testing.assert_close(one, F.cross_entropy(x.weight @ x.hidden[0], torch.tensor(2)))


# ------------------------------------------------------------------------------------------------- bad inputs


def test_target_out_of_range_is_named() -> None:
    hidden, weight = torch.randn(2, 3, 4), torch.randn(5, 4)
    targets = torch.tensor([[0, 4, -100], [1, 5, 2]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    with pytest.raises(IndexError, match=r"values in \[0, 5\).*got 5 at \[1, 1\]"):
        ops.linear_cross_entropy(hidden, weight, targets, mask)
    with pytest.raises(IndexError, match=r"got -100 at \[0, 2\]"):
        ops.linear_cross_entropy(hidden, weight, targets)


H, W, T = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((H.long(), W, T), {}, TypeError, "hidden: expected float32, .* got int64"),
        ((H.tolist(), W, T), {}, TypeError, "hidden: expected a tensor, got list"),
        ((H, W.double(), T), {}, TypeError, "weight: expected float32 as hidden, got float64"),
        ((H, W.to("meta"), T), {}, ValueError, "weight: expected device cpu as hidden, got meta"),
        ((H, W, T.float()), {}, TypeError, "targets: expected int64 or int32, got float32"),
        ((H, W, T, T), {}, TypeError, "loss_mask: expected a floating dtype or bool, got int64"),
        ((H, W, T, [1, 1, 1]), {}, TypeError, "loss_mask: expected a tensor or None, got list"),
        ((H, W, T, torch.ones(3).requires_grad_()), {}, ValueError, "loss_mask: .* detach"),
        ((H, W, T, torch.ones(4)), {}, ValueError, r"loss_mask: expected shape \[3\] .*, got \[4\]"),
        ((H, W[:, :3], T), {}, ValueError, r"weight: expected shape \[any, 4\] \(V, E\), got \[5, 3\]"),
        ((H, W[:0], T), {}, ValueError, r"weight: expected \[V, E\] with V >= 1, got \[0, 4\]"),
        (
            (H[:, :0], W[:, :0], T),
            {},
            ValueError,
            r"hidden: expected \[\.\.\., E\] with E >= 1, got \[3, 0\]",
        ),
        ((H, W, T[:2]), {}, ValueError, r"targets: expected shape \[3\] .*, got \[2\]"),
        ((H, W, T), {"label_smoothing": 1.5}, ValueError, r"label_smoothing: .* got 1\.5"),
        (
            (H, W, T),
            {"reduction": "max"},
            ValueError,
            'reduction: expected "mean", "sum" or "none", got \'max\'',
        ),
    ],
)
def test_bad_inputs(args: tuple[Any, ...], kwargs: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ops.linear_cross_entropy(*args, **kwargs)
