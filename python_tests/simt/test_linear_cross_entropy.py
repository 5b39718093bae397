"""linear_cross_entropy on its CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from glm_ext import ops
from glm_ext.ops import reference

from ..ops.test_linear_cross_entropy import Inputs, with_targets
from ..ops.tolerance import check_op
from .backend import SCHEDULES, Simt, assert_same_bits
from .checks import GPU_DTYPES, access_costs, same_under

# N, E, V: single elements, primes, whole accesses with and without a line to complete; a vocabulary of
# several tiles; the last one makes several chunks of rows
SHAPES = [(1, 1, 1), (7, 3, 5), (53, 17, 31), (33, 24, 132), (20, 16, 300), (9, 8, 1021), (550, 8, 13)]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_matches_reference(
    simt: Simt, dtype: torch.dtype, shape: tuple[int, int, int], label_smoothing: float, reduction: str
) -> None:
    x = Inputs(*shape, dtype)
    kwargs = {"label_smoothing": label_smoothing, "reduction": reduction}
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        check_op(
            with_targets(ops.linear_cross_entropy, x, x.mask, **kwargs),
            with_targets(reference.linear_cross_entropy, x, x.mask, **kwargs),
            [x.hidden, x.weight],
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_under_every_schedule(simt: Simt, dtype: torch.dtype) -> None:
    x = Inputs(37, 24, 140, dtype)
    with simt.in_place_of_C():
        same_under(simt, SCHEDULES, lambda: list(x.gradients(label_smoothing=0.1)))


def test_rows_without_weight_are_never_read(simt: Simt) -> None:
    x = Inputs(96, 16, 37)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        clean = x.gradients()
        x.hidden[x.mask == 0] = torch.nan
        x.targets[x.mask == 0] = 2**40
        assert_same_bits("with NaN where the loss has no weight", clean, x.gradients())
    assert (clean[1][x.mask == 0] == 0).all()


@pytest.mark.parametrize("N", [0, 5])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_counts(simt: Simt, N: int, reduction: str) -> None:
    x = Inputs(N, 4, 9, rows=0.0)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        loss, grad_hidden, grad_weight = x.gradients(reduction=reduction)
    assert torch.equal(loss, torch.zeros(N) if reduction == "none" else torch.zeros(()))
    assert torch.equal(grad_hidden, torch.zeros(N, 4))
    assert torch.equal(grad_weight, torch.zeros(9, 4))


@pytest.mark.parametrize("size", [1.0, 2.0**-20, 3e6], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_small_probabilities_keep_their_bits_in_float16(simt: Simt, reduction: str, size: float) -> None:
    """Over the number of rows, or times small weights, they are below what float16 has all bits for; times
    large ones above all it has. Sums over rows and over the vocabulary are what that is seen in."""
    N, V = 96, 3000
    torch.manual_seed(0)
    hidden, weight = torch.randn(N, 8).half(), torch.rand(V, 8).half()
    targets, mask = torch.zeros(N, dtype=torch.int64), (torch.rand(N) + 0.5) * size

    def gradients(op: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (hidden, weight)]
        loss = op(*leaves, targets, mask, reduction=reduction)
        grads = torch.autograd.grad(loss, leaves, torch.tensor(N if reduction == "mean" else 1 / size))
        return grads[0], grads[1][1:]  # but the target's

    truth = gradients(reference.linear_cross_entropy, torch.float64)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        found = gradients(ops.linear_cross_entropy, torch.float16)
    for a, b in zip(found, truth, strict=True):
        assert (a.double() - b).abs().max() < torch.finfo(torch.float16).eps * b.abs().max()


def test_large_logits_neither_overflow_nor_lose_the_loss(simt: Simt) -> None:
    hidden, weight = torch.tensor([[1000.0], [-1000.0]]), torch.tensor([[1.0], [-1.0], [0.9]])
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        loss = ops.linear_cross_entropy(hidden, weight, torch.tensor([0, 2]), reduction="none")
    assert loss.tolist() == [0.0, 1900.0]


def test_nan_comes_through(simt: Simt) -> None:
    x = Inputs(9, 4, 30, rows=1.0)
    x.hidden[3, 1] = torch.nan
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        loss, grad_hidden, grad_weight = x.gradients(reduction="none")
    assert loss.isnan().nonzero().tolist() == [[3]]
    assert grad_hidden.isnan().any(dim=1).nonzero().tolist() == [[3]]
    assert grad_weight.isnan().all()


def test_chunks_without_rows_leave_the_gradient_of_the_weight_alone(simt: Simt) -> None:
    """Four chunks of 128 rows. What the products move for the last three is less than one row of tiles."""
    E, V = 64, 300

    def sectors(N: int, counted: int) -> int:
        x = Inputs(N, E, V)
        x.targets, x.mask = torch.arange(N) % V, (torch.arange(N) < counted).float()
        simt.module.take_counts()
        x.gradients()
        counts = [c for c in simt.module.take_counts() if c.space == "global" and "epilogue.cuh" in c.file]
        return sum(c.cost for c in counts)  # what the epilogues of products move (cuda/gemm/epilogue.cuh)

    simt.configure(SCHEDULES[0], count_accesses=True)
    with simt.in_place_of_C():
        chunk = sectors(128, 128)
        assert chunk > 2 * V * E * 4 // 32  # logits alone are more
        assert sectors(512, 128) - chunk < V * E * 4 // 32
        assert sectors(512, 129) - chunk > 2 * V * E * 4 // 32  # a second chunk, of one row


@pytest.mark.parametrize("value", [-1, 5, 2**40])
def test_a_target_outside_of_the_vocabulary_makes_the_loss_nan(simt: Simt, value: int) -> None:
    """What a GPU does, where the values of a tensor cannot be looked at beforehand; here it reads nothing."""
    module, hidden, weight = simt.module, torch.randn(3, 8), torch.randn(5, 8)
    simt.configure(SCHEDULES[0])
    workspace = torch.empty(module.linear_cross_entropy_workspace(3, 8, 5, 4, 1))
    loss, grad_hidden, grad_weight = torch.empty(3), torch.empty(3, 8), torch.empty(5, 8)
    simt.linear_cross_entropy(
        hidden, weight, torch.tensor([1, value, 4]), torch.ones(3), loss, grad_hidden, grad_weight, workspace,
        0.0, 0, 1,
    )  # fmt: skip
    assert loss.isnan().tolist() == [False, True, False]
    assert grad_hidden.isnan().all(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_memory_accesses(simt: Simt, dtype: torch.dtype) -> None:
    """No bank conflicts, and whole sectors but for a few numbers a row."""
    x = Inputs(128, 64, 512, dtype, rows=1.0)
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    with simt.in_place_of_C():
        x.gradients()
    cost, ideal = access_costs(simt)
    assert cost["shared"] == ideal["shared"] > 0
    assert ideal["global"] <= cost["global"] <= 1.05 * ideal["global"]


@pytest.mark.parametrize(("rows", "vocab"), [(4096, 30592), (16384, 50257), (32768, 131072)])
def test_scratch_is_a_quarter_of_the_logits_and_their_gradient(simt: Simt, rows: int, vocab: int) -> None:
    numbers = simt.module.linear_cross_entropy_workspace(rows, 768, vocab, 2, 1)
    assert numbers <= 2 * rows * vocab / 4
