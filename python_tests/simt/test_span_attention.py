"""span_attention and span_attention_varlen on their CUDA kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from glm_ext import ops
from glm_ext.ops import reference

from ..ops.tolerance import check_op
from .backend import SCHEDULES, Simt, assert_same_bits
from .checks import GPU_DTYPES, excesses, forward_and_backward, same_under

# B, H, Hkv, S, T, D and prefix_len, seq_len, start of each sequence
Case = tuple[tuple[int, int, int, int, int, int], list[int], list[int] | None, list[int] | None]
CASES: list[Case] = [
    ((1, 1, 1, 1, 1, 64), [0], None, None),
    ((2, 1, 1, 5, 5, 64), [0, 5], None, None),
    ((1, 2, 1, 67, 67, 64), [31], None, None),
    ((1, 1, 1, 130, 130, 64), [70], [128], None),
    ((2, 1, 1, 70, 70, 64), [65, 0], [69, 0], [3, 0]),  # left and right padding; a sequence of length 0
    ((1, 1, 1, 130, 130, 64), [130], None, [67]),  # the first tile of keys is never read
    ((1, 3, 1, 4, 133, 64), [40], [131], None),  # decoding: the rows are the last places
    ((1, 1, 1, 66, 66, 128), [20], None, None),
    ((1, 2, 2, 40, 40, 40), [7], None, None),  # padded to 64
    ((1, 1, 1, 66, 66, 104), [66], [65], None),  # padded to 128
    ((1, 1, 1, 65, 65, 256), [3], None, None),
    ((1, 2, 1, 131, 131, 64), [1], [130], [2]),  # primes; heads of a group add to one key head
    ((1, 4, 2, 3, 1030, 64), [400], [1027], None),  # decoding: the keys are split over blocks
    ((2, 1, 1, 1, 600, 24), [0, 10], [0, 590], [0, 580]),  # some splits see nothing, or all
]


def make_inputs(case: Case, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    (B, H, Hkv, S, T, D), prefix_len, seq_len, start = case
    torch.manual_seed(0)
    # one packed projection [B, S, heads, D], read in place
    q = torch.randn(B, S, H, D).to(dtype).transpose(1, 2)
    k, v = torch.randn(2, B, T, Hkv, D).to(dtype).transpose(2, 3)
    for b in range(B):  # keys that nobody may see
        k[b, :, (seq_len or [T] * B)[b] :] = v[b, :, (seq_len or [T] * B)[b] :] = float("nan")
        k[b, :, : (start or [0] * B)[b]] = v[b, :, : (start or [0] * B)[b]] = float("nan")
    options = {} if start is None else {"start": torch.tensor(start)}
    lengths = None if seq_len is None else torch.tensor(seq_len)
    return [q, k, v, torch.tensor(prefix_len), *([lengths] if lengths is not None else [])], options


def check(simt: Simt, case: Case, dtype: torch.dtype, **kwargs: Any) -> None:
    inputs, options = make_inputs(case, dtype)
    with simt.in_place_of_C():
        check_op(ops.span_attention, reference.span_attention, inputs, return_lse=True, **options, **kwargs)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c[0]))
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_matches_reference(simt: Simt, dtype: torch.dtype, case: Case, dropout_p: float) -> None:
    simt.configure(SCHEDULES[0])
    check(simt, case, dtype, dropout_p=dropout_p)


@pytest.mark.parametrize(
    "case", [CASES[2], CASES[4], CASES[7], CASES[10], CASES[12]], ids=lambda c: str(c[0])
)
def test_same_bits_under_every_schedule(simt: Simt, case: Case) -> None:
    check_schedules(simt, case, torch.float32 if case[0][-1] == 256 else torch.bfloat16)


def check_schedules(simt: Simt, case: Case, dtype: torch.dtype) -> None:
    inputs, options = make_inputs(case, dtype)
    with simt.in_place_of_C():
        same_under(
            simt,
            SCHEDULES,
            lambda: forward_and_backward(
                ops.span_attention, inputs, dropout_p=0.1, return_lse=True, **options
            ),
        )


PACKED: list[tuple[list[int], list[int]]] = [  # cu_seqlens, prefix_len
    ([0, 5, 5, 70], [3, 0, 64]),  # a sequence of length 0
    ([0, 1, 66, 131], [1, 0, 65]),
    ([0, 30, 64], [30, 10]),  # rows behind the last sequence see nothing
    ([0, 7, 90, 90, 131], [7, 70, 0, 0]),
]


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(("cu_seqlens", "prefix_len"), PACKED, ids=str)
def test_packed_matches_reference(
    simt: Simt, cu_seqlens: list[int], prefix_len: list[int], dropout_p: float
) -> None:
    simt.configure(SCHEDULES[0])
    check_packed(simt, cu_seqlens, prefix_len, 64, dropout_p)


def check_packed(
    simt: Simt,
    cu_seqlens: list[int],
    prefix_len: list[int],
    head_dim: int,
    dropout_p: float,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    torch.manual_seed(0)
    q = torch.randn(131, 2, head_dim).to(dtype)
    k, v = torch.randn(2, 131, 1, head_dim).to(dtype)
    k[cu_seqlens[-1] :] = v[cu_seqlens[-1] :] = float("nan")
    with simt.in_place_of_C():
        check_op(
            ops.span_attention_varlen,
            reference.span_attention_varlen,
            [q, k, v, torch.tensor(cu_seqlens), torch.tensor(prefix_len)],
            dropout_p=dropout_p,
            return_lse=True,
        )


LENGTHS: list[tuple[dict[str, int], dict[str, int]]] = [  # out of range, and what that is taken for; T = 64
    ({"prefix_len": 10**12}, {"prefix_len": 64}),
    ({"prefix_len": -3}, {"prefix_len": 0}),
    ({"prefix_len": 40, "seq_len": 100}, {"prefix_len": 40, "seq_len": 64}),
    ({"prefix_len": 40, "seq_len": -(2**40)}, {"prefix_len": 40, "seq_len": 0}),
    ({"prefix_len": 40, "start": -1}, {"prefix_len": 40, "start": 0}),
    ({"prefix_len": 40, "start": 2**40}, {"prefix_len": 40, "start": 64}),
]


@pytest.mark.parametrize(("wrong", "right"), LENGTHS, ids=str)
def test_lengths_out_of_range_are_clamped(simt: Simt, wrong: dict[str, int], right: dict[str, int]) -> None:
    """Nobody looks at the values on a GPU; an access outside of the call's tensors is an error here."""
    query, key, value = torch.randn(3, 1, 2, 64, 64).bfloat16()
    simt.configure(SCHEDULES[0])

    def run(lengths: dict[str, int]) -> list[Tensor | None]:
        tensors = {name: torch.tensor([n]) for name, n in lengths.items()}
        return forward_and_backward(
            ops.span_attention, [query, key, value], dropout_p=0.1, return_lse=True, **tensors
        )

    with simt.in_place_of_C():
        assert_same_bits(str(wrong), run(right), run(wrong))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("wrong", "right"),
    [([0, 100], [0, 64]), ([-7, 100, 2**40], [0, 64, 64]), ([0, 70, -5], None), ([0, 40, 20], None)],
    ids=str,
)
def test_packed_bounds_out_of_range_are_clamped(
    simt: Simt, wrong: list[int], right: list[int] | None, dtype: torch.dtype
) -> None:
    """Where they fall, rows that two sequences claim may hold either's results, but nothing lies outside."""
    query, key, value = torch.randn(3, 64, 2, 64).to(dtype)
    simt.configure(SCHEDULES[0])

    def run(bounds: list[int]) -> list[Tensor | None]:
        inputs = [query, key, value, torch.tensor(bounds), torch.full((len(bounds) - 1,), 9)]
        return forward_and_backward(ops.span_attention_varlen, inputs, dropout_p=0.1, return_lse=True)

    with simt.in_place_of_C():
        found = run(wrong)
        if right is not None:
            assert_same_bits(str(wrong), run(right), found)


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (1, 1, 1, 8)], ids=str)
@pytest.mark.parametrize("offset", [0, 3])
def test_a_gradient_whose_rows_are_not_aligned(simt: Simt, shape: tuple[int, ...], offset: int) -> None:
    """That of a part of a concatenation, which its caller cannot make contiguous."""
    query, key, value = torch.randn(3, *shape).bfloat16()
    extra = torch.randn(*shape[:-1], 3).bfloat16()
    incoming = torch.randn(*shape[:-1], 11).bfloat16()
    simt.configure(SCHEDULES[0])

    def gradients(part: Callable[[Tensor], Tensor], grad: Tensor) -> list[Tensor | None]:
        leaves = [t.clone().requires_grad_() for t in (query, key, value)]
        out = ops.span_attention(*leaves, 1)
        return list(torch.autograd.grad(part(out), leaves, grad))

    def joined(out: Tensor) -> Tensor:
        return torch.cat([extra[..., :offset], out, extra[..., offset:]], -1)

    with simt.in_place_of_C():
        expected = gradients(lambda out: out, incoming[..., offset : offset + 8].clone())
        assert_same_bits("a part of a concatenation", expected, gradients(joined, incoming))


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_dropout_is_the_cpus(simt: Simt, dtype: torch.dtype) -> None:
    """Values and incoming gradients are unit vectors: out and grad_value hold the probabilities, 0 exactly
    where dropped."""
    q, k = torch.randn(2, 2, 3, 64, 64).to(dtype)
    unit = torch.eye(64).to(dtype).expand(2, 3, 64, 64)

    def dropped() -> tuple[Tensor, Tensor]:
        torch.manual_seed(7)
        v = unit.clone().requires_grad_()
        out = ops.span_attention(q, k, v, 64, dropout_p=0.3)
        return out == 0, torch.autograd.grad(out, v, unit)[0].mT == 0

    on_cpu = dropped()
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        on_gpu = dropped()
    assert torch.equal(on_cpu[0], on_gpu[0])
    assert torch.equal(on_cpu[1], on_gpu[1])
    assert torch.equal(on_gpu[0], on_gpu[1])
    assert 0.25 < on_gpu[0].float().mean() < 0.35


