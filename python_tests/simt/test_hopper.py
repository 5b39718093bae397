"""The kernels of warpgroups (csrc/cuda/wgmma.cuh), which a Hopper GPU runs instead of the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import reference

from ..ops import test_gelu_mlp as mlp
from ..ops import test_linear_cross_entropy as loss
from ..ops.tolerance import check_op
from . import test_span_attention as attention
from .backend import SCHEDULES, Schedule, Simt
from .checks import forward_and_backward, same_under

DTYPES = [torch.bfloat16, torch.float16]
# More than 64 rows, head dims up to 128: others take the kernels of every GPU.
CASES: list[attention.Case] = [
    *(case for case in attention.CASES if case[0][3] > 64 and case[0][5] <= 128),
    ((1, 1, 1, 300, 300, 64), [140], None, None),  # tiles that all rows see whole
    ((1, 2, 1, 265, 300, 128), [100], [290], [3]),
]
PACKED: list[tuple[list[int], list[int]]] = [  # cu_seqlens, prefix_len
    ([0, 131], [64]),
    ([0, 70, 270], [70, 100]),
    ([0, 150, 150, 350], [10, 0, 200]),
]


def warpgroup(
    simt: Simt, name: str, sizes: tuple[int, int, int] = (64, 64, 64), dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor]:
    """csrc/simt/tests/warpgroup.cuh: round(a b^T) c of small whole numbers, found and expected: exact."""
    depth, cols, width = sizes
    rng = torch.Generator().manual_seed(0)
    a, b, c = (
        torch.randint(-2, 3, (n, m), generator=rng).to(dtype)
        for n, m in ((64, depth), (cols, depth), (cols, width))
    )
    out = torch.full((64, width), float("nan"))
    simt.fenced(getattr(simt.module.testing, f"warpgroup_{name}"))(a, b, c, out)
    product = a.float() @ b.float().T
    assert torch.equal(product.to(dtype).float(), product)
    return out, product @ c.float()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(
    ("name", "sizes", "dtype"),
    [
        ("none", (64, 64, 64), torch.bfloat16),
        ("128", (128, 128, 128), torch.bfloat16),
        ("float16", (128, 32, 64), torch.float16),
    ],
)
def test_the_product_of_a_warpgroup(
    simt: Simt, name: str, sizes: tuple[int, int, int], dtype: torch.dtype, schedule: Schedule
) -> None:
    simt.configure(schedule, hopper=True)
    found, expected = warpgroup(simt, name, sizes, dtype)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("early_overwrite", r"race: thread \d+ reads what thread \d+ wrote at warpgroup.cuh"),
        ("not_waited", r"the kernel returns before this wgmma was waited for"),
        ("not_published", r"wgmma reads what thread \d+ wrote at \S+ and has not published"),
    ],
)
def test_a_fault_is_an_error(simt: Simt, fault: str, message: str) -> None:
    simt.configure(Schedule("in_order", deferred=True), hopper=True)
    with pytest.raises(RuntimeError, match=message):
        warpgroup(simt, fault)


@pytest.mark.parametrize("fault", ["early_read", "early_overwrite", "reused_register"])
def test_a_fault_shows_in_results_where_products_come_late(simt: Simt, fault: str) -> None:
    wrong = []
    for schedule in SCHEDULES:
        simt.configure(schedule, hopper=True, check_races=False)
        found, expected = warpgroup(simt, fault)
        if not torch.equal(found, expected):
            wrong.append(schedule)
    assert wrong == [s for s in SCHEDULES if s.deferred]


@pytest.fixture
def warpgroups(simt: Simt) -> Iterator[None]:
    """In an op's test: its kernels are those of warpgroups."""
    simt.module.take_products()
    yield
    assert simt.module.take_products() > 0


@pytest.mark.usefixtures("warpgroups")
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c[0]))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention(simt: Simt, dtype: torch.dtype, case: attention.Case, dropout_p: float) -> None:
    simt.configure(SCHEDULES[0], hopper=True)
    attention.check(simt, case, dtype, dropout_p=dropout_p)


