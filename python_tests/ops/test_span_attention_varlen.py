from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from glm_ext import ops
from glm_ext.ops import reference

from .test_span_attention import nan_filled  # noqa: F401
from .tolerance import DTYPES, check_op

# N, H, Hkv, D, cu_seqlens, prefix_len
Case = tuple[int, int, int, int, list[int], Any]
CASES: list[Case] = [
    (3, 1, 1, 8, [0, 1, 3], [0, 2]),
    (5, 2, 2, 8, [0, 2, 5], [1, 2]),
    (300, 4, 2, 64, [0, 0, 131, 131, 290], [0, 60, 0, 159]),  # empty sequences, rows of none
    (700, 1, 1, 20, [0, 650, 651], [13, 1]),
    (40, 2, 1, 16, [0, 17, 40], 0),
    (9, 2, 2, 16, [0], []),
    (0, 2, 2, 16, [0, 0], [0]),
]


def make(case: Case, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor, Any]:
    N, H, kv_heads, D, bounds, prefix = case
    torch.manual_seed(0)
    packed = torch.randn(N, H + 2 * kv_heads, D).to(dtype)
    tensors = list(packed.split([H, kv_heads, kv_heads], dim=1))
    return (
        tensors,
        torch.tensor(bounds),
        torch.tensor(prefix, dtype=torch.int64) if isinstance(prefix, list) else prefix,
    )


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("case", [c for c in CASES if len(c[4]) > 1], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype: torch.dtype, case: Case, dropout_p: float) -> None:
    tensors, bounds, prefix = make(case, dtype)
    check_op(
        ops.span_attention_varlen, reference.span_attention_varlen, tensors, bounds, prefix,
        dropout_p=dropout_p, return_lse=True,
    )  # fmt: skip


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("case", [CASES[2], CASES[5]], ids=str)
def test_rows_of_no_sequence_are_zero_and_not_read(case: Case) -> None:
    tensors, bounds, prefix = make(case)
    end = int(bounds[-1])
    for tensor in tensors:
        tensor[end:] = torch.nan
    leaves = [t.requires_grad_() for t in tensors]
    out, lse = ops.span_attention_varlen(*leaves, bounds, prefix, return_lse=True)
    grads = torch.autograd.grad(
        out, leaves, torch.full_like(out, torch.nan).index_fill(0, torch.arange(end), 1.0)
    )
    assert (out[end:] == 0).all() and (lse[:, end:] == -torch.inf).all()
    assert all((g[end:] == 0).all() and g.isfinite().all() for g in grads)


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_equals_a_padded_batch(dropout_p: float) -> None:
    """To the bit, dropout included: the mask counts rows and columns within the sequence."""
    torch.manual_seed(0)
    lengths, prefix = [70, 128, 33], torch.tensor([20, 128, 1])
    padded = torch.randn(3, 3, 128, 4, 32)  # query, key, value of [B, S, H, D]
    packed = [torch.cat([x[b, :n] for b, n in enumerate(lengths)]) for x in padded]
    torch.manual_seed(1)
    dense = ops.span_attention(
        *(x.transpose(1, 2) for x in padded), prefix, torch.tensor(lengths), dropout_p=dropout_p
    )
    torch.manual_seed(1)
    out = ops.span_attention_varlen(*packed, torch.tensor([0, 70, 198, 231]), prefix, dropout_p=dropout_p)
    assert isinstance(dense, Tensor)
    assert torch.equal(out, torch.cat([dense[b, :, :n].transpose(0, 1) for b, n in enumerate(lengths)]))


def test_same_bits_for_every_thread_count() -> None:
    tensors, bounds, prefix = make(CASES[3])
    before, results = torch.get_num_threads(), []
    leaves = [t.detach().requires_grad_() for t in tensors]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = ops.span_attention_varlen(*leaves, bounds, prefix)
        results.append((out, *torch.autograd.grad(out.sum(), leaves)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


X = torch.zeros(9, 2, 8)
BOUNDS = torch.tensor([0, 4, 9])


@pytest.mark.parametrize(
    ("error", "name", "arguments"),
    [
        (TypeError, "query", (X.int(), X, X, BOUNDS, 1)),
        (ValueError, "query", (X[None], X, X, BOUNDS, 1)),
        (ValueError, "key", (X, X[:8], X[:8], BOUNDS, 1)),
        (ValueError, "key", (X[:, :1], X, X, BOUNDS, 1)),
        (TypeError, "cu_seqlens", (X, X, X, [0, 4, 9], 1)),
        (TypeError, "cu_seqlens", (X, X, X, BOUNDS.float(), 1)),
        (ValueError, "cu_seqlens", (X, X, X, BOUNDS[None], 1)),
        (ValueError, "cu_seqlens", (X, X, X, torch.tensor([1, 9]), 1)),
        (ValueError, "cu_seqlens", (X, X, X, torch.tensor([0, 10]), 1)),
        (ValueError, "cu_seqlens", (X, X, X, torch.tensor([0, 6, 4]), 1)),
        (ValueError, "prefix_len", (X, X, X, BOUNDS, 5)),
        (ValueError, "prefix_len", (X, X, X, BOUNDS, torch.tensor([5, 1]))),
        (ValueError, "prefix_len", (X, X, X, BOUNDS, torch.tensor([1]))),
        (ValueError, "prefix_len", (X, X, X, BOUNDS, -1)),
    ],
)
def test_bad_arguments_are_named(error: type[Exception], name: str, arguments: Any) -> None:
    with pytest.raises(error, match=f"^{name}: expected"):
        ops.span_attention_varlen(*arguments)


@pytest.mark.any_isa
def test_compile_equals_eager() -> None:
    tensors, bounds, prefix = make(CASES[2])

    def run(f: Any) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = f(*leaves, bounds, prefix)
        return [out, *torch.autograd.grad(out.sum(), leaves)]

    compiled = torch.compile(ops.span_attention_varlen, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(run(ops.span_attention_varlen), run(compiled), strict=True))