def test_one_key_passes_unchanged(simt: Simt) -> None:
    """A row that sees one key gives its value to the last bit, and no gradient of scores."""
    S = 70
    torch.manual_seed(0)
    query, key, value = (10.0 * torch.randn(3, 1, 1, S, 64)).requires_grad_().unbind(0)
    simt.configure(SCHEDULES[0])
    with simt.in_place_of_C():
        out = ops.span_attention(query, key, value, 0, start=S - 1)
        grads = torch.autograd.grad(out, (query, key, value), torch.randn(1, 1, S, 64))
    assert torch.equal(out[..., -1, :], value[..., -1, :])
    assert not grads[0].any() and not grads[1].any()


@pytest.mark.parametrize(
    ("dtype", "hopper"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)], ids=str
)
def test_what_padding_holds_reaches_nothing(simt: Simt, dtype: torch.dtype, hopper: bool) -> None:
    """NaN in rows that see nothing, in their incoming gradients, and in keys that nobody sees."""
    S, length, start = 90, 70, 33
    torch.manual_seed(0)
    q, k, v, grad = torch.randn(4, 1, 2, S, 16).to(dtype)
    row = torch.arange(S)
    dead, unseen = row < start, (row < start) | (row >= length)

    def run(hole: float) -> list[Tensor]:
        poisoned = [
            torch.where(m[:, None], hole, x) for m, x in ((dead, q), (unseen, k), (unseen, v), (dead, grad))
        ]
        leaves = [x.requires_grad_() for x in poisoned[:3]]
        out = ops.span_attention(*leaves, 0, length, start=start)
        return [out.detach(), *torch.autograd.grad(out, leaves, poisoned[3])]

    simt.configure(SCHEDULES[0], hopper=hopper)
    with simt.in_place_of_C():
        clean, poisoned = run(0.0), run(float("nan"))
    assert_same_bits("NaN in padding", clean, poisoned)
    assert all(x.isfinite().all() for x in poisoned)
    assert (poisoned[2][:, :, unseen] == 0).all()


