from __future__ import annotations

import pytest
import torch

from glm_ext import ops

from .tolerance import DTYPES


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 37, 3, 5), (3, 130, 2, 64)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_as_span_attention(
    dtype: torch.dtype, sizes: tuple[int, int, int, int], dropout_p: float
) -> None:
    B, S, H, D = sizes
    torch.manual_seed(0)
    qkv = torch.randn(B, S, 3, H, D).to(dtype).requires_grad_()
    options = {"start": torch.arange(B) % 2, "dropout_p": dropout_p}
    lengths = torch.randint(0, S + 1, (2, B))
    grad = torch.randn(B, H, S, D).to(dtype)
    torch.manual_seed(1)
    packed = ops.span_attention_qkvpacked(qkv, *lengths, **options)
    torch.manual_seed(1)
    apart = ops.span_attention(*qkv.permute(2, 0, 3, 1, 4), *lengths, **options)
    assert torch.equal(packed, apart)
    assert packed.stride() == apart.stride()
    (ours,), (expected,) = (torch.autograd.grad(out, qkv, grad) for out in (packed, apart))
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_as_span_attention_varlen(dtype: torch.dtype, dropout_p: float) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(131, 3, 2, 24).to(dtype).requires_grad_()
    bounds, prefix_len = torch.tensor([0, 7, 7, 90, 129]), torch.tensor([7, 0, 40, 3])
    grad = torch.randn(131, 2, 24).to(dtype)
    torch.manual_seed(1)
    packed = ops.span_attention_qkvpacked(qkv, prefix_len, cu_seqlens=bounds, dropout_p=dropout_p)
    torch.manual_seed(1)
    apart = ops.span_attention_varlen(*qkv.unbind(1), bounds, prefix_len, dropout_p=dropout_p)
    assert torch.equal(packed, apart)
    (ours,), (expected,) = (torch.autograd.grad(out, qkv, grad) for out in (packed, apart))
    assert torch.equal(ours, expected)


@pytest.mark.any_isa
def test_packed_compiles_into_one_graph() -> None:
    qkv, bounds = torch.randn(9, 3, 2, 8, requires_grad=True), torch.tensor([0, 4, 9])
    prefix_len = torch.tensor([2, 5])
    compiled = torch.compile(ops.span_attention_qkvpacked, fullgraph=True)
    grads = []
    for op in (ops.span_attention_qkvpacked, compiled):
        out = op(qkv, prefix_len, cu_seqlens=bounds)
        grads.append(torch.autograd.grad(out.square().sum(), qkv)[0])
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qkv": [1.0]}, TypeError, "qkv: expected a tensor, got list"),
        (
            {"qkv": torch.ones(2, 5, 3, 8)},
            ValueError,
            r"\(B, S, 3, H, D\), got \[2, 5, 3, 8\]",
        ),
        ({"qkv": torch.ones(2, 5, 2, 4, 8)}, ValueError, r"qkv: expected .*, got \[2, 5, 2, 4, 8\]"),
        ({"qkv": torch.ones(2, 5, 3, 8, 4).mT}, ValueError, r"contiguous last dimension"),
        ({"cu_seqlens": torch.tensor([0, 2])}, ValueError, r"\(N, 3, H, D\), got \[2, 5, 3, 4, 8\]"),
        (
            {"qkv": torch.ones(5, 3, 4, 8), "cu_seqlens": torch.tensor([0, 5]), "seq_len": 3},
            ValueError,
            "seq_len, start: expected None where cu_seqlens",
        ),
        ({"prefix_len": 6}, ValueError, r"prefix_len: expected an int in \[0, 5\], got 6"),
        ({"prefix_len": torch.tensor([1, 6])}, ValueError, r"prefix_len: expected values in \[0, 5\]"),
        ({"seq_len": torch.tensor([1])}, ValueError, r"seq_len: expected shape \[2\]"),
        ({"dropout_p": 1.5}, ValueError, "dropout_p: expected a probability"),
    ],
)
def test_errors(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"qkv": torch.ones(2, 5, 3, 4, 8), "prefix_len": 2, **change}
    with pytest.raises(error, match=message):
        ops.span_attention_qkvpacked(**arguments)
