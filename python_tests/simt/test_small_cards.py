"""Every op where a block has 99 KB of shared memory, as on sm_86, sm_89 and sm_120."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from glm_ext import ops
from glm_ext.ops import _cuda, reference

from ..ops import test_dropout_add_layer_norm as layer_norm
from ..ops import test_embedding_2d as embedding
from ..ops import test_gelu_mlp as mlp
from ..ops import test_linear_cross_entropy as loss
from ..ops.tolerance import check_op
from . import test_span_attention as attention
from .backend import SCHEDULES, Schedule, Simt
from .checks import GPU_DTYPES, excesses, forward_and_backward, same_under
from .test_span_attention_tiles import long_case

CASES: list[attention.Case] = [
    *(attention.CASES[i] for i in (2, 3, 4, 6, 7, 8, 9, 10, 11)),
    ((1, 2, 1, 131, 131, 128), [1], [130], [2]),
    ((1, 2, 1, 131, 131, 256), [70], [128], [3]),
    ((1, 1, 1, 3, 1030, 256), [400], [1027], None),  # decoding: the keys are split over blocks
]


WAYS = [
    (torch.float32, "default"),
    (torch.float32, "ffma"),
    (torch.bfloat16, "default"),
    (torch.bfloat16, "five_products"),
    (torch.float16, "default"),
]


@pytest.fixture
def way(request: pytest.FixtureRequest, simt: Simt, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "five_products":
        monkeypatch.setattr(_cuda, "five_products", True)
    simt.module.use_ffma(request.param == "ffma")
    yield request.param
    simt.module.use_ffma(False)


def test_long_attention(simt: Simt) -> None:
    """Tiles of 128 rows would leave an SM with one block."""
    simt.configure(SCHEDULES[0], ada=True)
    attention.check(simt, long_case(128), torch.bfloat16, dropout_p=0.1)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c[0]))
@pytest.mark.parametrize(("dtype", "way"), WAYS, ids=str, indirect=["way"])
def test_attention(simt: Simt, dtype: torch.dtype, case: attention.Case) -> None:
    simt.configure(SCHEDULES[0], ada=True)
    if dtype != torch.float32 or case[0][5] <= 128:
        attention.check(simt, case, dtype, dropout_p=0.1)
        return
    inputs, options = attention.make_inputs(case, dtype)
    options |= {"return_lse": True, "dropout_p": 0.1}
    with simt.in_place_of_C():
        check_op(
            without_gradients(ops.span_attention),
            without_gradients(reference.span_attention),
            inputs,
            **options,
        )


def without_gradients(op: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    def forward(query: torch.Tensor, *rest: torch.Tensor, **options: object) -> torch.Tensor:
        with torch.no_grad():
            out, lse = op(query, *rest, **options)
        return torch.cat([out, lse.masked_fill(lse == -torch.inf, 0.0)[..., None]], -1)

    return forward


def test_gradients_that_find_no_room_are_refused(simt: Simt) -> None:
    query = torch.randn(1, 1, 3, 132)
    simt.configure(SCHEDULES[0], ada=True)
    with (
        simt.in_place_of_C(),
        pytest.raises(ValueError, match=r"head dim of at most 128 .*, got 132: .* 99 KB"),
    ):
        forward_and_backward(ops.span_attention, [query, query, query, torch.tensor([2])])


@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("packed", attention.PACKED, ids=str)
def test_packed_attention(simt: Simt, packed: tuple[list[int], list[int]], head_dim: int) -> None:
    simt.configure(Schedule("random", 5, deferred=True), ada=True)
    attention.check_packed(simt, *packed, head_dim, 0.1)


@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    [(torch.bfloat16, 64), (torch.bfloat16, 128), (torch.bfloat16, 256), (torch.float32, 128)],
    ids=str,
)
def test_attention_has_the_same_bits_under_three_schedules(
    simt: Simt, dtype: torch.dtype, head_dim: int
) -> None:
    inputs, options = attention.make_inputs(((1, 2, 1, 70, 90, head_dim), [40], [85], [3]), dtype)
    options |= {"dropout_p": 0.1, "return_lse": True}
    with simt.in_place_of_C():
        same_under(
            simt,
            [SCHEDULES[0], Schedule("skewed"), Schedule("random", 1, deferred=True)],
            lambda: forward_and_backward(ops.span_attention, inputs, **options),
            ada=True,
        )


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_memory_accesses_of_attention(simt: Simt, head_dim: int) -> None:
    """As where there is more shared memory."""
    inputs, _ = attention.make_inputs(((1, 1, 1, 128, 128, head_dim), [40], None, None), torch.bfloat16)
    simt.configure(SCHEDULES[0], count_accesses=True, ada=True)
    simt.module.take_counts()
    with simt.in_place_of_C():
        forward_and_backward(ops.span_attention, inputs, dropout_p=0.1)
    assert excesses(simt)[1] == {("global", "backward.cu", 2.0)}


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_other_ops(simt: Simt, dtype: torch.dtype) -> None:
    x = loss.Inputs(150, 24, 136, dtype)
    simt.configure(SCHEDULES[0], ada=True)
    with simt.in_place_of_C():
        for width in (96, 8192, 16384):
            check_op(
                ops.dropout_add_layer_norm,
                reference.dropout_add_layer_norm,
                layer_norm.make_inputs((3, width), dtype),
                dropout_p=0.1,
            )
        rows = (300, 70, 3)
        tables = embedding.make_tables(rows, 264, dtype)
        check_op(ops.embedding_2d, reference.embedding_2d, [*embedding.make_ids((2, 70), rows), *tables])
        check_op(ops.gelu_mlp, reference.gelu_mlp, mlp.make_inputs(131, 48, 136, 24, dtype))
        check_op(
            loss.with_targets(ops.linear_cross_entropy, x, x.mask),
            loss.with_targets(reference.linear_cross_entropy, x, x.mask),
            [x.hidden, x.weight],
        )
