from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from glm_ext import ops
from glm_ext.ops import reference
from glm_ext.ops.philox import attention_keep_mask

from .tolerance import DTYPES, check_op

# B, H, Hkv, S, T, D, prefix_len, seq_len, start
Case = tuple[int, int, int, int, int, int, Any, Any, Any]
CASES: list[Case] = [
    (1, 1, 1, 1, 1, 1, 0, None, None),
    (1, 1, 1, 4, 4, 16, 2, None, None),
    (2, 3, 3, 7, 7, 8, 7, None, None),
    (2, 4, 2, 70, 70, 64, [30, 1], [65, 70], [3, 0]),
    (1, 2, 1, 131, 131, 17, 1, None, None),
    (1, 2, 2, 300, 300, 40, 100, 290, 70),
    (3, 1, 1, 33, 33, 24, [0, 33, 5], [0, 33, 12], [0, 0, 12]),  # no key, all, an empty interval
    (1, 1, 1, 530, 530, 32, 500, None, None),  # several forward items and key blocks
    (1, 1, 1, 700, 700, 16, 0, None, None),
    (2, 4, 1, 40, 130, 128, [64, 0], [120, 7], [0, 2]),  # S < T, and a cache shorter than the rows
    (1, 2, 2, 5, 3, 256, 2, None, None),  # S > T
    (2, 6, 3, 1, 700, 64, [0, 300], [700, 513], [0, 5]),  # decoding
    (1, 2, 1, 3, 90, 20, 10, 60, 7),
    (1, 7, 1, 2, 150, 72, 9, None, None),  # decoding: 7 heads of a group are taken as 4 + 2 + 1
    (2, 6, 1, 3, 70, 128, 9, [70, 64], None),
    (1, 1, 1, 2, 600, 8, 0, 40, None),
    (0, 2, 2, 8, 8, 16, 4, None, None),
    (2, 2, 2, 0, 8, 16, 4, None, None),
    (2, 2, 2, 8, 0, 16, 0, None, None),
]


def make(case: Case, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Any], Any]:
    """query, key, value; prefix_len and seq_len; start."""
    B, H, kv_heads, S, T, D, *lengths = case
    torch.manual_seed(0)
    tensors = [torch.randn(B, S, H, D).to(dtype).transpose(1, 2)]
    tensors += [torch.randn(B, T, kv_heads, D).to(dtype).transpose(1, 2) for _ in range(2)]
    prefix, length, start = (torch.tensor(x) if isinstance(x, list) else x for x in lengths)
    return tensors, [prefix, length], start