@pytest.mark.parametrize(("head_dim", "dropout_p"), [(64, 0.0), (64, 0.1), (128, 0.1), (256, 0.1)])
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
def test_memory_accesses(simt: Simt, dtype: torch.dtype, head_dim: int, dropout_p: float) -> None:
    """No bank conflicts and whole sectors, forward and backward, but for two accesses, which cost double.

    What delta is computed from comes 4 bytes a lane, half a sector of a row at a time. Pairs of floats on the
    way out are 8 bytes, of which two rows meet in a bank.
    """
    inputs, _ = make_inputs(((1, 1, 1, 128, 128, head_dim), [40], None, None), dtype)
    simt.configure(SCHEDULES[0], count_accesses=True)
    simt.module.take_counts()
    with simt.in_place_of_C():
        forward_and_backward(ops.span_attention, inputs, dropout_p=dropout_p, return_lse=True)
    files, found = excesses(simt)
    assert files >= {"forward.cuh", "backward.cu", "panel.cuh", "tile.cuh", "product.cuh"}
    expected = {("global", "backward.cu", 2.0)}
    if dtype == torch.float32:
        expected.add(("shared", "tile.cuh", 2.0))
    assert found == expected


@pytest.mark.parametrize(
    ("dtype", "head_dim", "message"),
    [
        (torch.float64, 64, "bfloat16 or float16 on a GPU"),
        (torch.bfloat16, 36, "multiple of 8"),
        (torch.float32, 33, "multiple of 4"),
        (torch.float16, 264, "256"),
    ],
    ids=str,
)
def test_what_the_kernel_does_not_do_is_refused(
    simt: Simt, dtype: torch.dtype, head_dim: int, message: str
) -> None:
    q = torch.randn(1, 1, 3, head_dim).to(dtype)
    with simt.in_place_of_C(), pytest.raises(ValueError, match=message):
        ops.span_attention(q, q, q, 2)