@pytest.mark.usefixtures("warpgroups")
@pytest.mark.parametrize("scale", [-0.2, 0.0, 3.0])
def test_attention_scale(simt: Simt, scale: float) -> None:
    simt.configure(SCHEDULES[0], hopper=True)
    attention.check(simt, CASES[1], torch.bfloat16, scale=scale)


def packed_inputs(cu_seqlens: list[int], prefix_len: list[int]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    total = cu_seqlens[-1] + 3  # rows behind the last sequence see nothing
    query, (key, value) = torch.randn(total, 2, 64).bfloat16(), torch.randn(2, total, 1, 64).bfloat16()
    return [query, key, value, torch.tensor(cu_seqlens), torch.tensor(prefix_len)]


@pytest.mark.usefixtures("warpgroups")
@pytest.mark.parametrize(("cu_seqlens", "prefix_len"), PACKED, ids=str)
def test_packed_attention(simt: Simt, cu_seqlens: list[int], prefix_len: list[int]) -> None:
    simt.configure(SCHEDULES[0], hopper=True)
    with simt.in_place_of_C():
        check_op(
            ops.span_attention_varlen,
            reference.span_attention_varlen,
            packed_inputs(cu_seqlens, prefix_len),
            dropout_p=0.1,
            return_lse=True,
        )


@pytest.mark.usefixtures("warpgroups")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_attention_has_the_same_bits_under_every_schedule(simt: Simt, head_dim: int) -> None:
    """Products that finish when they are waited for among them: nothing reads or writes too early."""
    inputs, _ = attention.make_inputs(((1, 1, 1, 200, 330, head_dim), [150], None, None), torch.bfloat16)
    schedules = [Schedule("in_order"), *(s for s in SCHEDULES if s.deferred)]
    with simt.in_place_of_C():
        same_under(
            simt,
            schedules,
            lambda: forward_and_backward(ops.span_attention, inputs, dropout_p=0.1, return_lse=True),
            hopper=True,
        )


# N, E, F, O: more rows than a tile of every GPU; tiles cut at the ends; more steps than there are stages
MLP = [(131, 48, 136, 24), (300, 72, 136, 264), (270, 408, 328, 16)]


@pytest.mark.usefixtures("warpgroups")
@pytest.mark.parametrize("recompute", ["none", "activation"])
@pytest.mark.parametrize("sizes", MLP, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_mlp(simt: Simt, dtype: torch.dtype, sizes: tuple[int, int, int, int], recompute: str) -> None:
    simt.configure(SCHEDULES[0], hopper=True)
    with simt.in_place_of_C():
        check_op(ops.gelu_mlp, reference.gelu_mlp, mlp.make_inputs(*sizes, dtype), recompute=recompute)


LOSSES = [(150, 24, 136), (600, 72, 300)]  # N, E, V


@pytest.mark.usefixtures("warpgroups")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", LOSSES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_cross_entropy(
    simt: Simt, dtype: torch.dtype, shape: tuple[int, int, int], reduction: str
) -> None:
    x = loss.Inputs(*shape, dtype)
    kwargs = {"label_smoothing": 0.1, "reduction": reduction}
    simt.configure(SCHEDULES[0], hopper=True)
    with simt.in_place_of_C():
        check_op(
            loss.with_targets(ops.linear_cross_entropy, x, x.mask, **kwargs),
            loss.with_targets(reference.linear_cross_entropy, x, x.mask, **kwargs),
            [x.hidden, x.weight],
        )


@pytest.mark.usefixtures("warpgroups")
def test_gelu_mlp_has_the_same_bits_under_every_schedule(simt: Simt) -> None:
    inputs = mlp.make_inputs(*MLP[2], torch.bfloat16)
    schedules = [Schedule("in_order"), *(s for s in SCHEDULES if s.deferred)]
    with simt.in_place_of_C():
        same_under(simt, schedules, lambda: forward_and_backward(ops.gelu_mlp, inputs), hopper=True)