@pytest.fixture
def nan_filled() -> Iterator[None]:
    """torch.empty gives NaN, so that a missing write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(dtype: torch.dtype, case: Case, dropout_p: float) -> None:
    tensors, lengths, start = make(case, dtype)
    check_op(
        ops.span_attention, reference.span_attention, tensors, *lengths,
        start=start, dropout_p=dropout_p, return_lse=True,
    )  # fmt: skip


@pytest.mark.parametrize("scale", [0.0, -0.3, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scale(dtype: torch.dtype, scale: float) -> None:
    tensors, lengths, start = make(CASES[3], dtype)
    check_op(ops.span_attention, reference.span_attention, tensors, *lengths, start=start, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_projection_is_read_in_place(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    packed = torch.randn(2, 50, 3, 2, 64).to(dtype)
    query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
    assert query.data_ptr() == packed.data_ptr() and not query.is_contiguous()
    check_op(ops.span_attention, reference.span_attention, [query, key, value], 20)


@pytest.mark.parametrize("T", [63, 64, 200])
def test_dropout_keeps_what_the_reference_keeps(T: int) -> None:
    """With value = 1 at one key a column, an output is 0 exactly where the probability was dropped."""
    B, H, p = 2, 3, 0.3
    query, key = torch.randn(2, B, H, T, T)
    value = torch.eye(T).expand(B, H, T, T).contiguous()
    torch.manual_seed(7)
    seed = int(torch.randint(0, 2**63 - 1, ()))
    torch.manual_seed(7)
    out = ops.span_attention(query, key, value, T, dropout_p=p)
    assert torch.equal(out != 0, attention_keep_mask(seed, p, B, H, T, T))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padding_is_not_read(dtype: torch.dtype, nan_filled: None) -> None:
    B, H, S, D = 2, 2, 90, 16
    length, start = torch.tensor([70, 41]), torch.tensor([5, 33])
    torch.manual_seed(0)
    query, key, value = torch.randn(3, B, H, S, D).to(dtype)
    row = torch.arange(S)
    dead = row < start[:, None]  # prefix 0: rows before `start` see nothing
    unseen = dead | (row >= length[:, None])
    poison = [
        torch.where(mask[:, None, :, None], torch.nan, x)
        for mask, x in ((dead, query), (unseen, key), (unseen, value))
    ]
    leaves = [x.requires_grad_() for x in poison]
    out, lse = ops.span_attention(*leaves, 0, length, start=start, return_lse=True)
    grad_out = torch.where(dead[:, None, :, None], torch.nan, torch.randn(B, H, S, D)).to(dtype)
    grads = torch.autograd.grad((out, lse), leaves, (grad_out, torch.randn(B, H, S)))
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads)
    assert (out.transpose(1, 2)[dead] == 0).all() and torch.equal(
        lse == -torch.inf, dead[:, None].expand(B, H, S)
    )
    for grad, mask in zip(grads, (dead, unseen, unseen), strict=True):
        assert (grad.transpose(1, 2)[mask] == 0).all()


@pytest.mark.parametrize("S", [4, 40, 300])
def test_nan_and_infinity_propagate(S: int) -> None:
    query, key, value = torch.randn(3, 1, 1, S, 16)
    for bad in (torch.nan, torch.inf):
        poisoned = key.clone()
        poisoned[0, 0, S // 2, 3] = bad
        out = ops.span_attention(query, poisoned, value, S)
        expected = reference.span_attention(query, poisoned, value, S)
        assert isinstance(out, Tensor) and isinstance(expected, Tensor)
        assert torch.equal(out.isnan(), expected.isnan()) and out.isnan().any()


def test_large_scores_do_not_overflow() -> None:
    query, key, value = (t.requires_grad_() for t in make(CASES[5])[0])
    out = ops.span_attention(3000 * query, 3000 * key, value, 100)
    assert isinstance(out, Tensor) and out.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (query, key, value)))


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("case", [CASES[1], CASES[9], CASES[12]], ids=str)
def test_gradcheck(case: Case, dropout_p: float) -> None:
    B, H, kv_heads, S, T, _, *_ = case
    small: Case = (B, H, kv_heads, min(S, 6), min(T, 9), 5, 3, None, None)
    tensors, lengths, _ = make(small, torch.float64)

    def function(*inputs: Tensor) -> Any:
        torch.manual_seed(3)
        return ops.span_attention(*inputs, *lengths, dropout_p=dropout_p, return_lse=True)

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in tensors])


@pytest.mark.parametrize("shape", [(2, 12, 200, 64), (1, 1, 700, 32), (1, 2, 1, 64)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_for_every_thread_count(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    B, H, S, D = shape
    torch.manual_seed(0)
    query = torch.randn(B, H, S, D, dtype=dtype, requires_grad=True)
    key, value = (torch.randn(B, H, max(S, 650), D, dtype=dtype, requires_grad=True) for _ in range(2))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        out = ops.span_attention(query, key, value, 100, dropout_p=0.1 if S > 1 else 0.0)
        results.append((out, *torch.autograd.grad(out.square().sum(), (query, key, value))))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_row_does_not_depend_on_the_others() -> None:
    """Decoding row by row gives what one pass over all rows gives."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 150, 32)
    whole = ops.span_attention(query, key, value, 40)
    for length in (41, 100, 150):
        last = ops.span_attention(query[:, :, length - 1 : length], key, value, 40, length)
        torch.testing.assert_close(last, whole[:, :, length - 1 : length])


def test_lengths_are_ints_or_tensors_of_either_kind() -> None:
    tensors, _, _ = make(CASES[5])
    expected = ops.span_attention(*tensors, 100, 290, start=70)
    of_numpy = [np.int64(100), np.int32(290)]
    assert torch.equal(ops.span_attention(*tensors, *of_numpy, start=np.uint8(70)), expected)
    for dtype in (torch.int32, torch.int64):
        lengths = [torch.tensor([x], dtype=dtype) for x in (100, 290, 70)]
        assert torch.equal(ops.span_attention(*tensors, lengths[0], lengths[1], start=lengths[2]), expected)


def test_heads_join_without_a_copy() -> None:
    tensors, _, _ = make(CASES[3])
    out = ops.span_attention(*[t.requires_grad_() for t in tensors], 1)
    assert isinstance(out, Tensor) and out.transpose(1, 2).is_contiguous()
    assert all(g.transpose(1, 2).is_contiguous() for g in torch.autograd.grad(out.sum(), tensors))


Q = torch.zeros(2, 4, 8, 16)


@pytest.mark.parametrize(
    ("error", "name", "arguments", "options"),
    [
        (TypeError, "query", (Q.int(), Q, Q, 1), {}),
        (TypeError, "query", ([1.0], Q, Q, 1), {}),
        (TypeError, "key", (Q, Q.half(), Q, 1), {}),
        (TypeError, "value", (Q, Q, Q.double(), 1), {}),
        (ValueError, "query", (Q[0], Q, Q, 1), {}),
        (ValueError, "value", (Q, Q, Q[0], 1), {}),
        (ValueError, "key", (Q, Q[:1], Q[:1], 1), {}),
        (ValueError, "key", (Q, Q[:, :3], Q[:, :3], 1), {}),
        (ValueError, "key", (Q, Q[:, :0], Q[:, :0], 1), {}),
        (ValueError, "key", (Q, Q[..., :8], Q[..., :8], 1), {}),
        (ValueError, "value", (Q, Q, Q[:, :, :7], 1), {}),
        (ValueError, "query", (Q.new_zeros(2, 4, 8, 257),) * 3 + (1,), {}),
        (ValueError, "query", (Q.new_zeros(2, 4, 8, 0),) * 3 + (1,), {}),
        (ValueError, "query", (Q.transpose(2, 3),) * 3 + (1,), {}),
        (ValueError, "key", (Q, Q.new_zeros(2, 4, 16, 8).transpose(2, 3), Q, 1), {}),
        (ValueError, "prefix_len", (Q, Q, Q, -1), {}),
        (ValueError, "prefix_len", (Q, Q, Q, 9), {}),
        (ValueError, "prefix_len", (Q, Q, Q, torch.tensor([1, 9])), {}),
        (ValueError, "prefix_len", (Q, Q, Q, torch.tensor([-1, 1])), {}),
        (ValueError, "prefix_len", (Q, Q, Q, torch.tensor([1, 2, 3])), {}),
        (ValueError, "prefix_len", (Q, Q, Q, torch.tensor(1)), {}),
        (ValueError, "prefix_len", (Q, Q, Q, np.int64(9)), {}),
        (TypeError, "prefix_len", (Q, Q, Q, 1.0), {}),
        (TypeError, "prefix_len", (Q, Q, Q, True), {}),
        (TypeError, "prefix_len", (Q, Q, Q, np.True_), {}),
        (TypeError, "prefix_len", (Q, Q, Q, torch.ones(2)), {}),
        (ValueError, "seq_len", (Q, Q, Q, 1, 9), {}),
        (ValueError, "seq_len", (Q, Q, Q, 1, torch.tensor([8, -1])), {}),
        (ValueError, "start", (Q, Q, Q, 1), {"start": torch.tensor([0, 9])}),
        (ValueError, "dropout_p", (Q, Q, Q, 1), {"dropout_p": 1.5}),
    ],
)
def test_bad_arguments_are_named(error: type[Exception], name: str, arguments: Any, options: Any) -> None:
    with pytest.raises(error, match=f"^{name}: expected"):
        ops.span_attention(*arguments, **options)


# -------------------------------------------------------------------------------------------- torch around it


@pytest.mark.any_isa
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_opcheck(dropout_p: float) -> None:
    tensors, _, _ = make(CASES[3])
    seed = torch.tensor(5) if dropout_p else None
    lengths = [torch.tensor([3, 60]), torch.tensor([65, 70]), torch.tensor([3, 0])]
    arguments = [t.requires_grad_() for t in tensors] + lengths + [None, seed, 0.125, dropout_p]
    opcheck(torch.ops.glm_ext.span_attention.default, tuple(arguments))


@pytest.mark.any_isa
def test_compile_and_export_equal_eager() -> None:
    tensors, _, _ = make(CASES[3])

    def function(query: Tensor, key: Tensor, value: Tensor, prefix: Tensor) -> Any:
        out, lse = ops.span_attention(query, key, value, prefix, 70, dropout_p=0.1, return_lse=True)
        return out * 2, lse

    def run(f: Any) -> list[Tensor]:
        torch.manual_seed(2)
        leaves = [t.detach().requires_grad_() for t in tensors]
        out, lse = f(*leaves, torch.tensor([30, 1]))
        return [out, lse, *torch.autograd.grad(out.sum() + lse.sum(), leaves)]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(run(function), run(compiled), strict=True))


@pytest.mark.any_isa
def test_export_keeps_one_node() -> None:
    class Attention(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
            return ops.span_attention(query, key, value, 5)

    tensors = tuple(make(CASES[3])[0])
    program = torch.export.export(Attention(), tensors)
    assert sum("glm_ext.span_attention" in str(node.target) for node in program.graph.nodes) == 1
    assert torch.equal(program.module()(*tensors), ops.span_attention(*tensors, 5))


def test_autocast_runs_in_the_low_dtype() -> None:
    tensors, _, _ = make(CASES[3])
    for dtype in (torch.bfloat16, torch.float16):
        expected = ops.span_attention(*[t.to(dtype) for t in tensors], 5)
        with torch.autocast("cpu", dtype):
            assert torch.equal(ops.span_attention(*tensors, 5), expected)
            registered = torch.ops.glm_ext.span_attention(
                *tensors, torch.tensor([5, 5]), None, None, None, None, 0.125, 0.0
            )
        assert torch.equal(registered[0], expected)


def test_checkpointing_draws_the_same_mask() -> None:
    tensors, _, _ = make(CASES[3])
    results = []
    for checkpointed in (False, True):
        leaves = [t.detach().requires_grad_() for t in tensors]
        torch.manual_seed(4)
        if checkpointed:
            out = torch.utils.checkpoint.checkpoint(
                lambda *x: ops.span_attention(*x, 9, dropout_p=0.5), *leaves, use_reentrant=False
            )
        else:
            out = ops.span_attention(*leaves, 9, dropout_p=0.5)
        results.append([out, *torch.autograd.grad(out.sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_second_derivative_is_refused() -> None:
    leaves = [t.requires_grad_() for t in make(CASES[1])[0]]
    out = ops.span_attention(*leaves, 2)
    (grad,) = torch.autograd.grad(out.sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.sum().backward()
